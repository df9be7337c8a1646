"""Two people on two machines: nothing is published before both have signed, and only public files travel."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import OperatorError
from bundles.release import keys
from bundles.release.cosigning import changes
from bundles.release.creation import create, open_repository
from bundles.release.repository import Repository
from tests.bundles.release.conftest import Judge, copy_public


class Machines:
    """Alice's laptop, Bob's laptop, the server: a folder each, and each its own private keys."""

    def __init__(self, tmp_path: Path) -> None:
        self.alice, self.bob, self.server = (tmp_path / name / "repo" for name in ("alice", "bob", "server"))
        self.keys = {name: tmp_path / name / "keys" for name in ("alice", "bob", "server")}
        for role in ("root", "targets"):
            keys.generate(self.keys["bob"] / f"{role}.pem")
        posted = tmp_path / "alice" / "from-bob"
        posted.mkdir(parents=True)
        for role in ("root", "targets"):
            (posted / f"{role}.pub").write_bytes((self.keys["bob"] / f"{role}.pub").read_bytes())
        _, self.first = create(
            self.alice,
            self.keys["alice"],
            self.keys["server"],
            thresholds={"root": 2, "targets": 2},
            public_keys={role: [posted / f"{role}.pub"] for role in ("root", "targets")},
        )

    def open(self, name: str) -> Repository:
        """As that person opens it: with the keys of that machine only."""
        repository = Repository(getattr(self, name))
        repository.keyring = keys.Keyring([self.keys[name]])
        return repository

    def send(self, source: str, target: str) -> None:
        getattr(self, target).mkdir(parents=True, exist_ok=True)
        copy_public(getattr(self, source), getattr(self, target))

    def bob_signs_and_the_server_refreshes(self) -> None:
        self.send("alice", "bob")
        self.open("bob").sign()
        self.send("bob", "server")
        self.send("bob", "alice")
        assert self.open("server").refresh().is_live


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


@pytest.fixture
def running(machines: Machines) -> Machines:
    machines.bob_signs_and_the_server_refreshes()
    return machines


def test_first_root_waits_for_both(machines: Machines):
    """Whoever sets it up alone sets nothing up."""
    assert [(each.role, each.missing) for each in machines.first.waiting] == [("root", 1), ("targets", 1)]
    assert not (machines.alice / "metadata").exists() and "release sign" in machines.first.next_step
    with pytest.raises(OperatorError, match="not signed by enough people"):
        machines.open("alice").refresh()
    machines.send("alice", "bob")
    outcome = machines.open("bob").sign()
    assert outcome.written == ("root 1", "targets 1") and not outcome.waiting


def test_release_is_published_when_the_second_person_has_signed(running: Machines, make_bundle, tmp_path: Path):
    """The story of docs/releases.md, with folders as machines."""
    alice = running.open("alice")
    judge = Judge(tmp_path / "device", (running.server / "metadata" / "1.root.json").read_bytes())
    _, outcome = alice.add(make_bundle("1"))
    document, outcome = alice.publish("stable", "tiny", percent=25)
    assert document.release == 1 and outcome.waiting[0].missing == 1 and not outcome.is_live
    running.send("alice", "server")
    running.open("server").refresh()
    assert judge.updater(running.server).get_targetinfo("channels/stable.json") is None
    running.send("alice", "bob")
    bob = running.open("bob")
    text = "\n".join(changes(bob))
    assert "bundles/tiny/1/manifest.json is new" in text and "release 1: tiny 1" in text and "25 %" in text
    assert bob.sign().written == ("targets 2",)
    assert not (running.bob / "pending" / "2.targets.json").exists()
    running.send("bob", "server")
    running.open("server").refresh()
    assert judge.channel(running.server).assignments[0].percent == 25
    running.send("bob", "alice")
    assert not running.open("alice").waiting()


def test_no_private_key_is_ever_in_a_repository(running: Machines):
    """They stay where they were made."""
    for folder in (running.alice, running.bob, running.server):
        assert not [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


def test_the_same_person_twice_is_not_two_people(running: Machines, make_bundle):
    """The threshold counts keys."""
    alice = running.open("alice")
    alice.add(make_bundle("1"))
    with pytest.raises(OperatorError, match="or they have signed"):
        alice.sign()
    with pytest.raises(OperatorError, match="nothing waits"):
        running.open("bob").sign()
    stranger = running.open("alice")
    stranger.keyring = keys.Keyring([running.keys["server"]])
    with pytest.raises(OperatorError, match="no key at hand"):
        stranger.sign()


def test_second_edit_joins_the_first_and_asks_for_new_signatures(running: Machines, make_bundle):
    """A signature counts for exactly what was signed."""
    alice = running.open("alice")
    alice.add(make_bundle("1"))
    running.send("alice", "bob")
    alice.publish("stable", "tiny")
    assert [each.version for each in alice.waiting()] == [2]
    (running.bob / "pending" / "2.targets.json").unlink()
    running.bob_signs_and_the_server_refreshes()
    assert running.open("server").channel("stable").assignments[0].bundle.version == "1"


def test_lost_key_of_one_person_is_replaced_by_the_other_two(running: Machines, make_bundle, tmp_path: Path):
    """Bob leaves; Carol comes. Targets are signed by her before the root says so, so no device is locked out."""
    judge = Judge(tmp_path / "device", (running.server / "metadata" / "1.root.json").read_bytes())
    judge.updater(running.server)
    alice = running.open("alice")
    carol = keys.generate(tmp_path / "carol" / "targets.pem")
    bob, _ = keys.read_public_key(running.keys["bob"] / "targets.pub")
    outcome = alice.change_keys("targets", add=[carol], remove=[bob.keyid])
    assert {(each.role, each.missing) for each in outcome.waiting} == {("root", 1), ("targets", 1)}
    running.send("alice", "bob")
    assert running.open("bob").sign().written == ()  # the root has both now; the targets lack Carol's
    (running.alice / "pending" / "2.root.json").write_bytes((running.bob / "pending" / "2.root.json").read_bytes())
    (running.alice / "pending" / "2.targets.json").write_bytes(
        (running.bob / "pending" / "2.targets.json").read_bytes()
    )
    alice = running.open("alice")
    alice.keyring = keys.Keyring([tmp_path / "carol"])
    assert alice.sign().written == ("targets 2", "root 2")
    running.send("alice", "server")
    running.open("server").refresh()
    judge.updater(running.server)


def test_first_signer_cannot_pass_a_change_off_as_published(running: Machines, make_bundle):
    """Bob is shown differences; what they differ from must have had both signatures."""
    alice = running.open("alice")
    alice.add(make_bundle("1"))
    alice.publish("stable", "tiny")
    forged = running.alice / "pending" / "2.targets.json"
    forged.rename(running.alice / "metadata" / "2.targets.json")
    with pytest.raises(OperatorError, match="not signed by enough people"):
        alice.publish("stable", "tiny", percent=5)
    document = running.alice / "metadata" / "2.targets.json"
    (running.alice / "pending" / "3.targets.json").write_text(
        document.read_text().replace('"version":2', '"version":3')
    )
    running.send("alice", "bob")
    with pytest.raises(OperatorError, match="not signed by enough people"):
        changes(running.open("bob"))


def test_root_person_without_a_targets_key_can_replace_one(running: Machines, tmp_path: Path):
    """Roles may be different people: the targets then wait for theirs."""
    alice = running.open("alice")
    (running.keys["alice"] / "targets.pem").unlink()
    old, _ = keys.read_public_key(running.keys["alice"] / "targets.pub")
    new = keys.generate(tmp_path / "new" / "targets.pem")
    outcome = alice.change_keys("targets", add=[new], remove=[old.keyid])
    assert [(each.role, each.missing) for each in outcome.waiting] == [("root", 1), ("targets", 2)]


def test_threshold_beyond_the_keys_is_refused(tmp_path: Path):
    """It could never be reached, and the root could never be mended."""
    with pytest.raises(OperatorError, match="too few keys"):
        create(tmp_path / "repo", tmp_path / "keys", thresholds={"root": 2})
    assert not (tmp_path / "repo").exists() and not (tmp_path / "keys").exists()
    assert open_repository(tmp_path).settings.signers == {}
