"""What a device trusts, against everything that may be done to a repository on its way, and to the files at home."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from agent.errors import HoldfastError, OperatorError, StateError, UnavailableError, UntrustedError
from agent.update.transports.transport import NotThereError
from agent.update.verification.trust import KEPT_TARGETS, Trust
from simulator.clock import START, VirtualClock
from simulator.tufrepository import TufRepository

LOCAL = ["timestamp", "snapshot", "targets"]
DAMAGE = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\x00\xff" * 4096),
    "nested": lambda file: file.write_bytes(b"[" * 100_000),
    "removed": lambda file: file.unlink(),
}


class World:
    """A repository, what the network makes of it (`files`), and a device."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder
        self.repository = TufRepository(**options)
        self.root = self.repository.first_root
        self.files = self.repository.files
        self.asked: list[str] = []
        self.clock = VirtualClock()
        self.built_at: datetime | None = None
        self.restart()

    def restart(self) -> Trust:
        self.trust = Trust(self.folder, self.root, self.read, self.clock, built_at=self.built_at)
        return self.trust

    def read(self, path: str, limit_bytes: int) -> bytes:
        self.asked.append(path)
        if path not in self.files:
            raise NotThereError("no such file", where=path)
        return self.files[path]

    def local(self, name: str) -> Path:
        return self.folder / "metadata" / name


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "trust")


def test_a_refresh_trusts_what_is_signed_and_gives_the_document(world: World):
    """The path that every release takes."""
    world.repository.publish({"channels/stable.json": b"{}"})
    state = world.trust.refresh()
    assert state.versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
    assert (state.earliest_expiry, state.earliest_expiry_role) == (START + timedelta(days=30), "timestamp")
    assert world.trust.target("channels/stable.json", 100) == b"{}"
    assert world.trust.targets() == ("channels/stable.json",)


def test_a_check_that_finds_nothing_new_asks_twice_and_for_no_document(world: World):
    """An idle device costs the network less than a kilobyte."""
    world.repository.publish({"channels/stable.json": b"{}"})
    world.trust.target("channels/stable.json", 100)
    world.restart()
    world.asked.clear()
    world.trust.refresh()
    assert world.trust.target("channels/stable.json", 100) == b"{}"
    assert world.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_an_idle_check_writes_nothing_but_the_time(world: World, monkeypatch: pytest.MonkeyPatch):
    """Flash wears: not a file is rewritten that already says what it should."""
    from agent import atomicfile

    world.repository.rotate("root")
    world.trust.refresh()
    written: list[str] = []
    write = atomicfile.write
    monkeypatch.setattr(
        "agent.atomicfile.write", lambda path, content: (written.append(path.name), write(path, content))
    )
    world.restart().refresh()
    assert written == []
    world.clock.advance(3600)
    world.restart().refresh()
    assert written == ["high-water.json"]


def test_after_a_refused_refresh_no_document_is_given_from_the_one_before(world: World):
    """Accepting is gated on expiry, in a process that runs for years as well."""
    world.repository.publish({"channels/stable.json": b"{}"})
    world.trust.target("channels/stable.json", 100)
    world.clock.advance(86400 * 31)
    for _ in range(2):
        with pytest.raises(UntrustedError, match="expired"):
            world.trust.refresh()
        with pytest.raises(UntrustedError, match="expired"):
            world.trust.target("channels/stable.json", 100)
    assert world.trust.remembered("channels/stable.json") == b"{}"


def test_the_state_is_known_after_a_restart_without_network_and_when_all_is_expired(world: World):
    """A status must not need the network, and nothing about running may depend on expiry."""
    assert world.trust.state() is None
    expected = world.trust.refresh()
    world.clock.advance(86400 * 4000)
    world.files = {}
    assert world.restart().state() == expected
    assert world.trust.remembered("channels/stable.json") is None


