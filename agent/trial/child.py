"""One trial, inside its own process: open the candidate, compare golden answers, measure, answer once.

Takes one message `{"is": "trial", "bundle", "candidate", "memory_bytes"}`; gives `{"is": "measured", "measurement"}`
or `{"is": "refused", "reason"}`. The parent sets the time limit and watches memory (`agent.trial.running`). Whatever
native code does here, nobody else feels it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from agent.bundle.reader import Bundle, open_bundle
from agent.childprocess import Message, answer_once
from agent.clock import Clock, SystemClock
from agent.device.plan import Candidate, Measurement
from agent.errors import HoldfastError
from agent.usage import cpu_seconds, fence_memory, peak_rss_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.inference.model import Model

ENOUGH_RUNS = 200
"""With 200 runs, p99 is the third largest: the least for which it is not simply the maximum."""
ENOUGH_S = 1.5
FEWEST_RUNS = 30
WARM_UP_RUNS = 5
MOST_INPUTS = 16
"""Prepared inputs kept for the benchmark: real content matters, a long list of it only takes memory."""

_candidate: TypeAdapter[Candidate] = TypeAdapter(Candidate)


def main() -> None:
    """Serve one trial and end. A parent that goes away in the middle of it ends this process too."""
    answer_once(answer)


def answer(request: Message) -> Message:
    """Run the trial that `request` asks for and return the message for the parent."""
    try:
        candidate = _candidate.validate_python(request["candidate"])
        fence_memory(int(request["memory_bytes"]))
        measured = measure(open_bundle(Path(request["bundle"]), verify=False), candidate, SystemClock())
    except HoldfastError as error:
        return {"is": "refused", "reason": str(error)}
    except MemoryError:
        return {"is": "refused", "reason": f"needs more than the {request['memory_bytes'] >> 20} MiB it may use"}
    return {"is": "measured", "measurement": asdict(measured)}


def measure(bundle: Bundle, candidate: Candidate, clock: Clock) -> Measurement:
    """Open the model, compare it with the golden answers, and time `infer` on the golden inputs, else on zeros.

    Raises:
        BundleError: the bundle's files are damaged or do not fit together.
        CandidateError: the provider cannot load or run the model, or its outputs are no numbers.
    """
    from agent.inference.model import open_model

    model = open_model(bundle, candidate, clock)
    agreement, inputs = compare(bundle, model, candidate.variant, clock)
    times_ms, cpu_ms = benchmark(model, inputs, clock)
    return Measurement(
        runs=len(times_ms),
        mean_ms=sum(times_ms) / len(times_ms),
        p50_ms=percentile(times_ms, 50),
        p95_ms=percentile(times_ms, 95),
        p99_ms=percentile(times_ms, 99),
        load_ms=model.session.load_ms,
        cpu_ms_per_run=cpu_ms,
        peak_rss_bytes=peak_rss_bytes(),
        nodes=dict(model.session.nodes),
        golden_agreement=agreement,
    )


def compare(bundle: Bundle, model: Model, variant: str, clock: Clock) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the mean agreement with the golden answers (None without any), and prepared inputs for the benchmark."""
    from agent.inference import golden

    manifest = bundle.manifest
    tolerance, threshold = golden.tolerance_for(variant), golden.threshold_of(manifest.decoder)
    total = 0.0
    inputs: list[dict[str, Any]] = []
    model.run_bounds()
    for number, entry in enumerate(manifest.golden):
        sample = golden.read_sample(bundle, entry, number, clock)
        prepared = model.prepare(sample)
        found = model.decode(model.infer(prepared), sample)
        expected = golden.from_json(bundle.read_blob(entry.expected))
        total += golden.agreement(expected, found, tolerance, threshold=threshold)
        inputs += [prepared] if len(inputs) < MOST_INPUTS else []
    if not inputs:
        return None, [model.prepare(golden.blank_sample(manifest.input, clock))]
    return total / len(manifest.golden), inputs


def benchmark(model: Model, inputs: Sequence[dict[str, Any]], clock: Clock) -> tuple[list[float], float]:
    """Time `infer` over and over; return each run's milliseconds, sorted, and the CPU milliseconds of one run."""
    for index in range(WARM_UP_RUNS):
        model.infer(inputs[index % len(inputs)])
    times_ms: list[float] = []
    cpu_before_s, began_s = cpu_seconds(), clock.monotonic()
    while len(times_ms) < ENOUGH_RUNS:
        started_s = clock.monotonic()
        model.infer(inputs[len(times_ms) % len(inputs)])
        ended_s = clock.monotonic()
        times_ms.append((ended_s - started_s) * 1000)
        if ended_s - began_s >= ENOUGH_S and len(times_ms) >= FEWEST_RUNS:
            break
    cpu_ms = (cpu_seconds() - cpu_before_s) * 1000 / len(times_ms)
    return sorted(times_ms), cpu_ms


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of sorted values: one that really occurred, as people expect of a p99."""
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]
