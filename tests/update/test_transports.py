"""The configured transports act as one, and say why each of them could not."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.errors import OperatorError, StateError, UnavailableError
from agent.update.fetching.download import Download
from agent.update.transports.folder import FolderTransport
from agent.update.transports.opening import open_transports
from agent.update.transports.pacing import Pace
from agent.update.transports.transport import NotThereError, StoppedError, WrongContentError
from agent.update.transports.trying import Transports

CONTENT = b"what was signed"
BLOB = f"blobs/{hashlib.sha256(CONTENT).hexdigest()}"
NEXT_ROOT = "metadata/2.root.json"


@pytest.fixture
def make_folder(tmp_path: Path):
    def make(name: str, files: dict[str, bytes] | None = None) -> FolderTransport:
        for path, content in (files or {}).items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        if files is not None:
            (tmp_path / name).mkdir(exist_ok=True)
        return FolderTransport(tmp_path / name)

    return make


@pytest.fixture
def chunks(tmp_path: Path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    with Download(
        tmp_path / "partial", sha256=digest, size_bytes=len(CONTENT), chunks=[digest], chunk_bytes=1024
    ) as download:
        yield download


def test_first_that_can_answers(make_folder):
    """In the operator's order; the others are not asked."""
    transports = Transports(
        [
            make_folder("gone"),
            make_folder("empty", {}),
            make_folder("a", {NEXT_ROOT: b"a"}),
            make_folder("b", {NEXT_ROOT: b"b"}),
        ]
    )
    assert transports.read(NEXT_ROOT, 100, threading.Event()) == b"a"
    assert transports.name.endswith("/a")


class Silent:
    """Nobody is there, until somebody is."""

    def __init__(self) -> None:
        self.asked, self.answer = 0, b""

    name = "silent"

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        self.asked += 1
        if not self.answer:
            raise UnavailableError("silence")
        return self.answer

    fetch = read

    def close(self) -> None:
        pass


def test_who_is_silent_is_asked_last_until_it_is_heard_again(make_folder):
    """A release server that is gone costs its half minute once, not once for each of a bundle's blobs."""
    silent, stop = Silent(), threading.Event()
    transports = Transports([silent, make_folder("a", {NEXT_ROOT: b"a"})])
    for _ in range(5):
        assert transports.read(NEXT_ROOT, 100, stop) == b"a"
    assert silent.asked == 1
    silent.answer = b"s"
    assert transports.read_from(silent, NEXT_ROOT, 100, stop) == b"s"
    assert transports.read(NEXT_ROOT, 100, stop) == b"s"
    silent.answer = b""
    assert [transports.read(NEXT_ROOT, 100, stop), silent.asked] == [b"a", 4]
    transports.close()
    assert [transports.read(NEXT_ROOT, 100, stop), silent.asked] == [b"a", 5]


def test_liar_is_passed_over_and_named(make_folder, chunks: Download, caplog: pytest.LogCaptureFixture):
    """Wrong bytes of one mirror cost a try, not the update; but somebody should look at it."""
    transports = Transports([make_folder("liar", {BLOB: CONTENT[::-1]}), make_folder("good", {BLOB: CONTENT})])
    transports.fetch(BLOB, chunks, threading.Event())
    assert chunks.finish().read_bytes() == CONTENT
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "/liar is passed over" in caplog.text


def test_each_reason_is_named_and_the_type_tells_what_to_do(make_folder, chunks: Download):
    """TUF takes `not there` for `no newer root`: a stick that is not in must not hide another one's word."""
    stop = threading.Event()
    gone, empty = make_folder("gone"), make_folder("empty", {})
    with pytest.raises(NotThereError) as caught:
        Transports([gone, empty]).read(NEXT_ROOT, 100, stop)
    assert "the folder is not there" in str(caught.value) and f"there is no {NEXT_ROOT}" in str(caught.value)
    with pytest.raises(UnavailableError) as caught:
        Transports([gone, gone]).read(NEXT_ROOT, 100, stop)
    assert not isinstance(caught.value, NotThereError)
    with pytest.raises(WrongContentError, match="not what was signed"):
        Transports([empty, make_folder("liar", {BLOB: b""}), gone]).fetch(BLOB, chunks, stop)


def test_stop_ends_the_trying(make_folder, chunks: Download):
    """No second transport is asked by somebody who leaves."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        Transports([make_folder("a", {BLOB: CONTENT}), make_folder("gone")]).fetch(BLOB, chunks, stop)
    assert chunks.missing()


def test_full_disk_is_no_reason_to_ask_the_next(make_folder, chunks: Download, monkeypatch: pytest.MonkeyPatch):
    """It is this device's own trouble."""

    def full(index: int, data: bytes) -> bool:
        raise StateError("the disk is full")

    monkeypatch.setattr(chunks, "take", full)
    with pytest.raises(StateError):
        Transports([make_folder("a", {BLOB: CONTENT}), make_folder("b", {BLOB: CONTENT})]).fetch(
            BLOB, chunks, threading.Event()
        )


def open_all(*names: str, mqtt: FolderTransport | None = None) -> list[str]:
    clock = SystemClock()
    make_mqtt = None if mqtt is None else lambda: mqtt
    return [each.name for each in open_transports(names, make_mqtt, clock, Pace(clock, None)).members]


def test_names_become_transports_in_their_order(make_folder):
    """The operator's words; a login never shows."""
    names = ("https://me:secret@mirror.example/releases/", "mqtt", "/media/usb", "C:\\releases", "http://[::1]:8080")
    opened = open_all(*names, mqtt=make_folder("stands-for-mqtt"))
    assert opened[0] == "https://me:***@mirror.example/releases"
    assert opened[1].endswith("stands-for-mqtt")
    assert opened[2:] == ["/media/usb", "C:\\releases", "http://[::1]:8080"]


@pytest.mark.parametrize(
    ("name", "part"), [("mqtt", "needs a broker"), ("ftp://h/x", "no transport for ftp"), ("https://", "no address")]
)
def test_names_that_mean_nothing_are_refused(name: str, part: str):
    """At the start, not in the night of the first update."""
    with pytest.raises(OperatorError, match=part):
        open_all(name)
