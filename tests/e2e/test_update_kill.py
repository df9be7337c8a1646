"""`kill -9` of the whole agent at random moments of one update after another, over a real broker.

About ten times by default; with `HOLDFAST_SOAK=1` (`make soak`) a thousand times. `HOLDFAST_SEED` repeats a run's choices.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from agent.clock import SystemClock, SystemRandom
from agent.mqtt.settings import MqttSettings
from agent.update.record import Record
from agent.update.slots import Slots
from bundles.release.serving import Server
from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from tests.e2e.conftest import Holdfast
from tests.e2e.following import MODEL, Follower, Releases

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
KILLS = 1000 if IS_SOAK else 10
pytestmark = pytest.mark.timeout(3 * 3600 if IS_SOAK else 300)
CLOCK = SystemClock()
REST = {"idle", "confirmed", "refused", "rolled_back"}
WAYS = ("fetching", "staged", "trying", "switching", "probation")


@dataclass(frozen=True)
class Life:
    """From a start to the kill: what may have run meanwhile, by the digest of its manifest."""

    began: datetime
    ended: datetime
    may_run: frozenset[str]


class Victim:
    """A device that is killed, and what it left on its disk each time."""

    def __init__(self, follower: Follower, releases: Releases, chance: random.Random) -> None:
        self.follower, self.releases, self.chance = follower, releases, chance
        self.lives: list[Life] = []
        self.states: Counter[str] = Counter()
        """In which state of the update it was killed."""
        self.record = self.read_record()
        self.marks: dict[str, int] = {}

    def live_and_die(self) -> None:
        """Start, let it come to some moment, cut its power, and look at what is left."""
        before, began = self.record, CLOCK.now()
        self.follower.start()
        self.come_to_some_moment()
        assert self.follower.process is not None
        assert self.follower.process.poll() is None, f"it ended by itself:\n{self.follower.log_of_this_start()}"
        assert self.follower.cut_power() >= 1
        self.record = self.read_record()
        self.states[self.record.state] += 1
        named = {self.digest_of(slot) for each in (before, self.record) for slot in (each.active, each.previous)}
        self.lives.append(Life(began, CLOCK.now(), frozenset(named)))
        self.look_at_the_dead(before)

    def come_to_some_moment(self) -> None:
        """While it gets up; or when it just works; or close to a step of the update, where there is one."""
        way = self.chance.choice(("getting up", "working", *WAYS))
        if way == "getting up":
            self._wait(self.chance.uniform(0, 1.5))
            return
        self.follower.wait_until_it_runs()
        deadline_s = CLOCK.monotonic() + 2
        while way in WAYS and self.follower.record().get("state") != way and CLOCK.monotonic() < deadline_s:
            self._wait(0.005)
        self._wait(self.chance.uniform(0, 0.3 if way in WAYS else 1))

    def look_at_the_dead(self, before: Record) -> None:
        """The disk holds what it must: exactly the old bundle or the new one to run, every byte of it right."""
        now = self.record
        known = {self.digest_of(slot) for slot in (before.active, before.previous, before.candidate)}
        newest = self.releases.digests[self.releases.offered[-1]]
        assert self.digest_of(now.active) in known | {newest}, f"{before} became {now}"
        assert now.active is None or now.active.release not in {each.release for each in now.denied}
        self.assert_store_is_sound()
        for slot in (now.active, now.previous):
            assert slot is None or (self.follower.state / "bundles" / slot.digest / "manifest.json").is_file()
        marks = self._read_marks()
        assert all(marks.get(name, 0) >= number for name, number in self.marks.items()), (self.marks, marks)
        self.marks = marks

    def read_record(self) -> Record:
        """Return the record; whatever was done to it, it is whole."""
        folder = self.follower.state / "updates"
        record = Slots(folder).load(MODEL)
        assert not list(folder.glob("*.damaged"))
        return record

    def digest_of(self, slot: object) -> str:
        """Of a slot; of no slot, the factory bundle's."""
        return getattr(slot, "digest", self.releases.digests["0"])

    def assert_store_is_sound(self) -> None:
        """All that has its final name is what the repository holds under that name."""
        bundles = self.follower.state / "bundles"
        for blob in (bundles / "blobs").iterdir():
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        for manifest in bundles.glob("*/manifest.json"):
            version = json.loads(manifest.read_bytes())["version"]
            assert manifest.parent.name == self.releases.digests[version]
            assert manifest.read_bytes() == (self.releases.bundle(version) / "manifest.json").read_bytes()
            for blob in (self.releases.bundle(version) / "blobs").iterdir():
                assert (bundles / "blobs" / blob.name).is_file(), f"{version} has its name and lacks {blob.name}"

    def _read_marks(self) -> dict[str, int]:
        path = self.follower.state / "updates" / "trust" / "high-water.json"
        content = json.loads(path.read_bytes())
        return {**{role: mark["version"] for role, mark in content["roles"].items()}, **content["releases"]}

    def _wait(self, seconds: float) -> None:
        CLOCK.wait(threading.Event(), seconds)


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    releases = Releases(tmp_path)
    for version in ("0", "A", "B", "C"):
        releases.add(version)
    return releases


