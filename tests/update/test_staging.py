"""From a signed slot to a bundle in the store: only what is lacking, over whatever transport, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import threading
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.bundle.reader import open_bundle
from agent.errors import BundleError, ReleaseRefusedError, StateError, UnavailableError
from agent.update.documents import Form
from agent.update.fetching import hauling
from agent.update.fetching.download import Download
from agent.update.fetching.staging import Stager
from agent.update.fetching.store import BundleStore
from agent.update.record import Slot
from agent.update.transports import http
from agent.update.transports.folder import FolderTransport
from agent.update.transports.http import HttpTransport
from agent.update.transports.pacing import Pace
from agent.update.transports.transport import StoppedError
from agent.update.transports.trying import Transports
from simulator.clock import VirtualClock
from simulator.disk import SmallDisk, why_not
from simulator.link import FaultyLink
from simulator.mirror import Mirror, Misbehaviour

CHUNK = 1024
CHANCE = random.Random(11)
MODEL = CHANCE.randbytes(20 * CHUNK + 3)
NEXT_MODEL = MODEL[:-300] + CHANCE.randbytes(300)
SMALL = bytes(6 * CHUNK)
PICTURE = CHANCE.randbytes(500)
CLOCK = VirtualClock()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pin(content: bytes) -> dict[str, object]:
    return {"sha256": sha(content), "size_bytes": len(content)}


def xor(first: bytes, second: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(first, second, strict=True))


class Repository:
    """A folder as the release tools write it, with stand-ins for compression (zlib) and deltas (zlib of the XOR)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.targets: dict[str, bytes] = {}
        self.asked: list[str] = []
        (folder / "blobs").mkdir(parents=True)

    def add(self, version: str, models: dict[str, bytes], base: bytes | None = None, **changes: object) -> Slot:
        tensor = {"name": "x", "dtype": "float32", "shape": [1]}
        manifest = {
            "name": "tiny",
            "version": version,
            "input": {"kind": "image", "width": 4, "height": 4},
            "decoder": {"model_type": "yolox"},
            "variants": [
                {"name": name, "opset": 17, "inputs": [tensor], "outputs": [tensor], "model": pin(content)}
                for name, content in models.items()
            ],
            "golden": [{"input": pin(PICTURE), "expected": pin(b"{}")}],
            **changes,
        }
        content = json.dumps(manifest, sort_keys=True).encode()
        blobs = {sha(each): self._forms(each, base) for each in (*models.values(), PICTURE, b"{}")}
        transfer = {"chunk_bytes": CHUNK, "blobs": blobs}
        self.targets[f"bundles/tiny/{version}/manifest.json"] = content
        self.targets[f"bundles/tiny/{version}/transfer.json"] = json.dumps(transfer).encode()
        return Slot(int(version), "tiny", version, sha(content))

    def _forms(self, blob: bytes, base: bytes | None) -> list[dict[str, object]]:
        forms = [
            self._form("raw", blob),
            self._form("zstd", zlib.compress(blob, 0) if blob == MODEL else zlib.compress(blob)),
        ]
        if base is not None and len(base) == len(blob):
            forms.append(self._form("patch", zlib.compress(xor(base, blob)), sha(base)))
        return forms

    def _form(self, kind: str, content: bytes, base: str | None = None) -> dict[str, object]:
        (self.folder / "blobs" / sha(content)).write_bytes(content)
        chunks = [sha(content[start : start + CHUNK]) for start in range(0, len(content), CHUNK)]
        return {"kind": kind, **pin(content), "base": base, "chunks": chunks}

    def change_transfer(self, version: str, change) -> None:
        path = f"bundles/tiny/{version}/transfer.json"
        document = json.loads(self.targets[path])
        change(document)
        self.targets[path] = json.dumps(document).encode()

    def target(self, path: str, limit_bytes: int) -> bytes:
        self.asked.append(path)
        content = self.targets[path]
        assert len(content) <= limit_bytes
        return content


