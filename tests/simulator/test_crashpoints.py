"""Power cuts: what must survive does at every point, and whoever forgets an fsync is caught. Each test runs a real program."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from simulator.crashpoints import KINDS, Image, Recorder, Recording, record
from simulator.tracing import RecordingError

REPOSITORY = Path(__file__).resolve().parents[2]
OLD, NEW = b"old " * 3000, b"new!" * 4000


@pytest.fixture
def state(tmp_path: Path, need_tool: Callable[[str], str]) -> Path:
    need_tool("strace")
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def run(state: Path, code: str) -> Recording:
    """Record a Python program that works in `state`."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "STATE": str(state)}
    head = "import os, pathlib, sqlite3, threading; state = pathlib.Path(os.environ['STATE'])\n"
    recording = record([sys.executable, "-B", "-c", head + code], state, env=environment)
    assert recording.status == 0
    return recording


def contents(recording: Recording, name: str, **options: bool) -> set[bytes | None]:
    return {image.files.get(name) for image in recording.images(**options)}


def test_atomic_replace_leaves_old_or_new_on_every_disk(state: Path) -> None:
    """The promise that the update record, the plans and the pointer of the active bundle stand on."""
    (state / "record").write_bytes(OLD)
    recording = run(state, f"from agent import atomicfile; atomicfile.write(state / 'record', {NEW!r})")
    assert contents(recording, "record") == {OLD, NEW}
    assert recording.points() >= 4


def test_atomic_replace_keeps_what_it_reported(state: Path) -> None:
    """Once `write` has returned, no power cut brings the old content back."""
    (state / "record").write_bytes(OLD)
    code = f"from agent import atomicfile; atomicfile.write(state / 'record', {NEW!r}); print('done', flush=True)"
    after = [image for image in run(state, code).images() if image.said]
    assert after
    assert {image.files["record"] for image in after} == {NEW}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        pytest.param("(state / 'record').write_bytes(new)", "kept", id="in place"),
        pytest.param(
            "(state / 'new').write_bytes(new); (state / 'new').rename(state / 'record')",
            "reordered",
            id="rename without fsync",
        ),
    ],
)
def test_unsafe_writer_is_caught(state: Path, code: str, kind: str) -> None:
    """A tool that finds nothing wrong with these would find nothing at all."""
    (state / "record").write_bytes(OLD)
    recording = run(state, f"new = {NEW!r}; {code}")
    wrong = {image.kind for image in recording.images() if image.files.get("record") not in {OLD, NEW}}
    assert kind in wrong


def test_torn_write_ends_at_a_sector_or_a_page_or_in_zeros(state: Path) -> None:
    """Disks write whole sectors; file systems may lengthen a file before its data is there."""
    recording = run(state, f"(state / 'file').write_bytes({NEW!r})")
    torn = [image.files["file"] for image in recording.images(("torn",))]
    assert {len(content) for content in torn if content.strip(b"\0")} == {8192}  # 512- and 4096-byte cuts meet here
    assert bytes(len(NEW)) in torn


def test_name_without_folder_fsync_may_be_lost(state: Path) -> None:
    """fsync(2): the file's fsync does not cover its name; most file systems are kinder, and that can be said."""
    code = "f = open(state / 'file', 'wb'); f.write(b'x'); f.flush(); os.fsync(f.fileno()); print('done', flush=True)"
    recording = run(state, code)

    def promised(**options: bool) -> set[bytes | None]:
        return {image.files.get("file") for image in recording.images(**options) if image.said}

    assert promised() == {None, b"x"}
    assert promised(fsync_keeps_name=True) == {b"x"}


def test_fsync_covers_only_its_own_file(state: Path) -> None:
    """An fsync of one file says nothing about another."""
    code = """
folder = os.open(state, os.O_RDONLY)
a, b = (os.open(state / name, os.O_WRONLY | os.O_CREAT) for name in 'ab')
os.fsync(folder); os.write(a, b'A'); os.write(b, b'B'); os.fsync(a); print('done', flush=True)"""
    found = {(image.files["a"], image.files["b"]) for image in run(state, code).images() if image.said}
    assert found == {(b"A", b"B"), (b"A", b""), (b"A", b"\0")}


