"""Which pieces were asked for, when, and which of them must be taken for lost. No clock, no network.

One server answers one request, in order, and a broker keeps the order of one publisher. So a piece that was overtaken by
several later ones of its own request is lost; nothing follows from the order among requests, which may reach different servers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

OVERTAKEN_BY = 3
"""As TCP's three duplicate acknowledgements (RFC 5681 section 3.2)."""
KNOWN = 1024
"""Requests whose late answers are still welcome."""


@dataclass(slots=True)
class _Asked:
    latest_s: float
    """When it was sent, or when its latest piece came."""
    waiting: deque[int]
    overtaken: int = 0


class Requests:
    """The open requests of one transfer. Numbers begin at `first_id`, drawn by chance: older transfers' answers do not match."""

    def __init__(self, first_id: int) -> None:
        self.next_id = first_id
        self._sent_s: OrderedDict[int, float] = OrderedDict()
        self._open: dict[int, _Asked] = {}
        self.on_their_way: dict[int, int] = {}
        """Piece → number of the request that it is expected from."""

    def add(self, pieces: Sequence[int], now_s: float) -> int:
        """Note that `pieces` are asked for now; return the request's number."""
        number = self.next_id
        self.next_id = (number + 1) & 0xFFFFFFFF
        self._sent_s[number] = now_s
        if len(self._sent_s) > KNOWN:
            self._sent_s.popitem(last=False)
        self._open[number] = _Asked(now_s, deque(pieces))
        for piece in pieces:
            self.on_their_way[piece] = number
        return number

    def sent_s(self, number: int) -> float | None:
        """Return when a request was sent; None where it is not one of ours."""
        return self._sent_s.get(number)

    def arrived(self, piece: int, now_s: float) -> Sequence[int]:
        """Note that a piece is there; return those that it shows to be lost."""
        number = self.on_their_way.pop(piece, None)
        if number is None:
            return ()
        asked = self._open[number]
        asked.latest_s = now_s
        if asked.waiting[0] == piece:
            asked.waiting.popleft()
            asked.overtaken = 0
            lost: Sequence[int] = ()
        else:
            asked.waiting.remove(piece)
            asked.overtaken += 1
            lost = [earlier for earlier in asked.waiting if earlier < piece] if asked.overtaken >= OVERTAKEN_BY else ()
        for earlier in lost:
            asked.waiting.remove(earlier)
            del self.on_their_way[earlier]
        if lost:
            asked.overtaken = 0
        if not asked.waiting:
            del self._open[number]
        return lost

    def overdue(self, now_s: float, timeout_s: float) -> list[int]:
        """Return the pieces of requests that have been silent for too long; they are expected no more."""
        late = [number for number, asked in self._open.items() if now_s - asked.latest_s >= timeout_s]
        return [piece for number in late for piece in self.give_up(number)]

    def give_up(self, number: int) -> Sequence[int]:
        """Expect nothing more of one request; return the pieces that are missing of it."""
        asked = self._open.pop(number, None)
        if asked is None:
            return ()
        for piece in asked.waiting:
            del self.on_their_way[piece]
        return asked.waiting

    def give_up_all(self) -> list[int]:
        """Expect nothing more of any request: the connection is gone. Answers that come all the same are welcome."""
        return [piece for number in list(self._open) for piece in self.give_up(number)]
