"""Rebuild a file from an older one and a *residual*: what every weight moved by. For the child that unpacks.

Takes three open files; gives the new file, in pieces of at most 1 MiB, so that memory does not grow with the model.
Refuses everything that does not fit the base and the promised size before it is used. What it rebuilds is right only if
its SHA-256 says so: the caller checks.

Retrained weights share few bytes with the old ones, yet most are near them. Their difference as integers of the item's
size (IEEE 754 patterns are ordered like integers) is small, so its high bytes are nearly constant; those compress well
once they stand together (byte planes). The layout, little-endian:

    8 bytes  MAGIC
    u64      size of the base            u64      size of the result
    u32      number of steps             15 × u64 compressed size of each stream
    streams  each one zstd frame of a window ≤ 1 MiB; 0: its steps (`STEP`); 1–14: its byte planes

The steps give the result from its first byte to its last. `COPY` takes `length` bytes of the base at `offset`; `PLAIN`
takes them from the streams; `MOVED` takes them from the base and adds what the streams say. Both of the latter are
`length / width` unsigned integers of `width` bytes (1, 2 or 4), whose byte p is read from stream `plane_stream(…, p)`.
`MOVED` differences wrap at the integer's size and are zigzag-coded: 0, −1, 1, −2 … are 0, 1, 2, 3 ….
"""

from __future__ import annotations

import struct
from typing import IO

import numpy as np
from numpy.typing import NDArray

from agent.update.fetching.unpacking import UnpackError
from agent.update.fetching.zstdlibrary import zstd

MAGIC = b"HFRESID1"
HEADER = struct.Struct("<8sQQI15Q")
STEP = np.dtype([("operation", "u1"), ("width", "u1"), ("length", "<u8"), ("offset", "<u8")])
COPY, PLAIN, MOVED = 0, 1, 2
WIDTHS = (1, 2, 4)
MAX_STEPS = 1 << 18
MAX_PIECE_BYTES = 1 << 20
"""Of one PLAIN or MOVED step. A COPY may be longer."""
STREAM_WINDOW_LOG = 20
_READ_BYTES = 1 << 16


def plane_stream(operation: int, width: int, plane: int) -> int:
    """Return the number of the stream that holds byte `plane` of each item: 1–7 for PLAIN, 8–14 for MOVED."""
    return (width if operation == PLAIN else width + 7) + plane


