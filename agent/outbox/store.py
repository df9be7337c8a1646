"""Events on disk: one SQLite file (WAL, synchronous=FULL) that belongs to core's thread alone.

Takes sealed events, gives them back in order per pipeline, counts losses in the same transaction. What is in a
returned `write` survives a power cut; a `write` that raised changed nothing. `busy_timeout` is 0: the state
folder's lock makes us the only writer, so a busy database is an error to be told, and core's thread must not sleep
here.

A damaged file is set aside and rebuilt, with whatever can still be read from it. A file that a newer Holdfast
wrote is not damage: it is refused and left alone.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agent.clock import Clock
from agent.errors import StateError
from agent.outbox import damage, schema
from agent.outbox.damage import DamagedDatabaseError, Recovery
from agent.outbox.quota import Entry, entry_size
from agent.outbox.sequence import Sequence as EventNumbers
from agent.paths import StatePaths

FULL_CHECK_BELOW_BYTES = 64 << 20
"""A database up to this size is checked at every start (about 0.1 s); a larger one only after an unclean stop."""
VACUUM_STEP_PAGES = 256
_NOW_REFUSED = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class WriteRefusedError(StateError):
    """The disk took nothing now (full, read-only, failing); nothing changed, and it may work later."""


class Stored(NamedTuple):
    """One event as it lies in the outbox."""

    seq: int
    pipeline: str
    payload: bytes


@dataclass(slots=True)
class Loss:
    """What was lost of one pipeline for one cause, and how far that was reported."""

    pipeline: str
    cause: str
    total: int = 0
    reported: int = 0
    """As much of `total` as a delivered report said."""
    first_seq: int = 0
    """Of the losses that no delivered report covers yet."""
    last_seq: int = 0
    report_seq: int | None = None
    """The report that is in the outbox now."""
    report_total: int = 0
    """`total` as that report says it."""


class EventStore:
    """Open with `EventStore.open(paths, clock)`. Belongs to the thread that opened it."""

    def __init__(self, paths: StatePaths, clock: Clock) -> None:
        self._paths = paths
        self._clock = clock
        self.recovery: Recovery | None = None
        """Set where a damaged or missing database was replaced."""
        self._queue: dict[str, list[int]] = {}
        self._connection = self._open_or_rebuild()
        self._load()
        self.sequence = EventNumbers(paths.sequence, at_least=self.highest_seq + 1)

    @classmethod
    def open(cls, paths: StatePaths, clock: Clock) -> EventStore:
        """Open or create.

        Raises:
            StateError: not readable or writable, or written by a newer Holdfast.
        """
        return cls(paths, clock)

    def write(self, *, append: Sequence[Stored] = (), delete: Iterable[int] = (), losses: Iterable[Loss] = ()) -> None:
        """Do all of it in one durable transaction, or nothing.

        Raises:
            WriteRefusedError: the disk is full or fails.
            DamagedDatabaseError: the file is damaged; call `rebuild`.
        """
        rows = [(seq, pipeline, entry_size(pipeline, payload), payload) for seq, pipeline, payload in append]
        numbers, loss_rows = list(delete), [_loss_row(loss) for loss in losses]
        gone: list[tuple[str, int]] = []
        run = self._connection.execute
        try:
            run("BEGIN IMMEDIATE")
            try:
                if numbers:
                    gone = run(_DELETE, (json.dumps(numbers),)).fetchall()
                if rows:
                    self._connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
                if loss_rows:
                    self._connection.executemany(_SAVE_LOSS, loss_rows)
                run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _translate(error, self._paths.database, "write") from error
        for pipeline, size in gone:
            self._count(pipeline, -1, -size)
        for _, pipeline, size, _ in rows:
            self._count(pipeline, 1, size)

    def append(self, batch: Sequence[Stored]) -> None:
        """Store events in one transaction; see `write`."""
        self.write(append=batch)

    def delete(self, seqs: Iterable[int]) -> None:
        """Forget events in one transaction; unknown numbers are no error; see `write`."""
        self.write(delete=seqs)

    def oldest(self, pipeline: str, after: int, limit: int) -> list[Stored]:
        """Return up to `limit` events of `pipeline` with a number above `after`, in order."""
        with self._translated("read"):
            rows = self._connection.execute(_OLDEST, (pipeline, after, limit)).fetchall()
        return [Stored(seq, pipeline, payload) for seq, payload in rows]

    def entries(self, limit: int) -> Iterator[Entry]:
        """Yield the `limit` oldest events of all pipelines, without their payloads."""
        with self._translated("read"):
            rows = self._connection.execute("SELECT seq, pipeline, size FROM events ORDER BY seq LIMIT ?", (limit,))
            yield from map(Entry._make, rows)

    def losses(self) -> list[Loss]:
        """Return every loss that was ever counted in this database."""
        with self._translated("read"):
            rows = self._connection.execute("SELECT * FROM losses").fetchall()
        return [Loss(*row) for row in rows]

    def waiting(self) -> dict[str, int]:
        """Return how many events wait, by pipeline."""
        return {pipeline: count for pipeline, (count, _) in self._queue.items()}

    def pipelines(self) -> list[str]:
        """Return the pipelines that have events waiting."""
        return sorted(self._queue)

    def __len__(self) -> int:
        return sum(count for count, _ in self._queue.values())

    @property
    def size_bytes(self) -> int:
        """What the waiting events cost on disk: payload, row and index, by `quota.entry_size`."""
        return sum(size for _, size in self._queue.values())

    @property
    def highest_seq(self) -> int:
        """The largest number that this database ever held or counted as lost."""
        with self._translated("read"):
            row = self._connection.execute(_HIGHEST).fetchone()
        return int(row[0])

    def reuse_log(self) -> None:
        """Let the write-ahead log start again from its beginning: on a full disk that space is all there is."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    @property
    def has_slack(self) -> bool:
        """Whether the file holds a MiB or more that no event needs."""
        with self._translated("read"):
            free = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int(free) >= VACUUM_STEP_PAGES

    def shrink_step(self) -> bool:
        """Give up to 1 MiB back to the file system (a few ms); return whether there is more."""
        with self._translated("write"):
            # Not `execute`: the pragma gives one row without columns for each page, and `execute` stops at the first.
            self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_STEP_PAGES})")
            more = self.has_slack
            if not more:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return more

    def rebuild(self, reason: str) -> Recovery:
        """Set the damaged database aside while running, and take over what can be read."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        self._connection = self._replace_damaged(reason)
        self._load()
        assert self.recovery is not None
        return self.recovery

    def close(self) -> None:
        """Close; the log is folded into the file, and unused numbers are given back."""
        self.sequence.close()
        self._connection.close()

    def _open_or_rebuild(self) -> sqlite3.Connection:
        path = self._paths.database
        had_events = self._paths.sequence.exists()
        if had_events and not path.exists():
            self.recovery = Recovery("the database was gone", set_aside=None, salvaged=0)
        try:
            if had_events and path.exists() and path.stat().st_size == 0:
                raise DamagedDatabaseError("the database is empty", where=str(path))
            return _connect(path)
        except DamagedDatabaseError as error:
            return self._replace_damaged(error.message)
        except OSError as error:
            raise StateError(str(error), where=str(path), hint=_READ_HINT) from error

    def _replace_damaged(self, reason: str) -> sqlite3.Connection:
        path = self._paths.database
        set_aside = damage.set_aside(path, self._clock)
        connection = _connect(path)
        salvaged = 0
        for batch in damage.salvage(set_aside):
            rows = [(seq, pipeline, entry_size(pipeline, payload), payload) for seq, pipeline, payload in batch]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
            salvaged += len(rows)
        self.recovery = Recovery(reason, set_aside, salvaged)
        return connection

    def _load(self) -> None:
        with self._translated("read"):
            rows = self._connection.execute("SELECT pipeline, count(*), sum(size) FROM events GROUP BY pipeline")
            self._queue = {pipeline: [count, size] for pipeline, count, size in rows}

    def _count(self, pipeline: str, events: int, size: int) -> None:
        entry = self._queue.setdefault(pipeline, [0, 0])
        entry[0] += events
        entry[1] += size
        if not entry[0]:
            del self._queue[pipeline]

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translate(error, self._paths.database, verb) from error


_DELETE = "DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?)) RETURNING pipeline, size"
_OLDEST = "SELECT seq, payload FROM events WHERE pipeline = ? AND seq > ? ORDER BY seq LIMIT ?"
_HIGHEST = """SELECT max(coalesce((SELECT max(seq) FROM events), 0), coalesce((SELECT max(last_seq) FROM losses), 0),
                         coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0))"""
_SAVE_LOSS = "INSERT OR REPLACE INTO losses VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_READ_HINT = "check the owner and the permissions of the state folder, and that its disk is not mounted read-only"


def _loss_row(loss: Loss) -> tuple[object, ...]:
    return (loss.pipeline, loss.cause, loss.total, loss.reported, loss.first_seq, loss.last_seq, loss.report_seq,
            loss.report_total)  # fmt: skip


def _connect(path: Path) -> sqlite3.Connection:
    """Open, check and migrate."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    except sqlite3.Error as error:
        raise _translate(error, path, "open") from error
    try:
        schema.refuse_newer(connection, path)
        unclean = path.with_name(path.name + "-wal").exists()
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect on a new file only
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA journal_size_limit = 4194304")
        if unclean or path.stat().st_size < FULL_CHECK_BELOW_BYTES:
            damage.check(connection, path)
        schema.migrate(connection)
    except sqlite3.Error as error:
        connection.close()
        raise _translate(error, path, "open") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _translate(error: sqlite3.Error, path: Path, verb: str) -> StateError:
    """Return our error for SQLite's, by its primary result code (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    make: Callable[..., StateError] = StateError
    hint = _READ_HINT
    if code in _DAMAGED:
        make, hint = DamagedDatabaseError, "nothing: it is set aside and rebuilt by itself"
    elif code in _NOW_REFUSED:
        make, hint = WriteRefusedError, "free some space on the disk of the state folder; recording goes on by itself"
    elif code == sqlite3.SQLITE_READONLY and verb == "write":
        make = WriteRefusedError
    return make(f"cannot {verb} the database: {error}", where=str(path), hint=hint)
