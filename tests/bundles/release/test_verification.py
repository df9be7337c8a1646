"""`verify` finds each kind of damage, and says where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.clock import SystemClock
from bundles.release import forms
from bundles.release.export import export
from bundles.release.publication import Publication
from bundles.release.repository import Repository
from bundles.release.rotation import replace_key
from bundles.release.settings import ExpiryDays
from bundles.release.verification import verify


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: int(path.name.split(".")[0]))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def change_json(path: Path, change: Callable[[dict], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))


def largest_blob(folder: Path) -> Path:
    return max((folder / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def older_timestamp_over_a_new_root(folder: Path) -> None:
    kept = (folder / "metadata" / "timestamp.json").read_bytes()
    replace_key(Repository(folder), "timestamp")
    (folder / "metadata" / "timestamp.json").write_bytes(kept)


def other_targets_under_the_same_version(folder: Path) -> None:
    """Two laptops that did not know of each other."""
    repository = Repository(folder)
    signed = repository.metadata.targets().signed
    signed.targets.pop("bundles/tiny/2/transfer.json")
    publication = Publication(folder, repository.keyring, ExpiryDays(), SystemClock())
    repository.metadata.write(publication.make(signed, signed.version, "targets", publication.roots()))


DAMAGES = {
    "two laptops": (other_targets_under_the_same_version, "targets.json.*not what was signed"),
    "no root": (lambda f: shutil.rmtree(f / "metadata"), "is no release repository"),
    "root signature": (
        lambda f: change_json(f / "metadata/1.root.json", lambda d: d["signatures"][0].update(sig="00" * 64)),
        "1.root.json.*not signed",
    ),
    "root content": (
        lambda f: change_json(f / "metadata/1.root.json", lambda d: d["signed"].update(version=1, x=1)),
        "1.root.json.*not signed",
    ),
    "root gap": (
        lambda f: (replace_key(Repository(f), "root"), replace_key(Repository(f), "root"),
                   (f / "metadata/2.root.json").unlink()),
        r"roots are \[1, 3\]",
    ),
    "no timestamp": (lambda f: (f / "metadata/timestamp.json").unlink(), "timestamp.json.*missing"),
    "timestamp content": (
        lambda f: change_json(f / "metadata/timestamp.json", lambda d: d["signed"].update(version=99)),
        "timestamp.json.*not signed",
    ),
    "timestamp of a revoked key": (older_timestamp_over_a_new_root, "timestamp.json.*not signed"),
    "no snapshot": (lambda f: newest(f / "metadata", "*.snapshot.json").unlink(), "snapshot.json.*cannot be read"),
    "snapshot": (
        lambda f: change_json(newest(f / "metadata", "*.snapshot.json"), lambda d: d["signed"].update(x=1)),
        "snapshot.json.*not",
    ),
    "targets": (
        lambda f: change_json(newest(f / "metadata", "*.targets.json"), lambda d: d["signed"]["targets"].clear()),
        "targets.json.*not",
    ),
    "targets garbage": (lambda f: newest(f / "metadata", "*.targets.json").write_text("x"), "is no TUF metadata"),
    "channel": (lambda f: flip(next((f / "targets/channels").iterdir())), "channels/.*not what was signed"),
    "manifest": (lambda f: flip(next((f / "targets/bundles/tiny/1").glob("*manifest*"))), "manifest.*not what was"),
    "transfer": (lambda f: next((f / "targets/bundles/tiny/2").glob("*transfer*")).unlink(), "transfer.*not what was"),
    "blob content": (lambda f: flip(largest_blob(f)), "blobs/.*altered"),
    "blob short": (lambda f: largest_blob(f).write_bytes(b"short"), "blobs/.*expected .* found 5"),
    "blob missing": (lambda f: largest_blob(f).unlink(), "blobs/.*cannot be read"),
}  # fmt: skip


def problems(folder: Path, clock, channels=None) -> str:
    return "\n".join(
        f"{each.where}: {each.text}" for each in verify(folder, clock.now(), channels) if each.severity == "error"
    )


def test_whole_repository_has_no_findings(filled: Repository, clock):
    """No alarm without a reason."""
    assert verify(filled.folder, clock.now()) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found(filled: Repository, clock, name: str):
    """With the file's name."""
    import re

    damage, expected = DAMAGES[name]
    damage(filled.folder)
    found = problems(filled.folder, clock)
    assert re.search(expected, found), found


