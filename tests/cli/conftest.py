"""A real broker for commands that talk to one."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False


@pytest.fixture
def start_broker(tmp_path: Path, need_tool: Callable[[str], str]) -> Iterator[Callable[..., int]]:
    """Return a function that starts mosquitto with more lines of configuration and gives its port."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*lines: str) -> int:
        port = free_port()
        access = [] if any(line.startswith("allow_anonymous") for line in lines) else ["allow_anonymous true"]
        file = tmp_path / f"mosquitto-{port}.conf"
        file.write_text("\n".join(["user root", f"listener {port} 127.0.0.1", *access, *lines]) + "\n")
        process = subprocess.Popen([need_tool("mosquitto"), "-c", str(file)], stderr=subprocess.PIPE)
        running.append(process)
        while not answers(port):
            assert process.poll() is None, process.stderr.read()
        return port

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture
def connect() -> Iterator[Callable[[int], paho.Client]]:
    """Return a function that gives a connected client of a port."""
    clients: list[paho.Client] = []

    def do(port: int) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", port)
        client.loop_start()
        clients.append(client)
        return client

    yield do
    for client in clients:
        client.disconnect()
        client.loop_stop()


def event(seq: int, **data: object) -> bytes:
    return json.dumps(
        {
            "specversion": "1.0",
            "id": f"01{seq}",
            "source": "/devices/box1/pipelines/door",
            "time": "2026-11-20T09:00:00.000Z",
            "type": "dev.holdfast.event.track",
            "data": {"seq": seq, "phase": "new", "label": "person", "score": 0.9, **data},
        }
    ).encode()
