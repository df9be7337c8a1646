"""Replace a file so that a power cut leaves either the old content or the new, never a mix; and read one of our own again."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

LARGEST_BYTES = 4 << 20
"""Of a file that core reads: one that went mad must not take its memory along."""


def read(path: Path) -> bytes:
    """Return the content of a small file.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read, is no file (a pipe would be waited for, and core with it), or is larger than any that this
            program writes.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("expected a file, found a pipe or a device")
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise OSError(f"expected at most {LARGEST_BYTES} bytes, found more")
    return content


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
