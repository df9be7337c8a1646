"""One file on its way from a release server to its chunks: ask, take, ask again. Runs in the caller's thread.

A `Transfer` outlives a broken connection: `run` is called again with the next one and goes on where it was.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.clock import Clock
from agent.errors import NotThereError, StoppedError, UnavailableError, WrongContentError
from agent.mqtt.assembly import Assembly, Chunks
from agent.mqtt.pieces import (
    MIN_PIECE_BYTES,
    PieceError,
    Reply,
    Request,
    Status,
    decode_reply,
    encode_request,
    reply_overhead,
)
from agent.mqtt.requests import Requests
from agent.mqtt.session import Session
from agent.mqtt.topics import Topics
from agent.mqtt.window import Window

PIECE_BYTES = 1 << 16
SMALLEST_GUESS_BYTES = 1 << 10
"""Where nobody says how large a message may be, smaller pieces are tried down to this."""
MAX_HELD_BYTES = 8 << 20
"""Pieces on their way and chunks that wait for pieces, together."""
REQUESTS_IN_WINDOW = 4
"""Each may reach another server: one that died takes a share of the window with it, not all of it."""
MAX_WRONG = 8
MAX_NOT_THERE = 3
"""Refusals after pieces came: of several servers, one may lag behind."""
PACED_PIECES = 4
"""A rate limit is kept in steps of so many pieces."""
MAX_TIMEOUTS = 4
"""In a row: the connection is taken for half-open, as behind a dead mobile link, long before its keep-alive notices."""
BUSY_S = 0.5
LOOK_S = 0.05
LOOK_AT_STOP_S = 0.2


class LostConnectionError(UnavailableError):
    """The connection broke in the middle; the transfer goes on with another one."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When the other side counts as gone or as too slow. Time that a rate limit makes us wait does not count."""

    silence_s: float = 30.0
    """Until the first piece."""
    window_s: float = 60.0
    window_bytes: int = 60 << 10
    """Each `window_s` must bring so much: 1 KiB a second, so that n bytes take at most n ÷ 1 KiB seconds."""


