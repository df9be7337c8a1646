"""What a device remembers about the updates of one model: values only. `slots.py` keeps them on disk.

A *slot* is a bundle with the release that brought it. `active` runs (or is being switched to or watched); `previous` is the last
confirmed one, the way back; `candidate` is on its way in and has never run. Where `active` is None the operator's own
`bundle:` runs, the *factory* bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

State = Literal[
    "idle", "checking", "fetching", "staged", "trying", "switching", "probation", "confirmed", "refused", "rolled_back"
]


KEPT_DENIALS = 32


@dataclass(frozen=True, slots=True)
class Slot:
    """A bundle, and the release that assigned it to this device."""

    release: int
    name: str
    version: str
    digest: str
    """SHA-256 of manifest.json: the name of its folder in the store."""
    pipelines: Mapping[str, Any] = field(default_factory=dict)
    """Signed overrides of pipelines' settings, as the assignment's document has them."""
    rollback_reason: str | None = None
    """Set where the operator goes back on purpose, by a release."""
    not_before: datetime | None = None
    window: str | None = None
    """The release's own window, UTC: with the operator's it gates fetching and switching."""

    def runs_like(self, other: Slot | None) -> bool:
        """Return whether both make a device do the same: one bundle, one set of overrides."""
        return other is not None and (self.digest, dict(self.pipelines)) == (other.digest, dict(other.pipelines))


@dataclass(frozen=True, slots=True)
class Denied:
    """A release that failed here. It is not tried again; a newer release number may offer the same bundle."""

    release: int
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gates:
    """What a bundle must keep to in its probation. None: no gate."""

    p99_ms: float | None = None
    rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One model's update state, whole: it is replaced on disk in one rename before each step is taken."""

    model: str
    channel: str = ""
    """Whose release numbers these are."""
    state: State = "idle"
    active: Slot | None = None
    is_confirmed: bool = True
    """Whether `active` has passed its probation (the factory bundle always has)."""
    previous: Slot | None = None
    """The last confirmed one before `active`; None: the factory bundle."""
    candidate: Slot | None = None
    denied: tuple[Denied, ...] = ()
    starts: int = 0
    """How often the active one was started inside its probation, or the candidate's trial, by whatever died."""
    probation_s: float = 0.0
    """How long it has been watched, all starts together."""
    probation_samples: int = 0
    gates: Gates = Gates()
    """Of the active one's probation."""
    reason: str = ""
    """Why the last attempt was refused or rolled back."""
    seen_release: int = 0
    """The channel's newest release that this model has decided about."""


def denying(record: Record, slot: Slot, reason: str) -> tuple[Denied, ...]:
    """Return the denied releases with one more; the oldest may go, since release numbers only rise."""
    return (*record.denied, Denied(slot.release, slot.digest, reason))[-KEPT_DENIALS:]


def back_to_previous(record: Record, state: State, reason: str) -> Record:
    """Return the record in which the last confirmed bundle is active again. Whether to deny is the caller's."""
    return replace(
        record, state=state, active=record.previous, is_confirmed=True, previous=None, reason=reason,
        starts=0, probation_s=0.0, probation_samples=0,
    )  # fmt: skip


def following(record: Record, channel: str) -> Record:
    """Return the record for a channel. Of another one what runs stays; what its release numbers meant does not."""
    if record.channel in ("", channel):
        return replace(record, channel=channel)
    is_incoming = record.state in ("fetching", "staged", "trying")
    return replace(
        record,
        channel=channel,
        state="idle" if is_incoming else record.state,
        active=replace(record.active, release=0) if record.active else None,
        previous=replace(record.previous, release=0) if record.previous else None,
        candidate=None,
        denied=(),
        seen_release=0,
    )
