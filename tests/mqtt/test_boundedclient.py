"""A broker that breaks the protocol to fill our memory is hung up on. This file also pins the private methods of paho."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from agent.mqtt.messages import LinkMessage
from agent.mqtt.session import Session
from agent.mqtt.settings import MqttSettings

CONNACK = bytes([0x20, 3, 0, 0, 0])
LIMIT = 1000


class FakeBroker:
    """Accepts one connection, says CONNACK, and then what it was told to say; nothing is read after CONNECT."""

    def __init__(self, words: bytes) -> None:
        self._words = words
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.hung_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(CONNACK + self._words)
            connection.settimeout(20)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
            except TimeoutError:
                return
            self.hung_up.set()

    def close(self) -> None:
        self._server.close()
        self._thread.join(5)


@pytest.fixture
def broker_that_says() -> Iterator[Callable[[bytes], FakeBroker]]:
    made: list[FakeBroker] = []

    def make(words: bytes) -> FakeBroker:
        made.append(FakeBroker(words))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


def connected(port: int, got: list[LinkMessage]) -> Session:
    settings = MqttSettings(host="127.0.0.1", port=port)
    session = Session(1, "5", settings, client_id="gate-07", post=got.append, largest_packet_bytes=LIMIT)
    session.connect(10)
    return session


def publish(qos: int, payload: bytes, claimed: int | None = None) -> bytes:
    body = b"\x00\x01t" + (b"\x00\x01" if qos else b"") + b"\x00" + payload
    size = len(body) if claimed is None else claimed
    length = bytearray()
    while True:
        size, low = divmod(size, 128)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([0x30 | qos << 1]) + bytes(length) + body


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(publish(0, b"", claimed=200_000_000), id="a packet that claims 200 MB"),
        pytest.param(publish(0, bytes(2 * LIMIT)), id="a packet over the limit"),
        pytest.param(publish(2, b"kept until released"), id="QoS 2, which nobody subscribed to"),
        pytest.param(bytes([0x30, 5, 0, 2, 0xFF, 0xFE, 0]), id="a topic that is no UTF-8"),
    ],
)
def test_broker_that_would_fill_the_memory_or_end_the_thread_is_hung_up_on(
    broker_that_says: Callable[[bytes], FakeBroker], words: bytes
) -> None:
    got: list[LinkMessage] = []
    broker = broker_that_says(words)
    session = connected(broker.port, got)
    assert session._over.wait(20)
    session.close()
    assert broker.hung_up.wait(10)
    assert got == []


def test_ordinary_message_passes(broker_that_says: Callable[[bytes], FakeBroker]) -> None:
    got: list[LinkMessage] = []
    broker = broker_that_says(publish(1, b"hello") + publish(0, b"", claimed=200_000_000))
    session = connected(broker.port, got)
    session.wait_until_over()
    session.close()
    assert [getattr(message, "payload", None) for message in got] == [b"hello"]