def unpack(form: Form, travelled: Path, base: Path | None, output: Path, sha256: str, size_bytes: int) -> None:
    try:
        content = zlib.decompress(travelled.read_bytes())
    except zlib.error as error:
        raise BundleError(f"cannot be unpacked: {error}") from error
    try:
        output.write_bytes(xor(base.read_bytes(), content) if base else content)
    except OSError as error:
        raise StateError(f"cannot be written: {error.strerror}") from error


class Counted(FolderTransport):
    """A folder that counts the bytes it gives, and may break off after some."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bytes = 0
        self.paths: list[str] = []
        self.breaks_after: int | None = None

    def fetch(self, path, chunks, stop):
        self.paths.append(path)
        super().fetch(path, _Counting(self, chunks), stop)


class _Counting:
    def __init__(self, transport: Counted, chunks: Download) -> None:
        self._transport, self._chunks = transport, chunks
        self.chunk_bytes, self.size_bytes, self.missing = chunks.chunk_bytes, chunks.size_bytes, chunks.missing

    def take(self, index: int, data: bytes) -> bool:
        if self._transport.breaks_after is not None:
            if self._transport.breaks_after == 0:
                raise UnavailableError("the line went down")
            self._transport.breaks_after -= 1
        self._transport.bytes += len(data)
        return self._chunks.take(index, data)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def transport(repository: Repository) -> Counted:
    return Counted(repository.folder)


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles", reserve_bytes=0)


@pytest.fixture
def stage(repository: Repository, transport: Counted, store: BundleStore):
    def run(slot: Slot, wanted: Collection[str] = ("fp32",), **parts) -> list[tuple[int, int, str]]:
        told: list[tuple[int, int, str]] = []
        stager = Stager(
            parts.get("store", store),
            parts.get("transports", transport),
            parts.get("unpack", unpack),
            CLOCK,
            elsewhere=parts.get("elsewhere", ()),
        )
        stop = parts.get("stop", threading.Event())
        stager.stage(slot, repository.target, lambda _: wanted, lambda *each: told.append(each), stop)
        return told

    return run


def test_bundle_comes_whole_and_opens(repository: Repository, stage, store: BundleStore, transport: Counted):
    """Wanted variant and golden samples, and nothing else."""
    slot = repository.add("1", {"fp32": MODEL, "int8": SMALL})
    told = stage(slot)
    store.verify(slot.digest, {"fp32"})
    bundle = open_bundle(store.path_of(slot.digest))
    assert bundle.variants_present() == {"fp32"}
    assert bundle.model_path("fp32").read_bytes() == MODEL
    assert transport.bytes == len(MODEL) + len(PICTURE) + 2
    assert told[-1] == (transport.bytes, transport.bytes, transport.name)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert not list((store.folder / "partial").iterdir())


def test_smallest_form_travels(repository: Repository, stage, store: BundleStore, transport: Counted):
    """Zeros compress; chance does not, and then the file itself is cheaper than its compressed form."""
    slot = repository.add("1", {"int8": SMALL})
    stage(slot, {"int8"})
    assert store.blob_path(sha(SMALL)).read_bytes() == SMALL
    assert transport.bytes < 700


def test_delta_travels_where_its_base_is_there(repository: Repository, stage, store: BundleStore, transport: Counted):
    """The previous version's file is on the device already."""
    stage(repository.add("1", {"fp32": MODEL}))
    transport.bytes = 0
    second = repository.add("2", {"fp32": NEXT_MODEL}, base=MODEL)
    stage(second)
    assert store.blob_path(sha(NEXT_MODEL)).read_bytes() == NEXT_MODEL
    assert transport.bytes < 1000
    assert not list((store.folder / "partial").iterdir())


