"""The hand-over between two threads of a pipeline: bounded, in order, and ended from either side.

Two kinds. `Queue` makes the giver wait when it is full: nothing is lost. `Latest` holds one item and a newer one
takes its place: a frame is perishable. Both end in the same two ways: `close` (the giver is done; what is in there is
still taken) and `abort` (nobody wants more).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Protocol, TypeVar

ItemT = TypeVar("ItemT")


class Handover(Protocol[ItemT]):
    """What the threads on both sides see."""

    def put(self, item: ItemT) -> bool:
        """Hand one item over. Return False where it or an older one was lost: replaced, or the other side is gone."""
        ...

    def get(self) -> ItemT | None:
        """Wait for the next item; None when there will be none."""
        ...

    def close(self) -> None:
        """Say that no more will be put."""
        ...

    def abort(self) -> None:
        """Throw away what is in there and let both sides go."""
        ...


class Queue(Generic[ItemT]):
    """At most `capacity` items; `put` waits for room."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[ItemT] = deque()
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._is_closed = False
        self._is_aborted = False

    def put(self, item: ItemT) -> bool:
        with self._filled:
            while len(self._items) >= self._capacity and not self._is_aborted:
                self._room.wait()
            if self._is_aborted:
                return False
            self._items.append(item)
            self._filled.notify()
            return True

    def get(self) -> ItemT | None:
        with self._filled:
            while not self._items and not self._is_closed:
                self._filled.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._room.notify()
            return item

    def close(self) -> None:
        with self._filled:
            self._is_closed = True
            self._filled.notify_all()

    def abort(self) -> None:
        with self._filled:
            self._is_closed = self._is_aborted = True
            self._items.clear()
            self._filled.notify_all()
            self._room.notify_all()


class Latest(Generic[ItemT]):
    """One item; `put` never waits, and returns False when it replaced one that nobody had taken."""

    def __init__(self) -> None:
        self._item: ItemT | None = None
        self._filled = threading.Condition(threading.Lock())
        self._is_closed = False

    def put(self, item: ItemT) -> bool:
        with self._filled:
            if self._is_closed:
                return False
            has_replaced, self._item = self._item is not None, item
            self._filled.notify()
            return not has_replaced

    def get(self) -> ItemT | None:
        with self._filled:
            while self._item is None and not self._is_closed:
                self._filled.wait()
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        with self._filled:
            self._is_closed = True
            self._filled.notify_all()

    def abort(self) -> None:
        with self._filled:
            self._is_closed = True
            self._item = None
            self._filled.notify_all()
