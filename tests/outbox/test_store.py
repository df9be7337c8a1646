"""The store under damage, full disks, newer schemas and restarts."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import StateError
from agent.outbox.sequence import BLOCK
from agent.outbox.store import EventStore, Stored, WriteRefusedError
from agent.paths import StatePaths
from simulator.clock import VirtualClock
from simulator.disk import SmallDisk, why_not


def batch(first: int, count: int, pipeline: str = "door", size: int = 300) -> list[Stored]:
    return [Stored(seq, pipeline, b"x" * size) for seq in range(first, first + count)]


def fill(paths: StatePaths, clock: VirtualClock, count: int = 2000) -> None:
    store = EventStore.open(paths, clock)
    for _ in range(count):
        store.sequence.take()
    store.append(batch(1, count))
    store.close()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def truncate_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def wrong_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:16] = b"SQLite format 9\0"
    path.write_bytes(content)


def zeroed_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096 * 3] = bytes(4096 * 3)
    path.write_bytes(content)


def text_file(path: Path) -> None:
    path.write_text("this is not a database\n" * 100)


@pytest.mark.parametrize("harm", [garbage, truncate, truncate_to_nothing, wrong_header, zeroed_page, text_file])
def test_damaged_database_is_set_aside_and_rebuilt(
    paths: StatePaths, clock: VirtualClock, harm: Callable[[Path], None]
) -> None:
    """A device that nobody visits must start again by itself, and keep the evidence."""
    fill(paths, clock)
    harm(paths.database)
    store = EventStore.open(paths, clock)
    assert store.recovery is not None
    assert store.recovery.set_aside is not None
    assert store.recovery.set_aside.name == "holdfast.db.damaged-20261120T090000Z"
    assert store.recovery.set_aside.exists()
    assert store.recovery.salvaged == len(store)
    number = store.sequence.take()
    assert number > 2000, "a number must never come twice, or an old acknowledgement deletes a new event"
    store.append(batch(number, 1))
    store.close()
    again = EventStore.open(paths, clock)
    assert again.recovery is None
    again.close()


@pytest.mark.parametrize("harm", [truncate, zeroed_page])
def test_what_can_be_read_from_a_damaged_database_is_saved(
    paths: StatePaths, clock: VirtualClock, harm: Callable[[Path], None]
) -> None:
    fill(paths, clock)
    harm(paths.database)
    store = EventStore.open(paths, clock)
    saved = [event.seq for event in store.oldest("door", 0, 5000)]
    store.close()
    assert len(saved) > 500
    assert saved == sorted(set(saved))


def test_deleted_database_is_said_and_numbers_go_on(paths: StatePaths, clock: VirtualClock) -> None:
    fill(paths, clock)
    paths.database.unlink()
    store = EventStore.open(paths, clock)
    assert store.recovery is not None
    assert store.sequence.take() > 2000
    store.close()


def test_only_the_newest_damaged_databases_are_kept(paths: StatePaths, clock: VirtualClock) -> None:
    """A failing disk must not fill up with evidence."""
    for _ in range(6):
        fill(paths, clock, 10)
        garbage(paths.database)
        clock.advance(60)
    EventStore.open(paths, clock).close()
    assert len(list(paths.root.glob("*.damaged-*"))) == 3


def test_newer_schema_is_refused_and_left_alone(paths: StatePaths, clock: VirtualClock) -> None:
    fill(paths, clock, 3)
    with sqlite3.connect(paths.database) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = paths.database.read_bytes()
    with pytest.raises(StateError, match="schema 99"):
        EventStore.open(paths, clock)
    assert paths.database.read_bytes() == before


def test_database_that_is_a_folder_is_a_state_error(paths: StatePaths, clock: VirtualClock) -> None:
    paths.database.mkdir()
    with pytest.raises(StateError):
        EventStore.open(paths, clock)


def test_numbers_never_repeat_after_kills(paths: StatePaths, clock: VirtualClock) -> None:
    given: list[int] = []
    for run in range(5):
        store = EventStore.open(paths, clock)
        given += [store.sequence.take() for _ in range(700 * run)]
        store._connection.close()  # as `kill -9`: the rest of the block is not given back
    assert len(given) == len(set(given))


def test_clean_stop_leaves_no_gap_in_the_numbers(paths: StatePaths, clock: VirtualClock) -> None:
    for expected in (1, 2, 3):
        store = EventStore.open(paths, clock)
        assert store.sequence.take() == expected
        store.close()


@pytest.mark.parametrize("content", [b"", b"garbage", b"-5", b"\xff" * 100])
def test_damaged_number_file_skips_a_block(paths: StatePaths, clock: VirtualClock, content: bytes) -> None:
    fill(paths, clock, 10)
    paths.sequence.write_bytes(content)
    store = EventStore.open(paths, clock)
    assert store.sequence.take() >= 11 + (BLOCK if content != b"-5" else 0)
    store.close()


def test_numbers_survive_a_lost_number_file_when_all_events_are_gone(paths: StatePaths, clock: VirtualClock) -> None:
    fill(paths, clock, 10)
    store = EventStore.open(paths, clock)
    store.delete(range(1, 11))
    store.close()
    paths.sequence.unlink()
    store = EventStore.open(paths, clock)
    assert store.sequence.take() == 11
    store.close()


def test_size_is_the_same_after_a_restart(paths: StatePaths, clock: VirtualClock) -> None:
    store = EventStore.open(paths, clock)
    store.append([*batch(1, 100), *batch(101, 50, "yard", 77)])
    store.delete(range(50, 120))
    size, count = store.size_bytes, len(store)
    store.close()
    store = EventStore.open(paths, clock)
    assert (store.size_bytes, len(store)) == (size, count)
    store.close()


def test_size_estimate_is_close_to_the_file(paths: StatePaths, clock: VirtualClock) -> None:
    """A quota that is off by half fills a disk."""
    store = EventStore.open(paths, clock)
    for first in range(1, 20_001, 100):
        store.append(batch(first, 100, size=550))
    estimate = store.size_bytes
    store.close()
    assert 0.8 < estimate / paths.database.stat().st_size < 1.2


def test_hundred_thousand_events_drain_without_being_read_into_memory(make_bench: Callable[..., Any]) -> None:
    """A week without a network must not end in a core that the kernel kills."""
    psutil = pytest.importorskip("psutil")
    bench = make_bench(window=1000)
    for _ in range(1000):
        bench.record(count=100)
    before = psutil.Process().memory_info().rss
    bench.connect()
    delivered, peak = 0, 0
    while bench.published:
        batch_, bench.published = bench.published, []
        for publish in batch_:
            bench.answer(publish)
        delivered += len(batch_)
        bench.commit()
        peak = max(peak, psutil.Process().memory_info().rss)
    assert delivered == 100_000
    assert peak - before < 8 << 20


def test_opening_an_existing_database_imports_no_sqlite_utils(paths: StatePaths, clock: VirtualClock) -> None:
    """sqlite-utils brings numpy, 17 MiB that core would carry for years."""
    fill(paths, clock, 1)
    script = (
        "import sys; from pathlib import Path; from agent.paths import StatePaths\n"
        "from agent.clock import SystemClock\n"
        "from agent.outbox.store import EventStore\n"
        f"EventStore.open(StatePaths(Path({str(paths.root)!r})), SystemClock()).close()\n"
        "print([name for name in ('sqlite_utils', 'numpy', 'cv2', 'onnxruntime') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    if reason := why_not():
        pytest.skip(reason)
    with SmallDisk(tmp_path / "disk", 4 << 20) as disk:
        yield disk


def test_full_disk_refuses_whole_batches_and_works_again_when_there_is_space(
    disk: SmallDisk, clock: VirtualClock
) -> None:
    store = EventStore.open(StatePaths(disk.folder), clock)
    store.append(batch(1, 10))
    disk.fill()

    def append_until_refused() -> None:
        for first in range(11, 100_000, 100):
            store.append(batch(first, 100))

    with pytest.raises(WriteRefusedError, match="full"):
        append_until_refused()
    kept = len(store)
    assert (kept - 10) % 100 == 0, "nothing half done"
    assert len(store.oldest("door", 0, 100_000)) == kept
    disk.free()
    store.append(batch(200_000, 100))
    assert len(store) == kept + 100
    store.close()


def test_events_on_a_full_disk_are_held_then_dropped_by_policy_and_counted(
    disk: SmallDisk, clock: VirtualClock, make_bench: Callable[..., Any], paths: StatePaths, monkeypatch: Any
) -> None:
    """Promise 5 on the worst disk: every event is delivered, or counted and reported."""
    bench = make_bench()
    bench.kill()
    bench.paths = StatePaths(disk.folder)
    bench.open()
    bench.record(count=1000)
    bench.commit()
    disk.fill()
    bench.record(count=9000)
    bench.pass_time(5)
    assert "disk-refuses" in bench.conditions
    disk.free()
    bench.pass_time(5)
    assert "disk-refuses" not in bench.conditions
    bench.connect()
    bench.commit()
    documents = [json.loads(publish.payload) for publish in bench.answer_all()]
    seqs = [document["data"]["seq"] for document in documents if document["type"] == "dev.holdfast.event.track"]
    lost = sum(document["data"]["count"] for document in documents if document["type"] == "dev.holdfast.loss")
    assert seqs == sorted(set(seqs))
    assert len(seqs) + lost == 10_000


def test_read_only_disk_is_a_state_error_with_advice(disk: SmallDisk, clock: VirtualClock) -> None:
    paths = StatePaths(disk.folder)
    fill(paths, clock, 5)
    disk.make_read_only()
    with pytest.raises(StateError) as caught:
        EventStore.open(paths, clock)
    assert "permissions" in str(caught.value) or "writable" in str(caught.value)
    disk.make_writable()
