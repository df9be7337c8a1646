"""Event numbers that never repeat on this device, also when the database is damaged, deleted or loses its last writes.

A consumer acknowledges by number, so a number used twice could delete an event that nobody has seen. The file
`sequence` holds the first number that is certainly unused. Numbers are reserved in blocks before use (one fsync a
block); a clean stop gives the rest of the block back. So numbers leave a gap after a crash, and a gap is no sign of
a loss: losses are counted and reported by name.
"""

from __future__ import annotations

import logging
from pathlib import Path

from agent import atomicfile
from agent.errors import StateError

BLOCK = 1000
log = logging.getLogger(__name__)


class Sequence:
    """Hands out numbers, starting at 1.

    Args:
        path: `StatePaths.sequence`.
        at_least: One more than the largest number that the database knows.
    """

    def __init__(self, path: Path, *, at_least: int = 1) -> None:
        self._path = path
        self._next = max(at_least, _read(path, fallback=at_least))
        self._reserved = self._next
        self._reserve()

    def take(self) -> int:
        """Return a number that was never used.

        Raises:
            StateError: a new block had to be written and the disk refused; try again later.
        """
        left = self._reserved - self._next
        if left <= 0:
            self._reserve()
        elif left <= BLOCK // 2 and left % 100 == 0:  # ahead of need, so that a full disk is met with numbers in hand
            try:
                self._reserve()
            except StateError as error:
                log.warning("%s", error)
        number = self._next
        self._next += 1
        return number

    def close(self) -> None:
        """Give the unused rest of the block back."""
        try:
            atomicfile.write(self._path, b"%d\n" % self._next)
        except OSError as error:
            log.warning("cannot write %s: %s; event numbers will leave a gap", self._path, error)

    def _reserve(self) -> None:
        end = self._next + BLOCK
        try:
            atomicfile.write(self._path, b"%d\n" % end)
        except OSError as error:
            raise StateError(
                f"cannot reserve event numbers: {error.strerror or error}",
                where=str(self._path),
                hint="free some space, or make the state folder writable",
            ) from error
        self._reserved = end


def _read(path: Path, *, fallback: int) -> int:
    """Return the number in the file; where it cannot be read, skip one block: that many may have been handed out."""
    try:
        return int(atomicfile.read(path))
    except FileNotFoundError:
        return fallback
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s); event numbers skip a block", path, error)
        return fallback + BLOCK
