"""One trial, inside its own process: open the candidate, compare its answers, measure, answer once.

Takes one message `{"is": "trial", "bundle", "candidate", "memory_bytes", …}` with the fields of
`agent.trial.running.Ask`; gives `{"is": "loaded"}` once the model is loaded and compiled, then `{"is": "measured",
"measurement"}`; or at any time `{"is": "refused", "reason", "cause"}`. The parent sets the time limits and watches
memory (`agent.trial.running`). Whatever native code does here, nobody else feels it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from agent.bundle.reader import Bundle, open_bundle
from agent.childprocess import Message, open_parent_link
from agent.clock import Clock, SystemClock
from agent.device.hardware.energy import package_energy_uj, spent_mj
from agent.device.hardware.thermal import thermal_zones
from agent.device.planning.judging import CPU_AGREEMENT
from agent.device.planning.plan import Candidate, Measurement
from agent.errors import CandidateError, HoldfastError
from agent.trial.running import Ask, is_reference
from agent.usage import cpu_seconds, fence_memory, peak_rss_bytes

if TYPE_CHECKING:
    from agent.inference.model import Model
    from agent.trial.comparison import Tensors

FEWEST_RUNS = 30
"""However slow the model is; of a short round, a quarter."""
WARM_UP_RUNS = 5
IDLE_S = 0.3
"""Quiet time before an energy measurement: what the package takes then is not the model's."""

_candidate: TypeAdapter[Candidate] = TypeAdapter(Candidate)
_ask: TypeAdapter[Ask] = TypeAdapter(Ask)
_root = Path("/")


def main() -> None:
    """Serve one trial and end. A parent that goes away in the middle of it ends this process too."""
    link = open_parent_link()
    if (request := next(link.messages(), None)) is not None:
        link.leave_with_parent()
        link.forward_warnings("agent.device")
        link.send(answer(request, loaded=lambda: link.send({"is": "loaded"})))


def answer(request: Message, loaded: Callable[[], None]) -> Message:
    """Run the trial that `request` asks for and return the message for the parent."""
    try:
        candidate = _candidate.validate_python(request["candidate"])
        ask = _ask.validate_python({each.name: request[each.name] for each in fields(Ask)})
        fence_memory(int(request["memory_bytes"]))
        bundle = open_bundle(Path(request["bundle"]), verify=False)
        measured = measure(bundle, candidate, ask, SystemClock(), loaded)
    except HoldfastError as error:
        return {"is": "refused", "reason": str(error)}
    except MemoryError:
        reason = f"needs more than the {request['memory_bytes'] >> 20} MiB it may use"
        return {"is": "refused", "reason": reason, "cause": "memory"}
    return {"is": "measured", "measurement": asdict(measured)}


def measure(
    bundle: Bundle, candidate: Candidate, ask: Ask, clock: Clock, loaded: Callable[[], None] = lambda: None
) -> Measurement:
    """Open the model, compare its answers, and time `infer` on the golden inputs, else on noise.

    Raises:
        BundleError: the bundle's files are damaged or do not fit together.
        CandidateError: the provider cannot load or run the model, or its outputs are no numbers.
    """
    from agent.inference.model import open_model
    from agent.trial.comparison import against_golden, copied, noise_inputs

    model = open_model(bundle, candidate, clock, prepared=ask.prepared, trace=ask.trace)
    model.warm_up()  # some providers compile at the first run
    loaded()
    model.run_bounds()
    agreement, inputs = against_golden(bundle, model, candidate.variant, clock)
    inputs = inputs or noise_inputs(bundle, model, clock)
    cpu_agreement = None if ask.reference is None else _compare_raw(model, candidate, inputs, ask.reference)
    before = copied(model.infer(inputs[0]))
    measured = _timed(model, inputs, ask, clock)
    if not candidate.is_plain_cpu:
        _require_the_same(before, model.infer(inputs[0]), candidate)
    return replace(measured, golden_agreement=agreement, cpu_agreement=cpu_agreement)


def _require_the_same(before: Tensors, after: Tensors, candidate: Candidate) -> None:
    """Refuse what answers right at first only: a device that gets hot, buffers that streams overwrite for each other.

    Raises:
        CandidateError: with how far the outputs for one input agree.
    """
    from agent.trial.comparison import agreement_of

    if (agreement := agreement_of(before, after)) < CPU_AGREEMENT:
        raise CandidateError(
            f"{candidate.label} gives other outputs for the same input after a while: they agree by {agreement:.3f}; at least "
            f"{CPU_AGREEMENT:.3f} is required"
        )


