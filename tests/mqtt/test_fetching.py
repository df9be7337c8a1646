"""Transfers over a real mosquitto: good servers, bad lines, and servers that lie in every way a message can."""

from __future__ import annotations

import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from agent.clock import SystemClock, SystemRandom
from agent.errors import NotThereError, StoppedError, UnavailableError, WrongContentError
from agent.mqtt.fetching import MqttTransport, Patience
from agent.mqtt.pieces import Reply, Request, Status, decode_request, encode_reply
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.mqtt.transfer import MAX_HELD_BYTES
from bundles.release.serving import Server
from simulator.broker import Mosquitto, free_port
from simulator.certificates import Certificates
from simulator.link import FaultyLink

MakeBroker = Callable[..., Mosquitto]
Answer = Callable[[Request], Sequence[Reply | bytes]]
PIECE = 1 << 16
QUICK = Patience(silence_s=2.0, window_s=2.0, window_bytes=1 << 20)
ACL = ["pattern readwrite holdfast/devices/%u/#", "topic read holdfast/releases/#"]


class MemoryChunks:
    """A file in memory that takes only what has the right hash."""

    def __init__(self, content: bytes, chunk_bytes: int = PIECE, have: Sequence[int] = ()) -> None:
        self.size_bytes = len(content)
        self.chunk_bytes = chunk_bytes
        self._content = content
        self._hashes = [
            hashlib.sha256(content[i : i + chunk_bytes]).digest() for i in range(0, len(content), chunk_bytes)
        ]
        self.taken: dict[int, bytes] = {index: self._piece(index) for index in have}
        self.refused = 0
        self.took = threading.Event()

    def missing(self) -> list[int]:
        return [index for index in range(len(self._hashes)) if index not in self.taken]

    def take(self, index: int, data: bytes) -> bool:
        if hashlib.sha256(data).digest() != self._hashes[index]:
            self.refused += 1
            return False
        self.taken[index] = data
        self.took.set()
        return True

    @property
    def is_whole(self) -> bool:
        return b"".join(self.taken[index] for index in sorted(self.taken)) == self._content

    def _piece(self, index: int) -> bytes:
        return self._content[index * self.chunk_bytes : (index + 1) * self.chunk_bytes]


class HostileServer:
    """A release server that says whatever `answer` returns: replies, or bytes as they are."""

    def __init__(self, broker: Mosquitto, topics: Topics, answer: Answer) -> None:
        self.requests: list[Request] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        ready: queue.Queue[None] = queue.Queue()

        def on_message(_client: Any, _data: object, message: paho.MQTTMessage) -> None:
            request = decode_request(message.payload)
            self.requests.append(request)
            for reply in answer(request):
                self._client.publish(topics.fetch_reply, reply if isinstance(reply, bytes) else encode_reply(reply))

        self._client.on_message = on_message
        self._client.on_subscribe = lambda *_: ready.put(None)
        self._client.connect(broker.host, broker.port)
        self._client.subscribe(topics.fetch_request)
        self._client.loop_start()
        ready.get(timeout=20)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, retain=retain)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def honest(content: bytes, request: Request) -> list[Reply]:
    """What a good server says."""
    size = request.piece_bytes
    pieces = ((index, content[index * size : (index + 1) * size]) for index in request.wanted)
    return [Reply(Status.OK, request.request_id, index, len(content), data) for index, data in pieces]


def content_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "releases"
    for name in ("metadata", "targets", "blobs"):
        (folder / name).mkdir(parents=True)
    (folder / "metadata" / "timestamp.json").write_bytes(b'{"signed": {"version": 3}}')
    return folder