def test_state_writes_nothing(world: World):
    """The command line may ask beside the running agent."""
    world.trust.state()
    assert list(world.folder.iterdir()) == []
    world.trust.refresh()
    world.local("root.json").unlink()
    before = sorted(world.folder.rglob("*"))
    world.restart().state()
    assert sorted(world.folder.rglob("*")) == before


# --- replay ---


def test_a_replayed_repository_is_refused(world: World):
    """The oldest attack: yesterday's files, all of them validly signed."""
    old = dict(world.repository.files)
    world.repository.publish()
    world.trust.refresh()
    world.files = old
    with pytest.raises(UntrustedError, match="timestamp"):
        world.restart().refresh()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "hurt", [["timestamp"], ["snapshot"], ["targets"], ["timestamp", "snapshot"], LOCAL], ids="+".join
)
def test_a_replay_after_a_power_cut_that_hurt_metadata_is_refused(world: World, damage: str, hurt: list[str]):
    """Measured on python-tuf alone: truncated timestamp and snapshot let an older repository in."""
    old = dict(world.repository.files)
    world.repository.publish({"channels/stable.json": b"new"})
    world.trust.refresh()
    for role in hurt:
        DAMAGE[damage](world.local(f"{role}.json"))
    world.files = old
    with pytest.raises(UntrustedError) as refused:
        world.restart().refresh()
    assert "1" in refused.value.message
    assert "2" in refused.value.message
    world.files = world.repository.files
    assert world.restart().refresh().versions["targets"] == 2


@pytest.mark.parametrize("kept", [["timestamp"], ["snapshot"], LOCAL], ids="+".join)
def test_an_old_file_that_came_back_on_disk_is_refused_too(world: World, kept: list[str]):
    """A rename that never reached the disk: the file at home is the old one, and so is the one outside."""
    world.trust.refresh()
    before = {role: world.local(f"{role}.json").read_bytes() for role in kept}
    old = dict(world.repository.files)
    world.repository.publish()
    world.trust.refresh()
    for role in LOCAL:
        world.local(f"{role}.json").unlink()
    for role, content in before.items():
        world.local(f"{role}.json").write_bytes(content)
    world.files = old
    with pytest.raises(UntrustedError, match="version 2 was trusted"):
        world.restart().refresh()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", ["root.json", "root_history/1.root.json", "root_history/2.root.json", *(f"{role}.json" for role in LOCAL)]
)
def test_damaged_files_heal(world: World, name: str, damage: str):
    """Nobody visits the device: whatever a power cut left must not stop updates for ever."""
    world.repository.rotate("root")
    world.repository.publish({"channels/stable.json": b"{}"})
    expected = world.trust.refresh()
    good = world.local(name).read_bytes()
    DAMAGE[damage](world.local(name))
    assert world.restart().refresh() == expected
    assert world.local(name).read_bytes() == good


def test_a_damaged_cached_document_is_fetched_again(world: World):
    """The cache is verified at every reading."""
    world.repository.publish({"channels/stable.json": b"right"})
    world.trust.target("channels/stable.json", 100)
    (cached,) = (world.folder / "targets").iterdir()
    cached.write_bytes(b"wrong")
    assert world.restart().remembered("channels/stable.json") is None
    assert world.trust.target("channels/stable.json", 100) == b"right"
    assert world.restart().remembered("channels/stable.json") == b"right"


def test_left_overs_of_a_power_cut_are_removed(world: World):
    """Or they would fill the flash over the years."""
    world.trust.refresh()
    left_over = world.local(".timestamp.json.a1b2c3")
    left_over.write_bytes(b"half")
    world.restart().refresh()
    assert not left_over.exists()


def test_the_cache_keeps_a_bounded_number_of_documents(world: World):
    """A device lives through thousands of releases."""
    paths = [f"bundles/b/{number}/manifest.json" for number in range(KEPT_TARGETS + 5)]
    world.repository.publish({path: path.encode() for path in paths})
    for path in paths:
        world.trust.target(path, 100)
    assert len(list((world.folder / "targets").iterdir())) == KEPT_TARGETS


