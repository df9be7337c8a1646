"""What a note means for one model: the word under which `machine.TABLE` has it. Pure."""

from __future__ import annotations

from typing import Final, Literal

from agent.update.notes import (
    ApplyWanted,
    CheckDue,
    Checked,
    CheckFailed,
    CoreNote,
    FetchFailed,
    FetchProgress,
    Health,
    RollbackWanted,
    Staged,
    Switched,
    SwitchFailed,
    Time,
    TrialRefused,
    Tried,
    WorkNote,
)
from agent.update.probation import Watch
from agent.update.record import Record, Slot
from agent.update.settings import ProbationSettings

Word = Literal[
    "check due", "check failed", "assigned nothing", "assigned active", "assigned candidate", "assigned new",
    "progress", "staged", "fetch failed", "release bad", "tried", "trial refused", "switched", "switch failed",
    "watched", "passed", "failed", "rollback", "apply", "time", "late",
]  # fmt: skip
_WORDS: Final[dict[type, Word]] = {
    CheckDue: "check due", CheckFailed: "check failed", FetchProgress: "progress", Staged: "staged",
    FetchFailed: "fetch failed", Tried: "tried", TrialRefused: "trial refused", Switched: "switched",
    SwitchFailed: "switch failed", Health: "watched", RollbackWanted: "rollback", ApplyWanted: "apply", Time: "time",
}  # fmt: skip


def of_note(note: WorkNote | CoreNote, record: Record, watch: Watch, settings: ProbationSettings) -> Word:
    """Return a note's word; `watch` has seen it already where it is a Health."""
    match note:
        case Checked():
            return of_assignment(note.slot, record)[0]
        case Staged() | FetchFailed() | Tried() | TrialRefused() if _is_late(note.digest, record):
            return "late"
        case FetchFailed(is_final=True):
            return "release bad"
        case Health() if record.state == "probation" and watch.failure(record.gates):
            return "failed"
        case Health() if record.state == "probation" and watch.has_passed(settings, record.gates):
            return "passed"
    return _WORDS[type(note)]


def of_assignment(slot: Slot | None, record: Record) -> tuple[Word, str]:
    """Return an assignment's word, and why it is not taken, for people."""
    active = record.active
    if slot is None:
        return "assigned nothing", "no assignment selects this device"
    if denied := next((each for each in record.denied if each.release == slot.release), None):
        return "assigned nothing", f"release {slot.release} is denied here: {denied.reason}"
    if active and slot.release < active.release:
        return "assigned nothing", f"release {slot.release} is older than {active.release}, which runs"
    if slot.runs_like(active):
        return "assigned active", ""
    return "assigned candidate" if slot == record.candidate else "assigned new", ""


def _is_late(digest: str, record: Record) -> bool:
    """Whether a note is about a candidate that is none any more."""
    return record.candidate is None or record.candidate.digest != digest
