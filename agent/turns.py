"""A lock that is fair: threads get it in the order in which they asked for it."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A lock whose waiters get it in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[threading.Lock] = deque()
        self._changing = threading.Lock()

    def __enter__(self) -> None:
        """Wait until it is this thread's turn."""
        self._take()

    def __exit__(self, *_: object) -> None:
        self._give()

    def yield_(self) -> None:
        """Let those that wait have a turn, and wait for the next; called within one."""
        self._give()
        self._take()

    def _take(self) -> None:
        mine = threading.Lock()
        mine.acquire()
        with self._changing:
            self._waiting.append(mine)
            if len(self._waiting) == 1:
                return
        mine.acquire()

    def _give(self) -> None:
        with self._changing:
            self._waiting.popleft()
            if self._waiting:
                self._waiting[0].release()
