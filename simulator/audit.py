"""An auditor inside the agent's database: it notes every event that was ever recorded, in the transaction that recorded it.

Takes the state folder of an agent that ran before and does not run now; gives what was recorded, what waits and what was
lost, also while the agent lies dead after a `kill -9`. It is a trigger, so it misses nothing and invents nothing, whenever
the agent ends. Reading works on a copy: the agent's own recovery of its write-ahead log must stay the agent's.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.paths import StatePaths

_SET_UP = """
CREATE TABLE audit (seq INTEGER NOT NULL, pipeline TEXT NOT NULL, id TEXT NOT NULL);
INSERT INTO audit SELECT seq, pipeline, CAST(payload AS TEXT) ->> '$.id' FROM events;
CREATE TRIGGER audit_recorded AFTER INSERT ON events BEGIN
    INSERT INTO audit VALUES (new.seq, new.pipeline, CAST(new.payload AS TEXT) ->> '$.id');
END;
"""


@dataclass(frozen=True, slots=True)
class Findings:
    """The database at one moment. An event is (seq, pipeline, id)."""

    recorded: tuple[tuple[int, str, str], ...]
    """Every event since the audit began, in the order of recording."""
    waiting: frozenset[int]
    """The numbers of those that have not left."""
    lost: int
    """Events that were dropped and counted."""


class Audit:
    """The audit of one state folder."""

    def __init__(self, paths: StatePaths) -> None:
        self._paths = paths

    def begin(self) -> None:
        """Set the trigger. The agent ran before, so that there is a database, and does not run now.

        Raises:
            sqlite3.Error: there is no database, or it is audited already.
        """
        with contextlib.closing(sqlite3.connect(self._paths.database)) as connection:
            connection.executescript(_SET_UP)

    def read(self) -> Findings:
        """Return what the database holds. The agent must not run: it is ended, or was killed."""
        name = self._paths.database.name
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            for suffix in ("", "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(self._paths.root / (name + suffix), folder)
            with contextlib.closing(sqlite3.connect(Path(folder, name))) as connection:
                return Findings(
                    tuple(connection.execute("SELECT seq, pipeline, id FROM audit ORDER BY rowid")),
                    frozenset(seq for (seq,) in connection.execute("SELECT seq FROM events")),
                    int(connection.execute("SELECT coalesce(sum(total), 0) FROM losses").fetchone()[0]),
                )
