"""A download keeps what is right of whatever a cut, a crash or a hostile peer left, and never writes more than was signed."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path

import pytest

from agent.errors import ReleaseRefusedError, StateError
from agent.update.fetching.download import Download
from simulator.disk import SmallDisk, why_not

CHUNK = 1024
CONTENT = random.Random(3).randbytes(10 * CHUNK + 77)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pieces(content: bytes = CONTENT) -> list[bytes]:
    return [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]


def begin(path: Path, content: bytes = CONTENT, **changes) -> Download:
    signed = {
        "sha256": sha(content),
        "size_bytes": len(content),
        "chunks": [sha(piece) for piece in pieces(content)],
        "chunk_bytes": CHUNK,
    }
    return Download(path, **(signed | changes))


def take_all(download: Download, content: bytes) -> None:
    for index, piece in enumerate(pieces(content)):
        assert download.take(index, piece)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "partial"


def test_chunks_in_any_order_make_the_file(path: Path):
    """MQTT answers come as they like, some twice."""
    told: list[int] = []
    order = list(range(11))
    random.Random(1).shuffle(order)
    with begin(path, progress=told.append) as download:
        assert download.missing() == list(range(11))
        for index in [*order, *order[:3]]:
            assert download.take(index, pieces()[index])
        assert not download.missing()
        assert download.finish().read_bytes() == CONTENT
    assert told[-1] == len(CONTENT) and len(told) == 11


def test_wrong_chunks_are_refused_and_nothing_is_written(path: Path):
    """Neither bytes, nor a length, nor an index from outside is believed."""
    good = pieces()[4]
    with begin(path) as download:
        assert not download.take(4, good[:-1] + b"?")
        assert not download.take(4, good[:-1])
        assert not download.take(4, good + b"?")
        assert not download.take(5, good)
        assert not download.take(-1, pieces()[-1])
        assert not download.take(11, good)
        assert not download.take(10**12, good)
        assert len(download.missing()) == 11
    assert path.stat().st_size == 0


def test_restart_keeps_what_is_right_and_only_that(path: Path):
    """No bitmap is kept: torn and lost writes are found by their hash."""
    with begin(path) as download:
        for index in (0, 3, 4, 7, 10):
            download.take(index, pieces()[index])
    with path.open("r+b") as file:
        file.seek(3 * CHUNK + 500)
        file.write(b"torn")
    with begin(path) as download:
        assert download.missing() == [1, 2, 3, 5, 6, 8, 9]
        assert download.done_bytes == 3 * CHUNK + 77


def test_file_that_lost_its_end_goes_on(path: Path):
    """A journal replay may give back a shorter file."""
    with begin(path) as download:
        take_all(download, CONTENT)
    os.truncate(path, 5 * CHUNK + 10)
    with begin(path) as download:
        assert download.missing() == [5, 6, 7, 8, 9, 10]


def test_longer_file_is_cut_to_the_signed_length(path: Path):
    """Somebody else's file under this name takes no room for long."""
    path.write_bytes(bytes(1 << 20))
    with begin(path) as download:
        assert download.missing() == list(range(11))
    assert path.stat().st_size <= len(CONTENT)


def test_file_is_whole_before_its_name_is_given(path: Path):
    """What the disk altered behind our back is fetched again."""
    with begin(path) as download:
        take_all(download, CONTENT)
        with path.open("r+b") as file:
            file.write(b"rotten")
        with pytest.raises(StateError, match="did not keep"):
            download.finish()
        assert download.missing() == [0]
        assert download.take(0, pieces()[0])
        assert download.finish() == path


def test_signed_documents_that_contradict_themselves_are_refused(path: Path):
    """Fetching again would never help."""
    with pytest.raises(ReleaseRefusedError, match="10 are signed"):
        begin(path, chunks=[sha(piece) for piece in pieces()][:-1])
    with begin(path, sha256="0" * 64) as download:
        take_all(download, CONTENT)
        with pytest.raises(ReleaseRefusedError, match="do not make up"):
            download.finish()


def test_empty_file_needs_nothing(path: Path):
    """A blob of no bytes is a file all the same."""
    with begin(path, b"") as download:
        assert not download.missing()
        assert download.finish().read_bytes() == b""


def test_link_in_its_place_is_refused(path: Path, tmp_path: Path):
    """Nothing outside the store is ever written."""
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.raises(StateError):
        begin(path)
    assert target.read_bytes() == b"precious"


def test_many_threads_may_bring_chunks(path: Path):
    """Two transports' threads never tear each other's writes."""
    content = random.Random(4).randbytes(200 * CHUNK)
    with begin(path, content) as download:
        parts = pieces(content)
        threads = [
            threading.Thread(target=lambda k=k: [download.take(i, parts[i]) for i in range(k, 200, 3)])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert download.done_bytes == len(content)
        assert download.finish().read_bytes() == content


def test_failed_fsync_believes_nothing_that_was_written(path: Path, monkeypatch):
    """After a failed fsync the page cache shows what the disk never got; a later fsync succeeds without writing it."""
    with begin(path) as download:
        take_all(download, CONTENT)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(StateError, match="Input/output"):
                download.finish()
    with begin(path) as download:
        assert len(download.missing()) == 11


def test_full_disk_is_one_clear_error_and_keeps_what_came(tmp_path: Path):
    """The download goes on where it stopped once there is room."""
    if reason := why_not():
        pytest.skip(reason)
    content = random.Random(5).randbytes(512 * CHUNK)
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        disk.fill(leave_bytes=128 << 10)
        path = disk.folder / "partial"
        with begin(path, content) as download, pytest.raises(StateError, match="No space left") as caught:
            take_all(download, content)
        assert "free some space" in str(caught.value)
        disk.free()
        with begin(path, content) as download:
            assert 0 < len(download.missing()) < 512
            take_all(download, content)
            assert download.finish().read_bytes() == content
