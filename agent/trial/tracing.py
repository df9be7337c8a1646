"""One candidate traced in a trial process: the sums, the symptoms, and the file that Perfetto opens.

A candidate that crashes while it is traced is what one wants to look at most: what it had written until then is kept.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from agent.device.planning.plan import Candidate
from agent.device.profiles.profile import Limits
from agent.errors import CandidateError, StateError
from agent.trial.measuring import temporary_folder
from agent.trial.running import Ask, run_trial
from agent.trial.symptoms import Symptom, symptoms
from agent.trial.trace import Trace, read_trace


@dataclass(frozen=True, slots=True)
class Traced:
    """What a traced trial told."""

    candidate: Candidate
    trace: Trace
    symptoms: tuple[Symptom, ...]
    refusal: str | None
    """Why the trial ended early, where it did; the trace is then of the runs before."""


def trace_candidate(
    bundle_folder: Path, candidate: Candidate, limits: Limits, target: Path, *, stop: threading.Event | None = None
) -> Traced:
    """Trace one candidate and keep its Chrome trace at `target`.

    Raises:
        CandidateError: the candidate left no trace: it could not be opened, or ended before its second run.
        StateError: its trace is damaged, or `target` cannot be written.
    """
    with temporary_folder("holdfast-trace-") as folder:
        ask = Ask(trace=folder / "trace")
        outcome = run_trial(bundle_folder, candidate, limits, stop or threading.Event(), ask=ask)
        written = sorted(folder.glob("trace*"))
        if not written:
            reason = outcome.refusal or "its runtime wrote none"
            raise CandidateError(f"{candidate.label} left no trace: {reason}", hint="trace another with --candidate")
        try:
            trace = read_trace(written[0])
        except StateError as error:
            reason = outcome.refusal or error.message
            raise CandidateError(f"{candidate.label} left no whole trace: {reason}") from error
        keep(written[0], target)
    return Traced(candidate, trace, symptoms(trace, candidate), outcome.refusal)


def keep(written: Path, target: Path) -> None:
    """Copy a trace line by line, so that it is JSON also where the process that wrote it was killed.

    Raises:
        StateError: `target` cannot be written.
    """
    try:
        with written.open("rb") as source, target.open("wb") as sink:
            sink.write(b"[")
            separator = b"\n"
            for line in source:
                event = line.strip().removesuffix(b",")
                if event not in (b"", b"[", b"]") and _is_json(event):
                    sink.write(separator + event)
                    separator = b",\n"
            sink.write(b"\n]\n")
    except OSError as error:
        raise StateError(f"the trace cannot be written: {error.strerror or error}", where=str(target)) from error


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
