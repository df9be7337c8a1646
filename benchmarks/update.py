"""What an update costs on the wire where nothing is new: the question that a device asks every day, and the way back.

A release repository served over a mosquitto with default settings, and the device's own steps (`agent.updatesteps`). A
byte-counting proxy stands between the device and the broker: its count is everything from CONNECT to the end of the
connection, both ways, acknowledgements and topics included; TCP's own headers are not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.bundle.manifest import Manifest
from agent.clock import SystemClock, SystemRandom
from agent.device.planning.planstore import PlanStore
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.preparation import Preparer
from agent.update.fetching.store import BundleStore
from agent.update.selection import Device
from agent.update.transports.trying import Transports
from agent.updatesteps import UpdateSteps
from benchmarks.parts import Parts
from benchmarks.table import Figure, Goal, Line
from bundles.release.creation import create
from bundles.release.repository import Repository
from bundles.release.serving import Server
from simulator.badbundles import make_bundle
from simulator.broker import Mosquitto
from simulator.link import FaultyLink

MODEL, CHANNEL, DEVICE = "lamp", "stable", "box1"
CHECKS, QUICK_CHECKS = 20, 5
BALLAST_BYTES = 1_000_000
IDLE_BYTES = 1000
SETTLE_S = 0.2
NEVER = threading.Event()
CLOCK, RANDOM = SystemClock(), SystemRandom()


def lines(parts: Parts) -> Iterator[Line]:
    """The idle check, then the way back to a bundle that is still stored."""
    _ = parts.mosquitto
    parts.say("what an update costs where nothing is new")
    with served(parts.folder / "update") as world:
        idle = [world.idle_check_bytes() for _ in range(QUICK_CHECKS if parts.is_quick else CHECKS)]
        yield Figure(
            "a check that finds nothing new, over MQTT", "B", idle, Goal("value", "≤", IDLE_BYTES, "B"),
            note="every byte of the connection, from CONNECT on, in both directions",
        )  # fmt: skip
        world.repository.rollback(CHANNEL, "1", "a benchmark")
        version, sent_bytes = world.update()
        assert version == "1", "the release says so"
        yield Figure(
            "bundle bytes of a rollback to a stored bundle", "B", [sent_bytes], Goal("value", "≤", 0, "B"),
            note=f"the first time it took {world.first_bytes:,} B; manifest, transfer document and blobs are counted",
        )  # fmt: skip


class _Anything(Preparer):
    """Wants every variant: no hardware is looked at for this."""

    def variants_for(self, manifest: Manifest, stop: threading.Event) -> frozenset[str]:  # noqa: ARG002  the base class's
        return frozenset(variant.name for variant in manifest.variants)


@dataclass
class World:
    """A repository with two releases of which a device runs the second, a server, and the counted way to it."""

    folder: Path
    repository: Repository
    server: Server
    link: FaultyLink
    first_bytes: int = 0
    """What fetching the first bundle cost."""

    def steps(self) -> tuple[UpdateSteps, Transports]:
        """Return the steps of a device that has just started: what it knows is on its disk."""
        settings = MqttSettings(host=self.link.host, port=self.link.port)
        topics = Topics(settings.topic_prefix, DEVICE)
        transports = Transports([MqttTransport(settings, topics, CLOCK, RANDOM)])
        (self.folder / "plans").mkdir(exist_ok=True)
        steps = UpdateSteps(
            self.folder / "trust",
            self.repository.folder / "metadata" / "1.root.json",
            Device(DEVICE),
            {MODEL: CHANNEL},
            pipelines={MODEL: ()},
            preparer=_Anything(None, PlanStore(self.folder / "plans"), CLOCK),
            store=BundleStore(self.folder / "bundles"),
            transports=transports,
            elsewhere=(),
            clock=CLOCK,
        )
        return steps, transports

    def update(self) -> tuple[str, int]:
        """Let the device take what is assigned to it, as far as the store; return the version and what fetching it cost."""
        steps, transports = self.steps()
        slot = steps.check(MODEL, NEVER).slot
        assert slot is not None, "everybody is meant"
        before = self.server.served.piece_bytes
        steps.fetch(MODEL, slot, lambda *_: None, NEVER)
        transports.close()
        return slot.version, self.server.served.piece_bytes - before

    def idle_check_bytes(self) -> int:
        """Return what crossed the wire for one check with nothing new, connection and all."""
        before = self._passed_bytes()
        steps, transports = self.steps()
        steps.check(MODEL, NEVER)
        transports.close()
        return self._passed_bytes() - before

    def _passed_bytes(self) -> int:
        """Return what the proxy has carried, when it has carried all of it."""
        before, now = -1, sum(self.link.passed_bytes.values())
        while before != now:
            CLOCK.wait(NEVER, SETTLE_S)
            before, now = now, sum(self.link.passed_bytes.values())
        return now


@contextmanager
def served(folder: Path) -> Iterator[World]:
    """Make a repository with two releases, serve it, and bring a device through both."""
    folder.mkdir(parents=True)
    repository, _ = create(folder / "repository", folder / "keys")
    with Mosquitto(folder / "broker") as broker, FaultyLink(broker.host, broker.port) as link:
        settings = MqttSettings(host=broker.host, port=broker.port)
        with Server(repository.folder, settings, clock=CLOCK, random=RANDOM) as server:
            world = World(folder, repository, server, link)
            for version in ("1", "2"):
                place = make_bundle(
                    folder / version, version=version, sharpness=6.0 + int(version), ballast_bytes=BALLAST_BYTES
                )
                repository.add(place)
                repository.publish(CHANNEL, MODEL, version)
                _, sent_bytes = world.update()
                world.first_bytes = world.first_bytes or sent_bytes
            yield world
