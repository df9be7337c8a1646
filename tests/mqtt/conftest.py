"""A real broker, a link with its mailbox, and an independent client that watches."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from agent.clock import SystemClock, SystemRandom
from agent.mqtt.link import Link
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from simulator.broker import Mosquitto

WITHIN_S = 20.0


class Mailbox:
    """What the link posted, in order."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()

    def next(self, kind: type, within_s: float = WITHIN_S) -> Any:
        """Return the next message of `kind`, passing over others; fail when none comes."""
        clock = SystemClock()
        deadline = clock.monotonic() + within_s
        seen = []
        while (left := deadline - clock.monotonic()) > 0:
            try:
                message = self.queue.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(message, kind):
                return message
            seen.append(message)
        pytest.fail(f"no {kind.__name__} within {within_s} s; saw {seen}")


class Watcher:
    """A client of its own that subscribes to everything."""

    def __init__(self, host: str, port: int, topic: str = "holdfast/#") -> None:
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        ready: queue.Queue[None] = queue.Queue()
        self._client.on_message = lambda _client, _data, message: self.messages.put(message)
        self._client.on_subscribe = lambda *_: ready.put(None)
        self._client.on_connect = lambda *_: self._client.subscribe(topic, 1)
        self._client.connect(host, port)
        self._client.loop_start()
        ready.get(timeout=WITHIN_S)

    def next(self, topic: str, within_s: float = WITHIN_S) -> paho.MQTTMessage:
        clock = SystemClock()
        deadline = clock.monotonic() + within_s
        while (left := deadline - clock.monotonic()) > 0:
            try:
                message = self.messages.get(timeout=left)
            except queue.Empty:
                break
            if message.topic == topic:
                return message
        pytest.fail(f"nothing on {topic} within {within_s} s")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def topics() -> Topics:
    return Topics("holdfast", "gate-07")


@pytest.fixture
def make_broker(tmp_path: Path, need_tool: Callable[[str], str]) -> Iterator[Callable[..., Mosquitto]]:
    need_tool("mosquitto")
    made: list[Mosquitto] = []

    def make(**options: Any) -> Mosquitto:
        made.append(Mosquitto(tmp_path / f"broker-{len(made)}", **options))
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def make_link(topics: Topics, mailbox: Mailbox) -> Iterator[Callable[..., Link]]:
    made: list[Link] = []

    def make(port: int, *, answer_timeout_s: float = 5.0, subscriptions: tuple[str, ...] = (), **settings: Any) -> Link:
        made.append(
            Link(
                MqttSettings(host=settings.pop("host", "127.0.0.1"), port=port, **settings),
                topics,
                post=mailbox.queue.put,
                clock=SystemClock(),
                random=SystemRandom(),
                subscriptions=subscriptions,
                answer_timeout_s=answer_timeout_s,
            )
        )
        made[-1].start()
        return made[-1]

    yield make
    for link in made:
        link.stop()


@pytest.fixture
def watch() -> Iterator[Callable[..., Watcher]]:
    made: list[Watcher] = []

    def make(broker: Mosquitto, topic: str = "holdfast/#") -> Watcher:
        made.append(Watcher(broker.host, broker.port, topic))
        return made[-1]

    yield make
    for watcher in made:
        watcher.close()


class DeafServer:
    """A port whose backlog is full: a connect to it hangs, as to a machine that drops packets, until `listen`."""

    def __init__(self) -> None:
        self._server = socket.socket()
        self._server.bind(("127.0.0.1", 0))
        self._server.listen(0)
        self.port = self._server.getsockname()[1]
        self._fillers = [socket.socket() for _ in range(3)]
        for filler in self._fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))

    def first_bytes(self) -> bytes:
        """Let everybody in; return what the first client says (nothing: it hung up)."""
        ours = {filler.getsockname()[1] for filler in self._fillers}
        self._server.settimeout(8)
        while True:
            connection, (_, port) = self._server.accept()
            if port not in ours:
                connection.settimeout(8)
                return connection.recv(100)

    def close(self) -> None:
        for sock in (*self._fillers, self._server):
            sock.close()


@pytest.fixture
def deaf() -> Iterator[DeafServer]:
    server = DeafServer()
    yield server
    server.close()
