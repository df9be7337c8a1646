"""Replace a file so that a power cut leaves either the old content or the new, never a mix; and read one of our own again."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

LARGEST_BYTES = 4 << 20
"""Of a file that core reads: one that went mad must not take its memory along."""


def read(path: Path) -> bytes:
    """Return the content of a small file.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read, is no file, or is larger than any that this program writes.
    """
    with open_file(path) as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise OSError(f"expected at most {LARGEST_BYTES} bytes, found more")
    return content


def open_file(path: Path) -> BinaryIO:
    """Open one of our own files for reading; a pipe in its place would be waited for, and core with it.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read, or is no file.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("expected a file, found a pipe or a device")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, fsync it, rename it over `path`, fsync the folder.

    Raises:
        OSError: the disk is full, read-only or gone; `path` still has its old content.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
