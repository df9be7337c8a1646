"""What a model's state machine wants done, in order. Values."""

from __future__ import annotations

from dataclasses import dataclass

from agent.health.conditions import ClearCondition, SetCondition
from agent.update.record import Record, Slot, State


@dataclass(frozen=True, slots=True)
class Save:
    """Make the record durable."""

    record: Record
    is_required: bool


@dataclass(frozen=True, slots=True)
class Check:
    """Ask what this model should run."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring what the store lacks of a bundle; what came before is kept."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Try:
    """Run the trial of a bundle that is staged."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Cancel:
    """Call off this model's fetch or trial."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Verify a slot and run it; None: the factory bundle. Also the way back."""

    slot: Slot | None


@dataclass(frozen=True, slots=True)
class Collect:
    """Bundles that no record names may go."""


@dataclass(frozen=True, slots=True)
class Log:
    """A row of the history."""

    release: int
    version: str
    before: State
    after: State
    reason: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Say `Time` at this monotonic time, or soon after. Replaces the one before; None: no need."""

    monotonic_s: float | None


Action = Save | Check | Fetch | Try | Cancel | Switch | Collect | SetCondition | ClearCondition | Log | WakeAt
