"""A mirror is a stranger: whatever it does, the device gets right bytes or a clear error, in bounded time and memory."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.errors import OperatorError, UnavailableError
from agent.update.fetching.download import Download
from agent.update.transports.exchange import Patience, TooSlowError
from agent.update.transports.http import HttpTransport
from agent.update.transports.pacing import Pace
from agent.update.transports.transport import NotThereError, StoppedError, WrongContentError
from simulator.certificates import Certificates
from simulator.clock import VirtualClock
from simulator.mirror import Mirror, Misbehaviour

CHUNK = 64 << 10
CONTENT = random.Random(2).randbytes(40 * CHUNK + 5)
NAME = hashlib.sha256(CONTENT).hexdigest()
BLOB = f"blobs/{NAME}"
CLOCK = SystemClock()
HASTY = Patience(connect_s=2, silence_s=1, least_bytes_s=1000, period_s=0.5)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "blobs").mkdir(parents=True)
    (folder / "metadata").mkdir()
    (folder / "metadata" / "timestamp.json").write_bytes(b'{"signed": {}}')
    (folder / "blobs" / NAME).write_bytes(CONTENT)
    return folder


@pytest.fixture
def mirror(repository: Path) -> Iterator[Mirror]:
    with Mirror(repository) as served:
        yield served


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[], Download]:
    hashes = [hashlib.sha256(CONTENT[start : start + CHUNK]).hexdigest() for start in range(0, len(CONTENT), CHUNK)]
    return lambda: Download(
        tmp_path / "partial", sha256=NAME, size_bytes=len(CONTENT), chunks=hashes, chunk_bytes=CHUNK
    )


def transport_to(mirror: Mirror, patience: Patience | None = HASTY, **options) -> HttpTransport:
    return HttpTransport(mirror.url, CLOCK, Pace(CLOCK, None), patience=patience, **options)


def read(mirror: Mirror, stop: threading.Event, limit: int = 1000) -> bytes:
    return transport_to(mirror).read("metadata/timestamp.json", limit, stop)


def test_files_are_read_and_fetched(mirror: Mirror, stop: threading.Event, begin: Callable[[], Download]):
    """The plain case: one request for each."""
    assert read(mirror, stop) == b'{"signed": {}}'
    with begin() as chunks:
        transport_to(mirror).fetch(BLOB, chunks, stop)
        assert chunks.finish().read_bytes() == CONTENT
    assert mirror.requests == ["/metadata/timestamp.json", f"/{BLOB}"]


def test_only_what_is_missing_is_asked_for(mirror: Mirror, stop: threading.Event, begin: Callable[[], Download]):
    """What another transport brought is not fetched again."""
    with begin() as chunks:
        for index in (0, 1, 2, 20, 40):
            chunks.take(index, CONTENT[index * CHUNK : (index + 1) * CHUNK])
        transport_to(mirror).fetch(BLOB, chunks, stop)
        assert chunks.finish().read_bytes() == CONTENT
    assert mirror.sent_bytes == 36 * CHUNK


@pytest.mark.parametrize("status", [404, 410, 403])
def test_absent_file_is_not_there(mirror: Mirror, stop: threading.Event, begin, status: int):
    """TUF asks for the next root until it is told that there is none; an object store says 403 for that."""
    mirror.faults = Misbehaviour(status=status)
    with pytest.raises(NotThereError, match=str(status)):
        read(mirror, stop)
    with begin() as chunks, pytest.raises(NotThereError):
        transport_to(mirror).fetch(BLOB, chunks, stop)


@pytest.mark.parametrize("status", [500, 503, 429, 401, 204, 304, 206, 999])
def test_other_answers_are_unavailable(mirror: Mirror, stop: threading.Event, begin, status: int):
    """They say nothing about the release."""
    mirror.faults = Misbehaviour(status=status)
    with pytest.raises(UnavailableError) as caught:
        read(mirror, stop)
    assert not isinstance(caught.value, NotThereError)
    assert caught.value.where == mirror.url


def test_server_without_ranges_is_borne_with(mirror: Mirror, stop: threading.Event, begin: Callable[[], Download]):
    """The simplest servers give the whole file."""
    mirror.faults = Misbehaviour(knows_ranges=False)
    with begin() as chunks:
        chunks.take(0, CONTENT[:CHUNK])
        transport_to(mirror).fetch(BLOB, chunks, stop)
        assert chunks.finish().read_bytes() == CONTENT


def test_many_cuts_and_restarts_cost_less_than_a_twentieth(mirror: Mirror, stop: threading.Event, begin):
    """The design's number, in small: a cut every five chunks, and a new process now and then."""
    mirror.faults = Misbehaviour(cut_after_bytes=5 * CHUNK + 100)
    with begin() as chunks:
        stopping = StopAfter(chunks, 12)
        with pytest.raises(StoppedError):
            transport_to(mirror).fetch(BLOB, stopping, stopping.stop)
    with begin() as chunks:
        assert len(chunks.missing()) == 29
        transport_to(mirror).fetch(BLOB, chunks, stop)
        assert chunks.finish().read_bytes() == CONTENT
    assert len(mirror.requests) >= 8
    assert mirror.sent_bytes <= len(CONTENT) + len(mirror.requests) * 100 + 5 * CHUNK  # what one stop leaves unread


