"""Events on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.clock import Clock
from agent.paths import StatePaths


@dataclass(frozen=True, slots=True)
class Recovery:
    """The database was unusable and a new one was begun."""

    reason: str
    set_aside: Path
    """Where the damaged one is now."""
    salvaged: int
    """Events that could be read from it and were taken over."""


class EventStore:
    """Open with `EventStore.open(paths, clock)`; `store.recovery` says whether a damaged database was replaced.

    Belongs to the thread that opened it.
    """

    recovery: Recovery | None

    @classmethod
    def open(cls, paths: StatePaths, clock: Clock) -> EventStore:
        """Open or create.

        Raises:
            StateError: not readable or writable, or written by a newer Holdfast.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left and close; the next start needs no check."""
        raise NotImplementedError
