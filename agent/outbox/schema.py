"""The tables and their migrations. sqlite-utils keeps the list; it is imported only when there is something to migrate.

`PRAGMA user_version` says how many migrations a file has seen, so that a start without any costs no import
(sqlite-utils brings numpy, 17 MiB), and a file of a newer Holdfast is recognised.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import StateError

if TYPE_CHECKING:
    from sqlite_utils import Database


def _create_events_and_losses(db: Database) -> None:
    # AUTOINCREMENT makes SQLite remember the largest number also when all events are gone.
    db.execute(
        "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, pipeline TEXT NOT NULL, "
        "size INTEGER NOT NULL, payload BLOB NOT NULL)"
    )
    # `size` is in the index so that a start can add up the queue without reading the events.
    db.execute("CREATE INDEX events_by_pipeline ON events (pipeline, seq, size)")
    db.table("losses").create(
        {
            "pipeline": str,
            "cause": str,
            "total": int,
            "reported": int,
            "first_seq": int,
            "last_seq": int,
            "report_seq": int,
            "report_total": int,
        },
        pk=("pipeline", "cause"),
    )


MIGRATIONS: tuple[Callable[[Database], None], ...] = (_create_events_and_losses,)
VERSION = len(MIGRATIONS)


def refuse_newer(connection: sqlite3.Connection, path: Path) -> None:
    """Make sure that this Holdfast knows the file, before anything is written to it.

    Raises:
        StateError: a newer Holdfast wrote the file. It is left as it is.
    """
    found = _version(connection)
    if found > VERSION:
        raise StateError(
            f"the database has schema {found}, and this Holdfast knows schemas up to {VERSION}",
            where=str(path),
            hint="install the newer Holdfast again, or set another `state_dir:`",
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to `VERSION`."""
    if _version(connection) < VERSION:
        _apply(connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _apply(connection: sqlite3.Connection) -> None:
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

    migrations = Migrations("outbox")
    for function in MIGRATIONS:
        migrations(name=function.__name__.strip("_"))(function)
    migrations.apply(Database(connection))