def zigzag(moved: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Map differences that wrapped (0, −1, 1, −2 …) to small unsigned integers (0, 1, 2, 3 …) of the same type."""
    one, top = moved.dtype.type(1), moved.dtype.type(8 * moved.dtype.itemsize - 1)
    return np.asarray((moved << one) ^ (~(moved >> top) + one))


def unzigzag(coded: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Reverse `zigzag`."""
    one = coded.dtype.type(1)
    return np.asarray((coded >> one) ^ (~(coded & one) + one))


def rebuild(residual: IO[bytes], base: IO[bytes], output: IO[bytes], size_bytes: int) -> None:
    """Write to `output` the `size_bytes` that `residual` makes of `base`. All files are open in binary, at their start.

    Raises:
        UnpackError: the residual is damaged, belongs to another base, or makes another size. Part of it may be written.
        OSError: a file cannot be read or written.
    """
    base_bytes = base.seek(0, 2)
    count, streams = _open_streams(residual, base_bytes, size_bytes)
    steps = _read_steps(streams[0], count, base_bytes, size_bytes)
    for operation, width, length, offset in steps.tolist():
        if operation == COPY:
            _copy(base, output, offset, length)
        else:
            items = _read_items(streams, operation, width, length // width)
            if operation == MOVED:
                base.seek(offset)
                old = np.frombuffer(_exactly(base, length), items.dtype)
                items = np.asarray(old + unzigzag(items))
            output.write(items.tobytes())


def _open_streams(residual: IO[bytes], base_bytes: int, size_bytes: int) -> tuple[int, list[_Stream]]:
    file_bytes = residual.seek(0, 2)
    residual.seek(0)
    if file_bytes < HEADER.size:
        raise UnpackError(f"the residual has {file_bytes} bytes, fewer than its header")
    magic, said_base_bytes, said_size_bytes, count, *sizes = HEADER.unpack(residual.read(HEADER.size))
    if magic != MAGIC:
        raise UnpackError(f"this is no residual: it begins with {magic!r}, expected {MAGIC!r}")
    if said_base_bytes != base_bytes:
        raise UnpackError(f"the residual was made for a base of {said_base_bytes} bytes, this one has {base_bytes}")
    if said_size_bytes != size_bytes:
        raise UnpackError(f"the residual makes {said_size_bytes} bytes, {size_bytes} were promised")
    if count > MAX_STEPS:
        raise UnpackError(f"the residual has {count} steps, more than {MAX_STEPS}")
    if HEADER.size + sum(sizes) != file_bytes:
        raise UnpackError(f"the residual's streams add up to {HEADER.size + sum(sizes)} bytes, it has {file_bytes}")
    streams, begin = [], HEADER.size
    for size in sizes:
        streams.append(_Stream(residual, begin, begin + size))
        begin += size
    return count, streams


def _read_steps(stream: _Stream, count: int, base_bytes: int, size_bytes: int) -> NDArray[np.void]:
    """Return the steps, each of which fits the base, all together making exactly `size_bytes`."""
    steps = np.frombuffer(stream.read(count * STEP.itemsize), STEP)
    operation, length, offset = steps["operation"], steps["length"], steps["offset"]
    width = steps["width"].astype("<u8")
    is_copy, is_plain = operation == COPY, operation == PLAIN
    base_size = np.uint64(base_bytes)
    fits_base = (offset <= base_size) & (length <= base_size - np.minimum(offset, base_size))
    is_whole = np.isin(width, WIDTHS) & (length <= MAX_PIECE_BYTES) & (length % np.maximum(width, 1) == 0)
    is_good = (operation <= MOVED) & (length > 0) & (is_plain | fits_base) & (is_copy | is_whole)
    if not is_good.all():
        raise UnpackError(f"step {int(np.argmin(is_good))} of the residual does not fit its base or its result")
    if (total := sum(length.tolist())) != size_bytes:
        raise UnpackError(f"the residual's steps make {total} bytes, {size_bytes} were promised")
    return steps


def _read_items(streams: list[_Stream], operation: int, width: int, count: int) -> NDArray[np.unsignedinteger]:
    """Return `count` integers, put together from one stream a byte."""
    items = np.empty((count, width), np.uint8)
    for plane in range(width):
        items[:, plane] = np.frombuffer(streams[plane_stream(operation, width, plane)].read(count), np.uint8)
    return items.view(f"<u{width}").reshape(count)


def _copy(base: IO[bytes], output: IO[bytes], offset: int, length: int) -> None:
    base.seek(offset)
    while length:
        output.write(_exactly(base, min(length, MAX_PIECE_BYTES)))
        length -= min(length, MAX_PIECE_BYTES)


def _exactly(base: IO[bytes], length: int) -> bytes:
    found = base.read(length)
    if len(found) != length:
        raise UnpackError("the base became shorter while it was read")
    return found


class _Stream:
    """One zstd frame inside the residual, decompressed as far as somebody asks."""

    def __init__(self, file: IO[bytes], begin: int, end: int) -> None:
        self._file = file
        self._next, self._end = begin, end
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: STREAM_WINDOW_LOG}
        self._decompressor = zstd.ZstdDecompressor(options=options)

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        found = bytearray()
        while len(found) < count:
            if self._decompressor.eof:
                raise UnpackError("a stream of the residual ends before its steps do")
            compressed = self._read_compressed() if self._decompressor.needs_input else b""
            try:
                found += self._decompressor.decompress(compressed, count - len(found))
            except zstd.ZstdError as error:
                raise UnpackError(f"a stream of the residual is damaged: {error}") from error
        return bytes(found)

    def _read_compressed(self) -> bytes:
        self._file.seek(self._next)
        compressed = self._file.read(min(_READ_BYTES, self._end - self._next))
        if not compressed:
            raise UnpackError("a stream of the residual ends before its steps do")
        self._next += len(compressed)
        return compressed
