"""The files of a release repository that anybody may have: `metadata/`, `targets/`, `blobs/`, and nothing else.

Takes a path as a device asks for it, gives bytes of the file. Refuses whatever is not a plain name below one of these
folders, every symbolic link, and everything that is no regular file. Raises nothing: what cannot be read is not there.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

MAX_OPEN = 64
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
_PATH = re.compile(rf"(metadata|targets|blobs)(/{_SEGMENT})+")
log = logging.getLogger(__name__)


class Files(Protocol):
    """Where the server takes what it gives out. A context manager, entered and used in one thread."""

    def read(self, path: str, offset: int, room: Callable[[int, int], memoryview], most: int) -> bool:
        """Read up to `most` bytes from `offset` on into the memory that `room(count, file size)` returns.

        Return False where there is no such file, or no such place in it; an empty file has one: 0. Whatever it raises is
        logged, and the device gets no answer.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(slots=True)
class _Open:
    file: io.FileIO
    size_bytes: int


class PublicFiles:
    """Reads pieces. For one thread; a context manager.

    Blobs and targets carry their digest in their name and never change, so they stay open; metadata is opened each time,
    since timestamp.json is replaced.
    """

    def __init__(self, repository: Path) -> None:
        self._root = Path(os.path.realpath(repository))
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def read(self, path: str, offset: int, room: Callable[[int, int], memoryview], most: int) -> bool:
        """Read up to `most` bytes from `offset` on into the memory that `room(count, file size)` returns.

        Return False where there is no such file, or no such place in it; an empty file has one: 0.
        """
        try:
            if path.startswith("metadata/"):
                with self._open_file(path).file as file:
                    return _read(_Open(file, os.fstat(file.fileno()).st_size), offset, room, most)
            return _read(self._kept_open(path), offset, room, most)
        except (OSError, ValueError) as error:
            log.debug("%s cannot be given out: %s", path, error)
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            self._open.popitem()[1].file.close()

    def _kept_open(self, path: str) -> _Open:
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = self._open_file(path)
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1].file.close()
        else:
            self._open.move_to_end(path)
        return found

    def _open_file(self, path: str) -> _Open:
        if not _PATH.fullmatch(path):
            raise ValueError("not a path of a release")
        wanted = self._root.joinpath(*path.split("/"))
        if os.path.realpath(wanted) != str(wanted) or not wanted.is_file():  # a link anywhere on the way shows here
            raise ValueError("not a regular file of the repository")
        file = io.FileIO(wanted)
        return _Open(file, os.fstat(file.fileno()).st_size)


def _read(source: _Open, offset: int, room: Callable[[int, int], memoryview], most: int) -> bool:
    count = min(most, source.size_bytes - offset)
    if count <= 0 and (offset or source.size_bytes):
        return False
    target = room(count, source.size_bytes)
    source.file.seek(offset)
    return source.file.readinto(target) == count
