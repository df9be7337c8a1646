"""Who owns the way to the device can delay a release, and is seen doing it; nothing else.

The device side of an update in one process (`tests/update/attacked.py`), a repository as operators make it, and between
them the simulator's hostile transport, HTTP mirror and server on a real broker. Every mischief must have fired, and when
it ends the release arrives.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.clock import SystemClock, SystemRandom
from agent.device.planning.planstore import PlanStore
from agent.mqtt.settings import MqttSettings
from agent.preparation import Preparer
from agent.update.schedule import HINT_RETRIES
from agent.update.transports.folder import FolderTransport
from agent.update.transports.transport import Transport
from bundles.release.creation import create
from bundles.release.keys import Keyring
from bundles.release.repository import Repository
from bundles.release.rotation import replace_key
from bundles.release.serving import Server
from simulator.broker import Mosquitto, free_port
from simulator.hostile import HostileRepository
from simulator.hostilebroker import HINTS, Hint, HostileServer
from simulator.hostilemirror import HostileMirror
from simulator.mischief import Cues, Mischief
from tests.update.attacked import (
    BALLAST_BYTES,
    BUNDLE,
    CHANNEL,
    SILENCE_S,
    Device,
    LeapingClock,
    Operator,
    over_http,
    over_mqtt,
)

DAY_S = 86400.0
HONEST_S = 20.0
"""Of silence, where the server is honest and the machine may be busy."""
METADATA, BLOBS = "metadata/*", "blobs/*"
MISCHIEFS: tuple[Mischief, ...] = (
    "replay", "wrong bytes", "truncated", "endless", "slow drip", "not there", "reorder", "duplicate", "drop", "giant",
)  # fmt: skip
WAYS = ("in process", "http", "mqtt")
VISIBLE = {"updates-untrusted", "no-update-source", "update-failed/lamp"}
DISK_BYTES = 3 * BALLAST_BYTES + 200_000
"""Two versions, one more on its way, and all that is known about them."""


@dataclass(frozen=True)
class Releases:
    """The repository after each of three releases, and the digests of their bundles."""

    at: dict[int, Path]
    digests: dict[int, str]
    devices: dict[int, Path]
    """States of devices that run them."""
    operator: Operator


@pytest.fixture(scope="module")
def preparer(tmp_path_factory: pytest.TempPathFactory) -> Preparer:
    return Preparer(None, PlanStore(tmp_path_factory.mktemp("plans")), SystemClock())


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, preparer: Preparer) -> Releases:
    folder, clock = tmp_path_factory.mktemp("operator"), LeapingClock()
    operator = Operator(folder, clock)
    made = Releases({}, {}, {}, operator)
    for number in (1, 2, 3):
        made.digests[number] = operator.publish(f"{number}.0")
        made.at[number] = operator.copy(f"at{number}")
        made.devices[number] = folder / f"device{number}"
        stick = FolderTransport(operator.folder)
        with Device(made.devices[number], operator.root, [stick], preparer=preparer, clock=LeapingClock()) as device:
            device.check()
            assert device.runs == made.digests[number]
    return made


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One for all: each test has topics of its own."""
    from simulator.broker import find_mosquitto
    from tests.conftest import missing

    if find_mosquitto() is None:
        missing("the program mosquitto")
    with Mosquitto(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class World:
    """A repository that devices are served from, one clock, and devices."""

    def __init__(self, folder: Path, releases: Releases, preparer: Preparer, broker: Callable[[], Mosquitto]) -> None:
        self.folder, self.releases, self.digests = folder, releases, releases.digests
        self.clock = LeapingClock()
        self.served = folder / "served"
        self.prefix = f"p{free_port()}"
        self._preparer, self._make_broker = preparer, broker
        self._open: list[Device | HostileMirror | HostileServer] = []
        self.serve(2)

    def serve(self, number: int) -> None:
        """Let the operator publish up to this release."""
        shutil.rmtree(self.served, ignore_errors=True)
        shutil.copytree(self.releases.at[number], self.served)

    def only_in(self, number: int, *, as_if: int) -> Path:
        """Return what a release added to the repository, its bundle's documents in the place of another's."""
        newer, older, found = self.releases.at[number], self.releases.at[number - 1], self.folder / "only"
        for path in newer.rglob("*"):
            place = path.relative_to(newer)
            if path.is_file() and not (older / place).exists():
                into = found / str(place).replace(f"{BUNDLE}/{number}.0/", f"{BUNDLE}/{as_if}.0/")
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, into)
        return found

    @property
    def broker(self) -> Mosquitto:
        """The real broker."""
        return self._make_broker()

    def repository(self, keys: Path | None = None) -> Repository:
        """Open the served repository with the operator's keys."""
        parent = self.releases.operator.folder.parent
        repository = Repository(self.served, clock=self.clock)
        folders = [keys] if keys else [parent / "keys", parent / "online-keys"]
        repository.keyring = Keyring(folders, recorded={} if keys else repository.settings.signers)
        return repository

    def attacker(self, way: str, other: Path | None = None, honest: Path | None = None) -> tuple[Transport, Cues]:
        """Return the only way to a repository, and what may be done on it."""
        honest, other = honest or self.served, other or self.releases.at[1]
        if way == "in process":
            transport = HostileRepository(honest, other, clock=self.clock, patience_s=SILENCE_S)
            return transport, transport.cues
        if way == "http":
            mirror = HostileMirror(honest, other)
            self._open.append(mirror.__enter__())
            return over_http(mirror.url, self.clock), mirror.cues
        server = HostileServer(self.broker.port, honest, other, prefix=self.prefix)
        self._open.append(server.__enter__())
        return over_mqtt(self.broker.port, self.prefix, self.clock), server.cues

    def device(self, *transports: Transport, name: str = "box1", clock: LeapingClock | None = None) -> Device:
        """Return a device that asks these, in this order."""
        root = self.releases.at[1] / "metadata" / "1.root.json"
        device = Device(
            self.folder / name, root, transports, preparer=self._preparer, clock=clock or self.clock, name=name
        )
        self._open.append(device)
        return device

    def updated(
        self, *transports: Transport, to: int = 2, name: str = "box1", clock: LeapingClock | None = None
    ) -> Device:
        """Return such a device, with a release that it runs already."""
        shutil.copytree(self.releases.devices[to], self.folder / name)
        device = self.device(*transports, name=name, clock=clock)
        assert device.runs == self.digests[to]
        return device

    def require_sound(self, device: Device) -> None:
        """Assert that nothing wrong is on a device, and not much of anything."""
        device.require_sound(list(self.releases.operator.digests.values()))
        assert device.disk_bytes() < DISK_BYTES

    def close(self) -> None:
        """End all of them, the newest first."""
        for each in reversed(self._open):
            each.__exit__(None, None, None)


