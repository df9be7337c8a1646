"""Virtual time and seeded chance: what makes a run repeatable.

Both stand in for `agent.clock.SystemClock` and `SystemRandom`. A `VirtualClock` moves when it is told to, never by
itself; wall time may also be set apart from monotonic time, as a bad clock on a board would do.
"""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)


class VirtualClock:
    """Time that moves by `advance` alone. For state machines: waiting on it advances it."""

    def __init__(self, start: datetime = START) -> None:
        self._wall = start
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Take no real time: pass `timeout_s` of virtual time unless the event is set."""
        if not event.is_set():
            self.advance(max(0.0, timeout_s))
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, on both clocks.

        Raises:
            ValueError: `seconds` is negative; use `set_wall` for a wall clock that jumps back.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        self._monotonic += seconds
        self._wall += timedelta(seconds=seconds)

    def set_wall(self, moment: datetime) -> None:
        """Let the wall clock jump, in either direction, while monotonic time goes on."""
        self._wall = moment


class SeededRandom:
    """Chance that repeats for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311  repeatable on purpose

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)