def test_delta_without_its_base_is_not_taken(repository: Repository, stage, store: BundleStore, transport: Counted):
    """A device that skipped a version, or whose base is damaged: that one is found before it costs anything."""
    stage(repository.add("1", {"fp32": MODEL}))
    store.blob_path(sha(MODEL)).write_bytes(MODEL[:-1] + b"?")
    transport.bytes = 0
    second = repository.add("2", {"fp32": NEXT_MODEL}, base=MODEL)
    stage(second)
    store.verify(second.digest, {"fp32"})
    assert transport.bytes == len(NEXT_MODEL)


def test_factory_bundle_serves_as_base_and_as_blob(
    repository: Repository, stage, store: BundleStore, transport, tmp_path
):
    """The first update of a device should be as cheap as the second."""
    factory = tmp_path / "factory" / "blobs"
    factory.mkdir(parents=True)
    (factory / sha(MODEL)).write_bytes(MODEL)
    (factory / sha(PICTURE)).write_bytes(PICTURE)
    (factory / sha(b"{}")).write_bytes(b"xx")  # damaged: fetched
    slot = repository.add("2", {"fp32": NEXT_MODEL}, base=MODEL)
    stage(slot, elsewhere=[tmp_path / "nowhere", factory])
    store.verify(slot.digest, {"fp32"})
    assert transport.bytes < 1000
    assert not store.blob_path(sha(MODEL)).exists()


def test_going_back_to_a_stored_bundle_costs_nothing(repository: Repository, stage, transport: Counted):
    """An operator's rollback is a newly signed release of a bundle that is here."""
    slot = repository.add("1", {"fp32": MODEL})
    stage(slot)
    stage(repository.add("2", {"fp32": NEXT_MODEL}))
    transport.bytes = 0
    repository.asked.clear()
    stage(Slot(3, slot.name, slot.version, slot.digest, rollback_reason="worse"))
    assert transport.bytes == 0 and not repository.asked


@pytest.mark.parametrize("damage", [MODEL[:-1] + b"?", b""], ids=["altered", "emptied"])
def test_damaged_stored_bundle_is_mended(repository: Repository, stage, store: BundleStore, transport, damage: bytes):
    """Staging again verifies every byte and fetches what rotted."""
    slot = repository.add("1", {"fp32": MODEL})
    stage(slot)
    store.blob_path(sha(MODEL)).write_bytes(damage)
    transport.bytes = 0
    stage(slot)
    store.verify(slot.digest, {"fp32"})
    assert transport.bytes == len(MODEL)


def test_delta_that_does_not_unpack_costs_only_itself(repository: Repository, stage, store: BundleStore, transport):
    """A child that crashes on it, or gives other bytes: the whole file comes instead."""
    stage(repository.add("1", {"fp32": MODEL}))
    second = repository.add("2", {"fp32": NEXT_MODEL}, base=MODEL)

    def crashing(form: Form, travelled: Path, base: Path | None, output: Path, sha256: str, size_bytes: int) -> None:
        output.write_bytes(b"half")
        if form.kind == "patch":
            raise BundleError("the child died of signal 11")
        unpack(form, travelled, base, output, sha256, size_bytes)

    transport.bytes = 0
    stage(second, unpack=crashing)
    store.verify(second.digest, {"fp32"})
    assert len(NEXT_MODEL) < transport.bytes < len(NEXT_MODEL) + 1000
    assert not list((store.folder / "partial").iterdir())


def test_forms_that_all_give_something_else_refuse_the_release(repository: Repository, stage, store: BundleStore):
    """Final: it will never be better."""

    def wrong(form: Form, travelled: Path, base: Path | None, output: Path, sha256: str, size_bytes: int) -> None:
        output.write_bytes(bytes(size_bytes))

    def only_packed(document) -> None:
        document["blobs"][sha(NEXT_MODEL)] = document["blobs"][sha(NEXT_MODEL)][1:]

    slot = repository.add("1", {"fp32": NEXT_MODEL})
    repository.change_transfer("1", only_packed)
    with pytest.raises(ReleaseRefusedError, match="zstd: what came is not the blob"):
        stage(slot, unpack=wrong)
    assert not store.bundles()