@pytest.fixture
def serve(repository: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a real server and waits until it is connected."""
    made: list[Server] = []

    def start(broker: Mosquitto, **settings: Any) -> Server:
        mqtt = MqttSettings(host=broker.host, port=broker.port, **settings)
        made.append(Server(repository, mqtt, clock=SystemClock(), random=SystemRandom()))
        made[-1].__enter__()
        wait_until(lambda: made[-1].is_connected)
        return made[-1]

    yield start
    for server in made:
        server.__exit__(None, None, None)


@pytest.fixture
def lie(topics: Topics) -> Iterator[Callable[[Mosquitto, Answer], HostileServer]]:
    made: list[HostileServer] = []

    def start(broker: Mosquitto, answer: Answer) -> HostileServer:
        made.append(HostileServer(broker, topics, answer))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def make_transport(topics: Topics) -> Iterator[Callable[..., MqttTransport]]:
    made: list[MqttTransport] = []

    def make(
        place: Mosquitto | FaultyLink | int,
        *,
        pace: Callable[[int], float] | None = None,
        patience: Patience | None = None,
        idle_s: float = 10.0,
        topics: Topics = topics,
        **settings: Any,
    ) -> MqttTransport:
        port = place if isinstance(place, int) else place.port
        mqtt = MqttSettings(host="127.0.0.1", port=port, **settings)
        made.append(
            MqttTransport(mqtt, topics, SystemClock(), SystemRandom(), pace=pace, patience=patience, idle_s=idle_s)
        )
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def wait_until(condition: Callable[[], bool]) -> None:
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + 20
    while not condition():
        assert clock.monotonic() < deadline
        clock.wait(never, 0.01)


def never() -> threading.Event:
    return threading.Event()


def put(repository: Path, content: bytes, path: str = "blobs/ab12") -> str:
    (repository / path).write_bytes(content)
    return path


# -- good servers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [PIECE, 1024, 100_000, 1 << 18])
def test_brings_a_file_whatever_its_chunks(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path, chunk_bytes: int
) -> None:
    """The broker decides the size of messages, the release that of chunks; neither may depend on the other."""
    content = content_of(3_000_001)
    path = put(repository, content)
    with make_broker() as broker:
        serve(broker)
        transport, chunks = make_transport(broker), MemoryChunks(content, chunk_bytes)
        transport.fetch(path, chunks, never())
        assert chunks.is_whole
        assert 0 < transport.peak_held_bytes <= MAX_HELD_BYTES


@pytest.mark.parametrize(("device", "server"), [("5", "3.1.1"), ("3.1.1", "5"), ("3.1.1", "3.1.1")])
def test_both_sides_may_speak_the_older_protocol(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path, device: str, server: str
) -> None:
    content = content_of(1_000_000)
    path = put(repository, content)
    with make_broker() as broker:
        serve(broker, protocol=server)
        chunks = MemoryChunks(content)
        make_transport(broker, protocol=device).fetch(path, chunks, never())
        assert chunks.is_whole


def test_reads_small_files_of_any_size_up_to_the_limit(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    with make_broker() as broker:
        serve(broker)
        transport = make_transport(broker)
        for size in (0, 1, PIECE, 300_000):
            content = content_of(size)
            assert transport.read(put(repository, content, "metadata/7.targets.json"), size, never()) == content
        with pytest.raises(UnavailableError, match="more than 299999"):
            transport.read("metadata/7.targets.json", 299_999, never())


def test_file_that_is_not_there_is_said_to_be_missing_at_once(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    """Each check of an update asks for a root that does not exist yet: it must not cost a timeout."""
    with make_broker() as broker:
        serve(broker)
        transport = make_transport(broker, patience=replace(QUICK, silence_s=60.0))
        with pytest.raises(NotThereError):
            transport.read("metadata/9.root.json", 1000, never())
        with pytest.raises(NotThereError):
            transport.fetch("blobs/cd34", MemoryChunks(b"x"), never())


def test_only_what_is_missing_travels(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    content = content_of(100 * PIECE)
    path = put(repository, content)
    with make_broker() as broker:
        server = serve(broker)
        chunks = MemoryChunks(content, have=[index for index in range(100) if index not in (3, 50, 99)])
        make_transport(broker).fetch(path, chunks, never())
        assert chunks.is_whole
        assert server.served.pieces == 3


def test_idle_check_costs_less_than_a_kilobyte(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    """A connect, a root that is not there, an unchanged timestamp: what thousands of devices do every day."""
    put(repository, content_of(450), "metadata/timestamp.json")
    with make_broker() as broker, FaultyLink(broker.host, broker.port) as line:
        serve(broker)
        transport = make_transport(line)
        with pytest.raises(NotThereError):
            transport.read("metadata/2.root.json", 1000, never())
        assert len(transport.read("metadata/timestamp.json", 1000, never())) == 450
        transport.close()
        assert sum(line.passed_bytes.values()) <= 1000, line.passed_bytes


def test_works_with_client_certificates_and_one_acl_pattern(
    make_broker: MakeBroker, make_transport: Any, repository: Path, tmp_path: Path, topics: Topics
) -> None:
    content = content_of(500_000)
    path = put(repository, content)
    certificates = Certificates(tmp_path / "tls")
    device, other, releases = (certificates.issue(name) for name in (topics.device_id, "gate-08", "releases"))
    acl = [*ACL, "user releases", "topic readwrite holdfast/#"]

    def tls(pair: Any) -> dict[str, Any]:
        return {"tls": {"ca": certificates.ca, "cert": pair.cert, "key": pair.key}}

    with make_broker(certificates=certificates, acl=acl) as broker:
        mqtt = MqttSettings(host=broker.host, port=broker.port, **tls(releases))
        with Server(repository, mqtt, clock=SystemClock(), random=SystemRandom()) as server:
            wait_until(lambda: server.is_connected)
            chunks = MemoryChunks(content)
            make_transport(broker, **tls(device)).fetch(path, chunks, never())
            assert chunks.is_whole
            thief = make_transport(broker, patience=QUICK, **tls(other))  # asks in the name of gate-07
            with pytest.raises(UnavailableError, match="no release server answers"):
                thief.read("metadata/timestamp.json", 1000, never())


# -- narrow brokers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "server"), [("5", "5"), ("3.1.1", "5"), ("3.1.1", "3.1.1")])
def test_keeps_to_the_brokers_largest_packet(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path, device: str, server: str
) -> None:
    """A broker says how large (5), a server that knows says so (3.1.1 and 5), or large messages just never come."""
    content = content_of(300_000)
    path = put(repository, content)
    with make_broker(extra=["max_packet_size 20000"]) as broker:
        serve(broker, protocol=server)
        chunks = MemoryChunks(content)
        make_transport(broker, protocol=device).fetch(path, chunks, never())
        assert chunks.is_whole


# -- bad lines -----------------------------------------------------------------------------------------------------


def test_cut_lines_cost_hardly_more_than_the_file(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    """What came before a cut is kept, and the transfer goes on inside the same call."""
    content = content_of(20_000_000)
    path = put(repository, content)
    with make_broker() as broker, FaultyLink(broker.host, broker.port) as line:
        serve(broker)
        line.set("down", rate_bytes_s=10_000_000)
        chunks = MemoryChunks(content)
        over = threading.Event()

        def cut() -> None:
            for share in range(1, 9):
                wait_until(lambda share=share: len(chunks.taken) > 30 * share or over.is_set())
                line.reset()

        cutting = threading.Thread(target=cut)
        cutting.start()
        make_transport(line).fetch(path, chunks, never())
        over.set()
        cutting.join()
        assert chunks.is_whole
        assert line.connections >= 8
        assert line.passed_bytes["down"] <= 1.05 * len(content), line.passed_bytes["down"] / len(content)


def test_broker_that_restarts_in_the_middle_is_only_a_delay(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    content = content_of(10_000_000)
    path = put(repository, content)
    with make_broker() as broker, FaultyLink(broker.host, broker.port) as line:
        serve(broker)
        line.set("down", rate_bytes_s=10_000_000)
        chunks = MemoryChunks(content)
        fetching = threading.Thread(target=make_transport(line).fetch, args=(path, chunks, never()))
        fetching.start()
        chunks.took.wait(20)
        broker.kill()
        broker.start()
        fetching.join(60)
        assert chunks.is_whole


def test_dead_line_is_left_before_the_keepalive_notices(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    """Behind a dead mobile link a connection stays open and mute; the keep-alive would take 45 s to see it."""
    content = content_of(10_000_000)
    path = put(repository, content)
    with make_broker() as broker, FaultyLink(broker.host, broker.port) as line:
        serve(broker)
        line.set("down", rate_bytes_s=10_000_000)
        chunks = MemoryChunks(content)
        fetching = threading.Thread(target=make_transport(line).fetch, args=(path, chunks, never()))
        fetching.start()
        chunks.took.wait(20)
        line.partition()
        wait_until(lambda: line.connections == 2)
        line.heal()
        fetching.join(60)
        assert chunks.is_whole


def test_line_that_never_comes_back_ends_the_call(
    make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path
) -> None:
    content = content_of(10_000_000)
    path = put(repository, content)
    broker = make_broker()
    broker.start()
    with FaultyLink(broker.host, broker.port) as line:
        serve(broker)
        line.set("down", rate_bytes_s=5_000_000)
        chunks = MemoryChunks(content)
        threading.Thread(target=lambda: chunks.took.wait(20) and broker.kill(), daemon=True).start()
        with pytest.raises(UnavailableError):
            make_transport(line, patience=QUICK).fetch(path, chunks, never())
        assert 0 < len(chunks.taken) < 153


def test_nobody_there_is_said_with_what_to_do(make_broker: MakeBroker, make_transport: Any) -> None:
    with make_broker() as broker, pytest.raises(UnavailableError, match="no release server answers") as caught:
        make_transport(broker, patience=QUICK).read("metadata/timestamp.json", 1000, never())
    assert "holdfast release serve" in (caught.value.hint or "")
    with pytest.raises(UnavailableError, match="nothing listens"):
        make_transport(free_port()).read("metadata/timestamp.json", 1000, never())


@pytest.mark.parametrize("place", ["silent server", "deaf broker", "rate limit"])
def test_stop_ends_a_call_within_a_second(
    make_broker: MakeBroker, make_transport: Any, serve: Any, repository: Path, deaf: Any, place: str
) -> None:
    """SIGTERM ends the agent in two seconds whatever the updater is doing."""
    stop = threading.Event()
    with make_broker() as broker:
        if place == "rate limit":
            serve(broker)
        port = deaf.port if place == "deaf broker" else broker.port
        transport = make_transport(port, pace=(lambda _: 60.0) if place == "rate limit" else None)
        threading.Timer(0.5, stop.set).start()
        began = time.monotonic()
        with pytest.raises(StoppedError):
            transport.fetch(put(repository, b"x"), MemoryChunks(b"x"), stop)
        assert time.monotonic() - began < 2.0


def test_asks_no_faster_than_it_may(make_broker: MakeBroker, serve: Any, make_transport: Any, repository: Path) -> None:
    content = content_of(20 * PIECE)
    path = put(repository, content)
    asked: list[int] = []

    def pace(count: int) -> float:
        asked.append(count)
        return 0.05

    with make_broker() as broker:
        serve(broker)
        chunks = MemoryChunks(content)
        began = time.monotonic()
        make_transport(broker, pace=pace).fetch(path, chunks, never())
        assert chunks.is_whole
        assert sum(asked) == len(content)
        assert max(asked) <= 4 * PIECE
        assert time.monotonic() - began >= 0.05 * len(asked)


def test_connection_is_closed_when_nothing_more_is_asked(
    make_broker: MakeBroker, serve: Any, make_transport: Any
) -> None:
    """Ten thousand devices that check once a day must not hold ten thousand connections."""
    with make_broker() as broker:
        serve(broker)
        transport = make_transport(broker, idle_s=0.2)
        for number in range(2):
            transport.read("metadata/timestamp.json", 1000, never())
            wait_until(lambda number=number: broker.log().count("Client gate-07-fetch disconnected") == number + 1)


# -- hostile answers -----------------------------------------------------------------------------------------------


def test_wrong_bytes_are_refused_again_and_again_and_then_given_up(
    make_broker: MakeBroker, make_transport: Any, lie: Any
) -> None:
    content = content_of(10 * PIECE)
    with make_broker() as broker:
        lie(broker, lambda request: honest(bytes(len(content)), request))
        chunks = MemoryChunks(content)
        with pytest.raises(WrongContentError):
            make_transport(broker).fetch("blobs/a", chunks, never())
        assert chunks.taken == {}


def test_one_wrong_piece_is_asked_for_again(make_broker: MakeBroker, make_transport: Any, lie: Any) -> None:
    content = content_of(40 * PIECE)
    seen: set[int] = set()

    def answer(request: Request) -> list[Reply]:
        replies = honest(content, request)
        wrong = [reply.index for reply in replies if reply.index % 10 == 3 and reply.index not in seen]
        seen.update(wrong)
        return [replace(reply, data=b"\0" + reply.data[1:]) if reply.index in wrong else reply for reply in replies]

    with make_broker() as broker:
        lie(broker, answer)
        chunks = MemoryChunks(content)
        make_transport(broker).fetch("blobs/a", chunks, never())
        assert chunks.is_whole
        assert chunks.refused == 4


def _truncated(content: bytes, request: Request) -> list[Reply]:
    return [replace(reply, data=reply.data[:-1]) for reply in honest(content, request)]


def _longer(content: bytes, request: Request) -> list[Reply]:
    return [replace(reply, data=reply.data + b"x") for reply in honest(content, request)]


def _other_size(content: bytes, request: Request) -> list[Reply]:
    return [replace(reply, size_bytes=1 << 39) for reply in honest(content, request)]


@pytest.mark.parametrize("answer", [_truncated, _longer, _other_size])
def test_pieces_of_the_wrong_shape_are_given_up_before_they_are_stored(
    make_broker: MakeBroker, make_transport: Any, lie: Any, answer: Callable[[bytes, Request], list[Reply]]
) -> None:
    content = content_of(10 * PIECE)
    with make_broker() as broker:
        lie(broker, lambda request: answer(content, request))
        chunks = MemoryChunks(content)
        with pytest.raises(WrongContentError):
            make_transport(broker).fetch("blobs/a", chunks, never())
        assert chunks.taken == {}
        assert chunks.refused == 0


def _mixed(content: bytes, request: Request, chance: random.Random) -> list[Reply | bytes]:
    """Dropped, doubled, reordered, for others, malformed, refused: everything at once, and enough that is good."""
    replies: list[Reply | bytes] = [reply for reply in honest(content, request) if chance.random() < 0.8]
    replies += replies[: len(replies) // 2]
    replies.append(Reply(Status.OK, request.request_id ^ 0x55555555, request.wanted[0], len(content), bytes(PIECE)))
    replies.append(Reply(Status.OK, request.request_id, 0xFFFFFFFF, len(content), b"x"))
    replies += [b"", b"\x01", chance.randbytes(100), bytes(PIECE)]
    chance.shuffle(replies)
    return replies


def test_dropped_doubled_reordered_and_foreign_answers_cost_time_only(
    make_broker: MakeBroker, make_transport: Any, lie: Any
) -> None:
    content = content_of(150 * PIECE + 17)
    chance = random.Random(7)
    with make_broker() as broker:
        lie(broker, lambda request: _mixed(content, request, chance))
        chunks = MemoryChunks(content)
        transport = make_transport(broker)
        transport.fetch("blobs/a", chunks, never())
        assert chunks.is_whole
        assert chunks.refused == 0
        assert transport.peak_held_bytes <= MAX_HELD_BYTES


@pytest.mark.parametrize("chunk_bytes", [PIECE, 1 << 18])
def test_endless_answers_that_are_none_end_as_silence(
    make_broker: MakeBroker, make_transport: Any, lie: Any, chunk_bytes: int
) -> None:
    """A flood on the reply topic neither fills the memory nor keeps the call alive."""
    content = content_of(10 * PIECE)
    over = threading.Event()
    with make_broker() as broker:
        server = lie(broker, lambda _: [])

        def flood() -> None:
            while not over.wait(0.001):
                server.publish("holdfast/devices/gate-07/fetch/reply", bytes(PIECE))

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            with pytest.raises(UnavailableError, match="no release server answers"):
                make_transport(broker, patience=QUICK).fetch("blobs/a", MemoryChunks(content, chunk_bytes), never())
        finally:
            over.set()
            thread.join()


def test_slow_drip_is_given_up(make_broker: MakeBroker, make_transport: Any, lie: Any) -> None:
    """One good piece now and then, for ever, would keep a device from its other transports."""
    content = content_of(100 * PIECE)
    answered_s = [0.0]

    def answer(request: Request) -> list[Reply]:
        if time.monotonic() - answered_s[0] < 0.3:
            return []
        answered_s[0] = time.monotonic()
        return honest(content, request)[:1]

    with make_broker() as broker:
        lie(broker, answer)
        chunks = MemoryChunks(content)
        with pytest.raises(UnavailableError, match="too slow"):
            make_transport(broker, patience=replace(QUICK, window_bytes=4 << 20)).fetch("blobs/a", chunks, never())
        assert chunks.taken


def test_answers_on_another_devices_topic_do_not_count(make_broker: MakeBroker, make_transport: Any, lie: Any) -> None:
    with make_broker() as broker:

        def answer(request: Request) -> list[Reply]:
            for reply in honest(b"x", request):
                server.publish("holdfast/devices/gate-08/fetch/reply", encode_reply(reply))
            return []

        server = lie(broker, answer)
        with pytest.raises(UnavailableError, match="no release server answers"):
            make_transport(broker, patience=QUICK).fetch("blobs/a", MemoryChunks(b"x"), never())


def test_retained_giant_on_the_reply_topic_is_never_read(
    make_broker: MakeBroker, serve: Any, make_transport: Any, lie: Any, repository: Path
) -> None:
    """MQTT 5's Maximum Packet Size: an honest broker keeps from us what some client left there."""
    content = content_of(100_000)
    path = put(repository, content)
    with make_broker() as broker:
        lie(broker, lambda _: []).publish("holdfast/devices/gate-07/fetch/reply", bytes(30_000_000), retain=True)
        serve(broker)
        chunks = MemoryChunks(content)
        make_transport(broker).fetch(path, chunks, never())
        assert chunks.is_whole


def test_fake_not_there_is_believed_only_before_the_first_piece(
    make_broker: MakeBroker, make_transport: Any, lie: Any
) -> None:
    """At the start the next transport is tried, which costs little; in the middle one server may lag behind another."""
    content = content_of(100 * PIECE)
    asked = [0]

    def answer(request: Request) -> list[Reply]:
        asked[0] += 1
        return [Reply(Status.NOT_THERE, request.request_id)] if asked[0] == 3 else honest(content, request)

    with make_broker() as broker:
        server = lie(broker, answer)
        chunks = MemoryChunks(content)
        make_transport(broker).fetch("blobs/a", chunks, never())
        assert chunks.is_whole
        server.close()
        lie(broker, lambda request: [Reply(Status.NOT_THERE, request.request_id)])
        with pytest.raises(NotThereError):
            make_transport(broker).fetch("blobs/a", MemoryChunks(content), never())


def test_busy_server_is_asked_again(make_broker: MakeBroker, make_transport: Any, lie: Any) -> None:
    asked = [0]

    def answer(request: Request) -> list[Reply]:
        asked[0] += 1
        return [Reply(Status.BUSY, request.request_id)] if asked[0] < 3 else honest(b"x", request)

    with make_broker() as broker:
        lie(broker, answer)
        chunks = MemoryChunks(b"x")
        make_transport(broker).fetch("blobs/a", chunks, never())
        assert chunks.is_whole


def test_answers_to_an_older_transfer_are_not_mistaken_for_this_ones(
    make_broker: MakeBroker, make_transport: Any, lie: Any
) -> None:
    """Request numbers begin anew by chance: a replayed answer for another file has the wrong number."""
    first, second = content_of(PIECE, 1), content_of(PIECE, 2)
    old: list[Reply] = []

    def answer(request: Request) -> list[Reply]:
        if request.path == "blobs/1":
            old.extend(honest(first, request))
            return honest(first, request)
        return [*old, *honest(second, request)]

    with make_broker() as broker:
        lie(broker, answer)
        transport = make_transport(broker)
        transport.fetch("blobs/1", MemoryChunks(first), never())
        chunks = MemoryChunks(second)
        transport.fetch("blobs/2", chunks, never())
        assert chunks.is_whole
        assert chunks.refused == 0
