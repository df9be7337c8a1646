"""What the rules look at: one sample's answer, with its objects named and placed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.events.tracker import Track
from agent.inference.answers import Answer


@dataclass(frozen=True, slots=True)
class TrackedObject:
    """A track with words: its label, and the zones it stands in."""

    track: Track
    label: str
    zones: tuple[str, ...] = ()
    """Where it stands now, in the order of the file."""
    entered: tuple[str, ...] = ()
    """Every zone that it has been in, in the order of its visits."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One sample, understood. `at_s` never goes back, whatever the clocks of the source do; rules count time by it."""

    sample_id: int
    captured_at: datetime
    at_s: float
    answer: Answer
    frame_size: tuple[int, int] | None = None
    """Width and height of the frame; None for a window of a time series."""
    objects: tuple[TrackedObject, ...] = ()
    """Live tracks, sorted by id."""
    gone: tuple[TrackedObject, ...] = ()
    """Tracks that ended with this sample, sorted by id."""
