"""Replies of any kind, in any order, to a real transfer: it ends, in one of our errors or with what was signed.

Virtual time and a broker that is a list, so that thousands of lying servers take seconds. `HOLDFAST_SOAK=1` for longer.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from agent.errors import UnavailableError
from agent.mqtt.pieces import MAX_FILE_BYTES, Reply, Request, Status, decode_request, encode_reply
from agent.mqtt.topics import Topics
from agent.mqtt.transfer import MAX_HELD_BYTES, Patience, SmallFile, Transfer
from simulator.clock import VirtualClock

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
pytestmark = pytest.mark.timeout(7200 if IS_SOAK else 300)
FUZZ = settings(max_examples=10_000 if IS_SOAK else 200, deadline=None)
CONTENT = bytes(range(256)) * 800
LIMIT_BYTES = 300_000
MAX_REQUESTS = 30
PATIENCE_S = 30.0
numbers = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([0, 1, 255, 1024, len(CONTENT), LIMIT_BYTES + 1, MAX_FILE_BYTES]) | st.integers(
    0, MAX_FILE_BYTES
)


class Inbox:
    """What came. Waiting for more passes virtual time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.messages: deque[bytes] = deque()

    def get(self, timeout: float) -> bytes:
        if not self.messages:
            self._clock.advance(timeout)
            raise queue.Empty
        return self.messages.popleft()

    def empty(self) -> bool:
        return not self.messages


class Chunks:
    """A file of which only what was signed is taken."""

    chunk_bytes = 50_000
    size_bytes = len(CONTENT)

    def __init__(self) -> None:
        self.taken: dict[int, bytes] = {}

    def missing(self) -> list[int]:
        return [index for index in range(-(-len(CONTENT) // self.chunk_bytes)) if index not in self.taken]

    def take(self, index: int, data: bytes) -> bool:
        start = index * self.chunk_bytes
        signed = hashlib.sha256(CONTENT[start : start + self.chunk_bytes]).digest()
        if hashlib.sha256(data).digest() != signed:
            return False
        self.taken[index] = data
        return True


class LyingSession:
    """A connection to a server that says what chance says, and goes away after some requests."""

    reason = "gone"
    denied = ""

    def __init__(self, inbox: Inbox, data: st.DataObject) -> None:
        self.maximum_packet_bytes = data.draw(st.sampled_from([None, 100, 2000, 70_000]))
        self.requests = 0
        self._inbox, self._data = inbox, data

    @property
    def is_over(self) -> bool:
        return self.requests >= MAX_REQUESTS

    def abort(self) -> None:
        self.requests = MAX_REQUESTS

    def publish(self, topic: str, payload: bytes, **_: Any) -> bool:
        self.requests += 1
        request = decode_request(payload)
        for _number in range(self._data.draw(st.integers(0, 3))):
            self._inbox.messages.extend(self._answer(request))
        return True

    def _answer(self, request: Request) -> list[bytes]:
        draw, size, number = self._data.draw, request.piece_bytes, request.request_id
        true = [
            encode_reply(Reply(Status.OK, number, index, len(CONTENT), CONTENT[index * size : (index + 1) * size]))
            for index in request.wanted
        ]
        match draw(st.sampled_from(["true", "backwards", "made up", "damaged", "bytes"])):
            case "true":
                return true
            case "backwards":
                return true[::-1]
            case "made up":
                status = draw(st.sampled_from([Status.OK] * 5 + list(Status)))
                index = draw(st.sampled_from([request.wanted[0], request.wanted[-1], 0, 7, 2**32 - 1]))
                content = draw(st.binary(max_size=300) | st.just(bytes(size)))
                reply = Reply(status, draw(st.sampled_from([number] * 5 + [7])), index, draw(sizes), content)
                return [encode_reply(reply)]
            case "damaged":
                message, place = bytearray(draw(st.sampled_from(true))), draw(st.integers(0, 60))
                message[place % len(message)] = draw(st.integers(0, 255))
                return [bytes(message)]
            case _:
                return [draw(st.binary(max_size=60))]


@FUZZ
@given(st.booleans(), st.data())
def test_transfer_ends_in_our_errors_or_with_what_was_signed(is_small: bool, data: st.DataObject) -> None:
    """A hostile broker can delay, and nothing else: no other exception, no memory beyond the bound, no wrong chunk."""
    clock, chunks = VirtualClock(), Chunks()
    inbox = Inbox(clock)
    session: Any = LyingSession(inbox, data)
    transfer = Transfer(
        "blobs/a",
        LIMIT_BYTES if is_small else chunks,
        inbox,  # type: ignore[arg-type]
        topics=Topics("holdfast", "cam-1"),
        clock=clock,
        first_id=data.draw(numbers),
        stop=threading.Event(),
        pace=None,
        patience=Patience(silence_s=PATIENCE_S, window_s=PATIENCE_S, window_bytes=1 << 16),
    )
    try:
        transfer.run(session)
    except UnavailableError as error:
        event(type(error).__name__)
    else:
        event("complete")
        if is_small:
            assert isinstance(transfer.chunks, SmallFile)
            assert len(transfer.chunks.joined()) == transfer.chunks.size_bytes
        else:
            assert b"".join(chunks.taken[index] for index in sorted(chunks.taken)) == CONTENT
    assert transfer.chunks is None or transfer.chunks.size_bytes <= LIMIT_BYTES
    assert transfer.peak_held_bytes <= MAX_HELD_BYTES
    assert clock.monotonic() <= PATIENCE_S * (MAX_REQUESTS + 2)