class SmallFile:
    """Chunks of a file whose size is not known before its first piece comes, kept in memory. Takes everything."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.chunk_bytes = PIECE_BYTES
        self._chunks: dict[int, bytes] = {}

    def missing(self) -> list[int]:
        return [number for number in range(max(1, -(-self.size_bytes // PIECE_BYTES))) if number not in self._chunks]

    def take(self, index: int, data: bytes) -> bool:
        self._chunks[index] = data
        return True

    def joined(self) -> bytes:
        """Return the file."""
        return b"".join(self._chunks[index] for index in sorted(self._chunks))


class Transfer:
    """One file.

    Args:
        path: In the repository.
        goal: Where its chunks go, or for a small file the largest size that is accepted.
        inbox: Payloads from the reply topic.
        topics: This device's names.
        clock: Time.
        first_id: Where request numbers begin, by chance.
        stop: Ends it within a second.
        pace: Seconds to wait before asking for so many more bytes.
        patience: When to give up.
    """

    def __init__(
        self,
        path: str,
        goal: Chunks | int,
        inbox: queue.SimpleQueue[bytes],
        *,
        topics: Topics,
        clock: Clock,
        first_id: int,
        stop: threading.Event,
        pace: Callable[[int], float] | None,
        patience: Patience,
    ) -> None:
        self._path = path
        self.chunks: Chunks | None = None if isinstance(goal, int) else goal
        self._limit_bytes = goal if isinstance(goal, int) else goal.size_bytes
        self._inbox = inbox
        self._topics = topics
        self._clock = clock
        self._stop = stop
        self._pace = pace
        self._patience = patience
        self._requests = Requests(first_id)
        self._window = Window()
        self._largest_piece_bytes = PIECE_BYTES
        self._assembly: Assembly | None = None
        self._planned: tuple[int, ...] = ()
        """Pieces that the rate limit holds back."""
        self._ask_after_s = self._look_after_s = self._window_began_s = clock.monotonic()
        self._window_bytes = 0
        self._heard_s = float("-inf")
        self.received_bytes = 0
        """Of pieces that were needed."""
        self.peak_held_bytes = 0
        self._wrong = self._not_there = self._timeouts = 0

    def run(self, session: Session) -> None:
        """Go on until every chunk was taken.

        Raises:
            LostConnectionError: the connection is over.
            NotThereError, WrongContentError, UnavailableError, StoppedError: as `Transport.fetch`.
        """
        self._begin(session)
        while not (self._assembly and self._assembly.is_complete):
            now_s = self._clock.monotonic()
            self._check(session, now_s)
            while self._ask(session, now_s):
                pass
            try:
                message = self._inbox.get(timeout=self._wait_s(now_s))
            except queue.Empty:
                continue
            self._take(message)

    # -- asking --------------------------------------------------------------------------------------------------

    def _begin(self, session: Session) -> None:
        """Take up a new connection: what was on its way over the old one is asked for again."""
        self._window = Window()
        self._timeouts = 0
        again = [*self._requests.give_up_all(), *self._planned]
        self._planned = ()
        fits = PIECE_BYTES
        if session.maximum_packet_bytes is not None:
            fits = session.maximum_packet_bytes - reply_overhead(self._topics.fetch_reply)
        if fits < MIN_PIECE_BYTES:
            raise UnavailableError(
                f"the broker takes packets of {session.maximum_packet_bytes} bytes at most, too small for a release",
                where=self._path,
                hint="raise the broker's largest packet size to 64 KiB or more, or use another transport",
            )
        if not self._use_pieces_of(min(fits, self._largest_piece_bytes)) and self._assembly is not None:
            self._assembly.ask_again(again)

    def _use_pieces_of(self, piece_bytes: int) -> bool:
        """Cut the file anew where the size changes; return whether it does."""
        if self._assembly is not None and self._assembly.piece_bytes == piece_bytes:
            return False
        self._largest_piece_bytes = piece_bytes
        self._requests = Requests(self._requests.next_id)  # answers in the old size mean nothing any more
        self._planned = ()
        if self.chunks is not None:
            self._assembly = Assembly(self.chunks, piece_bytes)
        return True

    def _ask(self, session: Session, now_s: float) -> bool:
        """Send one request where there is room in the window for enough pieces to be worth one; return whether."""
        if now_s < self._ask_after_s:
            return False
        pieces = self._planned or self._choose()
        if not pieces:
            return False
        if (
            self._pace is not None
            and not self._planned
            and (delay_s := self._pace(len(pieces) * self._piece_bytes)) > 0
        ):
            self._planned = pieces
            self._ask_after_s = now_s + delay_s
            self._window_began_s += delay_s
            return False
        self._planned = ()
        number = self._requests.add(pieces, now_s)
        request = encode_request(Request(number, self._path, self._piece_bytes, pieces))
        session.publish(self._topics.fetch_request, request, qos=0, retain=False, content_type=None)
        return True

    def _choose(self) -> tuple[int, ...]:
        on_their_way = self._requests.on_their_way
        if self._assembly is None:
            return () if on_their_way else (0,)
        size = self._window.size
        share = max(1, size // REQUESTS_IN_WINDOW)
        if size - len(on_their_way) < share:
            return ()
        held_bytes = len(on_their_way) * self._piece_bytes + self._assembly.held_bytes
        self.peak_held_bytes = max(self.peak_held_bytes, held_bytes)
        if held_bytes > MAX_HELD_BYTES // 2 and on_their_way:
            return ()
        return self._assembly.next_pieces(share if self._pace is None else min(share, PACED_PIECES), on_their_way)

    @property
    def _piece_bytes(self) -> int:
        return self._largest_piece_bytes

    # -- waiting -------------------------------------------------------------------------------------------------

    def _wait_s(self, now_s: float) -> float:
        if now_s < self._ask_after_s:
            return min(LOOK_AT_STOP_S, self._ask_after_s - now_s)
        return LOOK_AT_STOP_S

    def _check(self, session: Session, now_s: float) -> None:
        """Notice everything that ends or delays a transfer."""
        if self._stop.is_set():
            raise StoppedError("stopped", where=self._path)
        if session.is_over and self._inbox.empty():
            raise LostConnectionError(session.reason, where=self._path)
        if now_s < self._look_after_s:
            return
        self._look_after_s = now_s + LOOK_S
        if session.denied:
            raise UnavailableError(
                f"the broker denies {self._topics.fetch_reply}: {session.denied}",
                hint=f"let this device read and write {self._topics.root}/# in the broker's ACL",
            )
        self._check_patience(now_s)
        if late := self._requests.overdue(now_s, self._window.timeout_s):
            self._again(late)
            if now_s - self._heard_s < self._window.timeout_s:  # one of several servers is gone, not the path
                self._window.lost(now_s)
                return
            self._window.timed_out()
            self._timeouts += 1
            if self._timeouts >= MAX_TIMEOUTS:
                session.abort()
                raise LostConnectionError("nothing comes any more", where=self._path)
            if not self.received_bytes and self._piece_bytes > SMALLEST_GUESS_BYTES:
                # Over MQTT 3.1.1 nobody says that a message was too large: it just never comes (compare RFC 8899).
                self._use_pieces_of(max(SMALLEST_GUESS_BYTES, self._piece_bytes // 4))

    def _check_patience(self, now_s: float) -> None:
        waited_s = now_s - self._window_began_s
        if not self.received_bytes and waited_s > self._patience.silence_s:
            raise UnavailableError(
                f"no release server answers on {self._topics.fetch_reply} within {self._patience.silence_s:g} s",
                where=self._path,
                hint="start `holdfast release serve`, and let it and this device use these topics in the broker's ACL",
            )
        if not self.received_bytes or waited_s <= self._patience.window_s:
            return
        if self._window_bytes < self._patience.window_bytes:
            raise UnavailableError(
                f"too slow: {self._window_bytes} bytes in {waited_s:.0f} s", where=self._path, hint="check the link"
            )
        self._window_began_s, self._window_bytes = now_s, 0

    # -- taking --------------------------------------------------------------------------------------------------

    def _take(self, message: bytes) -> None:
        try:
            reply = decode_reply(message)
        except PieceError:
            return
        sent_s = self._requests.sent_s(reply.request_id)
        if sent_s is None:
            return
        if reply.status is not Status.OK:
            self._take_refusal(reply)
        elif self._is_needed(reply):
            self._take_piece(reply, sent_s)

    def _is_needed(self, reply: Reply) -> bool:
        """Whether a reply brings a piece; the first one of a small file also tells its size."""
        if self._assembly is None and reply.index == 0:
            if reply.size_bytes > self._limit_bytes:
                raise UnavailableError(f"{reply.size_bytes} bytes, more than {self._limit_bytes}", where=self._path)
            self.chunks = SmallFile(reply.size_bytes)
            self._assembly = Assembly(self.chunks, self._piece_bytes)
        return self._assembly is not None and self._assembly.needs(reply.index)

    def _take_piece(self, reply: Reply, sent_s: float) -> None:
        assert self._assembly is not None and self.chunks is not None
        now_s = self._clock.monotonic()
        self._window.arrived(now_s - sent_s, now_s)
        self._timeouts, self._heard_s = 0, now_s
        if lost := self._requests.arrived(reply.index, now_s):
            self._window.lost(now_s)
            self._again(lost)
        wrong = self._assembly.wrong
        if reply.size_bytes != self.chunks.size_bytes or not self._assembly.is_whole(reply.index, reply.data):
            self._wrong += 1
            self._again((reply.index,))
        else:
            self._assembly.add(reply.index, reply.data)
            self.received_bytes += len(reply.data) or 1
            self._window_bytes += len(reply.data)
        self._wrong += self._assembly.wrong - wrong
        if self._wrong >= MAX_WRONG:
            raise WrongContentError(
                f"{self._wrong} pieces over MQTT are not what was signed", where=self._path, hint="check the repository"
            )

    def _take_refusal(self, reply: Reply) -> None:
        now_s = self._clock.monotonic()
        missing = self._requests.give_up(reply.request_id)
        if reply.status is Status.BAD_REQUEST:
            raise UnavailableError("the release server does not understand this device", where=self._path)
        if reply.status is Status.NOT_THERE:
            self._not_there += 1
            if not self.received_bytes or self._not_there > MAX_NOT_THERE:
                raise NotThereError("the release servers have no such file", where=self._path)
        if reply.status is Status.TOO_LARGE and MIN_PIECE_BYTES <= reply.size_bytes < self._piece_bytes:
            self._use_pieces_of(reply.size_bytes)
            return
        self._window.lost(now_s)
        self._ask_after_s = max(self._ask_after_s, now_s + BUSY_S)
        self._again(missing)

    def _again(self, pieces: Sequence[int]) -> None:
        if self._assembly is not None:
            self._assembly.ask_again(pieces)
