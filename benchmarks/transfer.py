"""A release's bytes over a mosquitto with default settings: ours against a plain mover written with paho, in turns.

Every side is a process of its own. Ours hashes each chunk and writes it to a file, as a device does; the plain mover keeps
it in memory. Events travel meanwhile over the agent's link in the same process as the transfer, as in core.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.parts import Parts
from benchmarks.processes import run_module
from benchmarks.table import Figure, Goal, Line
from simulator.broker import Mosquitto
from simulator.link import FaultyLink

MB = 10**6
SIZE_BYTES = 100 * MB
ROUNDS, QUICK_ROUNDS = 7, 3
FAR_SIZE_BYTES, QUICK_FAR_SIZE_BYTES = 100 * MB, 30 * MB
ROUND_TRIP_S = 0.2
SIDES = "benchmarks.transfer_sides"


def lines(parts: Parts) -> Iterator[Line]:
    """Near, far, and what events notice of it."""
    _ = parts.mosquitto
    repository = parts.folder / "releases"
    near = _blob(repository, "near", SIZE_BYTES)
    far = _blob(repository, "far", QUICK_FAR_SIZE_BYTES if parts.is_quick else FAR_SIZE_BYTES)
    with Mosquitto(parts.folder / "transfer-broker") as broker, _side("serve", broker, repository):
        yield from _near(parts, broker, near)
        yield _events(parts, broker, near)
        yield _far(parts, broker, far)


def _near(parts: Parts, broker: Mosquitto, blob: Path) -> Iterator[Line]:
    ours, plain, held_mb, growth_mb = [], [], [], []
    for number in range(QUICK_ROUNDS if parts.is_quick else ROUNDS):
        parts.say(f"100 MB over MQTT, round {number + 1}")
        figures = run_module(SIDES, "fetch", broker.host, broker.port, blob)
        ours.append(_mib_s(SIZE_BYTES, figures["taken_s"][0]))
        held_mb.append(figures["held_mb"])
        growth_mb.append(figures["growth_mb"])
        plain.append(max(_plain(broker, blob, protocol, both) for protocol in ("5", "3.1.1") for both in (False, True)))
    yield Figure(
        "100 MB over MQTT", "MiB/s", ours, Goal("ratio", "≥", 0.5), plain, "plain paho",
        "the plain mover is the best of four in each round: MQTT 5 and 3.1.1, both ends in one process and in two",
    )  # fmt: skip
    yield Figure("…, pieces held by the device", "MiB", held_mb, Goal("value", "≤", 8, "MiB"))
    yield Figure(
        "…, growth of the device's process", "MiB", growth_mb, None, note="code, threads and paho's buffers too"
    )


def _plain(broker: Mosquitto, blob: Path, protocol: str, both: bool) -> float:  # noqa: FBT001  one of four cases
    options = ["--protocol", protocol, *(["--both"] if both else [])]
    with _side("plain-serve", broker, blob, *options) if not both else nullcontext():
        figures = run_module(SIDES, "plain-fetch", broker.host, broker.port, blob, *options)
    return _mib_s(SIZE_BYTES, figures["taken_s"][0])


def _events(parts: Parts, broker: Mosquitto, blob: Path) -> Line:
    parts.say("events during transfers")
    p99_ms, counts = [], []
    for _ in range(QUICK_ROUNDS):
        figures = run_module(SIDES, "fetch", broker.host, broker.port, blob, "--times", 5, "--events", broker.port)
        p99_ms.append(figures["p99_ms"])
        counts.append(figures["events"])
    return Figure(
        "events acknowledged meanwhile, p99", "ms", p99_ms, Goal("value", "≤", 100, "ms"),
        note=f"{min(counts)} events a round at least, QoS 1, over the agent's own link in the same process",
    )  # fmt: skip


def _far(parts: Parts, broker: Mosquitto, blob: Path) -> Line:
    size_bytes = blob.stat().st_size
    parts.say(f"{size_bytes / MB:.0f} MB at {ROUND_TRIP_S * 1000:.0f} ms")
    with FaultyLink(broker.host, broker.port) as line:
        for direction in ("up", "down"):
            line.set(direction, latency_s=ROUND_TRIP_S / 2)
        figures = run_module(SIDES, "fetch", line.host, line.port, blob)
    return Figure(
        f"{size_bytes / MB:.0f} MB over MQTT at a round trip of 200 ms", "MB/s",
        [size_bytes / MB / figures["taken_s"][0]], Goal("value", "≥", 5, "MB/s"),
    )  # fmt: skip


@contextmanager
def _side(role: str, broker: Mosquitto, path: Path, *options: str) -> Iterator[None]:
    """Run a serving side; it ends when its standard input does."""
    command = [sys.executable, "-m", SIDES, role, broker.host, str(broker.port), str(path), *options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{role} did not start")
        try:
            yield
        finally:
            process.stdin.close()


def _blob(repository: Path, name: str, size_bytes: int) -> Path:
    for folder in ("metadata", "blobs"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
    (repository / "metadata" / "timestamp.json").write_text('{"signed": {"version": 1}}')
    path = repository / "blobs" / name
    path.write_bytes(os.urandom(size_bytes))
    return path


def _mib_s(size_bytes: int, taken_s: float) -> float:
    return size_bytes / 2**20 / taken_s
