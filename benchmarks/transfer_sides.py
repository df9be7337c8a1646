"""The four sides of the transfer benchmark, each a process of its own: `python -m benchmarks.transfer_sides ROLE HOST PORT …`.

serve FOLDER and fetch FILE are ours. plain-serve FILE and plain-fetch FILE are what a good engineer writes with paho in
an hour for one known file: QoS 0, 64 KiB, 16 requests on their way, the sender's file in memory, each chunk hashed by
the receiver and kept in memory, nothing asked for again. FILE gives the receivers only the hashes and the size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from statistics import quantiles
from typing import Any, BinaryIO

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.clock import SystemClock, SystemRandom
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.link import Link
from agent.mqtt.messages import Connected, LinkMessage, PublishAcknowledged
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from benchmarks.processes import peak_rss_mb, rss_mb

CHUNK = 1 << 16
WINDOW = 16
TOPICS = Topics("holdfast", "bench")
EVENT = b"x" * 223
EVENT_EVERY_S = 0.005


def main() -> None:
    """Run one side; the receiving ones print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=list(ROLES))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", type=Path)
    parser.add_argument("--protocol", default="5")
    parser.add_argument(
        "--both", action="store_true", help="plain-fetch: the sender in the same process, no switch of processes"
    )
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--events", type=int, default=0, help="the port for events meanwhile")
    chosen = parser.parse_args()
    ROLES[chosen.role](chosen)


def _serve(chosen: argparse.Namespace) -> None:
    from bundles.release.serving import Server

    settings = MqttSettings(host=chosen.host, port=chosen.port)
    with Server(chosen.path, settings, clock=SystemClock(), random=SystemRandom()) as server:
        while not server.is_connected:
            time.sleep(0.01)
        print("ready", flush=True)
        sys.stdin.read()


def _fetch(chosen: argparse.Namespace) -> None:
    settings = MqttSettings(host=chosen.host, port=chosen.port)
    hashes, size_bytes = _hashes(chosen.path)
    transport = MqttTransport(settings, TOPICS, SystemClock(), SystemRandom())
    stop = threading.Event()
    transport.read("metadata/timestamp.json", 1000, stop)
    before_mb = rss_mb_of_self()
    taken_s: list[float] = []
    with _events(chosen.events) as latencies_ms, tempfile.TemporaryFile() as file:
        for _ in range(chosen.times):
            chunks = FileChunks(file, hashes, size_bytes)
            began = time.perf_counter()
            transport.fetch(f"blobs/{chosen.path.name}", chunks, stop)
            taken_s.append(time.perf_counter() - began)
    transport.close()
    figures: dict[str, Any] = {"taken_s": taken_s, "held_mb": transport.peak_held_bytes / 2**20}
    figures["growth_mb"] = max(0.0, peak_rss_mb("self") - before_mb)
    if latencies_ms:
        figures |= {"p99_ms": quantiles(latencies_ms, n=100)[-1], "events": len(latencies_ms)}
    print(json.dumps(figures))


class FileChunks:
    """What staging does with a chunk: check its hash, write it where it belongs."""

    chunk_bytes = CHUNK

    def __init__(self, file: BinaryIO, hashes: Sequence[bytes], size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._file = file
        self._hashes = hashes
        self._missing = dict.fromkeys(range(len(hashes)))

    def missing(self) -> list[int]:
        return list(self._missing)

    def take(self, index: int, data: bytes) -> bool:
        if hashlib.sha256(data).digest() != self._hashes[index]:
            return False
        self._file.seek(index * CHUNK)
        self._file.write(data)
        self._missing.pop(index, None)
        return True


@contextmanager
def _events(port: int) -> Iterator[list[float]]:
    """Publish events over the agent's own link, in this process, and note how long each acknowledgement took."""
    latencies_ms: list[float] = []
    if not port:
        yield latencies_ms
        return
    sent_s: list[float] = []
    connected, over = threading.Event(), threading.Event()

    def post(message: LinkMessage) -> None:
        if isinstance(message, Connected):
            connected.set()
        elif isinstance(message, PublishAcknowledged):
            latencies_ms.append(1e3 * (time.perf_counter() - sent_s[message.token]))

    settings = MqttSettings(host="127.0.0.1", port=port)
    with Link(settings, TOPICS, post=post, clock=SystemClock(), random=SystemRandom()) as link:
        connected.wait(10)

        def publish() -> None:
            while not over.wait(EVENT_EVERY_S):
                sent_s.append(time.perf_counter())
                link.publish(TOPICS.events("door"), EVENT, qos=1, token=len(sent_s) - 1)

        thread = threading.Thread(target=publish)
        thread.start()
        yield latencies_ms
        over.set()
        thread.join()


def _plain_serve(chosen: argparse.Namespace) -> None:
    client = _plain_server(chosen)
    print("ready", flush=True)
    sys.stdin.read()
    client.disconnect()


def _plain_server(chosen: argparse.Namespace) -> paho.Client:
    content = chosen.path.read_bytes()

    def answer(client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        number = int(message.payload)
        client.publish("plain/reply", number.to_bytes(4, "big") + content[number * CHUNK : (number + 1) * CHUNK])

    return _plain_client(chosen, "plain/request", answer)


def _plain_fetch(chosen: argparse.Namespace) -> None:
    hashes, size_bytes = _hashes(chosen.path)
    content = bytearray(size_bytes)
    state = {"next": 0, "left": len(hashes)}
    done = threading.Event()

    def take(client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        number, data = int.from_bytes(message.payload[:4], "big"), message.payload[4:]
        assert hashlib.sha256(data).digest() == hashes[number]
        content[number * CHUNK : number * CHUNK + len(data)] = data
        state["left"] -= 1
        ask(client)
        if not state["left"]:
            done.set()

    def ask(client: paho.Client) -> None:
        if state["next"] < len(hashes):
            client.publish("plain/request", str(state["next"]))
            state["next"] += 1

    if chosen.both:
        _plain_server(chosen)
    client = _plain_client(chosen, "plain/reply", take)
    began = time.perf_counter()
    for _ in range(WINDOW):
        ask(client)
    if not done.wait(120):
        raise TimeoutError("the plain mover lost a message")
    print(json.dumps({"taken_s": [time.perf_counter() - began]}))
    client.disconnect()


def _plain_client(chosen: argparse.Namespace, topic: str, on_message: Any) -> paho.Client:  # noqa: ANN401  paho's
    protocol = paho.MQTTv5 if chosen.protocol == "5" else paho.MQTTv311
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
    ready = SimpleQueue[None]()
    client.on_message = on_message
    client.on_subscribe = lambda *_: ready.put(None)
    client.connect(chosen.host, chosen.port)
    client.loop_start()
    client.subscribe(topic, 0)
    ready.get(timeout=10)
    return client


def _hashes(path: Path) -> tuple[list[bytes], int]:
    with path.open("rb") as file:
        hashes = [hashlib.sha256(chunk).digest() for chunk in iter(lambda: file.read(CHUNK), b"")]
    return hashes, path.stat().st_size


def rss_mb_of_self() -> float:
    """Return this process's resident memory now, in MiB."""
    import os

    return rss_mb(os.getpid())


ROLES = {"serve": _serve, "fetch": _fetch, "plain-serve": _plain_serve, "plain-fetch": _plain_fetch}

if __name__ == "__main__":
    main()
