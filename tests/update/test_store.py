"""Whatever ends a step of the store, what is complete stays complete and what is kept stays."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.bundle.reader import open_bundle
from agent.errors import BundleError, ReleaseRefusedError, StateError
from agent.update.fetching.store import BundleStore
from simulator.disk import SmallDisk, why_not

CALLS = ("fsync", "replace", "unlink", "mkdir", "rmdir", "open")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pin(content: bytes) -> dict[str, object]:
    return {"sha256": sha(content), "size_bytes": len(content)}


def manifest(models: dict[str, bytes], golden: tuple[bytes, ...] = (), version: str = "1") -> bytes:
    tensor = {"name": "x", "dtype": "float32", "shape": [1]}
    document = {
        "name": "tiny",
        "version": version,
        "input": {"kind": "image", "width": 4, "height": 4},
        "decoder": {"model_type": "yolox"},
        "variants": [
            {"name": name, "opset": 17, "inputs": [tensor], "outputs": [tensor], "model": pin(content)}
            for name, content in models.items()
        ],
        "golden": [{"input": pin(each), "expected": pin(each)} for each in golden],
    }
    return json.dumps(document, sort_keys=True).encode()


def put(store: BundleStore, models: dict[str, bytes], golden: tuple[bytes, ...] = (), version: str = "1") -> str:
    for content in (*models.values(), *golden):
        put_blob(store, content)
    return store.put_manifest(manifest(models, golden, version))


def put_blob(store: BundleStore, content: bytes) -> None:
    store.partial_path(sha(content)).write_bytes(content)
    store.put_blob(store.partial_path(sha(content)), sha(content), len(content))


class PowerCut(BaseException):
    """The process is gone: nothing catches this, and nothing is done after it."""


@contextmanager
def cut_at(call: int, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> Iterator[list[int]]:
    """Let file system call number `call` (from 0) and all after it fail; with `error`, only that one, with it."""
    count = [0]

    def failing(real):
        def instead(*args, **kwargs):
            count[0] += 1
            if error is not None and count[0] == call + 1:
                raise error
            if error is None and count[0] > call:
                raise PowerCut
            return real(*args, **kwargs)

        return instead

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, failing(getattr(os, name)))
        yield count


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles", reserve_bytes=0)


def test_bundles_share_their_blobs_and_open(store: BundleStore):
    """What two releases have in common is there once; the reader finds it."""
    first = put(store, {"fp32": b"model", "int8": b"small"}, (b"picture",))
    second = put(store, {"fp32": b"model 2", "int8": b"small"}, (b"picture",), "2")
    assert store.bundles() == {first, second}
    assert len(list((store.folder / "blobs").iterdir())) == 4
    bundle = open_bundle(store.path_of(second))
    assert bundle.digest == second and bundle.is_stored
    assert bundle.model_path("int8").read_bytes() == b"small"
    assert bundle.variants_present() == {"fp32", "int8"}


def test_variant_that_was_not_fetched_is_not_offered(store: BundleStore):
    """A device fetches what it can use; the rest of the manifest is still true, and not here."""
    put_blob(store, b"small")
    digest = store.put_manifest(manifest({"fp32": b"model", "int8": b"small"}))
    bundle = open_bundle(store.path_of(digest))
    assert bundle.variants_present() == {"int8"}
    open_bundle(store.path_of(digest), variants={"int8"})
    with pytest.raises(BundleError, match="found nothing"):
        open_bundle(store.path_of(digest), variants={"fp32"})
    store.blob_path(sha(b"small")).unlink()
    with pytest.raises(BundleError, match="no variant is whole"):
        open_bundle(store.path_of(digest))


def test_stored_manifest_is_what_its_folder_says(store: BundleStore):
    """The folder's name is what was signed; another valid manifest in it is not that bundle."""
    digest = put(store, {"fp32": b"model"})
    (store.path_of(digest) / "manifest.json").write_bytes(manifest({"fp32": b"model"}, version="9"))
    with pytest.raises(BundleError, match="manifest was altered"):
        open_bundle(store.path_of(digest))


def test_blob_that_is_not_its_name_never_gets_it(store: BundleStore):
    """Nothing unverified lies under blobs/."""
    store.partial_path(sha(b"model")).write_bytes(b"medol")
    with pytest.raises(ReleaseRefusedError, match="is not the blob"):
        store.put_blob(store.partial_path(sha(b"model")), sha(b"model"), 5)
    assert not store.blob_path(sha(b"model")).exists()
    assert not store.partial_path(sha(b"model")).exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a" * 63, "A" * 64, "a" * 64 + "\n", "/etc/passwd"])
