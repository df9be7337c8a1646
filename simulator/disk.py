"""Disks that are full, or read-only: small file systems in memory. Linux, and root (or a user who may mount)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


def why_not() -> str | None:
    """Return why this machine cannot make such disks, or None where it can."""
    if not sys.platform.startswith("linux"):
        return "small disks need Linux's tmpfs"
    if os.geteuid() != 0:
        return "small disks need the right to mount (root)"
    return None


class SmallDisk:
    """A tmpfs of `size_bytes` at `folder` (made where it is missing). See `why_not` first.

    Raises:
        OSError: it could not be mounted.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self._size_bytes = size_bytes
        self._filler = folder / "filler"

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Take all space, but for `leave_bytes`."""
        stat = os.statvfs(self.folder)
        count = stat.f_bavail * stat.f_frsize - leave_bytes
        with self._filler.open("ab") as file:
            while count > 0:
                try:
                    written = os.write(file.fileno(), bytes(min(count, 1 << 16)))
                except OSError:
                    return
                count -= written

    def free(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)

    def make_read_only(self) -> None:
        """As a file system does after an error; open files for writing prevent it (EBUSY)."""
        _mount("-o", "remount,ro", str(self.folder))

    def make_writable(self) -> None:
        """The opposite."""
        _mount("-o", "remount,rw", str(self.folder))

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={self._size_bytes}", "tmpfs", str(self.folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)


def _mount(*arguments: str) -> None:
    result = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"mount {' '.join(arguments)}: {result.stderr.strip()}")
