"""A scene in numbers: boxes at times, as the pipeline would hand them to a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agent.events.judge import Judge
from agent.inference.answers import Classes, Detections, Score
from agent.sources.sample import Frame, Window

START = datetime(2026, 1, 1, tzinfo=UTC)
Box = tuple[float, float, float, float]


def detections(boxes: Sequence[Box], scores: Sequence[float] = (), class_ids: Sequence[int] = ()) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, dtype=np.float32).reshape(count, 4),
        np.array(scores or [0.9] * count, dtype=np.float32),
        np.array(class_ids or [0] * count, dtype=np.int64),
    )


def classes(class_id: int, score: float = 0.9) -> Classes:
    return Classes(np.array([score], dtype=np.float32), np.array([class_id], dtype=np.int64))


def frame(at_s: float, size: tuple[int, int] = (1000, 1000), number: int = 0) -> Frame:
    pixels = np.broadcast_to(np.zeros(3, dtype=np.uint8), (size[1], size[0], 3))
    return Frame("cam", number, START + timedelta(seconds=at_s), 100 + at_s, pixels)


def window(at_s: float, number: int = 0) -> Window:
    return Window("vib", number, START + timedelta(seconds=at_s), 100 + at_s, np.zeros((4, 1), dtype=np.float32), 10, 0)


class Scene:
    """Feeds one judge, ten samples a second, and keeps what it says."""

    def __init__(self, judge: Judge, step_s: float = 0.1) -> None:
        self.judge = judge
        self.step_s = step_s
        self.at_s = 0.0
        self.events = []

    def show(self, boxes: Sequence[Box], *, frames: int = 1, scores: Sequence[float] = (), class_ids=()) -> list:
        return self.feed(detections(boxes, scores, class_ids), frames=frames)

    def feed(self, answer, *, frames: int = 1) -> list:
        said = []
        for _ in range(frames):
            sample = frame(self.at_s) if isinstance(answer, Detections) else window(self.at_s)
            said += self.judge.judge(self.judge.track(answer, sample))
            self.at_s += self.step_s
        self.events += said
        return said

    def score(self, value: float, *, frames: int = 1) -> list:
        return self.feed(Score(value), frames=frames)

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(event.rule, event.phase) for event in self.events]


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    def make(rules=None, zones=None, labels=("person", "car"), threshold=None, **options) -> Scene:
        return Scene(Judge("cam", labels, zones or {}, rules or {}, threshold, **options))

    return make
