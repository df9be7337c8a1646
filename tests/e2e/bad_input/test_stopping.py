"""SIGTERM ends the agent within two seconds in every state, with exit code 0, and leaves no child process behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simulator import disk
from simulator.broker import Mosquitto
from simulator.link import FaultyLink
from tests.conftest import missing
from tests.e2e.bad_input.conftest import DeviceWatch, broker_at, family, roles, sigterm, wait_until, waiting_events

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

SCENE = {"source": "scene://conveyor?fps=10", "rules": {"all": {"when": "detect"}}}
MODELS = {"m": {"bundle": "parcels"}}


@pytest.fixture
def black_holes() -> Iterator[list[FaultyLink]]:
    """Return two ports on which everything connects and nothing ever answers."""
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        FaultyLink(*mute.getsockname()) as first,
        FaultyLink(*mute.getsockname()) as second,
    ):
        first.partition()
        second.partition()
        yield [first, second]


@pytest.mark.parametrize("role", ["probe", "trial"])
def test_while_planning(holdfast: Holdfast, role: str) -> None:
    """Measuring takes seconds, and native code in a trial listens to nobody."""
    core = holdfast.run(holdfast.write_config(models=MODELS, cameras={"c": SCENE}))
    wait_until(lambda: role in roles(core), f"a {role} runs")
    sigterm(core).assert_clean(holdfast.log())


def test_while_the_broker_and_a_camera_are_black_holes(planned: Holdfast, black_holes: list[FaultyLink]) -> None:
    """A first connect that hangs, and a camera whose opening blocks in a driver, must not hold the agent back."""
    broker, camera = black_holes
    hangs = {**SCENE, "source": f"rtsp://127.0.0.1:{camera.port}/door", "open_timeout_s": 30, "read_timeout_s": 30}
    config = planned.write_config(mqtt=broker_at(broker.port), models=MODELS, cameras={"hangs": hangs, "runs": SCENE})
    core = planned.run(config)
    wait_until(lambda: broker.connections and camera.connections, "both are being opened")
    sigterm(core).assert_clean(planned.log())


def test_while_worker_and_broker_hang_in_the_middle_of_work(
    planned: Holdfast, mosquitto: Mosquitto, watch: Callable[[int], DeviceWatch]
) -> None:
    """The worst state: each step of the farewell has to be given up in its turn."""
    config = planned.write_config(mqtt=broker_at(mosquitto.port), models=MODELS, cameras={"c": SCENE})
    device = watch(mosquitto.port)
    core = planned.run(config)
    device.wait_for(lambda it: it.retained.get("info", {}).get("models", {}).get("m", {}).get("nodes"), "it runs")
    (worker,) = [child for child in family(core) if "worker" in child.cmdline()]
    mosquitto.pause()
    os.kill(worker.pid, signal.SIGSTOP)
    sigterm(core).assert_clean(planned.log())


def test_while_the_disk_is_full(holdfast: Holdfast, measured_plans: Path) -> None:
    """A full disk refuses every write, the last ones included."""
    if reason := disk.why_not():
        missing(reason)
    with disk.SmallDisk(holdfast.state, 8 << 20) as small:
        shutil.copytree(measured_plans, holdfast.state / "plans")
        core = holdfast.run(holdfast.write_config(models=MODELS, cameras={"c": SCENE}))
        wait_until(lambda: waiting_events(holdfast.state), "events are recorded")
        small.fill()
        wait_until(lambda: "disk-refuses" in holdfast.log(), "the disk refuses")
        sigterm(core).assert_clean(holdfast.log())
