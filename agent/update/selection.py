"""Which assignment of a channel's document is this device's, and when it may be acted upon: pure rules.

A device takes the first assignment that selects it. Windows and `not_before` gate fetching and switching, never asking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from agent.log import brief
from agent.update.documents import Assignment, ChannelDocument
from agent.update.record import Slot

_LATEST = datetime(9000, 1, 1, tzinfo=UTC)
"""A clock may stand anywhere; beyond this, datetime cannot add days."""
_FARTHEST = timedelta(days=366)
_DAYS = 3
"""Windows are daily: what does not open within so many days never does."""


@dataclass(frozen=True, slots=True)
class Device:
    """Who asks."""

    id: str
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether something may happen now."""

    is_open: bool
    reason: str = ""
    """Why not: `not before 2026-11-21 08:00 UTC`, `outside the window 22:00-04:30 UTC`."""
    changes_in_s: float | None = None
    """When it opens or closes, on the wall clock as it stands; None: never."""


def choose(document: ChannelDocument, device: Device) -> Assignment | None:
    """Return the first assignment that selects this device, if any does."""
    return next((each for each in document.assignments if selects(each, device)), None)


def selects(assignment: Assignment, device: Device) -> bool:
    """Return whether a device belongs to the share and the groups of an assignment.

    A device's place in the roll-out is SHA-256(seed + "/" + id) as a share of its range: the same for every release with
    that seed, so raising `percent` only adds devices.
    """
    if assignment.groups and device.groups.isdisjoint(assignment.groups):
        return False
    place = int.from_bytes(hashlib.sha256(f"{assignment.seed}/{device.id}".encode()).digest())
    return place * 100 < assignment.percent << 256


def slot_of(assignment: Assignment) -> Slot:
    """Return what a device remembers of its assignment."""
    return Slot(
        release=assignment.release,
        name=assignment.bundle.name,
        version=assignment.bundle.version,
        digest=assignment.bundle.manifest_sha256,
        pipelines={
            name: overrides.model_dump(mode="json", exclude_none=True)
            for name, overrides in assignment.pipelines.items()
        },
        rollback_reason=brief(assignment.rollback.reason) if assignment.rollback else None,
        not_before=assignment.not_before,
        window=assignment.window,
    )


def gate(not_before: datetime | None, windows: Sequence[str], now: datetime) -> Gate:
    """Return whether all of these let something happen at `now` (aware), and when that changes."""
    now = min(now.astimezone(UTC), _LATEST)
    begin = _as_utc(not_before) if not_before else now
    reason = _closed_because(begin, windows, now)
    base = min(max(begin, now), now + _FARTHEST)
    points = sorted({base, *(point for window in windows for point in _boundaries(window, base))})
    change = next((at for at in points if at > now and bool(_closed_because(begin, windows, at)) != bool(reason)), None)
    return Gate(not reason, reason, (change - now).total_seconds() if change else None)


def _closed_because(begin: datetime, windows: Sequence[str], at: datetime) -> str:
    if at < begin:
        return f"not before {begin:%Y-%m-%d %H:%M} UTC"
    closed = next((window for window in windows if not _is_inside(window, at)), None)
    return f"outside the window {closed} UTC" if closed else ""


def _is_inside(window: str, at: datetime) -> bool:
    start, end = _times(window)
    if start == end:
        return True
    clock = at.time()
    return start <= clock < end if start < end else clock >= start or clock < end


def _boundaries(window: str, base: datetime) -> list[datetime]:
    days = [base.date() + timedelta(days=day) for day in range(_DAYS)]
    return [datetime.combine(day, at, UTC) for day in days for at in _times(window)]


def _times(window: str) -> tuple[time, time]:
    start, end = window.split("-")
    return time.fromisoformat(start), time.fromisoformat(end)


def _as_utc(moment: datetime) -> datetime:
    """Return a moment in UTC; without a zone it is UTC already."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the first or the last day of the calendar, in another zone
        return moment.replace(tzinfo=UTC)
