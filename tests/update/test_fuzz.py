"""Documents and payloads from outside, damaged in every way that chance finds: our own errors, or they are understood.

Each goes as far as it gets on a device, not through its parser only. Short by default, long with `HOLDFAST_SOAK=1`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.bundle.reader import blobs_of, parse_manifest
from agent.errors import HoldfastError, UnavailableError
from agent.pipeline.messages import PipelineJob
from agent.pipeline.overrides import with_overrides
from agent.pipeline.settings import CameraSettings
from agent.update.documents import CHUNK_BYTES
from agent.update.fetching.staging import Stager
from agent.update.fetching.store import BundleStore
from agent.update.record import Record, Slot
from agent.update.schedule import CheckSchedule, read_hint
from agent.update.selection import Device, choose, gate, slot_of
from agent.update.settings import UpdateSettings
from agent.update.slots import Slots
from agent.update.verification.checking import read_channel
from agent.update.verification.highwater import HighWater
from simulator.clock import SeededRandom, VirtualClock

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
pytestmark = pytest.mark.timeout(7200 if IS_SOAK else 300)
FUZZ = settings(
    max_examples=50_000 if IS_SOAK else 200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
A, B = "a" * 64, "b" * 64
MOMENTS = [
    datetime(1, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 11, 20, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
]  # fmt: skip

CHANNEL = {
    "schema_version": 1,
    "channel": "stable",
    "release": 9,
    "issued": "2026-11-20T09:00:00Z",
    "assignments": [
        {
            "release": 9,
            "bundle": {"name": "tiny", "version": "1.2", "manifest_sha256": A},
            "percent": 100,
            "seed": "s",
            "groups": [],
            "not_before": "2026-11-20T08:00:00Z",
            "window": "22:00-04:30",
            "rollback": {"from_version": "1.3", "reason": "noise"},
            "pipelines": {
                "door": {"min_score": 0.7, "labels": ["person"], "zones": {"gate": [[0, 0], [1, 0], [1, 1]]}}
            },
        }
    ],
}
MODEL = {"sha256": A, "size_bytes": 70_000}
PICTURE, ANSWER = {"sha256": B, "size_bytes": 5}, {"sha256": "c" * 64, "size_bytes": 2}
TENSOR = {"name": "x", "dtype": "float32", "shape": [1]}
MANIFEST = {
    "name": "tiny",
    "version": "1.2",
    "input": {"kind": "image", "width": 4, "height": 4},
    "decoder": {"model_type": "yolox"},
    "variants": [{"name": "fp32", "opset": 17, "inputs": [TENSOR], "outputs": [TENSOR], "model": MODEL}],
    "golden": [{"input": PICTURE, "expected": ANSWER}],
}
TRANSFER = {
    "schema_version": 1,
    "chunk_bytes": CHUNK_BYTES,
    "blobs": {
        A: [
            {"kind": "raw", **MODEL, "chunks": [A, B]},
            {"kind": "zstd", "sha256": "d" * 64, "size_bytes": 10, "chunks": [A]},
            {"kind": "patch", "sha256": "e" * 64, "size_bytes": 5, "base": B, "chunks": [A]},
        ],
        B: [{"kind": "raw", **PICTURE, "chunks": [A]}],
        "c" * 64: [{"kind": "raw", **ANSWER, "chunks": [A]}],
    },
}

_ODD_VALUES = st.sampled_from(
    [
        None, True, 0, -1, 1 << 31, 1 << 63, 1 << 200, 10**4200, 0.5, 1e308, float("nan"), float("inf"), "", "x" * 300, "\0",
        "\ud800", "../../etc/passwd", "/", ".", "0" * 64, "ß" * 64, "stable", "raw", "patch", "residual", "00:00-00:00",
        "23:59-00:00", "24:00-25:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-20T08:00:00",
        1e300, [], {}, [[]], {"": None}, [None] * 300,
    ]
)  # fmt: skip
_ANY_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    for key, inner in pairs:
        found += [(value, key), *places(inner)]
    return found


@st.composite
def damaged(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    """The document with other values, without some, or with bytes altered; now and then only bytes, or deep nesting."""
    if draw(st.integers(0, 19)) == 0:
        depth = draw(st.sampled_from([10, 150, 199, 200, 255, 1000, 100_000]))
        return draw(st.binary(max_size=200) | st.sampled_from([b"[" * depth, b'{"a":' * depth + b"1" + b"}" * depth]))
    value = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := places(value)):
            break
        container, key = draw(st.sampled_from(found))
        if draw(st.integers(0, 4)) == 0:
            del container[key]
        else:
            container[key] = copy.deepcopy(draw(_ODD_VALUES | _ANY_VALUES))
    content = bytearray(json.dumps(value).encode())
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(content)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def nested(depth: int) -> bytes:
    """A channel's document whose zones go as deep as a parser takes them."""
    document = copy.deepcopy(CHANNEL)
    document["assignments"][0]["pipelines"]["door"]["zones"] = {"gate": "DEEP"}  # type: ignore[index]
    return json.dumps(document).replace('"DEEP"', "[" * depth + "]" * depth).encode()


