"""Recording events: our store against SQLite driven by hand, both WAL with synchronous=FULL, on the same disk, in turns.

The peer has a table, the index that order per pipeline needs, and prepared statements; the bytes are the same sealed
events. The whole outbox also numbers, seals (CloudEvents, ULID), bounds and delivers; its peer is SQLite by hand plus the same
sealing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.clock import SystemClock, SystemRandom
from agent.outbox.envelope import Envelope, ModelInfo
from agent.outbox.outbox import Outbox
from agent.outbox.settings import OutboxSettings
from agent.outbox.store import EventStore, Stored
from agent.paths import open_state
from benchmarks.parts import Parts
from benchmarks.table import Figure, Goal, Line

ROUNDS = 7
EVENTS = {1: 1000, 100: 20_000}
MODEL = ModelInfo("ultraface", "1", "0" * 64, "fp32", "CPUExecutionProvider")
MESSAGE: dict[str, Any] = {
    "pipeline": "door", "type": "track", "rule": "track", "phase": "update", "captured_at": "2026-01-02T03:04:05.678+00:00",
    "label": "face", "score": 0.91, "box": [101.5, 202.25, 303.0, 404.75], "box_norm": [0.13, 0.47, 0.39, 0.94],
    "track_id": 7, "zones_current": ["door"], "frame": {"id": 4711, "w": 768, "h": 432}, "latency_ms": 3.2,
}  # fmt: skip


def lines(parts: Parts) -> Iterator[Line]:
    """Record one event a transaction, then a hundred."""
    for size, count in EVENTS.items():
        parts.say(f"outbox, {size} a transaction")
        runs: dict[str, list[float]] = {}
        for number in range(3 if parts.is_quick else ROUNDS):
            for name, record in RECORDERS.items():
                folder = parts.folder / f"outbox-{size}-{number}-{name}"
                folder.mkdir()
                runs.setdefault(name, []).append(count / record(folder, count, size))
        what = f"{size} event{'s' * (size > 1)} a transaction"
        yield Figure(
            f"outbox store, {what}", "events/s", runs["store"], Goal("ratio", "≥", 0.75), runs["raw"], "raw SQLite",
            f"{len(_sealed(1)[0].payload)} bytes an event",
        )  # fmt: skip
        yield Figure(
            f"whole outbox, {what}", "events/s", runs["outbox"], Goal("ratio", "≥", 0.75), runs["raw_sealing"],
            "raw SQLite, and sealing",
        )  # fmt: skip


@dataclass(slots=True)
class RawSqlite:
    """What a careful engineer writes without us."""

    connection: sqlite3.Connection

    @classmethod
    def make(cls, folder: Path) -> RawSqlite:
        """Open a new file."""
        connection = sqlite3.connect(folder / "raw.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, pipeline TEXT, payload BLOB)")
        connection.execute("CREATE INDEX in_order ON events (pipeline, seq)")
        return cls(connection)

    def write(self, rows: Sequence[tuple[int, str, bytes]]) -> None:
        """Insert rows in one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
        self.connection.execute("COMMIT")


def _raw(folder: Path, count: int, size: int) -> float:
    rows = [tuple(stored) for stored in _sealed(count)]
    raw = RawSqlite.make(folder)
    began = time.perf_counter()
    for batch in batches(rows, size):
        raw.write(batch)
    return time.perf_counter() - began


def _raw_sealing(folder: Path, count: int, size: int) -> float:
    raw, sealer = RawSqlite.make(folder), envelope()
    began = time.perf_counter()
    for numbers in batches(range(1, count + 1), size):
        raw.write([(seq, "door", sealer.seal(MESSAGE, seq, MODEL)) for seq in numbers])
    return time.perf_counter() - began


def _store(folder: Path, count: int, size: int) -> float:
    rows = _sealed(count)
    store = EventStore.open(open_state(folder), SystemClock())
    began = time.perf_counter()
    for batch in batches(rows, size):
        store.append(batch)
    taken_s = time.perf_counter() - began
    store.close()
    return taken_s


def _outbox(folder: Path, count: int, size: int) -> float:
    settings = OutboxSettings(commit_ms=0 if size == 1 else 1000)
    clock = SystemClock()
    box = Outbox(EventStore.open(open_state(folder), clock), settings, envelope(), SystemRandom())
    began = time.perf_counter()
    for _ in range(count):
        box.record(MESSAGE, MODEL, clock.monotonic())
    taken_s = time.perf_counter() - began
    assert box.stats().recorded == count
    box.close(clock.monotonic())
    return taken_s


RECORDERS: dict[str, Callable[[Path, int, int], float]] = {
    "raw": _raw, "store": _store, "raw_sealing": _raw_sealing, "outbox": _outbox
}  # fmt: skip


def envelope() -> Envelope:
    """Seals as the agent of a device named `bench` does."""
    return Envelope("bench", SystemClock(), SystemRandom())


def _sealed(count: int) -> list[Stored]:
    sealer = envelope()
    return [Stored(seq, "door", sealer.seal(MESSAGE, seq, MODEL)) for seq in range(1, count + 1)]


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Cut into pieces of `size`."""
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))
