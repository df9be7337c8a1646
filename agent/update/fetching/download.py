"""One file on its way, as a sparse file on disk: whoever brings a chunk, in whatever order, it is checked and written.

Which chunks are there is kept nowhere. On the way in again (after a restart, over another transport) each one is hashed and
kept only where it is right, so that torn and lost writes cost their chunk and nothing else. No more than the signed
length is ever written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from agent.errors import ReleaseRefusedError, StateError

SYNC_EVERY_BYTES: Final = 16 << 20
"""So much a power cut may take at most; it also keeps the kernel from gathering a flood for the last fsync."""


class Download:
    """A file of `size_bytes` that is fetched into `path`; implements `transports.transport.Chunks`.

    Args:
        path: Where it grows. What is there already and right is kept.
        sha256: Of the whole file.
        size_bytes: Signed length.
        chunks: SHA-256 of each `chunk_bytes` of it, the last one shorter.
        progress: Called after each chunk with the bytes that are there, in the thread that brought it.

    Raises:
        ReleaseRefusedError: the number of chunks does not fit the length.
        StateError: from every method: the disk is full or fails.
    """

    def __init__(
        self,
        path: Path,
        *,
        sha256: str,
        size_bytes: int,
        chunks: Sequence[str],
        chunk_bytes: int,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        if len(chunks) != -(-size_bytes // chunk_bytes):
            raise ReleaseRefusedError(
                f"{size_bytes} bytes in chunks of {chunk_bytes} are {-(-size_bytes // chunk_bytes)}, "
                f"and {len(chunks)} are signed",
                where=sha256,
            )
        self._path = path
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._chunk_bytes = chunk_bytes
        self._hashes = [bytes.fromhex(each) for each in chunks]
        self._progress = progress
        self._lock = threading.Lock()
        self._is_here = bytearray(len(chunks))
        self._done_bytes = 0
        self._unsynced_bytes = 0
        self._file: BinaryIO = self._open()
        self._scan()

    @property
    def chunk_bytes(self) -> int:
        return self._chunk_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def done_bytes(self) -> int:
        """How many bytes are there and right."""
        return self._done_bytes

    def missing(self) -> Sequence[int]:
        with self._lock:
            return [index for index, is_here in enumerate(self._is_here) if not is_here]

    def take(self, index: int, data: bytes) -> bool:
        if not 0 <= index < len(self._hashes) or len(data) != self._length(index):
            return False
        if hashlib.sha256(data).digest() != self._hashes[index]:
            return False
        with self._lock:
            if self._is_here[index]:
                return True
            self._write(index * self._chunk_bytes, data)
            self._mark(index)
            self._sync_now_and_then(len(data))
            done_bytes = self._done_bytes
        self._progress(done_bytes)
        return True

    def finish(self) -> Path:
        """Make the whole file durable, verify it, and return its path.

        Raises:
            StateError: the disk did not keep what was written; fetch again.
            ReleaseRefusedError: all chunks are right and the whole is not: the signed document contradicts itself.
        """
        with self._lock:
            self._sync()
            if self._whole_sha256() == self._sha256:
                return self._path
            self._scan()
            if all(self._is_here):
                raise ReleaseRefusedError("the signed chunks do not make up the signed file", where=self._sha256)
        raise StateError("the disk did not keep what was written", where=str(self._path), hint="check the disk")

    def close(self) -> None:
        """Keep what came for the next time."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            file = os.fdopen(os.open(self._path, flags, 0o644), "r+b", buffering=0)
            if os.fstat(file.fileno()).st_size > self._size_bytes:
                file.truncate(self._size_bytes)
        except OSError as error:
            raise self._failed(error) from error
        return file

    def _scan(self) -> None:
        """Find out which chunks are there and right. Sectors that cannot be read are chunks that are not there."""
        self._is_here = bytearray(len(self._hashes))
        self._done_bytes = 0
        for index, expected in enumerate(self._hashes):
            if hashlib.sha256(self._read(index * self._chunk_bytes, self._length(index))).digest() == expected:
                self._mark(index)

    def _mark(self, index: int) -> None:
        self._is_here[index] = 1
        self._done_bytes += self._length(index)

    def _length(self, index: int) -> int:
        return min(self._chunk_bytes, self._size_bytes - index * self._chunk_bytes)

    def _read(self, offset: int, count: int) -> bytes:
        try:
            self._file.seek(offset)
            return self._file.read(count)
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise self._failed(error) from error

    def _write(self, offset: int, data: bytes) -> None:
        try:
            self._file.seek(offset)
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise self._failed(error) from error

    def _sync_now_and_then(self, count: int) -> None:
        self._unsynced_bytes += count
        if self._unsynced_bytes >= SYNC_EVERY_BYTES:
            self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # the kernel now shows pages that the disk never got: begin anew
                self._file.truncate(0)
            raise self._failed(error) from error
        self._unsynced_bytes = 0

    def _whole_sha256(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self._hashes)):
            digest.update(self._read(index * self._chunk_bytes, self._length(index)))
        return digest.hexdigest()

    def _failed(self, error: OSError) -> StateError:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return StateError(
            f"a download cannot be written: {error.strerror or error}",
            where=str(self._path),
            hint="free some space; it goes on where it stopped" if is_full else "check the disk and its permissions",
        )
