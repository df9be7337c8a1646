"""What all rules share: the shape of a rule, and how it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.events.event import Event, Phase
from agent.events.observation import Observation, TrackedObject


class Rule(Protocol):
    """One rule of one pipeline. It sees every observation in order, from one thread."""

    def observe(self, observation: Observation) -> list[Event]:
        """Return what the rule has to say about this sample, in an order that depends on nothing but the samples."""
        ...

    def finish(self, last: Observation) -> list[Event]:
        """Return the `end` of everything that was begun: `last` is the end of the source, with every track gone."""
        ...


@dataclass(frozen=True, slots=True)
class Voice:
    """How a rule makes its events: whose pipeline, what kind, under which name."""

    pipeline: str
    kind: str
    rule: str

    def about(
        self, observation: Observation, phase: Phase, seen: TrackedObject, *, value: float | None = None
    ) -> Event:
        """Return an event about one tracked object."""
        track = seen.track
        return Event(
            self.pipeline, self.kind, observation.captured_at, phase, self.rule,
            label=seen.label, score=round(track.score, 4), track_id=track.id, value=value,
            box=round_box(track.xyxy_px), box_norm=relative_box(track.xyxy_px, observation.frame_size),
            zones_current=seen.zones, zones_entered=seen.entered, frame=frame_of(observation),
            extra={"top_score": round(track.top_score, 4)},
        )  # fmt: skip

    def say(
        self,
        observation: Observation,
        phase: Phase,
        *,
        label: str | None = None,
        score: float | None = None,
        value: float | None = None,
        zone: str | None = None,
        extra: dict[str, object] | None = None,
    ) -> Event:
        """Return an event about the sample as a whole; `zone` where the rule watches one."""
        return Event(
            self.pipeline, self.kind, observation.captured_at, phase, self.rule,
            label=label, score=None if score is None else round(score, 4), value=value,
            zones_current=(zone,) if zone else (), frame=frame_of(observation), extra=extra or {},
        )  # fmt: skip


def frame_of(observation: Observation) -> dict[str, int] | None:
    """Return the event's `frame`; None where the sample is no picture."""
    if observation.frame_size is None:
        return None
    width, height = observation.frame_size
    return {"id": observation.sample_id, "w": width, "h": height}


def round_box(xyxy_px: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return the box to a hundredth of a pixel: more digits are noise, and cost bytes on the link."""
    left, top, right, bottom = xyxy_px
    return (round(left, 2), round(top, 2), round(right, 2), round(bottom, 2))


def relative_box(
    xyxy_px: tuple[float, float, float, float], frame_size: tuple[int, int] | None
) -> tuple[float, float, float, float] | None:
    """Return the box relative to the frame, from 0 to 1."""
    if frame_size is None:
        return None
    width, height = frame_size
    left, top, right, bottom = xyxy_px
    return (round(left / width, 5), round(top / height, 5), round(right / width, 5), round(bottom / height, 5))
