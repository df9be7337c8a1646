"""A value that counts only when it has stayed: the remedy against chatter, for every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

SETTLE_S = 0.5
"""Where the operator names no time, going *back* still takes this long: a box that jitters at a zone's border speaks
once and not with every frame. Short enough for a person; long for a detector's jitter."""


class Debounced(Generic[T]):
    """The last value that was observed without interruption for `delay_s(value)` seconds.

    Args:
        initial: What counts before anything was observed.
        delay_s: For a new value, how long it must stay. 0 means at once.
    """

    __slots__ = ("_candidate", "_delay_s", "since_s", "value")

    def __init__(self, initial: T, delay_s: Callable[[T], float]) -> None:
        self.value = initial
        self.since_s: float | None = None
        """When the value that now counts, or the one that may follow it, was first observed."""
        self._candidate = initial
        self._delay_s = delay_s

    def observe(self, value: T, at_s: float) -> bool:
        """Take one observation at `at_s` (which never goes back); return whether what counts has changed."""
        if value == self.value:
            self._candidate = value
            return False
        if value != self._candidate:
            self._candidate = value
            self.since_s = at_s
        assert self.since_s is not None
        if at_s - self.since_s < self._delay_s(value):
            return False
        self.value = value
        return True
