"""Folders for as long as a piece of work lasts, and the end of those that killed processes left.

A folder belongs to the process that holds its lock; the kernel lets go of it when that process ends, however it ends. So whoever
makes the next folder of the same purpose can tell what nobody needs any more, and removes it: a measurement may leave
hundreds of megabytes, and nobody visits the device. Windows has no such locks: there, files in use cannot be deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Give an empty folder, gone afterwards unless it was renamed; first remove what others of this prefix left.

    Args:
        prefix: Of its name: one purpose.
        parent: Where it is made; None: the system's folder for temporary files, in which others' are left alone.

    Raises:
        OSError: it cannot be made: the disk is full, or read-only.
    """
    place = parent or Path(tempfile.gettempdir())
    if parent is not None or os.name != "nt":
        _sweep(place, prefix)
    made, descriptor = _make(place, prefix)
    try:
        yield made
    finally:
        if descriptor is not None:
            os.close(descriptor)
        shutil.rmtree(made, ignore_errors=True)


def _make(place: Path, prefix: str) -> tuple[Path, int | None]:
    """Make a folder and take its lock. One that was swept away between the two is made again."""
    for is_last in (False, False, True):
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        try:
            descriptor = hold(made)
        except OSError:
            if is_last:
                raise
            continue
        if made.exists():
            return made, descriptor
        if descriptor is not None:
            os.close(descriptor)
    raise FileNotFoundError(f"{place}: others delete what is made there")


def _sweep(place: Path, prefix: str) -> None:
    """Remove the folders of processes that were killed: trials often are, at their limit of time or memory."""
    for abandoned in place.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            descriptor = hold(abandoned)
            shutil.rmtree(abandoned, ignore_errors=True)
            if descriptor is not None:
                os.close(descriptor)


def hold(path: Path) -> int | None:
    """Take a folder's lock, which ends with this process; return what holds it, None on Windows.

    Raises:
        OSError: another process has it, it is no folder but a link to one, or it is another user's.
    """
    if os.name == "nt":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{path} is another user's")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