# --- keys ---


def test_keys_rotate_through_three_roots(world: World):
    """A device that slept through two rotations finds its way along the chain."""
    for _ in range(3):
        world.repository.rotate("root", "targets", "snapshot", "timestamp")
    world.repository.publish()
    assert world.trust.refresh().versions["root"] == 4
    assert world.restart().refresh().versions["root"] == 4
    assert world.asked.count("metadata/3.root.json") == 1


def test_a_root_that_the_old_keys_did_not_sign_is_refused(world: World):
    """Who took over the repository cannot appoint himself."""
    stranger = TufRepository()
    stranger.root.version = 2
    world.files["metadata/2.root.json"] = stranger.sign(stranger.root, stranger.signers["root"])
    with pytest.raises(UntrustedError, match="root") as refused:
        world.trust.refresh()
    assert refused.value.role == "root"


@pytest.mark.parametrize("role", LOCAL)
def test_a_revoked_key_signs_in_vain(world: World, role: str):
    """What was signed with a stolen key is refused once a new root has taken the key away."""
    world.trust.refresh()
    stolen = list(world.repository.signers[role])
    world.repository.rotate(role)
    world.repository.signers[role] = stolen
    world.repository.publish()
    with pytest.raises(UntrustedError, match="0/1 keys") as refused:
        world.trust.refresh()
    assert refused.value.role == role


@pytest.mark.parametrize("role", ["root", *LOCAL])
def test_one_signature_of_two_is_not_enough(tmp_path: Path, role: str):
    """A threshold means that one stolen key is worth nothing."""
    world = World(tmp_path, keys=2)
    if role == "root":
        world.repository.rotate("timestamp")
        world.files["metadata/2.root.json"] = world.repository.sign(
            world.repository.root, world.repository.signers["root"][:1]
        )
    else:
        world.repository.signers[role].pop()
        world.repository.publish()
    with pytest.raises(UntrustedError, match="1/2 keys") as refused:
        world.trust.refresh()
    assert refused.value.role == role


def test_a_hidden_newer_root_is_missed_after_a_power_cut(world: World):
    """Or a stolen and revoked key would count again as soon as the root history is lost."""
    old = dict(world.repository.files)
    world.repository.rotate("timestamp")
    world.repository.publish()
    world.trust.refresh()
    shutil.rmtree(world.local("root_history"))
    for role in LOCAL:
        world.local(f"{role}.json").unlink()
    world.files = old
    with pytest.raises(UntrustedError, match="version 1 is offered, version 2 was trusted") as refused:
        world.restart().refresh()
    assert refused.value.role == "root"


def test_a_root_counts_though_the_rest_of_the_repository_is_broken(world: World):
    """It may be the one that takes a stolen key away."""
    world.repository.rotate("timestamp")
    world.files = {path: content for path, content in world.repository.files.items() if "root" in path}
    with pytest.raises(UnavailableError):
        world.trust.refresh()
    assert world.restart().high_water.version("root") == 2


def test_a_provisioned_root_that_is_none_is_the_operators_matter(tmp_path: Path):
    """Trying again does not help; the message must say what does."""
    with pytest.raises(OperatorError, match=r"root\.json"):
        Trust(tmp_path, b"{}", lambda _path, _limit: b"", VirtualClock()).refresh()


# --- fast-forward recovery, TUF specification 5.3.11 ---


def _fast_forward(world: World, role: str) -> None:
    """Let somebody with stolen keys publish a version that nothing honest will ever reach."""
    getattr(world.repository, role).version = 1_000_000
    world.repository.publish()
    world.trust.refresh()
    getattr(world.repository, role).version = 1