def test_names_are_nothing_but_sha256(store: BundleStore, name: str):
    """A digest comes from a document; a path must not."""
    for call in (store.path_of, store.blob_path, store.has_sound_blob, store.partial_path, store.unpacked_path):
        with pytest.raises(ReleaseRefusedError, match="64 hex digits"):
            call(name)


@pytest.mark.parametrize("damage", [b"medol", b"mod", b""], ids=["altered", "short", "empty"])
def test_damaged_blob_is_named_and_fetched_again(store: BundleStore, damage: bytes):
    """A rotten sector must neither run nor stay in the way of its cure."""
    digest = put(store, {"fp32": b"model", "int8": b"small"}, (b"picture",))
    store.verify(digest, {"fp32"})
    store.blob_path(sha(b"model")).write_bytes(damage)
    store.verify(digest, {"int8"})
    with pytest.raises(BundleError, match="1 of 2 blobs") as caught:
        store.verify(digest, {"fp32"})
    assert "fetch the release again" in str(caught.value)
    assert not store.blob_path(sha(b"model")).exists()
    put_blob(store, b"model")
    store.verify(digest, {"fp32"})


def test_damaged_manifest_is_fetched_again_and_its_blobs_stay(store: BundleStore):
    """The blobs of a kept bundle are not collected just because nobody can read which they are."""
    digest = put(store, {"fp32": b"model"})
    (store.path_of(digest) / "manifest.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="manifest is missing or damaged"):
        store.verify(digest, {"fp32"})
    assert store.bundles() == set()
    store.collect({digest})
    assert store.blob_path(sha(b"model")).exists()
    assert store.put_manifest(manifest({"fp32": b"model"})) == digest
    store.verify(digest, {"fp32"})


def test_link_in_place_of_a_blob_is_not_one(store: BundleStore, tmp_path: Path):
    """What was verified is a file in here."""
    (tmp_path / "elsewhere").write_bytes(b"model")
    store.blob_path(sha(b"model")).symlink_to(tmp_path / "elsewhere")
    assert not store.has_sound_blob(sha(b"model"), 5)
    assert (tmp_path / "elsewhere").exists()


def test_collecting_frees_what_nobody_needs(store: BundleStore):
    """Bytes are counted; shared blobs stay; what a crash left goes."""
    old = put(store, {"fp32": b"old model", "int8": b"small"})
    new = put(store, {"fp32": b"new model", "int8": b"small"}, version="2")
    size = (store.path_of(old) / "manifest.json").stat().st_size
    store.partial_path("a" * 64).write_bytes(b"half")
    (store.folder / "partial" / ".tmp").write_bytes(b"x")
    assert store.collect({new}) == size + len(b"old model") + len(b"half") + 1
    assert store.bundles() == {new}
    store.verify(new, {"fp32", "int8"})
    assert not store.blob_path(sha(b"old model")).exists()
    assert not list((store.folder / "partial").iterdir())


def test_collecting_spares_what_is_on_its_way(store: BundleStore):
    """Half of a candidate's blobs are there, and its manifest is not complete yet: a day's download on a bad line."""
    active = put(store, {"fp32": b"model"})
    coming = store.announce(manifest({"fp32": b"next model", "int8": b"next small"}, version="2"))
    put_blob(store, b"next model")
    store.partial_path(sha(b"next small")).write_bytes(b"next")
    store.collect({active, coming})
    assert store.blob_path(sha(b"next model")).exists() and store.partial_path(sha(b"next small")).exists()
    store.collect({active})
    assert not store.blob_path(sha(b"next model")).exists() and not store.partial_path(sha(b"next small")).exists()


def test_names_are_given_to_durable_files_only(store: BundleStore, monkeypatch: pytest.MonkeyPatch):
    """A file is on the disk before its name is, and the name before the next step: a power cut may keep either alone."""
    steps: list[tuple[str, int]] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append(("fsync", os.fstat(descriptor).st_ino))
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append(("replace", Path(source).stat().st_ino))
        real_replace(source, target)
        steps.append(("into", Path(target).parent.stat().st_ino))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    put(store, {"fp32": b"model"})
    renames = [number for number, (what, _) in enumerate(steps) if what == "replace"]
    assert len(renames) == 3  # the blob, the manifest on its way, the manifest
    for number in renames:
        assert ("fsync", steps[number][1]) in steps[:number]
        assert steps[number + 2] == ("fsync", steps[number + 1][1])


BLOBS = [f"blob {number}".encode() for number in range(6)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_collecting_never_takes_from_a_kept_bundle(tmp_path_factory, data):
    """Any set of bundles with any blobs in common, any set kept."""
    store = BundleStore(tmp_path_factory.mktemp("store"), reserve_bytes=0)
    made: dict[str, set[str]] = {}
    for version in range(data.draw(st.integers(1, 4))):
        names = data.draw(st.lists(st.sampled_from(["fp32", "fp16", "int8", "int4"]), unique=True))
        models = {name: data.draw(st.sampled_from(BLOBS)) for name in names}
        golden = tuple(data.draw(st.lists(st.sampled_from(BLOBS), max_size=2)))
        made[put(store, models, golden, str(version))] = {sha(each) for each in (*models.values(), *golden)}
    keep = data.draw(st.sets(st.sampled_from(sorted(made))))
    store.collect(keep)
    assert store.bundles() == keep
    assert {path.name for path in (store.folder / "blobs").iterdir()} == {name for each in keep for name in made[each]}


def test_collecting_may_stop_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever the power goes, a bundle that is listed is whole, and the next time finishes."""
    for call in range(100):
        store = BundleStore(tmp_path / str(call), reserve_bytes=0)
        old = put(store, {"fp32": b"old model", "int8": b"small"}, (b"picture",))
        new = put(store, {"fp32": b"new model", "int8": b"small"}, version="2")
        is_cut = False
        with cut_at(call, monkeypatch):
            try:
                store.collect({new})
            except PowerCut:
                is_cut = True
        again = BundleStore(tmp_path / str(call), reserve_bytes=0)
        for digest in again.bundles():
            again.verify(digest, {"fp32", "int8"})
        assert new in again.bundles()
        again.collect({new})
        assert again.bundles() == {new} and not again.path_of(old).exists()
        assert len(list((again.folder / "blobs").iterdir())) == 2
        if not is_cut:
            break
    assert 5 < call < 99


def test_room_is_asked_for_before(tmp_path: Path):
    """The reserve is the outbox's."""
    if reason := why_not():
        pytest.skip(reason)
    with SmallDisk(tmp_path / "disk", 4 << 20) as disk:
        store = BundleStore(disk.folder / "bundles", reserve_bytes=1 << 20)
        store.require_room(2 << 20)
        with pytest.raises(StateError, match=r"needs 3\.5 MiB and leaves 1\.0 MiB free") as caught:
            store.require_room(7 << 19)
        assert "free some space" in str(caught.value)


def test_read_only_disk_is_one_clear_error(tmp_path: Path):
    """What a file system does after an error."""
    if reason := why_not():
        pytest.skip(reason)
    with SmallDisk(tmp_path / "disk", 4 << 20) as disk:
        store = BundleStore(disk.folder / "bundles")
        digest = put(store, {"fp32": b"model"})
        disk.make_read_only()
        for step in (lambda: store.collect(()), lambda: store.announce(b"{}"), lambda: BundleStore(disk.folder / "b")):
            with pytest.raises(StateError, match="Read-only"):
                step()
        store.verify(digest, {"fp32"})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_disk_that_fails_at_any_call_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    """Each call of putting a bundle in fails once; the error is clear and the second attempt succeeds."""
    for call in range(100):
        store = BundleStore(tmp_path / f"{code}-{call}", reserve_bytes=0)
        has_failed = False
        with cut_at(call, monkeypatch, OSError(code, os.strerror(code))):
            try:
                store.announce(manifest({"fp32": b"model"}))
                store.partial_path(sha(b"model")).write_bytes(b"model")
                store.put_blob(store.partial_path(sha(b"model")), sha(b"model"), 5)
                store.put_manifest(manifest({"fp32": b"model"}))
            except StateError:
                has_failed = True
        for digest in store.bundles():
            store.verify(digest, {"fp32"})
        digest = put(store, {"fp32": b"model"})
        store.verify(digest, {"fp32"})
        if not has_failed:
            break
    assert 8 < call < 99
