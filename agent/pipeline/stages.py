"""How long each stage takes: the newest times in a ring, percentiles only when somebody asks.

A ring has one writer, the thread of its stage, and readers that may see one time more or less. Writing is a list item
and a counter, some fifty nanoseconds: the loop pays for it at every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

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
        times = sorted(self._times[: min(count, WINDOW)])
        if not times:
            return {"count": 0, "p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0}
        return {
            "count": count, "p50_ms": _rank_ms(times, 50), "p95_ms": _rank_ms(times, 95), "p99_ms": _rank_ms(times, 99)
        }  # fmt: skip


@dataclass(slots=True, eq=False)
class Tally:
    """What went through with one bundle: each bundle has its own, so that none is judged by another's numbers."""

    rings: Mapping[Stage, Ring] = field(default_factory=lambda: {stage: Ring() for stage in STAGES})
    samples: int = 0
    invalid: int = 0
    invalid_in_a_row: int = 0


def _rank_ms(ordered: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile: a time that really occurred.

    Not numpy's: its first call imports numpy.ma, 45 ms and some MiB in every worker, and it is no faster here.
    """
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return round(ordered[rank - 1] * 1000, 4)