@pytest.mark.parametrize("lost", [[], LOCAL], ids=["files kept", "files lost"])
@pytest.mark.parametrize(
    ("role", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["snapshot", "timestamp"]), ("targets", ["snapshot"])],
    ids=["timestamp", "snapshot", "targets"],
)
def test_new_keys_bring_a_fast_forwarded_device_back(world: World, role: str, rotated: list[str], lost: list[str]):
    """The mark must not be what bricks a device after the operator has done everything right."""
    _fast_forward(world, role)
    world.repository.rotate(*rotated)
    for name in lost:
        world.local(f"{name}.json").unlink()
    world.repository.publish()
    assert world.restart().refresh().versions[role] == 2
    assert world.trust.high_water.version(role) == 2


@pytest.mark.parametrize("lost", [[], LOCAL], ids=["files kept", "files lost"])
@pytest.mark.parametrize(
    ("role", "rotated"),
    [("timestamp", []), ("snapshot", ["snapshot"]), ("targets", ["timestamp"]), ("timestamp", ["root", "targets"])],
)
def test_other_keys_do_not(world: World, role: str, rotated: list[str], lost: list[str]):
    """A root that leaves the vouching keys alone opens no door to a replay, lost files or not."""
    _fast_forward(world, role)
    world.repository.rotate(*rotated)
    for name in lost:
        world.local(f"{name}.json").unlink()
    world.repository.publish()
    with pytest.raises(UntrustedError):
        world.restart().refresh()


def test_a_key_that_is_added_lets_no_mark_fall(world: World):
    """What set the mark still verifies, so a replay by the old key is still a replay."""
    old = dict(world.repository.files)
    world.repository.publish()
    world.trust.refresh()
    second = TufRepository().signers["timestamp"][0]
    world.repository.root.add_key(second.public_key, "timestamp")
    world.repository.rotate()
    for role in LOCAL:
        world.local(f"{role}.json").unlink()
    world.files = {**old, "metadata/2.root.json": world.repository.files["metadata/2.root.json"]}
    with pytest.raises(UntrustedError, match="version 2 was trusted"):
        world.restart().refresh()


# --- time ---


def test_a_frozen_repository_is_noticed_at_expiry(world: World):
    """Holding back new metadata works until the old one expires, and then it shows."""
    world.trust.refresh()
    world.clock.advance(86400 * 31)
    with pytest.raises(UntrustedError, match="expired at 2026-12-20 09:00 UTC, it is 2026-12-21") as refused:
        world.restart().refresh()
    assert refused.value.role == "timestamp"
    world.repository.now = world.clock.now()
    world.repository.refresh()
    world.restart().refresh()


def test_a_clock_in_1970_switches_expiry_off_only_until_something_was_trusted(world: World):
    """Many boards have no battery: they wake in 1970, where nothing ever expires."""
    world.repository.now = START + timedelta(days=29)
    world.repository.publish()
    world.trust.refresh()
    world.repository.now = START
    world.repository.timestamp.version += 1
    world.repository.lifetime = timedelta(days=28)
    world.repository.refresh()
    world.clock.set_wall(datetime(1970, 1, 1, tzinfo=UTC))
    with pytest.raises(UntrustedError, match="it is 2026-12-19"):
        world.restart().refresh()


def test_a_clock_in_1970_does_not_go_below_the_time_of_building(world: World):
    """The first start of a board without a clock, with metadata that expired long ago."""
    world.clock.set_wall(datetime(1970, 1, 1, tzinfo=UTC))
    world.built_at = START + timedelta(days=365)
    with pytest.raises(UntrustedError, match="expired"):
        world.restart().refresh()


def test_the_clock_of_a_good_check_is_remembered(world: World):
    """The floor rises without the repository's help, so that a freeze shows on a board that reboots into 1970."""
    world.clock.advance(86400 * 20)
    assert world.trust.refresh().time_floor == START + timedelta(days=20)
    world.clock.set_wall(datetime(1970, 1, 1, tzinfo=UTC))
    assert world.restart().refresh().time_floor == START + timedelta(days=20)


