"""How many pieces may be on their way at once, and how long to wait for one. Arithmetic; no clock, no thread.

The window follows delay as LEDBAT does (RFC 6817): what a transfer adds to the queue on the path stays near `TARGET_S`, so
that telemetry on the same line hardly waits for it. A loss halves the window. It begins as TCP's slow start does. The
timeout is that of RFC 6298. Round trips are measured for each request by its own number, so Karn's ambiguity between a
first answer and a late one does not arise.
"""

from __future__ import annotations

from collections import deque

MIN_PIECES, MAX_PIECES = 4, 64
TARGET_S = 0.1
"""RFC 6817 section 2.5 allows no more."""
BASE_MINUTES = 10
"""The shortest round trip of so many minutes is what the empty path takes: longer, and a changed route is never noticed."""
FIRST_TIMEOUT_S, MIN_TIMEOUT_S, MAX_TIMEOUT_S = 3.0, 0.5, 60.0


class Window:
    """One connection's window. Times are seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._pieces = float(MIN_PIECES)
        self._is_starting = True
        """Slow start: grows by one for each piece until there is a loss or a delay."""
        self._is_probing = True
        """Nothing has been heard yet, or not for a timeout: one piece asks whether anybody is there."""
        self._base: deque[tuple[int, float]] = deque()
        """The shortest round trip of each minute, oldest first."""
        self._smoothed_s: float | None = None
        self._variation_s = 0.0
        self._patience = 1.0
        self._spared_until_s = 0.0
        """Losses up to this time belong to the one that was answered already."""

    @property
    def size(self) -> int:
        """How many pieces may be asked for and not yet there."""
        return 1 if self._is_probing else int(self._pieces)

    @property
    def timeout_s(self) -> float:
        """How long an answer may take before it counts as lost."""
        if self._smoothed_s is None:
            return min(MAX_TIMEOUT_S, FIRST_TIMEOUT_S * self._patience)
        usual_s = max(MIN_TIMEOUT_S, self._smoothed_s + 4 * self._variation_s)
        return min(MAX_TIMEOUT_S, usual_s * self._patience)

    def arrived(self, round_trip_s: float, now_s: float) -> None:
        """Take the time between a request and one of its pieces."""
        self._is_probing = False
        self._patience = 1.0
        self._measure(round_trip_s)
        queued_s = round_trip_s - self._base_s(round_trip_s, now_s)
        off_target = (TARGET_S - queued_s) / TARGET_S
        self._is_starting = self._is_starting and queued_s < TARGET_S / 2
        step = 1.0 if self._is_starting else max(-0.5, off_target / self._pieces)  # halves it in a round trip at most
        self._pieces = min(float(MAX_PIECES), max(float(MIN_PIECES), self._pieces + step))

    def lost(self, now_s: float) -> None:
        """Take that pieces are missing although later ones came, or that the server is busy."""
        self._is_starting = False
        if now_s >= self._spared_until_s:  # RFC 6817 section 2.4.2: at most once a round trip
            self._pieces = max(float(MIN_PIECES), self._pieces / 2)
            self._spared_until_s = now_s + (self._smoothed_s or FIRST_TIMEOUT_S)

    def timed_out(self) -> None:
        """Take that nothing came: begin again with one piece, and wait twice as long (RFC 6298 section 5.5)."""
        self._pieces = float(MIN_PIECES)
        self._is_starting = self._is_probing = True
        self._patience = min(64.0, self._patience * 2)

    def _measure(self, round_trip_s: float) -> None:
        if self._smoothed_s is None:
            self._smoothed_s, self._variation_s = round_trip_s, round_trip_s / 2
            return
        self._variation_s += (abs(self._smoothed_s - round_trip_s) - self._variation_s) / 4
        self._smoothed_s += (round_trip_s - self._smoothed_s) / 8

    def _base_s(self, round_trip_s: float, now_s: float) -> float:
        minute = int(now_s // 60)
        if not self._base or self._base[-1][0] != minute:
            self._base.append((minute, round_trip_s))
            while self._base[0][0] <= minute - BASE_MINUTES:
                self._base.popleft()
        elif round_trip_s < self._base[-1][1]:
            self._base[-1] = (minute, round_trip_s)
        return min(shortest for _, shortest in self._base)
