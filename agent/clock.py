"""Time and chance, the only module that asks the operating system for either.

Everything else receives a `Clock` and a `Random`, so that the simulator can run a day in a minute and a
test never sleeps. A lint rule bans `time.*`, `datetime.now`, `random.*` and `uuid4` elsewhere.
"""

from __future__ import annotations

import os
import random
import threading
import time
from datetime import UTC, datetime
from typing import Protocol

PLAUSIBLE_YEARS = range(2025, 2100)
"""Outside, a board woke without a battery, or somebody mistyped."""


class Clock(Protocol):
    """Wall time for people, monotonic time for decisions."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC. It may jump in either direction."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back. The zero point means nothing."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set or `timeout_s` seconds passed; return whether it is set."""
        ...


class Random(Protocol):
    """Chance, for jitter and identifiers."""

    def uniform(self, low: float, high: float) -> float:
        """Return a float in [low, high]."""
        ...

    def bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""
        ...


class SystemClock:
    """The operating system's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(max(0.0, timeout_s))


class SystemRandom:
    """The operating system's randomness."""

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)  # noqa: S311  jitter needs no secrecy

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)
