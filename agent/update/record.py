"""What a device remembers about the updates of one model: values only. `slots.py` keeps them on disk.

A *slot* is a bundle with the release that brought it. `active` runs (or is being switched to or watched); `previous` is the last
confirmed one, the way back; `candidate` is on its way in and has never run. Where `active` is None the operator's own
`bundle:` runs, the *factory* bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal[
    "idle", "checking", "fetching", "staged", "trying", "switching", "probation", "confirmed", "refused", "rolled_back"
]


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


@dataclass(frozen=True, slots=True)
class Denied:
    """A release that failed here. It is not tried again; a newer release number may offer the same bundle."""

    release: int
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One model's update state, whole: it is replaced on disk in one rename before each step is taken."""

    model: str
    state: State = "idle"
    active: Slot | None = None
    is_confirmed: bool = True
    """Whether `active` has passed its probation (the factory bundle always has)."""
    previous: Slot | None = None
    """The last confirmed one before `active`; None: the factory bundle."""
    candidate: Slot | None = None
    denied: tuple[Denied, ...] = ()
    starts: int = 0
    """How often the active one was started inside its probation, by whatever died."""
    probation_s: float = 0.0
    """How long it has been watched, all starts together."""
    probation_samples: int = 0
    reason: str = ""
    """Why the last attempt was refused or rolled back."""
    seen_release: int = 0
    """The channel's newest release that this model has decided about."""
