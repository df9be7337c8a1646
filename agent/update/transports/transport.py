"""What every transport does. None of them is trusted: whoever asks checks what comes.

Paths are those of the repository's folder: `metadata/3.root.json`, `targets/channels/<sha256>.stable.json`,
`blobs/<sha256>`. All calls block, from one thread at a time, and return within about a second once `stop` is set.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from agent.errors import NotThereError, StoppedError, UnavailableError, WrongContentError

__all__ = ["Chunks", "NotThereError", "StoppedError", "Transport", "UnavailableError", "WrongContentError"]


class Chunks(Protocol):
    """The file that is being fetched, as a transport sees it. Thread-safe."""

    @property
    def chunk_bytes(self) -> int:
        """Size of each chunk; the last one may be shorter."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        ...

    def missing(self) -> Sequence[int]:
        """Return the indices that are still needed, in ascending order."""
        ...

    def take(self, index: int, data: bytes) -> bool:
        """Check a chunk and write it. Return False where it is not what was signed (nothing was written).

        Raises:
            StateError: the disk is full or fails.
        """
        ...


class Transport(Protocol):
    """One way to reach the repository."""

    @property
    def name(self) -> str:
        """For people: `mqtt`, `https://mirror.example/releases`, `/media/usb`."""
        ...

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        """Return a small file, whole.

        Raises:
            NotThereError: the repository has no such file.
            UnavailableError: no connection, silence, an error of the other side, too slow, or more than `limit_bytes`.
        """
        ...

    def fetch(self, path: str, chunks: Chunks, stop: threading.Event) -> None:
        """Bring every missing chunk, in any order.

        Raises:
            NotThereError: the repository has no such file.
            WrongContentError: what comes is wrong again and again.
            UnavailableError: no connection, silence, or too slow; what came so far is kept by `chunks`.
            StoppedError: `stop` was set.
        """
        ...

    def close(self) -> None:
        """Leave nothing open. The next call opens it again."""
        ...