def test_a_clock_in_2100_refuses_and_leaves_no_trace(world: World):
    """Once the clock is right again everything must be as before: a glitch must not lock a device out for ever."""
    expected = world.trust.refresh()
    world.clock.set_wall(datetime(2100, 1, 1, tzinfo=UTC))
    with pytest.raises(UntrustedError, match="it is 2100-01-01"):
        world.restart().refresh()
    assert world.trust.state() == expected
    world.clock.set_wall(START)
    assert world.restart().refresh() == expected


def test_a_signed_time_in_2100_does_not_lift_the_floor(world: World):
    """A stolen timestamp key must not be able to let every role expire for ever."""
    world.repository.now = datetime(2100, 1, 1, tzinfo=UTC)
    world.repository.refresh()
    assert world.trust.refresh().time_floor == START


@pytest.mark.parametrize(
    "issued", [7, "yesterday", "2026-11-20T10:00:00", None, ["2026"], "0001-01-01T00:00:00+14:00"], ids=str
)
def test_a_signed_time_that_is_none_is_ignored(world: World, issued: object):
    """An odd field in a newer repository's timestamp must not stop anything."""
    world.repository.timestamp.unrecognized_fields["issued"] = issued
    world.repository.files["metadata/timestamp.json"] = world.repository.sign(
        world.repository.timestamp, world.repository.signers["timestamp"]
    )
    assert world.trust.refresh().time_floor == START


# --- what comes over the wire ---


@pytest.mark.parametrize(
    "path", ["metadata/2.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"]
)
def test_endless_data_is_refused_by_its_length(world: World, path: str):
    """A reader that ignores its limit is caught as well."""
    world.files = {**world.files, path: bytes(3_000_000)}
    with pytest.raises(UntrustedError, match="at most"):
        world.trust.refresh()


def test_every_read_is_limited(world: World):
    """No length from outside decides how much memory is taken."""
    world.repository.publish({"a": b"12345"})
    limits: dict[str, int] = {}

    def read(path: str, limit_bytes: int) -> bytes:
        limits[path.partition("/")[0] + path[path.rfind(".", 0, -5) :]] = limit_bytes
        return world.repository.read(path, limit_bytes)

    Trust(world.folder, world.root, read, world.clock).target("a", 100)
    assert max(limits.values()) <= 2_000_000
    assert 5 in limits.values()


def test_two_valid_releases_cannot_be_mixed(world: World):
    """Each file is signed; together they were never published."""
    world.repository.publish({"channels/stable.json": b"first"})
    first = dict(world.repository.files)
    world.repository.publish({"channels/stable.json": b"other"})
    second = dict(world.repository.files)
    for path in ("metadata/3.snapshot.json", "metadata/3.targets.json"):
        world.files = {**second, path: first[path.replace("3.", "2.", 1)]}
        with pytest.raises(UntrustedError, match="Expected"):
            world.restart().refresh()
    world.files = dict(second)
    world.trust.refresh()
    of_first, of_second = sorted(path for path in second if path.startswith("targets/"))
    world.files[of_first], world.files[of_second] = second[of_second], second[of_first]
    with pytest.raises(UntrustedError, match="hash"):
        world.trust.target("channels/stable.json", 100)
    assert list((world.folder / "targets").iterdir()) == []


def test_a_document_longer_than_allowed_is_not_asked_for(world: World):
    """Signed or not, it must fit."""
    world.repository.publish({"big": bytes(1000)})
    with pytest.raises(UntrustedError, match="1000 bytes, at most 999"):
        world.trust.target("big", 999)
    assert not any(path.startswith("targets/") for path in world.asked)


def test_a_document_that_nobody_signed_is_not_there(world: World):
    """A typing error in the channel's name must be told from an attack."""
    with pytest.raises(UnavailableError, match="signs no such document"):
        world.trust.target("channels/stabel.json", 100)