def _drop_forms(document) -> None:
    document["blobs"] = {}


def _only_patch(document) -> None:
    document["blobs"][sha(MODEL)] = [
        {**document["blobs"][sha(MODEL)][0], "kind": "patch", "base": "a" * 64, "sha256": "b" * 64}
    ]


def _other_raw(document) -> None:
    document["blobs"][sha(MODEL)][0]["sha256"] = "a" * 64


def _fewer_chunks(document) -> None:
    document["blobs"][sha(MODEL)][0]["chunks"].pop()


def _raw_with_base(document) -> None:
    document["blobs"][sha(MODEL)][0]["base"] = "a" * 64


def _newer(document) -> None:
    document["schema_version"] = 2


def _no_chunks(document) -> None:
    document["chunk_bytes"] = 0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_drop_forms, "without another blob"),
        (_only_patch, "without another blob"),
        (_other_raw, "another file than the blob"),
        (_fewer_chunks, "are not 20 chunks"),
        (_raw_with_base, "`raw` with a base"),
        (_newer, "schema_version"),
        (_no_chunks, "chunk_bytes"),
    ],
)
def test_transfer_documents_that_are_no_good_refuse_the_release(repository: Repository, stage, change, part: str):
    """Signed by somebody who made a mistake: said at once, not after a gigabyte."""
    slot = repository.add("1", {"fp32": MODEL})
    repository.change_transfer("1", change)
    with pytest.raises(ReleaseRefusedError, match=part):
        stage(slot)


def test_manifests_that_are_no_good_refuse_the_release(repository: Repository, stage):
    """Another than the assignment names, from a newer builder, of another bundle, or of no use here."""
    slot = repository.add("1", {"fp32": MODEL})
    with pytest.raises(ReleaseRefusedError, match="names the manifest"):
        stage(Slot(1, "tiny", "1", "a" * 64))
    with pytest.raises(ReleaseRefusedError, match="no variant that this device can use; it has fp32"):
        stage(slot, {"int4"})
    with pytest.raises(ReleaseRefusedError, match="found 2: a newer builder"):
        stage(repository.add("2", {"fp32": MODEL}, schema_version=2))
    with pytest.raises(ReleaseRefusedError, match="manifest says other 3"):
        stage(repository.add("3", {"fp32": MODEL}, name="other"))


def test_file_that_the_repository_lacks_is_asked_for_later(repository: Repository, stage, store: BundleStore):
    """An upload that is not finished must not condemn the release; another form is taken where there is one."""
    slot = repository.add("1", {"fp32": MODEL})
    (repository.folder / "blobs" / sha(MODEL)).unlink()
    stage(slot)
    store.verify(slot.digest, {"fp32"})
    slot = repository.add("2", {"fp32": NEXT_MODEL})
    for path in (repository.folder / "blobs").iterdir():
        path.unlink()
    with pytest.raises(UnavailableError, match="no form of a blob"):
        stage(slot)


def test_interrupted_download_goes_on_where_it_stopped(
    repository: Repository, stage, store: BundleStore, transport: Counted
):
    """A cut after each chunk, and a new process: not one comes twice."""
    slot = repository.add("1", {"fp32": MODEL})
    cuts = 0
    while cuts < 50:
        transport.breaks_after = 1
        try:
            stage(slot, store=BundleStore(store.folder, reserve_bytes=0))
            break
        except UnavailableError:
            cuts += 1
            store.collect({slot.digest})
            assert not store.bundles()
    store.verify(slot.digest, {"fp32"})
    assert cuts > 18
    assert transport.bytes == len(MODEL) + len(PICTURE) + 2


