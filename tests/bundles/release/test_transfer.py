"""How a bundle's blobs travel: bases are what devices hold, and `blobs/` holds what travels and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.bundle.reader import open_bundle
from agent.errors import OperatorError
from agent.update.documents import TransferDocument
from bundles.release import transfer as module
from bundles.release.transfer import Previous, make_transfer


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the maker of forms was asked for: blob → digests of its bases' content."""
    asked: dict[str, list[str]] = {}
    real = module.make_forms

    def make_forms(blob: Path, sha256: str, bases: Sequence[Path], folder: Path, chunk_bytes: int):
        contents = [hashlib.sha256(base.read_bytes()).hexdigest() for base in bases]
        assert contents == [base.name for base in bases], "a base is named by its digest and holds it"
        asked[sha256] = contents
        return real(blob, sha256, bases, folder, chunk_bytes)

    monkeypatch.setattr(module, "make_forms", make_forms)
    return asked


def test_bases_are_the_same_variants_of_the_last_three_versions(make_bundle, tmp_path: Path, seen):
    """A device that is further behind fetches the whole file."""
    from bundles.release.creation import create

    repository, _ = create(tmp_path / "repo", tmp_path / "keys")
    models = []
    for number in range(5):
        folder = make_bundle(str(number))
        models.append(open_bundle(folder).manifest.variants[0].model.sha256)
        repository.add(folder)
    assert seen[models[0]] == []
    assert seen[models[4]] == [models[3], models[2], models[1]]
    assert not list(repository.folder.glob(".bases-*"))


def test_golden_samples_that_stay_keep_their_forms(make_bundle, tmp_path: Path, seen):
    """Nothing is packed twice."""
    blobs = tmp_path / "blobs"
    first = open_bundle(make_bundle("1"))
    before = TransferDocument.model_validate_json(make_transfer(first, [], blobs))
    count = len(seen)
    second = open_bundle(make_bundle("2"))
    after = TransferDocument.model_validate_json(make_transfer(second, [Previous(first.manifest, before)], blobs))
    assert len(seen) == count + 1
    sample = first.manifest.golden[0].input.sha256
    assert after.blobs[sample] == before.blobs[sample]


def test_base_that_is_not_here_any_more_is_left_out(make_bundle, tmp_path: Path, seen):
    """A laptop that made room can still add a bundle."""
    blobs = tmp_path / "blobs"
    first = open_bundle(make_bundle("1"))
    before = TransferDocument.model_validate_json(make_transfer(first, [], blobs))
    for path in blobs.iterdir():
        path.unlink()
    second = open_bundle(make_bundle("2"))
    make_transfer(second, [Previous(first.manifest, before)], blobs)
    assert seen[second.manifest.variants[0].model.sha256] == []


def test_damaged_base_is_said_and_not_used(make_bundle, tmp_path: Path):
    """A delta to it would fit no device."""
    blobs = tmp_path / "blobs"
    first = open_bundle(make_bundle("1"))
    before = TransferDocument.model_validate_json(make_transfer(first, [], blobs))
    (whole,) = [form for form in before.blobs[first.manifest.variants[0].model.sha256] if form.base is None]
    packed = (blobs / whole.sha256).read_bytes()
    for content in (b"garbage", packed[:-8], module.zstd.compress(b"another model")):
        (blobs / whole.sha256).write_bytes(content)
        with pytest.raises(OperatorError, match="is damaged"):
            make_transfer(open_bundle(make_bundle("2")), [Previous(first.manifest, before)], blobs)