@pytest.mark.parametrize("path", ["metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"])
def test_a_missing_file_is_silence_not_an_attack(world: World, path: str):
    """The caller tries another transport, later."""
    world.files = {name: content for name, content in world.files.items() if name != path}
    with pytest.raises(NotThereError, match="no such file"):
        world.trust.refresh()
    world.files = world.repository.files
    world.trust.refresh()


@pytest.mark.parametrize("error", [UnavailableError("no answer"), OSError("no route"), StateError("stop")], ids=repr)
def test_errors_of_the_reader_come_through(world: World, error: Exception):
    """Whoever reads the message sees what the network said."""

    def read(path: str, limit_bytes: int) -> bytes:
        raise error

    expected = type(error) if isinstance(error, HoldfastError) else UnavailableError
    with pytest.raises(expected, match=str(error)):
        Trust(world.folder, world.root, read, world.clock).refresh()


_ANYTHING = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["_type", "version", "meta", "keyid", "sig", "expires"]), inner)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def served() -> TufRepository:
    """Made once: keys are slow to make."""
    return TufRepository()


@pytest.mark.parametrize(
    "path", [f"metadata/{name}.json" for name in ("2.root", "timestamp", "1.snapshot", "1.targets")]
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything=_ANYTHING, inner_keys=st.lists(st.integers(0, 50), max_size=3), is_raw=st.booleans())
def test_bytes_from_anywhere_give_one_of_our_errors(
    served: TufRepository, path: str, anything: object, inner_keys: list[int], is_raw: bool
):
    """Random damage, outside and then at home: refused or healed, never another exception, never something unsigned."""
    document = json.loads(served.files.get(path, served.first_root))
    _replace_somewhere(document, inner_keys, anything)
    altered = repr(anything).encode() if is_raw else json.dumps(document).encode()
    assume(_meaning(altered) is None or _meaning(altered) != _meaning(served.files.get(path, b"")))
    with tempfile.TemporaryDirectory() as folder:
        files = {**served.files, path: altered}

        def read(path: str, _limit: int) -> bytes:
            if path not in files:
                raise NotThereError(path)
            return files[path]

        trust = Trust(Path(folder), served.first_root, read, VirtualClock())
        with pytest.raises(UntrustedError):
            trust.refresh()
        files = served.files
        local = {"2.root": "root_history/2.root"}.get(name := path[9:-5], name.removeprefix("1."))
        (Path(folder) / "metadata" / f"{local}.json").write_bytes(altered)
        assert set(trust.refresh().versions.values()) == {1}


def _meaning(content: bytes) -> bytes | None:
    """What signatures are over: python-tuf fills in what is null, so that other bytes may mean the same."""
    try:
        return Metadata.from_bytes(content).signed_bytes
    except RepositoryError:
        return None


def _replace_somewhere(document: dict[str, object], choices: list[int], value: object) -> None:
    """Follow `choices` into the signed part and put `value` there."""
    container, key = document, "signed"
    for choice in choices:
        below = container[key]
        if not isinstance(below, dict) or not below:
            break
        container, key = below, sorted(below)[choice % len(below)]
    container[key] = value


# --- the disk ---


def test_a_disk_that_fails_is_our_own_trouble(world: World, monkeypatch: pytest.MonkeyPatch):
    """A full disk is no attack and loses nothing that was trusted."""
    expected = world.trust.refresh()
    world.repository.publish()

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.atomicfile.write", full)
        with pytest.raises(StateError, match="No space left"):
            world.restart().refresh()
    assert world.restart().state() == expected


