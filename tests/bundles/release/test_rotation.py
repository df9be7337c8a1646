"""Keys change over the years; devices in the field follow, and a revoked key is worth nothing."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from tuf.api.exceptions import UnsignedMetadataError

from agent.errors import OperatorError
from bundles.release.creation import open_repository
from bundles.release.keys import Keyring, read_public_key
from bundles.release.metadata import MetadataFolder
from bundles.release.publication import Publication
from bundles.release.repository import Repository
from bundles.release.rotation import replace_key
from bundles.release.settings import ExpiryDays


def test_device_follows_three_root_rotations(filled: Repository, judge):
    """It was offline for years and knows the first root only."""
    for _ in range(3):
        replace_key(filled, "root")
    assert filled.metadata.versions("root") == [1, 2, 3, 4]
    assert judge.channel(filled.folder).release == 1
    filled.publish("stable", "tiny", "2")
    assert judge.channel(filled.folder).assignments[0].bundle.version == "2"


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_each_role_gets_a_new_key_and_work_goes_on(filled: Repository, judge, role: str):
    """The old private key may be destroyed afterwards."""
    judge.updater(filled.folder)
    replaced = replace_key(filled, role)
    assert replaced.outcome.is_live
    old = filled.keyring.uri(replaced.old_keyid).removeprefix("file2:")
    Path(old).unlink()
    judge.updater(filled.folder)
    open_repository(filled.folder).publish("stable", "tiny", "2")
    assert judge.channel(filled.folder).assignments[0].bundle.version == "2"


def test_revoked_key_signs_nothing_that_devices_take(filled: Repository, judge, tmp_path: Path, clock):
    """A stolen key is worth nothing once the new root is out, even together with a stolen server."""
    stolen = tmp_path / "stolen"
    shutil.copytree(tmp_path / "keys", stolen)
    shutil.copytree(tmp_path / "online", stolen / "online")
    replace_key(filled, "targets")
    judge.channel(filled.folder)
    keyring = Keyring([stolen, stolen / "online"])
    forged = copy.deepcopy(filled.metadata.targets().signed)
    forged.targets.clear()
    first = filled.metadata.read(type(filled.root()), 1).signed
    publication = Publication(filled.folder, keyring, ExpiryDays(), clock)
    MetadataFolder(filled.folder).write(publication.make(forged, forged.version + 1, "targets", [first]))
    with pytest.raises(OperatorError, match="lack signatures"):
        filled.refresh()
    # The attacker does not ask our code: snapshot and timestamp by hand.
    publication.refresh(first)
    with pytest.raises(UnsignedMetadataError):
        judge.updater(filled.folder)
    repository = Repository(filled.folder, keyring)
    repository.metadata.published.joinpath(f"{forged.version}.targets.json").unlink()
    with pytest.raises(OperatorError, match="no key for targets"):
        repository.publish("stable", "tiny", "2")


def test_server_takes_up_a_rotated_online_key(filled: Repository, judge, tmp_path: Path):
    """The laptop has the root key, the server the timestamp's: delay for seconds, never a lockout."""
    from bundles.release.keys import generate

    generate(tmp_path / "server" / "timestamp.pem")
    shutil.copyfile(tmp_path / "online" / "snapshot.pem", tmp_path / "server" / "snapshot.pem")
    shutil.copyfile(tmp_path / "online" / "snapshot.pub", tmp_path / "server" / "snapshot.pub")
    (tmp_path / "online").rename(tmp_path / "gone")
    shutil.copyfile(tmp_path / "server" / "timestamp.pub", tmp_path / "from-server.pub")
    replaced = replace_key(filled, "timestamp", new=tmp_path / "from-server.pub")
    assert "refresh" in replaced.outcome.next_step
    outcome = open_repository(filled.folder, key_folders=[tmp_path / "server"]).refresh()
    assert outcome.is_live
    judge.channel(filled.folder)


def test_wrong_wishes_are_refused_before_anything_changes(filled: Repository, tmp_path: Path):
    """A typo must not cost a root version."""
    key, _ = read_public_key(tmp_path / "keys" / "root.pub")
    for wish, message in [
        (lambda: replace_key(filled, "root", "ffff"), "no key of root"),
        (lambda: replace_key(filled, "targets", new=tmp_path / "keys" / "targets.pub"), "is the old one"),
        (lambda: replace_key(filled, "targets", new=tmp_path / "nothing.pub"), "no such key"),
        (lambda: filled.change_keys("root", remove=[key.keyid]), "1 signatures and has 0 keys"),
        (lambda: filled.change_keys("root", threshold=3), "3 signatures and has 1 keys"),
    ]:
        with pytest.raises(OperatorError, match=message):
            wish()
    assert filled.metadata.versions("root") == [1]
    (tmp_path / "keys" / "root.pem").unlink()
    with pytest.raises(OperatorError, match="no key for root"):
        replace_key(filled, "targets")
    assert filled.metadata.versions("targets") == [1, 2, 3, 4]