def _compare_raw(model: Model, candidate: Candidate, inputs: Sequence[dict[str, Any]], reference: Path) -> float | None:
    """Write the plain CPU's raw outputs where there are none yet; compare any other candidate's with them."""
    from agent.trial.comparison import against_reference, write_reference

    outputs = [model.infer(each) for each in inputs]
    if is_reference(candidate):
        if not reference.exists():
            with contextlib.suppress(OSError):  # a full disk is no fault of the CPU's: the others are refused for it
                write_reference(reference, outputs)
        return None
    return against_reference(reference, outputs)


def _timed(model: Model, inputs: Sequence[dict[str, Any]], ask: Ask, clock: Clock) -> Measurement:
    session = model.session
    spent = benchmark(model, inputs, ask, clock)
    times_ms = spent.times_ms
    return Measurement(
        runs=len(times_ms),
        mean_ms=sum(times_ms) / len(times_ms),
        p50_ms=percentile(times_ms, 50),
        p95_ms=percentile(times_ms, 95),
        p99_ms=percentile(times_ms, 99),
        load_ms=session.load_ms,
        cpu_ms_per_run=spent.cpu_ms_per_run,
        peak_rss_bytes=peak_rss_bytes(),
        nodes=dict(session.assignment.nodes),
        partitions=dict(session.assignment.partitions),
        runs_per_s=throughput(model, inputs, ask, clock) if ask.streams > 1 else None,
        energy_mj_per_run=spent.energy_mj_per_run,
        celsius=max((zone.celsius for zone in thermal_zones(_root)), default=None),
        time_share=_time_share(model),
        compile_ms=None if session.was_prepared or ask.prepared is None else session.load_ms,
    )


def _time_share(model: Model) -> dict[str, float]:
    """Return the share of the runs' time by provider; empty for a session that is not traced."""
    from agent.trial.trace import read_trace

    path = model.session.end_trace()
    return dict(read_trace(path).share_by_provider) if path else {}


@dataclass(frozen=True, slots=True)
class Spent:
    """What one run took. `times_ms` is sorted."""

    times_ms: list[float]
    cpu_ms_per_run: float
    energy_mj_per_run: float | None


def benchmark(model: Model, inputs: Sequence[dict[str, Any]], ask: Ask, clock: Clock) -> Spent:
    """Time `infer` over and over, one at a time."""
    for index in range(min(WARM_UP_RUNS, ask.runs)):
        model.infer(inputs[index % len(inputs)])
    fewest = max(1, min(FEWEST_RUNS, ask.runs // 4))
    times_ms: list[float] = []
    idle_mw = _idle_mw(clock) if ask.wants_energy else None
    energy_before, cpu_before_s, began_s = package_energy_uj(_root), cpu_seconds(), clock.monotonic()
    while len(times_ms) < ask.runs:
        started_s = clock.monotonic()
        model.infer(inputs[len(times_ms) % len(inputs)])
        ended_s = clock.monotonic()
        times_ms.append((ended_s - started_s) * 1000)
        if ended_s - began_s >= ask.seconds and len(times_ms) >= fewest:
            break
    cpu_ms = (cpu_seconds() - cpu_before_s) * 1000
    took_s, energy_mj = clock.monotonic() - began_s, spent_mj(_root, energy_before, package_energy_uj(_root))
    own_mj = None if idle_mw is None or energy_mj is None else max(0.0, energy_mj - idle_mw * took_s)
    return Spent(sorted(times_ms), cpu_ms / len(times_ms), None if own_mj is None else own_mj / len(times_ms))


def _idle_mw(clock: Clock) -> float | None:
    """Return what the packages take while this process waits, in milliwatts; None where nothing measures it."""
    before, began_s = package_energy_uj(_root), clock.monotonic()
    if not before:
        return None
    clock.wait(threading.Event(), IDLE_S)
    energy_mj = spent_mj(_root, before, package_energy_uj(_root))
    return None if energy_mj is None else energy_mj / (clock.monotonic() - began_s)


def throughput(model: Model, inputs: Sequence[dict[str, Any]], ask: Ask, clock: Clock) -> float:
    """Return the runs a second of `ask.streams` threads that share the session, as pipelines do."""
    began_s = clock.monotonic()

    def stream(number: int) -> int:
        done = 0
        while done == 0 or clock.monotonic() - began_s < ask.seconds:
            model.infer(inputs[(number + done) % len(inputs)])
            done += 1
        return done

    with ThreadPoolExecutor(ask.streams) as pool:
        runs = sum(pool.map(stream, range(ask.streams)))
    return runs / (clock.monotonic() - began_s)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of sorted values: one that really occurred, as people expect of a p99."""
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]
