"""What happened to this device's updates, for people: rows in a small SQLite file. Losing it harms nothing.

No decision reads it. A damaged file is set aside and a new one begun; a row that cannot be written is a line in the log.
Plain `sqlite3`: one table that never changes needs no migrations, and sqlite-utils would bring numpy into core.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

log = logging.getLogger(__name__)

KEPT_ROWS = 1000
_LOCK_S = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a model's state. `at` is RFC 3339, UTC."""

    at: str
    model: str
    release: int
    version: str
    before: str
    after: str
    reason: str


_COLUMNS = ", ".join(field.name for field in fields(Step))
_CREATE = f"CREATE TABLE IF NOT EXISTS steps (id INTEGER PRIMARY KEY, {_COLUMNS})"
_INSERT = f"INSERT INTO steps ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  our own column names
_FORGET = f"DELETE FROM steps WHERE id <= (SELECT max(id) FROM steps) - {KEPT_ROWS}"  # noqa: S608
_NEWEST = f"SELECT {_COLUMNS} FROM steps ORDER BY id DESC LIMIT ?"  # noqa: S608


class History:
    """The file `path`. It is opened for each row: minutes or days lie between two."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, step: Step) -> None:
        """Write a row, or a line in the log that says why not."""
        try:
            self._write(step)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # full, locked, read-only: the file itself is sound
                log.warning("a step of an update is not in the history: %s", error)
                return
            self._set_aside(error)
            with contextlib.suppress(sqlite3.Error):
                self._write(step)

    def newest(self, limit: int = 50) -> list[Step]:
        """Return the newest rows first; none where the file cannot be read."""
        if not self._path.is_file():
            return []
        try:
            with self._open() as connection:
                return [Step(*row) for row in connection.execute(_NEWEST, (limit,))]
        except sqlite3.Error as error:
            log.warning("the history of updates cannot be read: %s", error)
            return []

    def _write(self, step: Step) -> None:
        with self._open() as connection, connection:
            connection.execute(_CREATE)
            connection.execute(_INSERT, astuple(step))
            connection.execute(_FORGET)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=_LOCK_S)) as connection:
            yield connection

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        try:
            self._path.replace(aside)
        except OSError as reason:
            log.warning("the history of updates is damaged (%s) and cannot be set aside: %s", error, reason)
            return
        log.warning("the history of updates was damaged and is set aside as %s: %s", aside, error)
