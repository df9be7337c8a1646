"""A repository in a folder: a USB stick, a network share, a mirror on this machine.

Takes the repository's paths, gives the files' bytes. Refuses whatever is not a plain file inside the folder: links, `..`,
pipes and devices. The folder itself may be a link: the operator named it.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from agent.errors import UnavailableError
from agent.update.transports.transport import Chunks, NotThereError, StoppedError, WrongContentError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
"""What a path of the repository consists of: no empty part, no leading dot, no drive, no backslash."""


class FolderTransport:
    """The repository in `folder`, which may come and go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        return str(self._folder)

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        _heed(stop)
        with self._open(path) as file:
            content = self._read(file, path, limit_bytes + 1)
        if len(content) > limit_bytes:
            raise UnavailableError(f"{path} has more than the {limit_bytes} bytes allowed", where=self.name)
        return content

    def fetch(self, path: str, chunks: Chunks, stop: threading.Event) -> None:
        wrong = 0
        with self._open(path) as file:
            for index in chunks.missing():
                _heed(stop)
                offset = index * chunks.chunk_bytes
                length = min(chunks.chunk_bytes, chunks.size_bytes - offset)
                wrong += not chunks.take(index, self._read(file, path, length, offset))
        if wrong:
            raise WrongContentError(
                f"{path} is not what was signed: {wrong} chunks are wrong",
                where=self.name,
                hint="copy the folder again",
            )

    def close(self) -> None:
        """Nothing stays open."""

    def _open(self, path: str) -> BinaryIO:
        place = self._place(path)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            file = os.fdopen(os.open(place, flags), "rb", buffering=0)
        except OSError as error:
            raise self._absent(path, error) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise UnavailableError(f"{path} is no plain file", where=self.name)
        return file

    def _place(self, path: str) -> Path:
        """Return where a path of the repository lies, after a look at every part of it."""
        parts = path.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise NotThereError(f"{path[:200]!r} is no path of a repository", where=self.name)
        place = self._folder
        for part in parts:
            place /= part
            if place.is_symlink():
                raise UnavailableError(f"{path} leads through a link ({place.name}): refused", where=self.name)
        return place

    def _absent(self, path: str, error: OSError) -> UnavailableError:
        if not self._folder.is_dir():
            return UnavailableError(
                "the folder is not there", where=self.name, hint="put the USB stick in, or mount it"
            )
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return NotThereError(f"there is no {path}", where=self.name)
        return UnavailableError(f"{path} cannot be read: {error.strerror or error}", where=self.name)

    def _read(self, file: BinaryIO, path: str, count: int, offset: int = 0) -> bytes:
        """Read up to `count` bytes; a stick that is pulled out in the middle is unavailable, not wrong."""
        pieces = bytearray()
        try:
            file.seek(offset)
            while len(pieces) < count and (piece := file.read(min(count - len(pieces), 1 << 20))):
                pieces += piece
        except OSError as error:
            raise self._absent(path, error) from error
        return bytes(pieces)


def _heed(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError("stopped")
