"""The release server against a real mosquitto: what it gives out, to whom, and what it refuses."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from agent.clock import SystemClock, SystemRandom
from agent.errors import NotThereError, OperatorError
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.pieces import Reply, Request, Status, decode_reply, encode_request
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from bundles.release.publicfiles import MAX_OPEN, PublicFiles
from bundles.release.serving import Server, serve
from simulator.broker import Mosquitto

WITHIN_S = 20.0
PIECE = 1 << 16


class Device:
    """Asks by hand and keeps what comes, from all topics."""

    def __init__(self, broker: Mosquitto, name: str = "gate-07") -> None:
        self.topics = Topics("holdfast", name)
        self.replies: queue.Queue[Reply] = queue.Queue()
        self.hints: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        ready: queue.Queue[None] = queue.Queue()
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: ready.put(None)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe([(self.topics.fetch_reply, 0), (self.topics.release_hint, 1)])
        ready.get(timeout=WITHIN_S)

    def ask(self, path: str, *wanted: int, number: int = 1, piece_bytes: int = PIECE) -> None:
        self.send(encode_request(Request(number, path, piece_bytes, wanted or (0,))))

    def send(self, message: bytes, *, topic: str = "", retain: bool = False) -> None:
        self._client.publish(topic or self.topics.fetch_request, message, retain=retain)

    def reply(self) -> Reply:
        return self.replies.get(timeout=WITHIN_S)

    def hint(self) -> paho.MQTTMessage:
        return self.hints.get(timeout=WITHIN_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: Any, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic == self.topics.release_hint:
            self.hints.put(message)
        else:
            self.replies.put(decode_reply(message.payload))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "releases"
    for name in ("metadata", "targets/channels", "blobs", "keys"):
        (folder / name).mkdir(parents=True)
    write_timestamp(folder, 3)
    (folder / "keys" / "snapshot.pem").write_text("a private key")
    (folder / "blobs" / "ab").write_bytes(b"blob")
    (folder / "targets" / "channels" / "12.stable.json").write_bytes(b"{}")
    return folder


def write_timestamp(repository: Path, version: int) -> None:
    path = repository / "metadata" / "timestamp.json"
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"signed": {"version": version}}))
    beside.replace(path)


@pytest.fixture
def broker(tmp_path: Path, need_tool: Callable[[str], str]) -> Iterator[Mosquitto]:
    need_tool("mosquitto")
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def start(repository: Path, broker: Mosquitto) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(*, protocol: str = "auto", **options: Any) -> Server:
        mqtt = MqttSettings(host=broker.host, port=broker.port, protocol=protocol)  # type: ignore[arg-type]
        made.append(Server(repository, mqtt, clock=SystemClock(), random=SystemRandom(), **options))
        made[-1].__enter__()
        wait_until(lambda: made[-1].is_connected)
        return made[-1]

    yield make
    for server in made:
        server.__exit__(None, None, None)


@pytest.fixture
def device(broker: Mosquitto) -> Iterator[Device]:
    device = Device(broker)
    yield device
    device.close()


def wait_until(condition: Callable[[], bool]) -> None:
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + WITHIN_S
    while not condition():
        assert clock.monotonic() < deadline
        clock.wait(never, 0.01)


# -- what is given out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["metadata/timestamp.json", "blobs/ab", "targets/channels/12.stable.json"])
def test_public_files_are_given_out(start: Any, device: Device, repository: Path, path: str) -> None:
    start()
    device.ask(path)
    content = (repository / path).read_bytes()
    assert device.reply() == Reply(Status.OK, 1, 0, len(content), content)


@pytest.mark.parametrize(
    "path",
    [
        "keys/snapshot.pem",
        "blobs/../keys/snapshot.pem",
        "/etc/hostname",
        "blobs//ab",
        "blobs/./ab",
        "blobs",
        "blobs/",
        "metadata/.hidden",
        "blobs\\ab",
        "BLOBS/ab",
        "blobs/absent",
        "targets/channels",
        "blobs/link",
        "blobs/folder-link/snapshot.pem",
        "targets/pipe",
    ],
)
def test_nothing_else_is(start: Any, device: Device, repository: Path, path: str) -> None:
    """Keys may lie beside the public folders: no path, link or pipe leads to them."""
    (repository / "metadata" / ".hidden").write_text("x")
    (repository / "blobs" / "link").symlink_to(repository / "keys" / "snapshot.pem")
    (repository / "blobs" / "folder-link").symlink_to(repository / "keys", target_is_directory=True)
    if hasattr(os, "mkfifo"):
        os.mkfifo(repository / "targets" / "pipe")
    server = start()
    device.ask(path, *range(20))
    assert device.reply().status is Status.NOT_THERE
    device.ask("blobs/ab", number=2)
    assert device.reply().request_id == 2, "one refusal for one request"
    assert server.served.refused == 1


def test_replaced_timestamp_is_given_out_at_once(start: Any, device: Device, repository: Path) -> None:
    start()
    for version in (4, 5):
        write_timestamp(repository, version)
        device.ask("metadata/timestamp.json", number=version)
        assert json.loads(device.reply().data)["signed"]["version"] == version


def test_piece_beyond_the_end_is_not_there(start: Any, device: Device) -> None:
    start()
    device.ask("blobs/ab", 1)
    assert device.reply().status is Status.NOT_THERE


def test_open_files_are_bounded(repository: Path) -> None:
    """One server lives for years and a repository has thousands of blobs."""
    for number in range(2 * MAX_OPEN):
        (repository / "blobs" / f"f{number}").write_bytes(b"x")
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir())) if opened.exists() else 0
    with PublicFiles(repository) as files:
        for number in range(2 * MAX_OPEN):
            content = bytearray()

            def room(count: int, _size: int, content: bytearray = content) -> memoryview:
                content.extend(bytes(count))
                return memoryview(content)

            assert files.read(f"blobs/f{number}", 0, room, PIECE)
            assert content == b"x"
        if before:
            assert len(list(opened.iterdir())) <= before + MAX_OPEN + 1


# -- to whom -------------------------------------------------------------------------------------------------------


def test_answers_go_to_the_device_of_the_topic_and_nobody_else(start: Any, broker: Mosquitto, device: Device) -> None:
    """The ACL vouches for the topic; nothing in the payload can send bytes elsewhere."""
    start()
    other = Device(broker, "gate-08")
    try:
        other.ask("blobs/ab")
        assert other.reply().data == b"blob"
        device.ask("blobs/ab", number=5)
        assert device.reply().request_id == 5
        assert device.replies.empty()
    finally:
        other.close()


def test_what_is_no_request_is_ignored(start: Any, device: Device) -> None:
    server = start()
    for message in (b"", b"\x00", b"\x01" * 17, random.Random(1).randbytes(300), bytes(100_000)):
        device.send(message)
    device.ask("blobs/ab", number=9)
    assert device.reply().request_id == 9
    assert server.served.pieces == 1


def test_retained_request_is_not_answered_at_each_start(start: Any, device: Device) -> None:
    """Nobody waits for the answer, and it would come again after every reconnect. (MQTT 5 keeps it from shared groups.)"""
    device.send(encode_request(Request(1, "blobs/ab", PIECE, (0,))), retain=True)
    start(protocol="3.1.1")
    device.ask("blobs/ab", number=9)
    assert device.reply().request_id == 9


@pytest.mark.parametrize(
    "topic",
    [
        "holdfast/devices/a/b/fetch/request",
        "holdfast/devices/a/fetch/reply",
        "holdfast/devices/fetch/request",
        "elsewhere/devices/a/fetch/request",
        "",
    ],
)
def test_topic_that_was_not_subscribed_names_no_device(repository: Path, topic: str) -> None:
    """A hostile broker may deliver anything on anything."""
    server = Server(repository, MqttSettings(host="127.0.0.1"), clock=SystemClock(), random=SystemRandom())
    assert server._device("holdfast/devices/a/fetch/request") == "a"
    assert server._device(topic) is None


def test_greedy_device_does_not_starve_a_modest_one(
    start: Any, broker: Mosquitto, device: Device, repository: Path
) -> None:
    (repository / "blobs" / "big").write_bytes(bytes(64 * PIECE))
    start()
    greedy = Device(broker, "gate-99")
    try:
        for number in range(30):
            greedy.ask("blobs/big", *range(64), number=number)
        device.ask("blobs/ab", number=7)
        assert device.reply().data == b"blob"
        busy = 0
        while not busy:
            busy += greedy.reply().status is Status.BUSY
    finally:
        greedy.close()


# -- the hint ------------------------------------------------------------------------------------------------------


def test_hint_is_the_timestamps_version_retained_and_follows_it(
    start: Any, broker: Mosquitto, device: Device, repository: Path
) -> None:
    start()
    assert device.hint().payload == b"3"
    write_timestamp(repository, 4)
    assert device.hint().payload == b"4"
    late = Device(broker, "gate-08")
    try:
        hint = late.hint()
        assert (hint.payload, hint.retain) == (b"4", True)
    finally:
        late.close()


def test_damaged_timestamp_says_nothing(start: Any, device: Device, repository: Path) -> None:
    for damage in (b"", b"[]", b'{"signed": {"version": "x"}}', b"{" * 100_000, b"\xff"):
        (repository / "metadata" / "timestamp.json").write_bytes(damage)
    start()
    write_timestamp(repository, 8)
    assert device.hint().payload == b"8"


def test_refresh_is_called_again_and_again_even_if_it_fails(start: Any, device: Device, repository: Path) -> None:
    """A key that is out of reach for an hour must not end the server that gives out what is already signed."""
    calls: list[int] = []

    def refresh() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the key is out of reach")
        write_timestamp(repository, 3 + len(calls))

    start(refresh=refresh, refresh_every_s=0.01)
    assert device.hint().payload == b"3"
    assert device.hint().payload == b"5"


# -- staying there -------------------------------------------------------------------------------------------------


def test_serves_again_after_the_broker_came_back(start: Any, broker: Mosquitto, repository: Path) -> None:
    server = start()
    broker.kill()
    wait_until(lambda: not server.is_connected)
    broker.start()
    wait_until(lambda: server.is_connected)
    device = Device(broker)
    try:
        assert device.hint().payload == b"3"
        device.ask("blobs/ab")
        assert device.reply().data == b"blob"
    finally:
        device.close()


def test_no_repository_is_said_to_the_operator(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no release repository"):
        serve(
            tmp_path / "nothing",
            MqttSettings(host="127.0.0.1"),
            clock=SystemClock(),
            random=SystemRandom(),
            stop=threading.Event(),
        )


def test_command_lines_call_ends_when_stop_is_set(broker: Mosquitto, repository: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    mqtt = MqttSettings(host=broker.host, port=broker.port)
    assert serve(repository, mqtt, clock=SystemClock(), random=SystemRandom(), stop=stop).pieces == 0


# -- side by side --------------------------------------------------------------------------------------------------


def test_each_request_reaches_one_of_two_servers(start: Any, device: Device) -> None:
    first, second = start(protocol="5"), start(protocol="5")
    for number in range(20):
        device.ask("blobs/ab", number=number)
    assert sorted(device.reply().request_id for _ in range(20)) == list(range(20))
    assert first.served.pieces + second.served.pieces == 20
    assert min(first.served.pieces, second.served.pieces) > 0


SERVER = """
import sys
from pathlib import Path
from agent.clock import SystemClock, SystemRandom
from agent.mqtt.settings import MqttSettings
from bundles.release.serving import Server
mqtt = MqttSettings(host="127.0.0.1", port=int(sys.argv[2]))
with Server(Path(sys.argv[1]), mqtt, clock=SystemClock(), random=SystemRandom()) as server:
    while not server.is_connected: pass
    print("ready", flush=True)
    sys.stdin.read()
