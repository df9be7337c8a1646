"""What happens to the updates of a model: what the updater's own thread posts to core's queue, and what core says. Values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.update.record import Slot


@dataclass(frozen=True, slots=True)
class Checked:
    """The channel was read: what this device should run, or None where no assignment selects it."""

    model: str
    release: int
    """Of the channel's document."""
    slot: Slot | None
    timestamp: int = 0
    """The version of the trusted timestamp."""
    expires: datetime | None = None
    """When the first of the trusted roles does."""


@dataclass(frozen=True, slots=True)
class CheckFailed:
    """No transport answered, or what came was not signed as it must be."""

    model: str
    reason: str
    is_attack: bool = False
    """What came was wrong, not merely absent."""
    hint: str = ""
    """What to do next, as an imperative sentence without a full stop."""
    needs_operator: bool = False
    """Asking again is pointless until a person has changed something."""


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a download is."""

    model: str
    done_bytes: int
    total_bytes: int
    transport: str


@dataclass(frozen=True, slots=True)
class Staged:
    """Every byte of the candidate is in the store, verified and durable."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """`is_final`: the release itself is bad (a manifest that is no manifest), fetching again is pointless."""

    model: str
    digest: str
    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """The candidate passed its trial; the plan that came of it is stored."""

    model: str
    digest: str
    max_p99_ms: float | None = None
    """The bundle's own gate."""
    max_rss_bytes: int | None = None
    """What the device's profile gives it."""


@dataclass(frozen=True, slots=True)
class TrialRefused:
    """The candidate did not pass: crash, hang, NaN, wrong answers, too slow, too large."""

    model: str
    digest: str
    reason: str


WorkNote = Checked | CheckFailed | FetchProgress | Staged | FetchFailed | Tried | TrialRefused


@dataclass(frozen=True, slots=True)
class Moment:
    """Now: monotonic seconds for delays, wall time for windows."""

    monotonic_s: float
    utc: datetime


@dataclass(frozen=True, slots=True)
class CheckDue:
    """It is time to ask what this device should run."""


@dataclass(frozen=True, slots=True)
class Time:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Switched:
    """The worker runs the slot of the last `Switch`."""


@dataclass(frozen=True, slots=True)
class SwitchFailed:
    """The slot of the last `Switch`, or the active one at a start, cannot run: damaged, or its session failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class RollbackWanted:
    """The operator, on this device."""

    reason: str


@dataclass(frozen=True, slots=True)
class ApplyWanted:
    """The operator, on this device: take the candidate now, whatever the windows say."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the worker of one model is at this moment, once a second, from core's supervision."""

    running_s: float
    """How long the present process has been running with the present bundle."""
    samples: int
    """Of its slowest pipeline that has samples at all, since the switch."""
    crashes: int
    """Exits of the worker that nobody asked for, since the switch."""
    last_failure: str
    invalid_answers: int
    """NaN, wrong shapes and the like, since the switch."""
    p99_ms: float | None
    """Of `infer`."""
    rss_bytes: int | None
    is_stalled: bool = False


CoreNote = CheckDue | Time | Switched | SwitchFailed | RollbackWanted | ApplyWanted | Health
