"""The conditions of one model's updates, in plain words: what happened, what runs, what to do."""

from __future__ import annotations

from agent.health.conditions import ClearCondition, SetCondition
from agent.update.record import Record, Slot

_NEXT = " It is not tried again here: publish a newer release. `holdfast update history` shows the steps."


def disk(model: str, reason: str) -> SetCondition:
    """The record cannot be written, so the next step is not taken."""
    return _failed(model, f"The update waits: {reason} What runs goes on, and the update is tried again by itself.")


def late(model: str, reason: str) -> SetCondition:
    """The bytes do not arrive, again and again."""
    return _failed(
        model,
        f"The update does not arrive: {reason} What came is kept, and it is tried again by itself; check "
        "`update.transports`, and the disk.",
    )


def nothing_left(model: str, reason: str) -> SetCondition:
    """Neither a confirmed bundle nor the factory bundle can run."""
    text = f"Nothing is left to run: {reason} Set `bundle:` of the model, or publish a release."
    return SetCondition(f"update-failed/{model}", "error", text)


def refused(model: str, slot: Slot, reason: str) -> SetCondition:
    """A release did not get as far as running."""
    return _failed(model, f"Release {slot.release} ({slot.name} {slot.version}) is refused: {reason}{_NEXT}")


def rolled_back(record: Record, slot: Slot, reason: str, *, has_factory: bool) -> SetCondition:
    """A release ran and was taken back; `record` is the one after that."""
    runs = _now_runs(record, has_factory=has_factory)
    text = f"Release {slot.release} ({slot.name} {slot.version}) was taken back: {reason} {runs}{_NEXT}"
    return SetCondition(f"rolled-back/{record.model}", "error", text)


def damaged(record: Record, slot: Slot, reason: str, *, has_factory: bool) -> SetCondition:
    """What was confirmed cannot run any more; `record` is the one after that."""
    runs = _now_runs(record, has_factory=has_factory)
    text = (
        f"Release {slot.release} ({slot.name} {slot.version}) is damaged on this device: {reason} {runs} "
        "The release is asked for and fetched again by itself; where this comes again, look at the disk."
    )
    return SetCondition(f"rolled-back/{record.model}", "error", text)


def remembered(record: Record) -> list[SetCondition]:
    """What a restart must say again."""
    reason, name = record.reason, record.model
    if record.state == "refused":
        return [_failed(name, f"The last release is refused: {reason}{_NEXT}")]
    if record.state == "rolled_back":
        return [SetCondition(f"rolled-back/{name}", "error", f"This device went back: {reason}{_NEXT}")]
    return []


def arrives(model: str) -> ClearCondition:
    """Bytes came."""
    return ClearCondition(f"update-failed/{model}")


def settled(model: str) -> list[ClearCondition]:
    """What runs is what is wanted."""
    return [ClearCondition(f"update-failed/{model}"), ClearCondition(f"rolled-back/{model}")]


def _now_runs(record: Record, *, has_factory: bool) -> str:
    now = record.active
    runs = f"{now.name} {now.version}" if now else "the operator's own bundle" if has_factory else "nothing"
    return f"Now runs {runs}."


def _failed(model: str, text: str) -> SetCondition:
    return SetCondition(f"update-failed/{model}", "warning", text)