class StopAfter:
    """The download's chunks, with a stop after so many."""

    def __init__(self, chunks: Download, count: int) -> None:
        self._chunks, self._left, self.stop = chunks, count, threading.Event()
        self.chunk_bytes, self.size_bytes, self.missing = chunks.chunk_bytes, chunks.size_bytes, chunks.missing

    def take(self, index: int, data: bytes) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.stop.set()
        return self._chunks.take(index, data)


def test_cut_before_anything_came_is_unavailable(mirror: Mirror, stop: threading.Event, begin):
    """Otherwise a mirror that always cuts would hold the device for ever."""
    mirror.faults = Misbehaviour(cut_after_bytes=CHUNK - 1)
    with begin() as chunks, pytest.raises(UnavailableError, match="cut off"):
        transport_to(mirror).fetch(BLOB, chunks, stop)
    assert len(mirror.requests) == 1
    mirror.faults = Misbehaviour(cut_after_bytes=3)
    with pytest.raises(UnavailableError, match="cut off"):
        read(mirror, stop)


def test_endless_body_is_cut(mirror: Mirror, stop: threading.Event, begin: Callable[[], Download]):
    """Neither memory nor disk takes more than was signed or allowed."""
    mirror.faults = Misbehaviour(is_endless=True)
    with pytest.raises(UnavailableError, match="more than the 1000 bytes"):
        read(mirror, stop)
    with begin() as chunks:
        transport_to(mirror).fetch(BLOB, chunks, stop)
        assert chunks.finish().stat().st_size == len(CONTENT)


@pytest.mark.parametrize("drips_headers", [False, True], ids=["body", "headers"])
def test_slow_drip_is_ended(mirror: Mirror, stop: threading.Event, begin, drips_headers: bool):
    """A byte now and then resets any plain timeout, and would hold a device for weeks."""
    mirror.faults = Misbehaviour(drip_s=0.02, drips_headers=drips_headers)
    with begin() as chunks, pytest.raises(UnavailableError) as caught:
        transport_to(mirror).fetch(BLOB, chunks, stop)
    assert drips_headers or isinstance(caught.value, TooSlowError)
    assert len(mirror.requests) == 1
    wait_until_no_exchange_is_left()


def test_silence_is_ended(mirror: Mirror, stop: threading.Event):
    """A server that took the request and died."""
    mirror.faults = Misbehaviour(is_silent=True)
    with pytest.raises(UnavailableError, match="silent|timed out"):
        read(mirror, stop)
    wait_until_no_exchange_is_left()


def wait_until_no_exchange_is_left() -> None:
    """No thread and socket stay behind: a mirror could gather them, one an attempt."""
    for thread in threading.enumerate():
        if thread.name == "http":
            thread.join(10)
            assert not thread.is_alive()


def test_stop_ends_a_wait(mirror: Mirror):
    """Shutting down does not wait for a mirror's patience."""
    mirror.faults = Misbehaviour(is_silent=True)
    stop = threading.Event()
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            transport_to(mirror, Patience(silence_s=3600)).read("metadata/timestamp.json", 100, stop)
        except UnavailableError as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    stop.set()
    thread.join(10)
    assert isinstance(ended[0], StoppedError)


def test_wrong_bytes_are_said_soon(mirror: Mirror, stop: threading.Event, begin: Callable[[], Download]):
    """A hostile mirror costs a few chunks, not the whole file."""
    mirror.faults = Misbehaviour(flips=True)
    with begin() as chunks:
        with pytest.raises(WrongContentError):
            transport_to(mirror).fetch(BLOB, chunks, stop)
        assert len(chunks.missing()) == 41
    assert len(mirror.requests) == 1


def test_one_wrong_chunk_is_asked_for_again(mirror: Mirror, stop: threading.Event, begin, repository: Path):
    """A bit that flipped on the way is no attack; the others are kept."""
    damaged = bytearray(CONTENT)
    damaged[5 * CHUNK] ^= 1
    (repository / "blobs" / NAME).write_bytes(damaged)
    with begin() as chunks:
        with pytest.raises(WrongContentError):
            transport_to(mirror).fetch(BLOB, chunks, stop)
        assert chunks.missing() == [5]
    assert len(mirror.requests) == 3


def test_shorter_file_is_wrong_or_cut_off(mirror: Mirror, stop: threading.Event, begin, repository: Path):
    """A file that lacks its end can never be fetched from there."""
    (repository / "blobs" / NAME).write_bytes(CONTENT[: 10 * CHUNK])
    with begin() as chunks:
        with pytest.raises(UnavailableError):
            transport_to(mirror).fetch(BLOB, chunks, stop)
        assert len(chunks.missing()) == 31


def test_other_range_than_asked_for_is_refused(mirror: Mirror, stop: threading.Event, begin):
    """Bytes at the wrong place are wrong bytes."""
    mirror.faults = Misbehaviour(answers_range_from=3 * CHUNK)
    with begin() as chunks, pytest.raises(UnavailableError, match="another range"):
        transport_to(mirror).fetch(BLOB, chunks, stop)


