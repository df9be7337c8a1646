"""The record on disk: whole, or set aside; never a reason not to start."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import atomicfile
from agent.errors import StateError
from agent.update.record import Denied, Gates, Record, Slot
from agent.update.slots import Slots

ACTIVE = Slot(
    7, "parcels", "1.2.0", "a" * 64, {"door": {"min_score": 0.7, "zones": {"gate": [[0, 0.1], [1, 1]]}}}, "noise",
    datetime(2026, 11, 20, tzinfo=UTC), "22:00-04:30",
)  # fmt: skip
RECORD = Record(
    "people", "stable", "probation", ACTIVE, False, replace(ACTIVE, release=5), None,
    (Denied(6, "b" * 64, "crash"),), 2, 12.5, 300, Gates(40.0, 1 << 30), "why", 9,
)  # fmt: skip


def test_record_comes_back_as_it_was(tmp_path):
    """Every field; what is lost here is forgotten after each restart."""
    Slots(tmp_path / "updates").save(RECORD)
    assert Slots(tmp_path / "updates").load("people") == RECORD


def test_unknown_model_begins_with_the_factory_bundle(tmp_path):
    """The first start of a device."""
    assert Slots(tmp_path / "none").load("people") == Record("people")


@pytest.mark.parametrize("which", ["people.json", "people.copy.json"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-40]), id="truncated"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b'"release": 7', b'"release": 8')), id="flipped"
        ),
        pytest.param(lambda path: path.write_bytes(b"[" * 100_000), id="nested"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe\x00"), id="garbage"),
        pytest.param(lambda path: path.write_text("[1]"), id="other JSON"),
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a folder"),
    ],
)
def test_damaged_file_is_set_aside_and_its_twin_knows_all(which, damage, tmp_path):
    """Above all what is denied: an older generation would run it again."""
    slots = Slots(tmp_path)
    slots.save(replace(RECORD, denied=()))
    slots.save(RECORD)
    damage(tmp_path / which)
    assert Slots(tmp_path).load("people") == RECORD
    slots = Slots(tmp_path)
    slots.load("people")
    slots.save(replace(RECORD, starts=3))
    assert Slots(tmp_path).load("people").starts == 3


@pytest.mark.parametrize("damaged", ["people.json", "people.copy.json"])
def test_damaged_copy_is_mended_before_the_other_one_can_be(damaged, tmp_path):
    """Months may pass without a save; then the second damage would take what is denied with it."""
    Slots(tmp_path).save(RECORD)
    for name in (damaged, "people.json", "people.copy.json"):
        (tmp_path / name).write_bytes(b"garbage")
        assert Slots(tmp_path).load("people") == RECORD


def test_both_damaged_begins_anew_and_keeps_the_evidence(tmp_path):
    """The agent starts, with the operator's own bundle."""
    Slots(tmp_path).save(RECORD)
    for path in tmp_path.iterdir():
        path.write_bytes(b"\0" * 100)
    assert Slots(tmp_path).load("people") == Record("people")
    assert {path.name for path in tmp_path.iterdir()} == {"people.json.damaged", "people.copy.json.damaged"}


def test_endless_file_is_not_read_whole(tmp_path):
    """A file system gone wrong may show any length."""
    path = tmp_path / "people.json"
    path.touch()
    os.truncate(path, 1 << 40)
    assert Slots(tmp_path).load("people") == Record("people")


@pytest.mark.parametrize("fails_at", range(2))
def test_power_between_the_two_files_loses_nothing(fails_at, tmp_path, monkeypatch):
    """Old or new, whole."""
    slots, real, calls = Slots(tmp_path), atomicfile.write, []
    slots.save(RECORD)

    class OffError(Exception):
        """The power is gone."""

    def write(path, content):
        if len(calls) == fails_at:
            raise OffError
        calls.append(path)
        real(path, content)

    monkeypatch.setattr(atomicfile, "write", write)
    new = replace(RECORD, starts=3)
    with pytest.raises(OffError):
        slots.save(new)
    monkeypatch.undo()
    assert Slots(tmp_path).load("people") == (RECORD, new)[fails_at]


def test_full_disk_is_said_and_the_old_record_stays(tmp_path, monkeypatch):
    """Whoever saves must not go on."""
    slots = Slots(tmp_path)
    slots.save(RECORD)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomicfile, "write", full)
    with pytest.raises(StateError, match="No space left"):
        slots.save(replace(RECORD, starts=3))
    monkeypatch.undo()
    assert Slots(tmp_path).load("people") == RECORD


def test_record_of_a_newer_holdfast_is_read(tmp_path):
    """After a downgrade of the agent its unknown fields do not matter."""
    from agent.update import slots as module

    Slots(tmp_path).save(RECORD)
    path = tmp_path / "people.json"
    envelope = json.loads(path.read_bytes())
    envelope["record"]["tomorrow"] = 1
    envelope["sha256"] = module._checksum(envelope["generation"], envelope["record"])
    path.write_text(json.dumps(envelope))
    (tmp_path / "people.copy.json").unlink()
    assert Slots(tmp_path).load("people") == RECORD


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=400))
def test_any_bytes_are_survived(tmp_path_factory, content):
    """Fuzzing the one file that decides what runs."""
    folder = tmp_path_factory.mktemp("slots")
    (folder / "people.json").write_bytes(content)
    assert Slots(folder).load("people") == Record("people")


def test_most_that_a_channel_may_say_is_read_again(tmp_path):
    """A record that could be written and not read would take the confirmed bundle with it at the next start."""
    nested = list(range(10)) * 11_000
    for _ in range(120):
        nested = [nested]
    record = replace(RECORD, candidate=replace(ACTIVE, release=9, pipelines={"door": {"rules": {"r": nested}}}))
    Slots(tmp_path).save(record)
    assert Slots(tmp_path).load("people") == record


def test_record_that_would_not_be_read_again_is_not_written(tmp_path):
    """What is on disk stays what a restart runs."""
    slots = Slots(tmp_path)
    slots.save(RECORD)
    with pytest.raises(StateError, match="not written"):
        slots.save(replace(RECORD, reason="x" * 5_000_000))
    assert Slots(tmp_path).load("people") == RECORD