@pytest.fixture
def world(tmp_path: Path, releases: Releases, preparer: Preparer, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path, releases, preparer, lambda: request.getfixturevalue("broker"))
    yield made
    made.close()


def hide_roots(cues: Cues) -> None:
    """Replay well: an older repository has no newer root, rather than an old one under a new number."""
    cues.play("not there", "metadata/*.root.json")


def recover(device: Device, goal: str, rounds: int = 10) -> None:
    """Check until the release is there and nothing is wrong any more: at once, but for a machine that is very busy."""
    for _ in range(rounds):
        device.check()
        if device.runs == goal and not device.ills:
            return
    raise AssertionError(f"it did not recover: {device.report}, {device.ills}")


def suffer(world: World, device: Device, goal: str, rounds: int = 4) -> bool:
    """Check until the release is there, which ends the matter, or until people can see that something is wrong."""
    running = device.runs
    for _ in range(rounds):
        device.check()
        world.require_sound(device)
        if device.runs == goal:
            return True
        assert device.runs == running
        if VISIBLE & set(device.ills):
            return False
    raise AssertionError(f"neither the release nor a sign of trouble: {device.report}, {device.ills}")


# -- every mischief, over every transport -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [METADATA, BLOBS], ids=["metadata", "blobs"])
@pytest.mark.parametrize("mischief", MISCHIEFS)
@pytest.mark.parametrize("way", WAYS)
def test_mischief_delays_and_shows_and_the_release_comes_when_it_ends(
    world: World, way: str, mischief: Mischief, path: str
):
    """The promise of the whole design, row by row."""
    transport, cues = world.attacker(way)
    device = world.updated(transport)
    world.serve(3)
    cues.play(mischief, path)
    if mischief == "replay":
        hide_roots(cues)
    has_come = suffer(world, device, world.digests[3])
    assert cues.fired[mischief]
    if has_come:
        assert mischief in {"duplicate", "reorder", "slow drip", "endless", "giant"}, "what was lost cannot have come"
    cues.behave()
    recover(device, world.digests[3])
    world.require_sound(device)