def test_download_goes_on_over_another_transport(repository: Repository, stage, store: BundleStore, transport: Counted):
    """MQTT brought half; a stick brings the rest; a mirror that lies is passed over."""
    slot = repository.add("1", {"fp32": MODEL})
    lying = Repository(store.folder.parent / "lying")
    for path in (repository.folder / "blobs").iterdir():
        (lying.folder / "blobs" / path.name).write_bytes(bytes(path.stat().st_size))
    transport.breaks_after = 7
    rest = Counted(repository.folder)
    told = stage(slot, transports=Transports([transport, FolderTransport(lying.folder), rest]))
    store.verify(slot.digest, {"fp32"})
    assert transport.bytes == 7 * CHUNK
    assert transport.bytes + rest.bytes == len(MODEL) + len(PICTURE) + 2
    assert told[-1][2] == rest.name


def test_fifty_cuts_and_five_restarts_cost_a_twentieth_at_most(repository: Repository, stage, store, monkeypatch):
    """The number of the design, over HTTP: what came through a link of 16 MB/s is counted, headers and all."""
    monkeypatch.setattr(http, "AGAIN_S", 0)
    monkeypatch.setitem(globals(), "CHUNK", 8 << 10)
    model = random.Random(12).randbytes(10 << 20)
    slot = repository.add("1", {"fp32": model})
    with Mirror(repository.folder) as mirror, FaultyLink("127.0.0.1", mirror.port) as link:
        mirror.faults = Misbehaviour(cut_after_bytes=len(model) // 51)
        link.set("down", rate_bytes_s=16e6)
        for restarts in range(6):
            stop = _StopAfter(restarts)
            mirrored = HttpTransport(f"http://127.0.0.1:{link.port}", CLOCK, Pace(CLOCK, None))
            transports = _Stopping(mirrored, stop, len(model) // (6 * CHUNK))
            try:
                stage(slot, store=BundleStore(store.folder, reserve_bytes=0), transports=transports, stop=stop)
            except StoppedError:
                continue
            break
        store.verify(slot.digest, {"fp32"})
        assert restarts == 5
        assert len(mirror.requests) > 50
        assert link.passed_bytes["down"] <= 1.05 * len(model)


class _StopAfter(threading.Event):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Stopping:
    """Sets `stop` after so many chunks: a restart."""

    def __init__(self, transport, stop: _StopAfter, count: int) -> None:
        self._transport, self._stop, self._left = transport, stop, count
        self.name = transport.name

    def fetch(self, path, chunks, stop):
        outer = self

        class Stopped(_Counting):
            def take(self, index, data):
                outer._left -= 1
                if outer._left <= 0 and outer._stop.number < 5:
                    outer._stop.set()
                return self._chunks.take(index, data)

        self.bytes, self.breaks_after = 0, None
        self._transport.fetch(path, Stopped(self, chunks), stop)


def test_stop_is_heeded(repository: Repository, stage):
    """A service that stops does not wait for gigabytes."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        stage(repository.add("1", {"fp32": MODEL}), stop=stop)


CALLS = ("fsync", "replace", "unlink", "mkdir", "rmdir", "open")


class PowerCut(BaseException):
    """The process is gone: nothing catches this, and nothing is done after it."""


@contextmanager
def fail_at(call: int, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None) -> Iterator[None]:
    """Let the file system call number `call` fail with `error`; without one, it and all after it: a power cut."""
    count = [0]

    def fail() -> None:
        count[0] += 1
        if error is not None and count[0] == call + 1:
            raise error
        if error is None and count[0] > call:
            raise PowerCut

    def failing(real):
        def instead(*args, **kwargs):
            fail()
            return real(*args, **kwargs)

        return instead

    real_write = Download._write

    def torn(self: Download, offset: int, data: bytes) -> None:
        try:
            fail()
        except PowerCut:
            if count[0] == call + 1:
                real_write(self, offset, data[: len(data) // 2])
            raise
        except OSError as failure:
            real_write(self, offset, data[: len(data) // 2])
            raise self._failed(failure) from failure
        real_write(self, offset, data)

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, failing(getattr(os, name)))
        patch.setattr(Download, "_write", torn)
        yield


def _two_releases(repository: Repository) -> tuple[Slot, Slot]:
    first = repository.add("1", {"fp32": MODEL, "int8": SMALL})
    return first, repository.add("2", {"fp32": NEXT_MODEL, "int8": SMALL}, base=MODEL)


@pytest.mark.parametrize("code", [None, errno.ENOSPC, errno.EIO], ids=["power cut", "disk full", "disk failing"])
def test_whatever_ends_a_step_the_next_run_completes_it(
    repository: Repository, stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
):
    """At every call: what is complete stays complete, nothing half is listed, and running again needs no cleaning up."""
    first, second = _two_releases(repository)
    for call in range(300):
        store = BundleStore(tmp_path / f"store-{call}", reserve_bytes=0)
        stage(first, {"fp32"}, store=store)
        has_failed = False
        with fail_at(call, monkeypatch, None if code is None else OSError(code, os.strerror(code))):
            try:
                stage(second, {"fp32", "int8"}, store=store)
                store.collect({second.digest})
            except (PowerCut, StateError, UnavailableError):  # the repository is on the same disk
                has_failed = True
        again = BundleStore(tmp_path / f"store-{call}", reserve_bytes=0)
        wanted = {first.digest: {"fp32"}, second.digest: {"fp32", "int8"}}
        assert again.bundles()
        for digest in again.bundles():
            again.verify(digest, wanted[digest])
        stage(second, {"fp32", "int8"}, store=again)
        again.verify(second.digest, {"fp32", "int8"})
        again.collect({second.digest})
        assert again.bundles() == {second.digest}
        assert len(list((again.folder / "blobs").iterdir())) == 4
        assert not list((again.folder / "partial").iterdir())
        if not has_failed:
            break
    assert 30 < call < 299


def test_full_disk_at_every_size_is_survived(repository: Repository, stage, tmp_path: Path):
    """A real file system that runs out of room anywhere between the first byte and the last."""
    if reason := why_not():
        pytest.skip(reason)
    first, second = _two_releases(repository)
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        refusals = 0
        for left in range(0, 120 << 10, 8 << 10):
            store = BundleStore(disk.folder / str(left), reserve_bytes=-(1 << 20))  # the check beforehand is off
            stage(first, {"fp32"}, store=store)
            disk.fill(leave_bytes=left)
            try:
                stage(second, {"fp32", "int8"}, store=store)
            except StateError:
                refusals += 1
            store.verify(first.digest, {"fp32"})
            disk.free()
            stage(second, {"fp32", "int8"}, store=store)
            store.verify(second.digest, {"fp32", "int8"})
            store.collect(())
        assert 3 < refusals < 14


def test_room_is_checked_before_and_made_from_what_others_left(repository: Repository, stage, tmp_path: Path):
    """An abandoned release's download gives way; this one's own is counted as there."""
    if reason := why_not():
        pytest.skip(reason)
    slot = repository.add("1", {"fp32": MODEL})
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        store = BundleStore(disk.folder / "bundles", reserve_bytes=64 << 10)
        abandoned = store.partial_path("a" * 64)
        abandoned.write_bytes(bytes(100 << 10))
        disk.fill(leave_bytes=32 << 10)
        stage(slot, store=store)
        assert not abandoned.exists()
        disk.fill(leave_bytes=70 << 10)
        with pytest.raises(StateError, match="too full for the update"):
            stage(repository.add("2", {"fp32": NEXT_MODEL}), store=store)


def test_progress_is_told_now_and_then(repository: Repository, stage, monkeypatch: pytest.MonkeyPatch):
    """Not once a chunk: each one becomes a message over the broker."""
    assert len(stage(repository.add("1", {"fp32": MODEL}))) <= 6
    monkeypatch.setattr(hauling, "PROGRESS_EVERY_S", 0)
    assert len(stage(repository.add("2", {"fp32": NEXT_MODEL}))) > 20
