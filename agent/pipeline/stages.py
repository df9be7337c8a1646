"""How long each stage takes: the newest times in a ring, percentiles only when somebody asks.

A ring has one writer, the thread of its stage, and readers that may see one time more or less. Writing is a list item
and a counter, some fifty nanoseconds: the loop pays for it at every sample.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from agent.pipeline.messages import StageTimes

Stage = Literal["capture", "preprocess", "infer", "decode", "track", "rules", "emit", "age"]
STAGES: tuple[Stage, ...] = get_args(Stage)

WINDOW = 1024
"""Times kept per stage: half a minute of a fast camera, and enough that a p99 rests on ten."""


class Ring:
    """The last `WINDOW` times of one stage, in seconds."""

    __slots__ = ("_times", "count")

    def __init__(self) -> None:
        self._times = [0.0] * WINDOW
        self.count = 0

    def add(self, seconds: float) -> None:
        """Write one time over the oldest."""
        self._times[self.count % WINDOW] = seconds
        self.count += 1

    def summary(self) -> StageTimes:
        """Return the count since the start, and p50, p95 and p99 of what is in the ring, in milliseconds."""
        count = self.count
        times = self._times[: min(count, WINDOW)]
        if not times:
            return {"count": 0, "p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0}
        p50, p95, p99 = (float(value) * 1000 for value in np.percentile(times, (50, 95, 99)))
        return {"count": count, "p50_ms": round(p50, 4), "p95_ms": round(p95, 4), "p99_ms": round(p99, 4)}
