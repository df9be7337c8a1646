"""Core's side of one trial: a child that may take memory, crash or hang, and an outcome whatever it does."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.childprocess import Child, Message, exit_text
from agent.clock import Clock, SystemClock
from agent.device.facts import BUILT_IN
from agent.device.planning.plan import Candidate, Cause, Measurement, Outcome
from agent.device.profiles.profile import Limits
from agent.log import brief
from agent.usage import rss_bytes_of

WATCH_S = 0.05
"""How often memory and the stop event are looked at: a child that allocates 1 GiB/s overshoots by 50 MiB at most."""
STOPPED = "stopped before it was measured"

_measurement: TypeAdapter[Measurement] = TypeAdapter(Measurement)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a trial is asked to do, beside loading the model and comparing its golden answers."""

    runs: int = 200
    seconds: float = 1.5
    """The runs end earlier when they take longer than this."""
    streams: int = 1
    """More than one: also runs so many at a time, for as long."""
    wants_energy: bool = False
    """Read the processor's energy counter; takes a quiet moment first, to see what it takes idle."""
    prepared: Path | None = None
    """The folder of the plan's prepared models: compiled there once, read by every later trial and by the worker."""
    reference: Path | None = None
    """A file of raw outputs: the plain CPU writes it, the others compare with it."""
    trace: Path | None = None
    """Where a trace is written, without suffix: the measurement then has the share of time by provider."""

    def to_message(self) -> Message:
        """Return its part of the `trial` message."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def is_reference(candidate: Candidate) -> bool:
    """Return whether raw outputs of this candidate are what the others' are compared with."""
    return candidate.is_plain_cpu and candidate.runtime == BUILT_IN


def run_trial(
    bundle_folder: Path,
    candidate: Candidate,
    limits: Limits,
    stop: threading.Event,
    *,
    ask: Ask | None = None,
    loaded: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
    role: str = "trial",
) -> Outcome:
    """Measure one candidate in a child process, within limits.

    A crash, a hang, too much memory, a model that does not load: each is a refusal that says so, with the child's last
    words. Never raises for what the child does, and leaves no child behind.

    Args:
        bundle_folder: A built bundle.
        candidate: What to try.
        limits: Memory, and wall time for compiling and for the rest; p99 is the plan's to judge.
        stop: When set, the child is killed and the outcome refused, within a tenth of a second.
        ask: What to measure.
        loaded: Called from this thread once the model is loaded (and compiled) and measuring begins.
        clock: For the time limits.
        role: Another child role, for tests.
    """
    answers: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
    # numpy's BLAS would start a thread a core and take memory for each; a trial does no linear algebra of its own.
    child = Child(role, on_message=answers.put, on_exit=answers.put, environment={"OPENBLAS_NUM_THREADS": "1"})
    try:
        child.send(
            {
                "is": "trial",
                "bundle": str(bundle_folder),
                "candidate": asdict(candidate),
                "memory_bytes": limits.memory_mb * 2**20,
                **(ask or Ask()).to_message(),
            }
        )
        answer = _Watch(child, answers, candidate, limits, stop, clock or SystemClock()).until_answer(loaded)
    finally:
        child.kill()
    return answer if isinstance(answer, Outcome) else _outcome(candidate, answer, child)


@dataclass(frozen=True, slots=True)
class _Watch:
    """Looks after one child: two limits of time, one of memory, and the stop event."""

    child: Child
    answers: queue.SimpleQueue[Message | int]
    candidate: Candidate
    limits: Limits
    stop: threading.Event
    clock: Clock

    def until_answer(self, loaded: Callable[[], None]) -> Message | int | Outcome:
        """Return the child's answer, its exit status, or the refusal with which it was ended."""
        answer = self._wait(*self._loading_limit())
        if isinstance(answer, dict) and answer.get("is") == "loaded":
            loaded()
            answer = self._wait(self.limits.trial_s, "gave no answer within")
        return answer

    def _loading_limit(self) -> tuple[float, str]:
        """An accelerator compiles, which may take minutes; the plain CPU does not."""
        if self.candidate.is_plain_cpu:
            return self.limits.trial_s, "gave no answer within"
        return self.limits.compile_s, "was not loaded and compiled within"

    def _wait(self, limit_s: float, too_long: str) -> Message | int | Outcome:
        deadline_s = self.clock.monotonic() + limit_s
        memory_mb = self.limits.memory_mb
        while True:
            with contextlib.suppress(queue.Empty):
                return self.answers.get(timeout=WATCH_S)
            if self.stop.is_set():
                return Outcome(self.candidate, refusal=STOPPED, cause="untried")
            if self.clock.monotonic() > deadline_s:
                return self._refused("failed", f"{too_long} {limit_s:g} s and was killed")
            if (rss_bytes := rss_bytes_of(self.child.pid)) > memory_mb * 2**20:
                took = f"took {rss_bytes / 2**20:.0f} MiB of memory and was killed"
                return self._refused("memory", f"{took}; the limit is {memory_mb} MiB")

    def _refused(self, cause: Cause, text: str) -> Outcome:
        return Outcome(self.candidate, refusal=self.child.with_last_words(text), cause=cause)


def _outcome(candidate: Candidate, answer: Message | int, child: Child) -> Outcome:
    if isinstance(answer, int):
        text = child.with_last_words(f"the trial {exit_text(answer)} before it answered")
        return Outcome(candidate, refusal=text, cause="failed")
    if answer.get("is") == "refused":
        cause: Cause = "memory" if answer.get("cause") == "memory" else "failed"
        return Outcome(candidate, refusal=brief(str(answer.get("reason", "the trial gave no reason"))), cause=cause)
    try:
        return Outcome(candidate, _measurement.validate_python(answer.get("measurement")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        text = f"the trial's answer is no measurement: {first['loc']}: {first['msg']}"
        return Outcome(candidate, refusal=text, cause="failed")
