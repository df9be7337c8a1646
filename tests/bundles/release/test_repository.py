"""The repository: python-tuf's own client accepts it after each operation, and nothing is ever half done."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from agent.bundle.manifest import Manifest
from agent.errors import BundleError, OperatorError
from agent.update.documents import TransferDocument, manifest_path, transfer_path
from bundles.release.creation import create, open_repository
from bundles.release.repository import Repository


def test_client_accepts_the_repository_after_each_operation(repository: Repository, make_bundle, judge):
    """The independent judge: what we write is TUF."""
    judge.updater(repository.folder)
    reference, outcome = repository.add(make_bundle("1"))
    assert outcome.is_live and outcome.written[-1].startswith("timestamp")
    content = judge.read(repository.folder, manifest_path("tiny", "1"))
    assert Manifest.model_validate_json(content).version == "1" and reference.manifest_sha256
    repository.add(make_bundle("2"))
    repository.publish("stable", "tiny", "1")
    assert judge.channel(repository.folder).assignments[0].bundle.version == "1"
    repository.publish("stable", "tiny", percent=25)
    assert [each.bundle.version for each in judge.channel(repository.folder).assignments] == ["2", "1"]
    repository.promote("stable", 100)
    assert judge.channel(repository.folder).release == 3
    repository.rollback("stable", "1", "too many false alarms")
    document = judge.channel(repository.folder)
    assert document.release == 4 and document.assignments[0].rollback.reason == "too many false alarms"
    repository.refresh()
    judge.updater(repository.folder)


def test_every_blob_travels_in_a_form_without_a_base(filled: Repository, judge):
    """A device that holds nothing can fetch everything, from files that are there as listed."""
    transfer = TransferDocument.model_validate_json(judge.read(filled.folder, transfer_path("tiny", "2")))
    manifest = Manifest.model_validate_json(judge.read(filled.folder, manifest_path("tiny", "2")))
    assert manifest.variants[0].model.sha256 in transfer.blobs
    for forms in transfer.blobs.values():
        assert any(form.base is None for form in forms)
        for form in forms:
            assert (filled.folder / "blobs" / form.sha256).stat().st_size == form.size_bytes


def test_timestamp_carries_when_it_was_issued(repository: Repository, clock):
    """Boards without a clock take their floor from it."""
    repository.refresh()
    timestamp = Metadata.from_file(str(repository.folder / "metadata" / "timestamp.json")).signed
    assert timestamp.unrecognized_fields["issued"] == f"{clock.now():%Y-%m-%dT%H:%M:%SZ}"


def test_refresh_needs_the_online_keys_only(repository: Repository, tmp_path: Path, clock, make_bundle):
    """The serving side never sees a key that could sign a release."""
    (tmp_path / "keys").rename(tmp_path / "keys-on-the-laptop")
    serving = open_repository(repository.folder, key_folders=[tmp_path / "online"], clock=clock)
    assert serving.refresh().written == ("timestamp 2",)
    clock.pass_days(20)
    assert serving.refresh().written == ("snapshot 2", "timestamp 3")
    with pytest.raises(OperatorError, match="no key for targets"):
        serving.add(make_bundle("1"))
    assert not (repository.folder / "blobs").exists()


def test_without_online_keys_targets_are_signed_and_the_next_step_is_said(
    repository: Repository, tmp_path: Path, make_bundle, judge
):
    """The laptop signs; the server makes it current."""
    (tmp_path / "online").rename(tmp_path / "server-keys")
    _, outcome = repository.add(make_bundle("1"))
    assert outcome.written == ("targets 2",) and not outcome.is_live and "refresh" in outcome.next_step
    assert judge.updater(repository.folder).get_targetinfo(manifest_path("tiny", "1")) is None
    outcome = open_repository(repository.folder, key_folders=[tmp_path / "server-keys"]).refresh()
    assert outcome.is_live and outcome.next_step is None
    judge.read(repository.folder, manifest_path("tiny", "1"))


def test_server_refuses_to_make_a_copy_current_that_did_not_arrive_whole(
    repository: Repository, tmp_path: Path, make_bundle, judge
):
    """Devices would be sent for files that are not there."""
    (tmp_path / "online").rename(tmp_path / "server-keys")
    repository.add(make_bundle("1"))
    server = open_repository(repository.folder, key_folders=[tmp_path / "server-keys"])
    for path in [*(repository.folder / "blobs").iterdir(), *(repository.folder / "targets").rglob("*.json")]:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(OperatorError, match="incomplete|not what was signed"):
            server.refresh()
        path.unlink()
        with pytest.raises(OperatorError, match="incomplete|not what was signed"):
            server.refresh()
        path.write_bytes(content)
    assert judge.updater(repository.folder).get_targetinfo(manifest_path("tiny", "1")) is None
    assert server.refresh().is_live


def test_same_bundle_again_changes_nothing_and_another_under_its_version_is_refused(filled: Repository, make_bundle):
    """What was signed under a version never changes."""
    assert filled.add(make_bundle("1"))[1].written == ()
    with pytest.raises(OperatorError, match="already, with other content"):
        filled.add(make_bundle("1", license="other"))


def test_bad_wishes_are_refused_and_change_nothing(filled: Repository, make_bundle):
    """Nothing is half done."""
    before = sorted(filled.folder.rglob("*"))
    for wish, message in [
        (lambda: filled.publish("stable", "tiny", "9"), "no bundle tiny 9"),
        (lambda: filled.publish("stable", "other"), "no bundle other"),
        (lambda: filled.publish("Not a channel", "tiny"), "not valid"),
        (lambda: filled.publish("stable", "tiny", percent=101), "less than or equal to 100"),
        (lambda: filled.promote("nightly", 50), "no channel `nightly`"),
        (lambda: filled.promote("stable", 50), "50 % is not more"),
        (lambda: filled.rollback("stable", "7", "why"), "no bundle tiny 7"),
        (lambda: filled.rollback("stable", "1", "why"), "no way back"),
    ]:
        with pytest.raises(OperatorError, match=message):
            wish()
    with pytest.raises(BundleError, match="is no version"):
        filled.add(make_bundle("1 beta"))
    assert sorted(filled.folder.rglob("*")) == before


def test_folder_that_is_no_repository_or_is_one_already(tmp_path: Path, repository: Repository):
    """The two mistakes of the first minute."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(OperatorError, match="is no release repository"):
        open_repository(tmp_path / "empty").channels()
    with pytest.raises(OperatorError, match="already"):
        create(repository.folder, tmp_path / "keys")