def test_every_way_of_writing_is_seen(state: Path) -> None:
    """Appending, positions shared by duplicates and threads, gaps, links, children, renamed folders: as on the disk."""
    (state / "log").write_bytes(b"before ")
    code = """
import shutil, subprocess
with open(state / 'log', 'ab') as file: file.write(b'after')
f = os.open(state / 'file', os.O_RDWR | os.O_CREAT); os.write(f, b'01'); d = os.dup(f)
t = threading.Thread(target=os.write, args=(d, b'23')); t.start(); t.join()
os.pwrite(f, b'pp', 8); os.writev(f, [b'4', b'5']); os.lseek(f, 0, 0); os.read(f, 1); os.write(f, b'X')
os.ftruncate(f, 9)
os.mkdir(state / 'a'); os.link(state / 'file', state / 'a' / 'linked'); os.rename(state / 'a', state / 'b')
os.symlink('file', state / 'pointer'); os.unlink(state / 'file'); os.write(f, b'Y')
subprocess.run(['sh', '-c', 'echo child; echo child > "$STATE/child"; echo more >> "$STATE/child"'])
shutil.copyfile(state / 'log', state / 'copied'); os.mkdir(state / 'gone'); os.rmdir(state / 'gone')
os.truncate(state / 'copied', 3)"""
    last = list(run(state, code).images(("kept",)))[-1]
    found = state.parent / "found"
    last.write_to(found)
    assert shape(found) == shape(state)
    assert last.said == b""  # a child's words are no promises of the program's


def shape(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def test_recorded_end_equals_the_real_folder_for_a_database(state: Path) -> None:
    """The model of the disk and the disk agree after checkpoints, truncation and the unlinking of the log."""
    recording = run(
        state, "d = sqlite3.connect(state / 'd'); d.execute('pragma journal_mode=wal'); d.execute('create table t (n)')\n"
        "for n in range(50):\n d.execute('insert into t values (?)', (n,)); d.commit()\n"
        "d.execute('pragma wal_checkpoint(truncate)'); d.close()"
    )  # fmt: skip
    last = list(recording.images(("kept",)))[-1]
    assert last.files == {"d": (state / "d").read_bytes()}


DATABASE = """
database = sqlite3.connect(state / 'd', isolation_level=None)
database.execute('pragma journal_mode=wal'); database.execute('pragma synchronous={}')
for number in range(30):
    database.execute('insert into t values (?, ?)', (number, 'x' * 3000)); print(number, flush=True)
    if number % 10 == 9: database.execute('pragma wal_checkpoint(restart)')
os._exit(0)"""


def lost_rows(image: Image, folder: Path) -> set[int]:
    """Return the rows that were promised and are not in the database of this disk."""
    image.write_to(folder)
    with sqlite3.connect(folder / "d") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",), image.label
        found = {number for (number,) in database.execute("select number from t")}
    database.close()
    return {int(number) for number in image.said.split()} - found


@pytest.fixture
def database(state: Path) -> Path:
    with sqlite3.connect(state / "d") as database:
        database.execute("create table t (number, text)")
    database.close()
    return state


def test_row_committed_with_full_sync_survives_every_power_cut(database: Path, tmp_path: Path) -> None:
    """The outbox stands on this: an event whose commit returned is there after any cut."""
    recording = run(database, DATABASE.format("full"))
    images = list(recording.images())
    assert recording.points() > 60
    for number, image in enumerate(images):
        assert not lost_rows(image, tmp_path / f"image-{number}"), image.label


def test_row_committed_without_sync_is_seen_to_be_lost(database: Path, tmp_path: Path) -> None:
    """The same program with its defence taken away."""
    images = list(run(database, DATABASE.format("off")).images(("dropped",)))
    assert any(lost_rows(image, tmp_path / f"image-{number}") for number, image in enumerate(images))


def test_each_disk_with_the_same_promises_comes_once(state: Path) -> None:
    """A second start on an equal disk would cost a second and prove nothing."""
    images = list(run(state, f"from agent import atomicfile; atomicfile.write(state / 'f', {NEW!r})").images())
    assert len({(image.digest, image.said) for image in images}) == len(images)
    assert {image.kind for image in images} <= set(KINDS)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            "import mmap; f = open(state / 'f', 'w+b'); f.write(b'0' * 4096); f.flush(); mmap.mmap(f.fileno(), 4096)",
            id="mapping",
        ),
        pytest.param("p = state.parent / 'x'; p.write_bytes(b'x'); p.rename(state / 'x')", id="moved in"),
    ],
)
def test_what_cannot_be_seen_is_refused(state: Path, code: str) -> None:
    """A recording with a hole in it would prove nothing and look as if it did."""
    with pytest.raises(RecordingError):
        run(state, code)


def test_program_that_others_stop_can_be_recorded(state: Path) -> None:
    """An agent under a test runs until it is told to end; its signals and its status are its own."""
    code = (
        "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'f').write_bytes(b'x'); print(flush=True); time.sleep(60)"
    )
    with Recorder(state) as recorder:
        command = recorder.command([sys.executable, "-c", code, str(state)])
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            assert process.wait() == -signal.SIGTERM
        recording = recorder.recording()
    assert recording.status == -signal.SIGTERM
    assert contents(recording, "f") >= {None, b"", b"x"}


def test_program_that_does_not_end_is_not_left_behind(state: Path) -> None:
    """A hang in the program under test must not outlive the test."""
    code = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], 'pid').write_text(str(os.getpid())); time.sleep(100)"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        record([sys.executable, "-c", code, str(state)], state, timeout_s=2)
    pid = int((state / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