@pytest.mark.parametrize("mischief", [*MISCHIEFS, "mix"])
@pytest.mark.parametrize("way", WAYS)
def test_second_transport_brings_the_release_at_once(world: World, way: str, mischief: Mischief):
    """Whoever holds one way only is gone round in the same check, and no alarm is raised for what did not matter."""
    transport, cues = world.attacker(way)
    device = world.updated(transport, FolderTransport(world.served))
    world.serve(3)
    cues.play(mischief)
    device.check()
    assert cues.fired[mischief]
    assert device.runs == world.digests[3]
    assert device.ills == {}
    world.require_sound(device)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("metadata/*.snapshot.json", id="snapshot"),
        pytest.param("metadata/*.targets.json", id="targets"),
        pytest.param("targets/channels/*", id="channel"),
        pytest.param("targets/*.manifest.json", id="manifest"),
        pytest.param("targets/*.transfer.json", id="transfer"),
        pytest.param(BLOBS, id="blob"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_two_valid_releases_are_never_mixed(world: World, way: str, path: str):
    """Each file is signed, or pinned by one that is: that of another valid release is as wrong as a forged one."""
    world.serve(1)
    transport, cues = world.attacker(way, other=world.only_in(3, as_if=2))
    device = world.updated(transport, to=1)
    world.serve(2)
    cues.play("mix", path)
    assert not suffer(world, device, world.digests[2])
    assert cues.fired["mix"]
    cues.behave()
    recover(device, world.digests[2])


def test_answers_that_go_to_the_wrong_device_harm_neither(world: World):
    """The owner of the broker may cross what two devices asked for; each piece proves itself by its hash."""
    _, cues = world.attacker("mqtt")
    devices = []
    for number, name in enumerate(("box1", "box2"), start=1):
        clock = LeapingClock()  # what one waits for must not leap because the other one's hour is over
        transport = over_mqtt(world.broker.port, world.prefix, clock, name, silence_s=HONEST_S)
        devices.append(world.updated(transport, to=number, name=name, clock=clock))
    world.serve(3)
    cues.play("crossed")
    with ThreadPoolExecutor(len(devices)) as at_once:
        reasons = list(at_once.map(Device.check, devices))
    assert cues.fired["crossed"]
    assert reasons == ["", ""], "a number of its own marks each request"
    for device in devices:
        assert device.runs == world.digests[3]
        world.require_sound(device)


# -- replays, downgrades, freezes ---------------------------------------------------------------------------------------

POWER_CUTS = {
    "nothing lost": (),
    "timestamp lost": ("timestamp",),
    "snapshot and timestamp lost": ("timestamp", "snapshot"),
    "all metadata lost": ("timestamp", "snapshot", "targets", "root"),
}


@pytest.mark.parametrize("lost", POWER_CUTS.values(), ids=POWER_CUTS)
@pytest.mark.parametrize("way", ["http", "mqtt"])
def test_older_repository_is_refused_also_after_a_power_cut(world: World, way: str, lost: tuple[str, ...]):
    """What the file system forgot is what an attacker would like to replay; the high-water mark is a file of its own."""
    world.serve(3)
    transport, cues = world.attacker(way, honest=world.served)
    device = world.updated(transport, to=3)
    for role in lost:
        (device.folder / "updates" / "trust" / "metadata" / f"{role}.json").write_bytes(b"")
    device.reboot()
    cues.play("replay")
    hide_roots(cues)
    assert not suffer(world, device, world.digests[1])
    reason = device.ills["updates-untrusted"]
    assert "release 3 was accepted" not in reason, (
        "the versions of metadata must be refused, before any release is read"
    )
    assert device.runs == world.digests[3]
    cues.behave()
    recover(device, world.digests[3])


def test_unsigned_downgrade_is_refused(world: World):
    """The channel's document decides what runs, so it must not be anybody's to write."""
    transport, _ = world.attacker("http")
    device = world.updated(transport)
    (document,) = (path for path in (world.served / "targets" / "channels").iterdir() if b"2.0" in path.read_bytes())
    forged = document.read_bytes().replace(b'"2.0"', b'"1.0"').replace(b'"release":2', b'"release":9')
    assert forged != document.read_bytes()
    world.serve(3)
    (newest,) = (path for path in (world.served / "targets" / "channels").iterdir() if b'"3.0"' in path.read_bytes())
    newest.write_bytes(forged)
    assert not suffer(world, device, world.digests[3])
    assert "updates-untrusted" in device.ills


def test_repository_of_a_stranger_is_refused(world: World):
    """A whole repository, correctly signed by somebody else's keys."""
    transport, _ = world.attacker("http")
    device = world.updated(transport)
    keys = world.folder / "strangers-keys"
    strange, _ = create(world.folder / "strange", keys, clock=world.clock)
    replace_key(strange, "timestamp", new=keys / "second.pem")
    for _ in range(9):  # all of its versions are newer than what the device knows
        world.releases.operator.publish("1.0", strange)
    shutil.rmtree(world.served)
    shutil.copytree(strange.folder, world.served)
    assert not suffer(world, device, world.digests[1])
    assert "updates-untrusted" in device.ills


def test_release_number_that_falls_is_refused_though_all_is_signed(world: World):
    """A repository brought back from a backup, or a thief of online keys and old targets: numbers only rise."""
    world.serve(3)
    transport, _ = world.attacker("http")
    device = world.updated(transport, to=3)
    world.serve(1)
    repository = world.repository()
    for _ in range(6):  # versions of metadata run ahead of what the device knows; the channel's number does not
        repository.publish("beta", BUNDLE, "1.0")
    assert repository.channel(CHANNEL).release == 1
    assert not suffer(world, device, world.digests[1])
    assert "release 1 is offered, release 3 was accepted" in device.ills["updates-untrusted"]
    assert device.runs == world.digests[3]


def test_operator_goes_back_by_a_signed_release(world: World):
    """The same downgrade is nothing but a release when it is signed as one."""
    transport, _ = world.attacker("http")
    device = world.updated(transport)
    world.repository().rollback(CHANNEL, "1.0", "it missed parcels")
    recover(device, world.digests[1])


@pytest.mark.parametrize("way", WAYS)
def test_freeze_shows_before_it_bites_and_nothing_stops(world: World, way: str):
    """Silence and old news are the one thing that an attacker can do for ever; he can not do it unseen."""
    transport, _ = world.attacker(way)
    device = world.updated(transport)
    seen = []
    for _ in range(9):
        device.check(after_s=DAY_S)
        seen.append(frozenset(device.ills))
        assert device.runs == world.digests[2]
    assert seen[0] == frozenset()
    first = {name: next(day for day, ills in enumerate(seen) if name in ills) for name in frozenset().union(*seen)}
    assert first["update-metadata-expires"] < first["updates-untrusted"]
    device.reboot()
    assert device.runs == world.digests[2], "running is never gated on expiry"
    world.repository().refresh()
    recover(device, world.digests[2])


# -- keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_revoked_key_signs_in_vain(world: World, role: str):
    """A stolen key counts until the root says otherwise, and not a moment longer, whether its thief shows that root or not."""
    transport, _ = world.attacker("http")
    device = world.updated(transport)
    stolen = world.folder / "stolen"
    shutil.copytree(world.served, stolen)
    thief = Repository(stolen, clock=world.clock)
    replace_key(world.repository(), role, new=world.folder / f"new-{role}.pem")  # type: ignore[arg-type]
    recover(device, world.digests[2])
    for number in range(4):
        thief.publish(CHANNEL, BUNDLE, "1.0", percent=100 - number)
    shutil.rmtree(world.served)
    shutil.copytree(stolen, world.served)
    assert not suffer(world, device, world.digests[1])
    assert "updates-untrusted" in device.ills
    shutil.copy(
        device.folder / "updates" / "trust" / "metadata" / "root.json", world.served / "metadata" / "2.root.json"
    )
    assert not suffer(world, device, world.digests[1])
    assert device.runs == world.digests[2]


@pytest.mark.parametrize("way", WAYS)
def test_device_that_slept_through_three_roots_finds_its_way(world: World, way: str):
    """Key rotation must not strand whoever was in a box meanwhile; the key of the first root is worth nothing then."""
    transport, _ = world.attacker(way)
    device = world.updated(transport)
    stolen = world.folder / "stolen"
    shutil.copytree(world.served, stolen)
    for number in range(3):
        for role in ("root", "targets", "snapshot", "timestamp"):
            replace_key(world.repository(), role, new=world.folder / f"{role}-{number}.pem")  # type: ignore[arg-type]
    world.repository().publish(CHANNEL, BUNDLE, "1.0")
    recover(device, world.digests[1])
    thief = Repository(stolen, clock=world.clock)
    for number in range(14):  # a chain of roots that is longer than the operator's
        replace_key(thief, "timestamp", new=world.folder / f"thiefs-{number}.pem")
        thief.publish(CHANNEL, BUNDLE, "2.0", percent=100 - number)
    shutil.rmtree(world.served)
    shutil.copytree(stolen, world.served)
    assert not suffer(world, device, world.digests[2])
    assert "updates-untrusted" in device.ills


# -- what is honest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stick_is_first", [True, False], ids=["stick first", "stick last"])
def test_old_stick_in_the_box_hides_nothing_and_raises_no_alarm(
    world: World,
    broker: Mosquitto,
    stick_is_first: bool,
):
    """The stick of last month's visit stays in the box for years, beside a server that is honest."""
    stick = FolderTransport(world.releases.at[1])
    mqtt = over_mqtt(broker.port, world.prefix, world.clock, silence_s=HONEST_S)
    settings = MqttSettings(host="127.0.0.1", port=broker.port, topic_prefix=world.prefix)
    with Server(world.served, settings, clock=SystemClock(), random=SystemRandom()):
        device = world.device(*([stick, mqtt] if stick_is_first else [mqtt, stick]))
        device.check()
        assert device.runs == world.digests[2]
        assert device.ills == {}
        world.serve(3)
        for _ in range(2):
            device.check()
            assert device.ills == {}
        assert device.ran == [world.digests[2], world.digests[3]]
    world.require_sound(device)


@pytest.mark.parametrize("kind", sorted(HINTS))
def test_false_hint_causes_no_more_than_a_few_questions(world: World, kind: Hint):
    """A hint comes from anybody: it is worth a question, and a lie is not asked after for ever."""
    transport, _ = world.attacker("in process")
    assert isinstance(transport, HostileRepository)
    device = world.updated(transport)
    asked = len(transport.asked)
    device.hint(HINTS[kind])  # retained: it is there once, for every connection
    for _ in range(20):
        device.pass_by(30.0)
    questions = (len(transport.asked) - asked) / 2  # of two small files each
    assert questions <= 2 + (1 + HINT_RETRIES if kind == "future" else 0), "two were due by time alone"
    assert device.ills == {}
    assert device.runs == world.digests[2]