"""


class CountingChunks:
    """Takes everything, and says when half of it is there."""

    chunk_bytes = PIECE

    def __init__(self, content: bytes, half: Callable[[], None]) -> None:
        self.size_bytes = len(content)
        self._content = content
        self._open = set(range(-(-len(content) // PIECE)))
        self._half = len(self._open) // 2
        self._at_half = half

    def missing(self) -> list[int]:
        return sorted(self._open)

    def take(self, index: int, data: bytes) -> bool:
        assert data == self._content[index * PIECE : (index + 1) * PIECE]
        self._open.discard(index)
        if len(self._open) == self._half:
            self._at_half()
        return True


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_servers_dies_in_the_middle_and_the_other_goes_on(
    start: Any, broker: Mosquitto, repository: Path, death: signal.Signals
) -> None:
    """SIGSTOP is the worse one: the broker does not see it and goes on giving half of the requests to a dead server."""
    content = random.Random(3).randbytes(200 * PIECE + 5)
    (repository / "blobs" / "big").write_bytes(content)
    start(protocol="5")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", SERVER, str(repository), str(broker.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        mqtt = MqttSettings(host=broker.host, port=broker.port)
        transport = MqttTransport(mqtt, Topics("holdfast", "gate-07"), SystemClock(), SystemRandom())
        chunks = CountingChunks(content, lambda: other.send_signal(death))
        try:
            transport.fetch("blobs/big", chunks, threading.Event())
            assert chunks.missing() == []
        finally:
            transport.close()
            other.kill()


def test_server_that_lags_behind_does_not_hide_a_file(
    start: Any, broker: Mosquitto, repository: Path, tmp_path: Path
) -> None:
    """Two copies of a repository are never equal at each moment; a retry may meet the one that has the file."""
    start(protocol="5")
    mqtt = MqttSettings(host=broker.host, port=broker.port, protocol="5")
    (tmp_path / "old" / "metadata").mkdir(parents=True)
    with Server(tmp_path / "old", mqtt, clock=SystemClock(), random=SystemRandom()) as old:
        wait_until(lambda: old.is_connected)
        transport = MqttTransport(mqtt, Topics("holdfast", "gate-07"), SystemClock(), SystemRandom())
        found = []
        for _ in range(10):
            try:
                found.append(transport.read("blobs/ab", 100, threading.Event()))
            except NotThereError:
                found.append(b"")
        transport.close()
        assert b"blob" in found
