"""The hostile server against the real transport over a real broker: it lies, and no lie is ever kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from agent.clock import SystemClock, SystemRandom
from agent.errors import NotThereError, UnavailableError, WrongContentError
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.mqtt.transfer import Patience
from bundles.release.serving import Server
from simulator.broker import Mosquitto
from simulator.hostilebroker import HINTS, HostileServer
from simulator.mischief import Mischief

TIMESTAMP = "metadata/timestamp.json"
LIMIT_BYTES = 4096
NEVER = threading.Event()


@pytest.fixture
def broker(tmp_path: Path, need_tool: Callable[[str], str]) -> Iterator[Mosquitto]:
    need_tool("mosquitto")
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def hostile(broker: Mosquitto, honest: Path, older: Path) -> Iterator[HostileServer]:
    with HostileServer(broker.port, honest, older) as server:
        yield server


@pytest.fixture
def device(broker: Mosquitto) -> Iterator[Callable[[str], MqttTransport]]:
    opened: list[MqttTransport] = []

    def make(name: str = "victim") -> MqttTransport:
        settings = MqttSettings(host=broker.host, port=broker.port)
        patience = Patience(silence_s=5.0, window_s=1.0)  # what is lost on the way is asked for again in time
        opened.append(
            MqttTransport(settings, Topics("holdfast", name), SystemClock(), SystemRandom(), patience=patience)
        )
        return opened[-1]

    yield make
    for transport in opened:
        transport.close()


def test_honest_until_it_is_told(
    hostile: HostileServer, device: Any, honest: Path, chunks: Any, blob_path: str
) -> None:
    """So that what a device does afterwards is an answer to the mischief."""
    transport = device()
    assert transport.read(TIMESTAMP, LIMIT_BYTES, NEVER) == (honest / TIMESTAMP).read_bytes()
    transport.fetch(blob_path, chunks, NEVER)
    assert chunks.is_whole
    assert {name for name, _ in hostile.requests} == {"victim"}


@pytest.mark.parametrize("mischief", get_args(Mischief))
def test_man_in_the_middle_delays_and_nothing_else(
    hostile: HostileServer, device: Any, chunks: Any, blob_path: str, mischief: Mischief
) -> None:
    """Every chunk that is kept is the signed one; once the mischief ends the same transfer goes through."""
    hostile.cues.play(mischief)
    transport = device()
    try:
        transport.fetch(blob_path, chunks, NEVER)
    except UnavailableError:
        pass
    hostile.cues.check()
    hostile.cues.behave()
    transport.fetch(blob_path, chunks, NEVER)
    assert b"".join(chunks.taken[index] for index in sorted(chunks.taken)) == chunks.content


def test_wrong_bytes_for_ever_are_called_wrong(
    hostile: HostileServer, device: Any, chunks: Any, blob_path: str
) -> None:
    """The updater needs the difference between damage and silence."""
    hostile.cues.play("wrong bytes")
    with pytest.raises(WrongContentError):
        device().fetch(blob_path, chunks, NEVER)
    assert not chunks.is_whole


def test_false_absence_is_an_absence(hostile: HostileServer, device: Any, chunks: Any, blob_path: str) -> None:
    """Another transport may have the file."""
    hostile.cues.play("not there")
    with pytest.raises(NotThereError):
        device().fetch(blob_path, chunks, NEVER)


def test_false_answers_beside_an_honest_server_do_no_harm(
    broker: Mosquitto, honest: Path, device: Any, chunks: Any, blob_path: str
) -> None:
    """The race of a second responder: whatever comes first, only what was signed is kept."""
    settings = MqttSettings(host=broker.host, port=broker.port)
    with (
        Server(honest, settings, clock=SystemClock(), random=SystemRandom()),
        HostileServer(broker.port, honest, only_false=True) as hostile,
    ):
        hostile.cues.play("duplicate", times=1)
        hostile.cues.play("giant", times=2)
        transport = device()
        for _ in range(20):  # the server needs a moment to connect
            try:
                transport.fetch(blob_path, chunks, NEVER)
            except UnavailableError:
                continue
            break
        assert chunks.is_whole
        assert hostile.wait_for_false_answers(1, 10)


def test_old_answers_and_garbage_are_nobodys(
    hostile: HostileServer, device: Any, chunks: Any, blob_path: str, honest: Path
) -> None:
    """What nobody asked for is not believed, however well it is formed."""
    transport = device()
    transport.read(TIMESTAMP, LIMIT_BYTES, NEVER)
    assert hostile.replay_answers() >= 1
    hostile.babble("victim")
    transport.fetch(blob_path, chunks, NEVER)
    assert chunks.is_whole
    assert chunks.refused == 0


def test_answers_of_one_device_reach_another_and_mean_nothing_there(
    hostile: HostileServer, device: Any, chunks: Any, blob_path: str, honest: Path
) -> None:
    """A broker that mixes devices up, or wants to."""
    first, second = device("first"), device("second")
    first.read(TIMESTAMP, LIMIT_BYTES, NEVER)
    second.read(TIMESTAMP, LIMIT_BYTES, NEVER)
    hostile.cues.play("crossed")
    first.fetch(blob_path, chunks, NEVER)
    assert second.read(TIMESTAMP, LIMIT_BYTES, NEVER) == (honest / TIMESTAMP).read_bytes()
    hostile.cues.check()


def test_false_hints_are_published_retained(broker: Mosquitto, hostile: HostileServer) -> None:
    """A device that comes later gets the lie as well."""
    import paho.mqtt.client as paho

    got: list[bytes] = []
    arrived = threading.Event()
    for kind in ("garbage", "negative", "future"):
        hostile.hint(kind)
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe("holdfast/releases/timestamp")

    def take(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        got.append(bytes(message.payload))
        if message.payload == HINTS["future"]:
            arrived.set()

    client.on_message = take
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert arrived.wait(10)
    client.disconnect()
    client.loop_stop()
    assert hostile.hints["future"] == 1
