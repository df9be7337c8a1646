"""Endless data, giant messages and garbage at a real agent: its memory and disk stay what they were, and its events flow.

The broker is the attacker's: a hostile server is the only one that answers, beside a hostile mirror, and everything that a
device listens to is retained giants. When the flood ends the release arrives.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.mqtt.topics import Topics
from simulator.broker import Mosquitto
from simulator.hostilebroker import GIANT_PAYLOAD_BYTES, Hint, HostileServer
from simulator.hostilemirror import HostileMirror
from simulator.mischief import Mischief
from tests.e2e.releasing import DEVICE, Releasing, disk_bytes

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

FLOODS: tuple[Mischief, ...] = ("endless", "giant")
MOST_GROWTH_BYTES = 48 << 20
BALLAST_BYTES = 2_000_000
MOST_DISK_BYTES = 5 * BALLAST_BYTES
IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"


def peak_bytes(world: Releasing) -> int:
    """Return the most memory that the agent's main process ever had."""
    status = Path(f"/proc/{world.core.pid}/status")
    if not status.exists():
        pytest.skip("only Linux says what a process's peak was")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found
    return int(found[1]) * 1024


def throw_giants(world: Releasing, server: HostileServer) -> None:
    """Put something false, retained, on every topic that the device listens to."""
    for kind in get_args(Hint):
        server.hint(kind)
    server.babble(DEVICE)
    topics = Topics("holdfast", DEVICE)
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect(world.broker.host, world.broker.port)
    client.loop_start()
    for topic in (topics.ack, topics.fetch_reply):
        client.publish(topic, bytes(GIANT_PAYLOAD_BYTES), qos=1, retain=True).wait_for_publish(30)
    client.disconnect()
    client.loop_stop()


@pytest.mark.parametrize("protocol", ["3.1.1", "5"] if IS_SOAK else ["3.1.1"])
def test_flood_fills_neither_memory_nor_disk_and_ends_in_the_release(
    holdfast: Holdfast, mosquitto: Mosquitto, protocol: str
) -> None:
    """A device has 512 MiB and a flash card; whoever owns the broker has all the bytes that there are.

    Over MQTT 3.1.1 the broker cannot be asked to keep giants to itself, so that they really come.
    """
    repository = holdfast.folder / "repo"
    with HostileMirror(repository) as mirror, HostileServer(mosquitto.port, repository) as server:
        ways = [mirror.url, "mqtt"]
        with Releasing(holdfast, mosquitto, transports=ways, protocol=protocol, is_served=False) as world:
            world.publish("2.0", ballast_bytes=BALLAST_BYTES)
            world.until_confirmed("2.0")
            before_bytes = peak_bytes(world)
            throw_giants(world, server)
            for flood in FLOODS:
                flood_with(world, mirror, server, flood, "metadata/*")
            mirror.cues.behave()
            mirror.cues.play("drop", "blobs/*")  # what is endless there would bring every byte that is needed
            server.cues.behave()
            server.cues.play("giant", "blobs/*")
            fired = server.cues.fired["giant"]
            world.publish("3.0", ballast_bytes=BALLAST_BYTES)
            world.until(lambda: server.cues.fired["giant"] > fired, "giant blobs")
            world.until_speaks(world.digests["2.0"])
            require_bounded(world, before_bytes)
            mirror.cues.behave()
            server.cues.behave()
            world.check()
            world.until_confirmed("3.0")
            require_bounded(world, before_bytes)


def flood_with(world: Releasing, mirror: HostileMirror, server: HostileServer, flood: Mischief, path: str) -> None:
    """Let the device ask, and answer with a flood on both of its ways."""
    for cues in (mirror.cues, server.cues):
        cues.behave()
        cues.play(flood, path)
    before = [cues.fired[flood] for cues in (mirror.cues, server.cues)]
    world.check()
    world.until(lambda: mirror.cues.fired[flood] > before[0] and server.cues.fired[flood] > before[1], flood)


def require_bounded(world: Releasing, before_bytes: int) -> None:
    """Assert that neither memory nor disk grew by more than a release does."""
    assert peak_bytes(world) - before_bytes < MOST_GROWTH_BYTES
    assert disk_bytes(world.paths.root) < MOST_DISK_BYTES
