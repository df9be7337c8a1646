"""Whose piece comes next: devices take turns, one piece each, so that a greedy one delays the others by one piece a round.

Pure. Bounded for each device and in all: what does not fit is refused, and the device asks again when it misses something.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from agent.mqtt.pieces import Request

MAX_DEVICES = 4096
MAX_PIECES = 256
"""Of one device; its window is 64, and what it asked for again may stand here twice."""


@dataclass(slots=True)
class _Waiting:
    jobs: deque[tuple[Request, deque[int]]] = field(default_factory=deque)
    pieces: int = 0


class Turns:
    """What was asked for and has not been answered."""

    def __init__(self) -> None:
        self._devices: OrderedDict[str, _Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._devices)

    def add(self, device: str, request: Request) -> bool:
        """Let a request wait its turn; return False where this device, or everybody together, has too many already."""
        waiting = self._devices.get(device)
        if waiting is None:
            if len(self._devices) >= MAX_DEVICES:
                return False
            waiting = self._devices[device] = _Waiting()
        elif waiting.pieces + len(request.wanted) > MAX_PIECES:
            return False
        waiting.jobs.append((request, deque(request.wanted)))
        waiting.pieces += len(request.wanted)
        return True

    def next(self) -> tuple[str, Request, int] | None:
        """Return the next device with one piece of its oldest request; the device goes to the end of the row."""
        if not self._devices:
            return None
        device, waiting = self._devices.popitem(last=False)
        request, pieces = waiting.jobs[0]
        piece = pieces.popleft()
        waiting.pieces -= 1
        if not pieces:
            waiting.jobs.popleft()
        if waiting.jobs:
            self._devices[device] = waiting
        return device, request, piece

    def drop(self, device: str, request: Request) -> None:
        """Forget the rest of a request: there is no such file."""
        waiting = self._devices.get(device)
        if waiting is None:
            return
        waiting.jobs = deque(job for job in waiting.jobs if job[0] is not request)
        waiting.pieces = sum(len(pieces) for _, pieces in waiting.jobs)
        if not waiting.jobs:
            del self._devices[device]

    def clear(self) -> None:
        """Forget everything: the connection is gone, and what was asked for will be asked for again."""
        self._devices.clear()