def test_compression_is_refused(mirror: Mirror, stop: threading.Event):
    """A few bytes that become gigabytes."""
    mirror.faults = Misbehaviour(coding="gzip")
    with pytest.raises(UnavailableError, match="gzip"):
        read(mirror, stop)


def test_redirects_are_followed_without_the_password(mirror: Mirror, repository: Path, stop: threading.Event):
    """Object stores redirect; whoever is redirected to must not learn the login."""
    with Mirror(repository) as front:
        front.faults = Misbehaviour(redirect=mirror.url + "{path}")
        url = front.url.replace("http://", "http://me:secret@")
        transport = HttpTransport(url, CLOCK, Pace(CLOCK, None))
        assert transport.read("metadata/timestamp.json", 100, stop) == b'{"signed": {}}'
        assert front.authorizations == ["Basic bWU6c2VjcmV0"]
        assert "secret" not in transport.name
    assert mirror.authorizations == [None]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://h/x", "http://[x/", "gopher:x", "http://h:99999/"])
def test_redirects_to_anything_else_are_refused(mirror: Mirror, stop: threading.Event, target: str):
    """A mirror must not make the device read its own files."""
    mirror.faults = Misbehaviour(redirect=target)
    with pytest.raises(UnavailableError, match="redirects to"):
        read(mirror, stop)


def test_redirects_end(mirror: Mirror, stop: threading.Event):
    """A circle."""
    mirror.faults = Misbehaviour(redirect="{path}")
    with pytest.raises(UnavailableError, match="redirects"):
        read(mirror, stop)
    assert len(mirror.requests) == 6


def test_nobody_there_is_unavailable(stop: threading.Event):
    """Refused, at once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    transport = HttpTransport(f"http://127.0.0.1:{port}/releases", CLOCK, Pace(CLOCK, None))
    with pytest.raises(UnavailableError, match="refused"):
        transport.read("metadata/timestamp.json", 100, stop)


@pytest.mark.parametrize("url", ["https://", "http://h:x/", "https://h/?a=b", "http://[::1/"])
def test_addresses_that_are_none_are_refused(url: str):
    """At the start, not in the night of the first update."""
    with pytest.raises(OperatorError):
        HttpTransport(url, CLOCK, Pace(CLOCK, None))


def test_certificates_are_verified(repository: Path, tmp_path: Path, stop: threading.Event, need_tool):
    """An unknown authority is refused with what to check; a known one serves."""
    need_tool("openssl")
    certificates = Certificates(tmp_path / "certificates")
    with Mirror(repository, tls=certificates.server) as served:
        with pytest.raises(UnavailableError, match="certificate") as caught:
            read(served, stop)
        assert "clock" in str(caught.value.hint)
        trusting = transport_to(served, ca_file=str(certificates.ca))
        assert trusting.read("metadata/timestamp.json", 100, stop) == b'{"signed": {}}'
    another = certificates.issue("mirror.example", "subjectAltName=DNS:mirror.example")
    with Mirror(repository, tls=another) as served, pytest.raises(UnavailableError, match="certificate"):
        transport_to(served, ca_file=str(certificates.ca)).read("metadata/timestamp.json", 100, stop)


class _Waits(VirtualClock):
    """Notes how long it was asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waited_s += timeout_s
        return super().wait(event, timeout_s)


def test_rate_limit_holds_in_the_long_run(mirror: Mirror, stop: threading.Event, begin: Callable[[], Download]):
    """The operator's link carries other things too."""
    clock = _Waits()
    transport = HttpTransport(mirror.url, clock, Pace(clock, 256))
    with begin() as chunks:
        transport.fetch(BLOB, chunks, stop)
        assert chunks.finish().read_bytes() == CONTENT
    assert clock.waited_s >= len(CONTENT) / (256 << 10) - 1.0


def test_pace_lets_a_burst_pass_and_then_the_rate():
    """Idle time is not saved up for more than a second."""
    clock = VirtualClock()
    pace = Pace(clock, 10)
    assert Pace(clock, None).delay_s(1 << 30) == 0
    clock.advance(3600)
    assert pace.delay_s(10 << 10) == 0
    assert pace.delay_s(10 << 10) == pytest.approx(1.0)
    assert pace.delay_s(20 << 10) == pytest.approx(3.0)
    clock.advance(3.0)
    assert pace.delay_s(0) == 0


def test_patience_defaults_bear_with_a_bad_line():
    """A modem's 9.6 kbit/s is not an attack."""
    assert Patience().least_bytes_s < 9600 / 10


def test_redirect_does_not_lead_from_https_to_the_plain_pages_of_the_device_s_own_network():
    """A hostile mirror would have the device press its router's buttons: there, a GET is often enough."""
    transport = HttpTransport("https://mirror.example/releases", CLOCK, Pace(CLOCK, None))
    with pytest.raises(UnavailableError, match="redirects to"):
        transport._redirected("https://mirror.example/releases/x", "http://192.168.1.1/reboot")
    assert transport._redirected("https://mirror.example/x", "//cdn.example/x") == "https://cdn.example/x"
