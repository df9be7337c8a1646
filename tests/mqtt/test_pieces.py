"""The words of the two sides survive each other, and nothing else survives the codec."""

from __future__ import annotations

import contextlib
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.mqtt.pieces import (
    MAX_FILE_BYTES,
    MAX_PIECE_BYTES,
    MAX_SPAN,
    MAX_WANTED,
    MIN_PIECE_BYTES,
    REPLY_HEAD_BYTES,
    PieceError,
    Reply,
    Request,
    Status,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    pack_reply_head,
    piece_count,
)

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
pytestmark = pytest.mark.timeout(7200 if IS_SOAK else 300)
FUZZ = settings(max_examples=200_000 if IS_SOAK else 300, deadline=None)
numbers = st.integers(0, 2**32 - 1)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    piece_bytes = draw(st.integers(MIN_PIECE_BYTES, MAX_PIECE_BYTES))
    first = draw(st.integers(0, MAX_FILE_BYTES // MAX_PIECE_BYTES - MAX_SPAN))
    offsets = draw(st.sets(st.integers(0, MAX_SPAN - 1), min_size=1, max_size=MAX_WANTED))
    path = draw(st.from_regex(r"[a-z0-9/._-]{1,80}", fullmatch=True))
    return Request(draw(numbers), path, piece_bytes, tuple(sorted(first + offset for offset in offsets)))


@given(requests())
def test_request_comes_back_as_it_was(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@given(st.sampled_from(Status), numbers, numbers, st.integers(0, MAX_FILE_BYTES), st.binary(max_size=2000))
def test_reply_comes_back_as_it_was(status: Status, number: int, index: int, size: int, data: bytes) -> None:
    reply = Reply(status, number, index, size, data if status is Status.OK else b"")
    assert decode_reply(encode_reply(reply)) == reply


@FUZZ
@given(st.binary(max_size=1500) | st.binary(max_size=100).map(lambda rest: b"\x01" + rest))
def test_any_bytes_are_refused_or_bounded(message: bytes) -> None:
    """Whoever may publish on these topics may send anything: no other exception, no unbounded work."""
    with contextlib.suppress(PieceError):
        request = decode_request(message)
        assert 0 < len(request.wanted) <= MAX_WANTED
        assert request.wanted[-1] * request.piece_bytes <= MAX_FILE_BYTES
        assert encode_request(request) == message
    with contextlib.suppress(PieceError):
        reply = decode_reply(message)
        assert len(reply.data) <= MAX_PIECE_BYTES
        assert encode_reply(reply) == message


@FUZZ
@given(requests(), st.data())
def test_damaged_request_is_refused_or_bounded(request: Request, data: st.DataObject) -> None:
    message = bytearray(encode_request(request))
    place = data.draw(st.integers(0, len(message) - 1))
    message[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(PieceError):
        assert 0 < len(decode_request(bytes(message)).wanted) <= MAX_WANTED
    with contextlib.suppress(PieceError):
        decode_request(bytes(message[:place]))


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(Request(1, "blobs/a", 65536, ()), id="nothing"),
        pytest.param(Request(1, "blobs/a", 65536, tuple(range(MAX_WANTED + 1))), id="too many"),
        pytest.param(Request(1, "blobs/a", 65536, (0, MAX_SPAN)), id="too far apart"),
        pytest.param(Request(1, "blobs/a", 65536, (2, 1)), id="descending"),
        pytest.param(Request(1, "blobs/a", 65536, (1, 1)), id="twice"),
        pytest.param(Request(1, "blobs/a", 1, (0,)), id="tiny pieces"),
        pytest.param(Request(1, "blobs/a", MAX_PIECE_BYTES + 1, (0,)), id="huge pieces"),
        pytest.param(Request(1, "blobs/a", MAX_PIECE_BYTES, (2**31,)), id="beyond any file"),
        pytest.param(Request(1, "", 65536, (0,)), id="no path"),
        pytest.param(Request(1, "blobs/\n", 65536, (0,)), id="not printable"),
        pytest.param(Request(1, "blobs/ü", 65536, (0,)), id="not ASCII"),
        pytest.param(Request(1, "b" * 600, 65536, (0,)), id="long path"),
        pytest.param(Request(2**32, "blobs/a", 65536, (0,)), id="large number"),
    ],
)
def test_request_that_asks_for_too_much_is_not_made(request_: Request) -> None:
    with pytest.raises(PieceError):
        encode_request(request_)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(struct.pack("!BIIIHH", 2, 1, 65536, 0, 1, 1) + b"a", id="version"),
        pytest.param(struct.pack("!BIIIHH", 1, 1, 65536, 0, 0, 1) + b"a", id="no pieces"),
        pytest.param(struct.pack("!BIIIHH", 1, 1, 65536, 0, 65535, 1) + b"a", id="65535 pieces"),
        pytest.param(struct.pack("!BIIIHH", 1, 1, 65536, 0, 9, 1) + b"a\x01", id="short bitmap"),
        pytest.param(struct.pack("!BIIIHH", 1, 1, 65536, 0, 3, 1) + b"a\x00", id="empty bitmap"),
        pytest.param(struct.pack("!BIIIHH", 1, 1, 65536, 0, 3, 1) + b"a\x07", id="bitmap of all"),
        pytest.param(struct.pack("!BIIIHH", 1, 1, 65536, 0, 3, 1) + b"a\x0d", id="bits beyond the count"),
        pytest.param(struct.pack("!BIIIHH", 1, 1, 65536, 0, 1, 200) + b"a", id="path cut short"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_malformed_request_is_refused(message: bytes) -> None:
    with pytest.raises(PieceError):
        decode_request(message)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(encode_reply(Reply(Status.OK, 1))[:-1], id="cut"),
        pytest.param(struct.pack("!BBIIQ", 2, 0, 1, 0, 0), id="version"),
        pytest.param(struct.pack("!BBIIQ", 1, 9, 1, 0, 0), id="status"),
        pytest.param(struct.pack("!BBIIQ", 1, 0, 1, 0, 2**63), id="a file of exabytes"),
        pytest.param(struct.pack("!BBIIQ", 1, 1, 1, 0, 0) + b"x", id="refusal with bytes"),
        pytest.param(struct.pack("!BBIIQ", 1, 0, 1, 0, 0) + bytes(MAX_PIECE_BYTES + 1), id="larger than a piece"),
    ],
)
def test_malformed_reply_is_refused(message: bytes) -> None:
    with pytest.raises(PieceError):
        decode_reply(message)


def test_head_written_in_place_is_the_same_message() -> None:
    """The server reads a file right behind the head; the device must not see a difference."""
    buffer = bytearray(REPLY_HEAD_BYTES) + b"piece"
    pack_reply_head(buffer, 7, 3, 1000)
    assert decode_reply(bytes(buffer)) == Reply(Status.OK, 7, 3, 1000, b"piece")


def test_empty_file_has_one_piece() -> None:
    assert [piece_count(size, 10) for size in (0, 1, 10, 11)] == [1, 1, 1, 2]