class SignedWord:
    """Trust in a repository that signs whatever it is told."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def refresh(self) -> None:
        """Nothing newer."""

    def remembered(self, path: str) -> bytes:
        return self._content

    def target(self, path: str, limit_bytes: int) -> bytes:
        return self._content


class Away:
    """A transport that is not there."""

    name = "away"

    def fetch(self, path: str, chunks: object, stop: threading.Event) -> None:
        raise UnavailableError("away", where=path)


DOOR = PipelineJob(
    name="door",
    kind="camera",
    settings=CameraSettings.model_validate({"source": "scene:parcels", "model": "people"}).model_dump(mode="json"),
)


@FUZZ
@given(damaged(CHANNEL), st.sampled_from(MOMENTS))
@example(DEEP, MOMENTS[2])
@example(nested(150), MOMENTS[2])
@example(nested(190), MOMENTS[2])
@example(json.dumps(CHANNEL).replace("2026-11-20T08:00:00Z", "0001-01-01T00:00:00+14:00").encode(), MOMENTS[2])
def test_channel_document_of_any_kind_is_refused_or_remembered(content: bytes, now: datetime) -> None:
    """It decides what a device runs, so it is read before anything else, and what was understood must survive a restart."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(HoldfastError):
        document = read_channel(SignedWord(content), HighWater(Path(folder)), "stable")
        assert HighWater(Path(folder)).release("stable") == document.release
        assignment = choose(document, Device("cam-1", frozenset({"west"})))
        if assignment is None:
            return
        slot = slot_of(assignment)
        gate(slot.not_before, [*filter(None, [slot.window]), "21:00-05:00"], now)
        record = Record("people", "stable", "fetching", candidate=slot)
        Slots(Path(folder)).save(record)
        assert Slots(Path(folder)).load("people") == record
        with_overrides([DOOR], slot.pipelines)


@FUZZ
@given(damaged(TRANSFER))
@example(DEEP)
def test_transfer_document_of_any_kind_is_refused_or_fetched_by(tmp_path: Path, content: bytes) -> None:
    """Lengths and names in it decide what is written where; the bytes themselves are away in this test."""
    manifest = json.dumps(MANIFEST).encode()
    slot = Slot(9, "tiny", "1.2", hashlib.sha256(manifest).hexdigest())
    store = BundleStore(tmp_path / "bundles", reserve_bytes=0)
    stager = Stager(store, Away(), lambda *_: None, VirtualClock())
    answers = {"manifest.json": manifest, "transfer.json": content}
    with pytest.raises(HoldfastError):
        stager.stage(
            slot,
            lambda path, _: answers[path.rpartition("/")[2]],
            lambda _: {"fp32"},
            lambda *_: None,
            threading.Event(),
        )
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and (tmp_path / "bundles") not in path.parents]
    assert not outside


@FUZZ
@given(damaged(MANIFEST))
@example(DEEP)
def test_manifest_of_any_kind_is_refused_or_understood(content: bytes) -> None:
    """The digest only says that it was signed."""
    with contextlib.suppress(HoldfastError):
        manifest = parse_manifest(content, where="manifest.json")
        assert all(blob.size_bytes >= 0 for blob in blobs_of(manifest))


@FUZZ
@given(st.binary(max_size=64) | st.integers().map(lambda number: str(number).encode()) | st.text().map(str.encode))
@example("٣".encode())
@example(b"9" * 5000)
@example(b" 7")
@example(b"+7")
@example(b"1_0")
def test_hint_of_any_kind_is_worth_a_question_at_most(payload: bytes) -> None:
    """Anybody on the broker may write it, of any size."""
    schedule = CheckSchedule(["people"], UpdateSettings(root=Path("root.json")), SeededRandom())
    schedule.start(0.0)
    due_s = schedule.due_s
    schedule.hint(payload, 0.0)
    assert 0.0 <= schedule.due_s <= due_s
    version = read_hint(payload)
    assert version is None or 0 <= version < 10**18


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Both copies of a model's record."""
    with tempfile.TemporaryDirectory() as folder:
        Slots(Path(folder)).save(Record("people", "stable", "probation", Slot(7, "tiny", "1", A), is_confirmed=False))
        good = (Path(folder) / "people.json").read_bytes()
    damage = damaged(json.loads(good)) | st.just(good) | st.integers(0, len(good)).map(lambda end: good[:end])
    return draw(damage), draw(damage)


@FUZZ
@given(damaged_files())
@example((DEEP, DEEP))
@example((b"", b"\xff\xfe\0"))
def test_record_of_any_kind_is_understood_or_set_aside(files: tuple[bytes, bytes]) -> None:
    """Whatever is on the disk, the agent starts, and its next record is kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "people.json").write_bytes(files[0])
        (folder / "people.copy.json").write_bytes(files[1])
        slots = Slots(folder)
        record = slots.load("people")
        assert record.model == "people"
        slots.save(record)
        assert Slots(folder).load("people") == record
