"""An event: something that a rule saw and that a person or a program may want to know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

Phase = Literal["new", "update", "end"]


@dataclass(frozen=True, slots=True)
class Event:
    """One event as the rules emit it. The outbox adds the id, the device and the sequence number.

    Field names are those of the message (docs/events.md).
    """

    pipeline: str
    type: str
    """What kind of rule spoke: `track`, `detect`, `enter`, `leave`, `dwell`, `count`, `level`, `class`."""
    captured_at: datetime
    """UTC, of the sample that made the rule speak."""
    phase: Phase
    rule: str
    """The rule's name in the operator's file, or the kind's name where the rule is the default one."""
    label: str | None = None
    score: float | None = None
    box: tuple[float, float, float, float] | None = None
    """xyxy in pixels of the frame."""
    box_norm: tuple[float, float, float, float] | None = None
    """xyxy relative to the frame, from 0 to 1."""
    track_id: int | None = None
    zones_current: tuple[str, ...] = ()
    zones_entered: tuple[str, ...] = ()
    frame: dict[str, int] | None = None
    """`id`, `w`, `h` of the frame."""
    value: float | None = None
    """What the rule counted (`count`) or measured: `level` the score, `dwell` the seconds in the zone."""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_message(self) -> dict[str, Any]:
        """Return the event as JSON-ready values for the pipe to core."""
        message = {name: value for name, value in asdict(self).items() if value not in (None, (), {})}
        message["captured_at"] = self.captured_at.isoformat()
        return message