def test_wrong_chunk_hashes_are_found(repository: Repository, clock, make_bundle, monkeypatch):
    """Correctly signed, and no device could ever take a chunk."""
    from bundles.release import transfer

    def make_forms(*arguments):
        wrong = ("0" * 64,)
        return tuple(form.model_copy(update={"chunks": wrong}) for form in forms.make_forms(*arguments))

    monkeypatch.setattr(transfer, "make_forms", make_forms)
    repository.add(make_bundle("1"))
    assert "the chunk hashes in transfer.json are not those of the file" in problems(repository.folder, clock)


def test_expiry_is_a_warning_first_and_then_an_error(filled: Repository, clock):
    """Long before it bites."""
    clock.pass_days(6)
    found = verify(filled.folder, clock.now())
    assert [(each.severity, each.where) for each in found] == [("warning", "timestamp")]
    clock.pass_days(2)
    assert "timestamp: expired" in problems(filled.folder, clock)
    clock.pass_days(400)
    found = problems(filled.folder, clock)
    assert all(f"{role}: expired" in found for role in ("root", "targets", "snapshot", "timestamp"))


def test_signed_but_not_current_is_a_warning(filled: Repository, clock, tmp_path: Path):
    """The laptop before the copy."""
    (tmp_path / "online").rename(tmp_path / "away")
    filled.publish("stable", "tiny", "2")
    found = verify(filled.folder, clock.now())
    assert [each.severity for each in found] == ["warning"] and "not current" in found[0].text


def test_leftover_blobs_are_a_note(filled: Repository, clock):
    """Harmless; they may be deleted."""
    (filled.folder / "blobs" / ("0" * 64)).write_bytes(b"x")
    assert [each.severity for each in verify(filled.folder, clock.now())] == ["note"]


def test_export_of_one_channel_holds_what_it_needs_and_no_more(filled: Repository, clock, judge, tmp_path: Path):
    """A stick for one kind of device."""
    filled.publish("beta", "tiny", "2")
    exported = export(filled.folder, tmp_path / "stick", ["stable"])
    stick = exported.folder
    assert problems(stick, clock, ["stable"]) == "" and problems(stick, clock) != ""
    assert judge.channel(stick).assignments[0].bundle.version == "1"
    assert judge.read(stick, "bundles/tiny/1/transfer.json")
    assert not (stick / "targets/bundles/tiny/2").exists() and not (stick / "repository.yaml").exists()
    assert sum(path.is_file() for path in stick.rglob("*")) == exported.files
    assert export(filled.folder, stick, ["stable"]).files == 1  # the timestamp
    whole = export(filled.folder, tmp_path / "all")
    assert whole.channels == ("beta", "stable") and problems(tmp_path / "all", clock) == ""


def test_stick_that_was_pulled_out_early_holds_no_mix(filled: Repository, tmp_path: Path, judge, clock):
    """Either the older state or nothing at all."""
    from agent.errors import OperatorError, StateError

    stick = tmp_path / "stick"
    export(filled.folder, stick)
    filled.publish("stable", "tiny", "2")
    for blob in (filled.folder / "blobs").iterdir():
        blob.unlink()
    shutil.rmtree(stick / "blobs")
    with pytest.raises(OperatorError, match="is missing"):
        export(filled.folder, stick)
    assert judge.channel(stick).assignments[0].bundle.version == "1"
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        export(filled.folder, tmp_path / "file")


def test_export_of_an_unknown_channel_names_the_known_ones(filled: Repository, tmp_path: Path):
    """A typo."""
    from agent.errors import OperatorError

    with pytest.raises(OperatorError, match="no channel `stabel`") as caught:
        export(filled.folder, tmp_path / "stick", ["stabel"])
    assert "stable" in caught.value.hint


def test_export_where_the_newest_is_signed_and_not_current_is_refused(filled: Repository, tmp_path: Path):
    """The laptop has no online keys: a stick from there would silently carry the release before."""
    from agent.errors import OperatorError
    from bundles.release.keys import Keyring

    targets_only = {key: uri for key, uri in filled.settings.signers.items() if uri.endswith("targets.pem")}
    Repository(filled.folder, Keyring(recorded=targets_only)).publish("stable", "tiny", "2")
    with pytest.raises(OperatorError, match="signed and not current") as caught:
        export(filled.folder, tmp_path / "stick")
    assert "refresh" in caught.value.hint and not (tmp_path / "stick").exists()