def test_every_file_is_written_durably_and_none_is_ever_missing(world: World, monkeypatch: pytest.MonkeyPatch):
    """python-tuf alone neither fsyncs nor keeps root.json at all times; both have been seen to end updates for ever."""
    from agent import atomicfile

    written: set[Path] = set()
    write = atomicfile.write

    def watch(path: Path, content: bytes) -> None:
        written.add(path)
        write(path, content)

    def read(path: str, limit_bytes: int) -> bytes:
        assert before <= set(world.folder.rglob("*"))
        return world.repository.read(path, limit_bytes)

    monkeypatch.setattr("agent.atomicfile.write", watch)
    world.repository.publish({"a": b"1"})
    before: set[Path] = set()
    for _ in range(2):
        Trust(world.folder, world.root, read, world.clock).target("a", 9)
        before = {path for path in world.folder.rglob("*") if not path.is_dir()}
        assert before == written
        assert not any(path.is_symlink() for path in before)
        world.repository.rotate("root", "timestamp")
        world.repository.refresh()


def test_a_local_file_of_any_length_takes_bounded_memory(world: World):
    """A damaged file system gives back files of any length."""
    expected = world.trust.refresh()
    with world.local("snapshot.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert world.restart().refresh() == expected
    assert world.local("snapshot.json").stat().st_size < 5000


def test_the_mark_is_on_disk_before_the_metadata(world: World, monkeypatch: pytest.MonkeyPatch):
    """Between the two a power cut may come, and then the mark must be the newer one."""
    from agent import atomicfile

    written: list[str] = []
    write = atomicfile.write

    def watch(path: Path, content: bytes) -> None:
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr("agent.atomicfile.write", watch)
    world.trust.refresh()
    for name in ("timestamp.json", "snapshot.json"):
        assert "high-water.json" in written[: written.index(name)]
        assert written[written.index(name) - 1] == "high-water.json"


def test_a_lost_mark_is_rebuilt_from_what_the_metadata_says(world: World, caplog: pytest.LogCaptureFixture):
    """Two losses in a row must not add up to an open door."""
    old = dict(world.repository.files)
    world.repository.publish()
    world.trust.refresh()
    (world.folder / "high-water.json").write_bytes(b'{"roles": {"timestamp": {"ver')
    with caplog.at_level(logging.ERROR):
        world.restart()
    assert "rebuilt from the trusted metadata" in caplog.text
    world.files = {}
    with pytest.raises(UnavailableError):
        world.trust.refresh()
    for role in LOCAL:
        world.local(f"{role}.json").unlink()
    world.files = old
    with pytest.raises(UntrustedError, match="version 2 was trusted"):
        world.restart().refresh()


def test_a_lost_time_floor_is_rebuilt_from_the_signed_time(world: World):
    """And from nothing else: the clock of a board is no witness."""
    world.repository.now = START + timedelta(days=10)
    world.repository.refresh()
    world.trust.refresh()
    (world.folder / "high-water.json").unlink()
    world.clock.set_wall(START + timedelta(days=20))
    world.files = {}
    with pytest.raises(UnavailableError):
        world.restart().refresh()
    assert world.trust.high_water.time_floor == START + timedelta(days=10)


def test_ed25519_needs_no_cryptography_package(world: World, tmp_path: Path):
    """Sixteen megabytes less in the frozen program."""
    world.repository.publish({"a": b"1"})
    for path, content in world.files.items():
        (tmp_path / "served" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "served" / path).write_bytes(content)
    script = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from agent.clock import SystemClock
from agent.update.transports.transport import NotThereError
from agent.update.verification.trust import Trust
served = Path(sys.argv[1])
def read(path, limit):
    if not (served / path).exists():
        raise NotThereError(path)
    return (served / path).read_bytes()
class Clock(SystemClock):
    def now(self):
        from datetime import datetime, timezone
        return datetime(2026, 11, 20, 9, tzinfo=timezone.utc)
print(Trust(served / "trust", (served / "metadata/1.root.json").read_bytes(), read, Clock()).target("a", 9))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "served")], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "b'1'", run.stderr