@pytest.fixture
def follower(holdfast: Holdfast, mosquitto: Mosquitto, releases: Releases) -> Iterator[Follower]:
    """Return a device which has its plans: each of the bundles ran there once."""
    settings = MqttSettings(host=mosquitto.host, port=mosquitto.port)
    with Server(releases.folder, settings, clock=CLOCK, random=SystemRandom()) as server:
        follower = Follower(holdfast, releases, broker=mosquitto, factory="0")
        for version in ("A", "B", "C"):
            releases.publish(version)
            follower.start()
            follower.wait_until(lambda: server.is_connected, "a server")
            follower.wait_for("confirmed", version)
            follower.wait_until_it_runs()
            follower.stop()
        yield follower


def test_killed_at_any_moment_of_any_update_it_runs_old_or_new_and_ends_on_the_newest(
    follower: Follower, releases: Releases, mosquitto: Mosquitto, printer: Callable[..., None]
) -> None:
    """Promise 2, against a power switch in the hands of chance."""
    seed = int(os.environ.get("HOLDFAST_SEED") or secrets.randbelow(1_000_000))
    printer("", f"kill -9 in updates, HOLDFAST_SEED={seed}")
    victim, began_s = Victim(follower, releases, random.Random(seed)), CLOCK.monotonic()
    with Consumer(mosquitto.port) as consumer:
        assert consumer.subscribed.wait(10)
        for number in range(KILLS):
            if victim.record.state in REST and victim.record.seen_release == len(releases.offered):
                releases.publish("ABC"[len(releases.offered) % 3])
            victim.live_and_die()
            if number % 100 == 99:
                printer(f"  {number + 1} kills, {len(releases.offered)} releases, {dict(victim.states)}")
        came = _converge(victim)
        consumer.settle(0.5)
    ran = Counter(_judge(event, victim) for event in consumer.account.events)
    printer(
        f"  {KILLS} kills: {', '.join(f'{count} in {state}' for state, count in sorted(victim.states.items()))}",
        f"  {len(releases.offered)} releases, the last one confirmed {came:.1f} s after the last start",
        f"  {ran.total()} events: {dict(ran)}, in {CLOCK.monotonic() - began_s:.0f} s",
    )


def _converge(victim: Victim) -> float:
    """Publish once more and leave it alone: it takes that up."""
    releases, follower = victim.releases, victim.follower
    began, version = CLOCK.now(), "ABC"[len(releases.offered) % 3]
    releases.publish(version)
    follower.update_to(version)
    before, after = victim.record, victim.read_record()
    slots = (before.active, before.previous, after.active, after.previous)
    victim.lives.append(Life(began, CLOCK.now(), frozenset(victim.digest_of(slot) for slot in slots)))
    assert after.active is not None
    assert after.active.release == len(releases.offered)
    victim.assert_store_is_sound()
    return (CLOCK.now() - began).total_seconds()


def _judge(event: dict, victim: Victim) -> str:
    """Return the version that an event is from; it was one that might run when the picture was taken."""
    taken, made_by = datetime.fromisoformat(event["time"]), event["data"]["model"]
    lives = [life for life in victim.lives if life.began <= taken <= life.ended]
    if lives:  # else it is from the preparation
        assert made_by["digest"] in lives[0].may_run, f"{made_by} ran, and not {lives[0]}"
    assert made_by["digest"] == victim.releases.digests[made_by["version"]]
    return str(made_by["version"])
