"""The broker handles."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import UnavailableError
from simulator.broker import EmbeddedBroker, Mosquitto


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_mosquitto_comes_back_on_the_same_port(tmp_path: Path, need_tool: Callable[[str], str]) -> None:
    need_tool("mosquitto")
    with Mosquitto(tmp_path) as broker:
        port = broker.port
        broker.kill()
        assert not listens(port)
        broker.start()
        assert broker.port == port
        assert listens(port)
    assert not listens(port)


def test_mosquitto_with_a_broken_configuration_is_told_with_its_log(
    tmp_path: Path, need_tool: Callable[[str], str]
) -> None:
    need_tool("mosquitto")
    with pytest.raises(UnavailableError, match="nonsense"):
        Mosquitto(tmp_path, extra=["nonsense yes"]).start()


def test_embedded_broker_starts_and_stops_again_and_again() -> None:
    pytest.importorskip("amqtt")
    broker = EmbeddedBroker()
    for _ in range(2):
        with broker:
            assert listens(broker.port)
        assert not listens(broker.port)
