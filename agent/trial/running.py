"""Core's side of one trial: a child that may take memory, crash or hang, and an outcome whatever it does."""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.childprocess import Child, Message, exit_text
from agent.clock import Clock, SystemClock
from agent.device.plan import Candidate, Measurement, Outcome
from agent.device.profile import Limits
from agent.usage import rss_bytes_of

WATCH_S = 0.05
"""How often memory and the stop event are looked at: a child that allocates 1 GiB/s overshoots by 50 MiB at most."""
STOPPED = "stopped before it was measured"

_measurement: TypeAdapter[Measurement] = TypeAdapter(Measurement)


def run_trial(
    bundle_folder: Path,
    candidate: Candidate,
    limits: Limits,
    stop: threading.Event,
    *,
    clock: Clock | None = None,
    role: str = "trial",
) -> Outcome:
    """Measure one candidate in a child process, within limits.

    A crash, a hang, too much memory, a model that does not load: each is a refusal that says so, with the child's last
    words. Never raises for what the child does, and leaves no child behind.

    Args:
        bundle_folder: A built bundle.
        candidate: What to try.
        limits: Memory and wall time; p99 is the plan's to judge.
        stop: When set, the child is killed and the outcome refused, within a tenth of a second.
        clock: For the time limit.
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
            }
        )
        answer = _watch(child, answers, limits, stop, clock or SystemClock())
    finally:
        child.kill()
    return _outcome(candidate, answer, child)


def _watch(
    child: Child,
    answers: queue.SimpleQueue[Message | int],
    limits: Limits,
    stop: threading.Event,
    clock: Clock,
) -> Message | int | str:
    """Return the child's answer, its exit status, or the reason why it was ended."""
    deadline_s = clock.monotonic() + limits.trial_s
    while True:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=WATCH_S)
        if stop.is_set():
            return STOPPED
        if clock.monotonic() > deadline_s:
            return f"gave no answer within {limits.trial_s:g} s and was killed"
        rss_bytes = rss_bytes_of(child.pid)
        if rss_bytes > limits.memory_mb * 2**20:
            return f"took {rss_bytes / 2**20:.0f} MiB of memory and was killed; the limit is {limits.memory_mb} MiB"


def _outcome(candidate: Candidate, answer: Message | int | str, child: Child) -> Outcome:
    if answer == STOPPED:
        return Outcome(candidate, refusal=STOPPED)
    if isinstance(answer, str):
        return Outcome(candidate, refusal=child.with_last_words(answer))
    if isinstance(answer, int):
        return Outcome(candidate, refusal=child.with_last_words(f"the trial {exit_text(answer)} before it answered"))
    if answer.get("is") == "refused":
        return Outcome(candidate, refusal=str(answer.get("reason", "the trial gave no reason")))
    try:
        return Outcome(candidate, _measurement.validate_python(answer.get("measurement")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return Outcome(candidate, refusal=f"the trial's answer is no measurement: {first['loc']}: {first['msg']}")
