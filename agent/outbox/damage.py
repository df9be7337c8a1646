"""What happens to a damaged database: found, set aside under a name with the time, and read for what is left of it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.clock import Clock
from agent.errors import StateError

KEPT = 3
"""So many damaged databases stay for an expert; older ones go, or a failing disk would fill up with them."""
_SUFFIXES = ("", "-wal", "-shm")
_BATCH = 500
_FORWARD = "SELECT seq, pipeline, payload FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
_BACKWARD = "SELECT seq, pipeline, payload FROM events WHERE seq < ? AND seq > ? ORDER BY seq DESC LIMIT ?"
Row = tuple[int, str, bytes]
log = logging.getLogger(__name__)


class DamagedDatabaseError(StateError):
    """The file is no database, or its content contradicts itself."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """The database was unusable and a new one was begun."""

    reason: str
    set_aside: Path | None
    """Where the damaged one is now; None where there was none."""
    salvaged: int
    """Events that could be read from it and were taken over."""


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Read the whole file once.

    Raises:
        DamagedDatabaseError: something in it contradicts something else.
    """
    finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if finding != "ok":
        raise DamagedDatabaseError(f"the database is damaged: {finding}", where=str(path))


def set_aside(path: Path, clock: Clock) -> Path:
    """Rename the database and its log to `<name>.damaged-<UTC time>`; return the new path.

    Raises:
        StateError: the folder cannot be written.
    """
    stem = f"{path.name}.damaged-{clock.now():%Y%m%dT%H%M%SZ}"
    names = itertools.chain([stem], (f"{stem}.{number}" for number in itertools.count(2)))
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    try:
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    except OSError as error:
        raise StateError(
            f"the damaged database cannot be set aside: {error.strerror or error}",
            where=str(path),
            hint="make the state folder writable, or move the file away by hand",
        ) from error
    _forget_old(path)
    return target


def salvage(path: Path) -> Iterator[list[Row]]:
    """Yield what can still be read, in batches: forward up to the first damaged page, then backward from the end."""
    try:
        _pad(path)
        connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    except (sqlite3.Error, OSError):
        return
    with contextlib.closing(connection):
        reached, limit = 0, (1 << 63) - 1
        while batch := _read(connection, _FORWARD, (reached, _BATCH)):
            reached = batch[-1][0]
            yield from _plausible(batch)
        while batch := _read(connection, _BACKWARD, (limit, reached, _BATCH)):
            limit = batch[-1][0]
            yield from _plausible(batch)


def _pad(path: Path) -> None:
    """Give a truncated file its length back: SQLite refuses it whole, where zeros cost only the pages that are gone.

    Header fields: sqlite.org/fileformat2.html section 1.3, page size at 16, size in pages at 28.
    """
    with path.open("rb") as file:
        header = file.read(32)
    if header.startswith(b"SQLite format 3\0") and len(header) == 32:
        page_size, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
        wanted = (65536 if page_size == 1 else page_size) * pages
        if path.stat().st_size < wanted < 1 << 36:
            os.truncate(path, wanted)


def _read(connection: sqlite3.Connection, query: str, arguments: tuple[int, ...]) -> list[Row]:
    """Return the rows up to the first that cannot be read."""
    batch: list[Row] = []
    try:
        for row in connection.execute(query, arguments):
            batch.append(row)  # noqa: PERF402  one by one, so that what came before the damage is kept
    except (sqlite3.Error, OverflowError) as error:
        log.warning("salvage: %s", error)
    return batch


def _plausible(batch: list[Row]) -> Iterator[list[Row]]:
    sound = [row for row in batch if isinstance(row[0], int) and isinstance(row[1], str) and isinstance(row[2], bytes)]
    if sound:
        yield sound


def _forget_old(path: Path) -> None:
    found = sorted(file for file in path.parent.glob(f"{path.name}.damaged-*") if not file.name.endswith(_SUFFIXES[1:]))
    for old in found[:-KEPT]:
        for suffix in _SUFFIXES:
            old.with_name(old.name + suffix).unlink(missing_ok=True)
