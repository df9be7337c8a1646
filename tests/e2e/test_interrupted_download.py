"""A large download over a bad link: connections that break again and again, and a device that is killed and started again.

100 MB, 50 resets and 5 restarts, over a real broker. What is counted is what reaches the device's side of the link.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.bundle.reader import open_bundle
from agent.clock import SystemClock, SystemRandom
from agent.mqtt.settings import MqttSettings
from bundles.release import forms
from bundles.release.serving import Server
from simulator.broker import Mosquitto
from simulator.link import FaultyLink
from tests.e2e.following import VARIANT, Releases

MB = 10**6
IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
SIZE_BYTES, RESETS, RESTARTS = (100 * MB, 50, 5) if IS_SOAK else (40 * MB, 20, 2)
RATE_BYTES_S = 10 * MB
"""Else what a reset destroys is what waited in this machine's own buffers, which no radio has."""
EXTRA = 0.05
WITHIN_S = 200
CLOCK = SystemClock()
REPOSITORY = Path(__file__).resolve().parents[2]


class Child:
    """The fetching device, which is killed and started again."""

    def __init__(self, port: int, releases: Releases, state: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("fetching_child.py")), str(port)]
        self._command += [str(releases.root), str(state)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def has_ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def finish(self) -> str:
        assert self.process is not None
        output, errors = self.process.communicate(timeout=WITHIN_S)
        assert output == b"fetched\n", errors.decode()[-3000:]
        return errors.decode()


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Releases:
    """Return a repository with a large bundle in which nothing is compressed: trying that takes a minute, for nothing."""
    monkeypatch.setattr(forms, "_whole", lambda content: ("raw", bytes(content)))
    releases = Releases(tmp_path)
    releases.add("A", ballast_bytes=SIZE_BYTES)
    releases.publish("A")
    return releases


@pytest.fixture
def link(mosquitto: Mosquitto, releases: Releases) -> Iterator[FaultyLink]:
    settings = MqttSettings(host=mosquitto.host, port=mosquitto.port)
    with Server(releases.folder, settings, clock=CLOCK, random=SystemRandom()) as server:
        deadline_s = CLOCK.monotonic() + 20
        while not server.is_connected:
            assert CLOCK.monotonic() < deadline_s
            pause()
        with FaultyLink(mosquitto.host, mosquitto.port) as link:
            link.set("down", rate_bytes_s=RATE_BYTES_S)
            yield link


def pause() -> None:
    CLOCK.wait(threading.Event(), 0.002)


def test_fifty_resets_and_five_restarts_cost_five_per_cent_at_most(
    link: FaultyLink, releases: Releases, tmp_path: Path, printer: Callable[..., None]
) -> None:
    """A device at the end of a bad link would else never finish, or pay for it twice."""
    child, began_s = Child(link.port, releases, tmp_path / "device"), CLOCK.monotonic()
    accidents = RESETS + RESTARTS
    restarts = {(number + 1) * accidents // (RESTARTS + 1) for number in range(RESTARTS)}
    child.start()
    for number in range(accidents):
        wait_for_bytes(link, child, SIZE_BYTES * (number + 1) // (accidents + 1))
        if number in restarts:
            child.kill()
            child.start()
        else:
            link.reset()
    child.finish()
    store = tmp_path / "device" / "bundles"
    assert open_bundle(store / releases.digests["A"], variants={VARIANT}).digest == releases.digests["A"]
    needed = sum(each.stat().st_size for each in (store / "blobs").iterdir())
    extra = link.passed_bytes["down"] / needed - 1
    printer(
        "",
        f"{needed / MB:.0f} MB in {CLOCK.monotonic() - began_s:.0f} s with {RESETS} resets and {RESTARTS} restarts, "
        f"{link.connections} connections: {extra:.2%} more bytes than the files have",
    )
    assert link.connections >= accidents
    assert extra <= EXTRA


def wait_for_bytes(link: FaultyLink, child: Child, count: int) -> None:
    """Wait until so many bytes have reached the device."""
    deadline_s = CLOCK.monotonic() + WITHIN_S
    while link.passed_bytes["down"] < count:
        assert not child.has_ended(), child.finish()
        assert CLOCK.monotonic() < deadline_s, f"{link.passed_bytes['down']} of {count} bytes came"
        pause()
