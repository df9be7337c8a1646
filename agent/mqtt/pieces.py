"""What a device and a release server say to each other: one request, then one reply for each piece. Pure.

A request names a file of the repository and which of its pieces are wanted: the first, and a bitmap of those that follow.
A reply carries one piece, or says why there is none. Nothing here is trusted or trustworthy: whoever receives a piece
checks its hash. A message that is not exactly as below is refused with `PieceError`; nothing else is ever raised.

    request   version u8 | id u32 | piece size u32 | first u32 | count u16 | path length u16 | path | bitmap
    reply     version u8 | status u8 | id u32 | piece u32 | size of the file u64 | bytes

Numbers are big-endian. Piece `i` is the bytes from `i × piece size` on, the last one shorter; an empty file has one empty
piece. Bit `n % 8` (of value `1 << n % 8`) of the bitmap's byte `n // 8` asks for piece `first + n`; where all `count`
pieces are wanted there is no bitmap.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from enum import IntEnum

from agent.errors import HoldfastError

VERSION = 1
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 256, 1 << 18
MAX_FILE_BYTES = 1 << 40
MAX_SPAN = 1024
"""The last piece of a request is at most so far from the first (a bitmap of 128 bytes)."""
MAX_WANTED = 64
"""Pieces of one request: what one request may cost a server."""
MAX_PATH_BYTES = 512
_REQUEST = struct.Struct("!BIIIHH")
_REPLY = struct.Struct("!BBIIQ")
REPLY_HEAD_BYTES = _REPLY.size


class PieceError(HoldfastError):
    """A message that is no request, or no reply: drop it."""


class Status(IntEnum):
    """What a reply says."""

    OK = 0
    NOT_THERE = 1
    """The repository has no such file, or the file has no such piece."""
    BAD_REQUEST = 2
    BUSY = 3
    """Ask again later."""
    TOO_LARGE = 4
    """The broker takes no message of that size; the file size's field says how large a piece may be."""


@dataclass(frozen=True, slots=True)
class Request:
    """Asks for pieces of one file."""

    request_id: int
    path: str
    piece_bytes: int
    wanted: tuple[int, ...]
    """Indices, ascending, none twice."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One piece, or why there is none."""

    status: Status
    request_id: int
    index: int = 0
    size_bytes: int = 0
    data: bytes = b""


def encode_request(request: Request) -> bytes:
    """Return the message.

    Raises:
        PieceError: it asks for too much, or the path is no path.
    """
    _check(request)
    first, count = request.wanted[0], request.wanted[-1] - request.wanted[0] + 1
    path = request.path.encode("ascii")
    head = _REQUEST.pack(VERSION, request.request_id, request.piece_bytes, first, count, len(path))
    if count == len(request.wanted):
        return head + path
    bits = sum(1 << (index - first) for index in request.wanted)
    return head + path + bits.to_bytes((count + 7) // 8, "little")


def decode_request(message: bytes) -> Request:
    """Return the request.

    Raises:
        PieceError: the message is not a request of this version, or asks for too much.
    """
    if not _REQUEST.size <= len(message) <= _REQUEST.size + MAX_PATH_BYTES + MAX_SPAN // 8:
        raise PieceError(f"a request of {len(message)} bytes")
    version, request_id, piece_bytes, first, count, path_bytes = _REQUEST.unpack_from(message)
    if version != VERSION:
        raise PieceError(f"a request of version {version}, not {VERSION}")
    path, bitmap = message[_REQUEST.size :][:path_bytes], message[_REQUEST.size + path_bytes :]
    if len(path) != path_bytes or not path.isascii():
        raise PieceError("a request whose path is cut short or not ASCII")
    request = Request(request_id, path.decode("ascii"), piece_bytes, _wanted(first, count, bitmap))
    _check(request)
    return request


def encode_reply(reply: Reply) -> bytes:
    """Return the message."""
    return _REPLY.pack(VERSION, reply.status, reply.request_id, reply.index, reply.size_bytes) + reply.data


def pack_reply_head(buffer: bytearray, request_id: int, index: int, size_bytes: int) -> None:
    """Write the head of a piece's reply into the first `REPLY_HEAD_BYTES` of `buffer`, whose rest is the piece."""
    _REPLY.pack_into(buffer, 0, VERSION, Status.OK, request_id, index, size_bytes)


def decode_reply(message: bytes) -> Reply:
    """Return the reply.

    Raises:
        PieceError: the message is not a reply of this version, or larger than any piece.
    """
    if not REPLY_HEAD_BYTES <= len(message) <= REPLY_HEAD_BYTES + MAX_PIECE_BYTES:
        raise PieceError(f"a reply of {len(message)} bytes")
    version, status, request_id, index, size_bytes = _REPLY.unpack_from(message)
    if version != VERSION or status not in _STATUSES or size_bytes > MAX_FILE_BYTES:
        raise PieceError(f"a reply of version {version}, status {status}, for a file of {size_bytes} bytes")
    if status != Status.OK and len(message) > REPLY_HEAD_BYTES:
        raise PieceError("a refusal that carries bytes")
    return Reply(_STATUSES[status], request_id, index, size_bytes, message[REPLY_HEAD_BYTES:])


def piece_count(size_bytes: int, piece_bytes: int) -> int:
    """Return how many pieces a file has: at least one."""
    return max(1, -(-size_bytes // piece_bytes))


def reply_overhead(topic: str) -> int:
    """Return how much larger than its piece a reply is on the wire: fixed header, topic, no properties, our own head."""
    return 5 + 2 + len(topic.encode()) + 1 + REPLY_HEAD_BYTES


_STATUSES = {int(status): status for status in Status}


def _wanted(first: int, count: int, bitmap: bytes) -> tuple[int, ...]:
    if not 1 <= count <= MAX_SPAN:
        raise PieceError(f"a request for {count} pieces")
    if not bitmap:
        return tuple(range(first, first + count))
    if len(bitmap) != (count + 7) // 8:
        raise PieceError(f"a bitmap of {len(bitmap)} bytes for {count} pieces")
    bits = int.from_bytes(bitmap, "little")
    if bits.bit_length() != count or not bits & 1 or bits.bit_count() == count:
        raise PieceError("a bitmap that does not begin and end with its pieces, or asks for all of them")
    return tuple(first + number for number in range(count) if bits >> number & 1)


def _check(request: Request) -> None:
    """Refuse what neither side may say: the same bounds for both, so that what is encoded can be decoded."""
    wanted = request.wanted
    if not 0 < len(wanted) <= MAX_WANTED or not 0 <= request.request_id < 1 << 32:
        raise PieceError(f"a request for {len(wanted)} pieces")
    if any(low >= high for low, high in itertools.pairwise(wanted)) or wanted[-1] - wanted[0] >= MAX_SPAN:
        raise PieceError("a request whose pieces do not ascend, or span too much")
    if not MIN_PIECE_BYTES <= request.piece_bytes <= MAX_PIECE_BYTES:
        raise PieceError(f"a request for pieces of {request.piece_bytes} bytes")
    if wanted[0] < 0 or wanted[-1] >= 1 << 32 or wanted[-1] * request.piece_bytes > MAX_FILE_BYTES:
        raise PieceError(f"a request for piece {wanted[-1]}")
    if not 0 < len(request.path) <= MAX_PATH_BYTES or not request.path.isascii() or not request.path.isprintable():
        raise PieceError(f"a path of {len(request.path)} characters, or with characters that no path has")
