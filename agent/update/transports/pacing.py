"""The operator's rate limit, shared by all transports: a token bucket (GCRA, ITU-T I.371, in its virtual scheduling form)."""

from __future__ import annotations

import threading

from agent.clock import Clock

BURST_S = 1.0
"""So much of a second's worth may come at once after a pause."""


class Pace:
    """At most `kib_s` KiB a second in the long run; None: as fast as it goes. Thread-safe."""

    def __init__(self, clock: Clock, kib_s: int | None) -> None:
        self._clock = clock
        self._bytes_s = kib_s * 1024 if kib_s else None
        self._lock = threading.Lock()
        self._due_s = clock.monotonic()

    def delay_s(self, n_bytes: int) -> float:
        """Count `n_bytes` that came (or were asked for); return how long to wait before the next."""
        if self._bytes_s is None:
            return 0.0
        with self._lock:
            now_s = self._clock.monotonic()
            self._due_s = max(self._due_s, now_s - BURST_S) + n_bytes / self._bytes_s
            return max(0.0, self._due_s - now_s)
