"""A USB stick may hold anything and may be gone in the next moment."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from agent.errors import UnavailableError
from agent.update.fetching.download import Download
from agent.update.transports.folder import FolderTransport
from agent.update.transports.transport import NotThereError, StoppedError, WrongContentError

CHUNK = 1024
CONTENT = random.Random(2).randbytes(10 * CHUNK + 5)
NAME = hashlib.sha256(CONTENT).hexdigest()
STOP = threading.Event()


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    folder = tmp_path / "usb"
    (folder / "blobs").mkdir(parents=True)
    (folder / "metadata").mkdir()
    (folder / "metadata" / "1.root.json").write_bytes(b"{}")
    (folder / "blobs" / NAME).write_bytes(CONTENT)
    return folder


def download(tmp_path: Path) -> Download:
    hashes = [hashlib.sha256(CONTENT[start : start + CHUNK]).hexdigest() for start in range(0, len(CONTENT), CHUNK)]
    return Download(tmp_path / "partial", sha256=NAME, size_bytes=len(CONTENT), chunks=hashes, chunk_bytes=CHUNK)


def test_files_are_read_and_fetched(stick: Path, tmp_path: Path):
    """The plain case."""
    transport = FolderTransport(stick)
    assert transport.read("metadata/1.root.json", 100, STOP) == b"{}"
    with download(tmp_path) as chunks:
        transport.fetch(f"blobs/{NAME}", chunks, STOP)
        assert chunks.finish().read_bytes() == CONTENT


def test_only_what_is_missing_is_read(stick: Path, tmp_path: Path):
    """What MQTT brought stays, and a hole at its place in the file proves that it was not asked for."""
    with download(tmp_path) as chunks:
        chunks.take(2, CONTENT[2 * CHUNK : 3 * CHUNK])
        damaged = bytearray(CONTENT)
        damaged[2 * CHUNK] ^= 1
        (stick / "blobs" / NAME).write_bytes(damaged)
        FolderTransport(stick).fetch(f"blobs/{NAME}", chunks, STOP)
        assert chunks.finish().read_bytes() == CONTENT


def test_absent_file_and_absent_stick_differ(stick: Path):
    """`Not there` may be final for this mirror; a stick that is not in may come back."""
    with pytest.raises(NotThereError):
        FolderTransport(stick).read("metadata/2.root.json", 100, STOP)
    shutil.rmtree(stick)
    with pytest.raises(UnavailableError) as caught:
        FolderTransport(stick).read("metadata/2.root.json", 100, STOP)
    assert not isinstance(caught.value, NotThereError)
    assert "USB" in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "metadata/../../secret",
        "/etc/passwd",
        "",
        "metadata//1.root.json",
        ".hidden",
        "C:\\x",
        "a\0b",
        "metadata/..",
    ],
)
def test_paths_that_lead_out_are_refused(stick: Path, path: str):
    """Targets' names come from outside."""
    (stick.parent / "secret").write_bytes(b"secret")
    with pytest.raises(NotThereError):
        FolderTransport(stick).read(path, 100, STOP)


@pytest.mark.parametrize("place", ["metadata", "metadata/1.root.json"])
def test_links_are_refused(stick: Path, tmp_path: Path, place: str):
    """A stick must not make the agent read the device's own files."""
    (stick / place).rename(tmp_path / "elsewhere")
    (stick / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match="link"):
        FolderTransport(stick).read("metadata/1.root.json", 100, STOP)


def test_pipe_does_not_hang(stick: Path):
    """Opening a pipe that nobody writes to would block for ever."""
    os.mkfifo(stick / "metadata" / "timestamp.json")
    with pytest.raises(UnavailableError, match="plain file"):
        FolderTransport(stick).read("metadata/timestamp.json", 100, STOP)


def test_folder_in_place_of_a_file_is_no_traceback(stick: Path):
    """Sticks are written by people."""
    with pytest.raises(UnavailableError):
        FolderTransport(stick).read("metadata", 100, STOP)


def test_no_more_than_the_limit_is_read(stick: Path):
    """A file of terabytes must not fill the memory."""
    with (stick / "metadata" / "timestamp.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnavailableError, match="more than the 100 bytes"):
        FolderTransport(stick).read("metadata/timestamp.json", 100, STOP)


@pytest.mark.parametrize(
    "damage", [CONTENT[:-3], CONTENT[:100] + b"?" + CONTENT[101:], b""], ids=["short", "flip", "empty"]
)
def test_wrong_bytes_are_said_and_the_right_ones_kept(stick: Path, tmp_path: Path, damage: bytes):
    """Another transport then has to bring only the rest."""
    (stick / "blobs" / NAME).write_bytes(damage)
    with download(tmp_path) as chunks:
        with pytest.raises(WrongContentError):
            FolderTransport(stick).fetch(f"blobs/{NAME}", chunks, STOP)
        assert len(chunks.missing()) == (1 if damage else 11)


def test_it_stops(stick: Path, tmp_path: Path):
    """Shutting down does not wait for a slow stick."""
    stop = threading.Event()
    stop.set()
    with download(tmp_path) as chunks, pytest.raises(StoppedError):
        FolderTransport(stick).fetch(f"blobs/{NAME}", chunks, stop)
    with pytest.raises(StoppedError):
        FolderTransport(stick).read("metadata/1.root.json", 100, stop)
