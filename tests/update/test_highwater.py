"""The marks below which nothing is accepted."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.errors import StateError, UntrustedError
from agent.update.verification.highwater import FILE_NAME, Claim, HighWater, _checksum

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def _stands(role: str, signed_by: object) -> bool:
    return True


def _fell(role: str, signed_by: object) -> bool:
    return False


def test_marks_outlive_the_process(tmp_path: Path):
    """That is what they are for."""
    marks = HighWater(tmp_path)
    assert marks.is_new
    marks.accept_versions({"root": Claim(3), "timestamp": Claim(7, ("k1",))}, _stands)
    marks.accept_release("stable", 4)
    marks.raise_time_floor(NOON)
    again = HighWater(tmp_path)
    assert not again.is_new
    assert (again.version("root"), again.version("timestamp"), again.version("targets")) == (3, 7, 0)
    assert (again.release("stable"), again.release("beta")) == (4, 0)
    assert again.time_floor == NOON


def test_a_lower_version_is_refused_and_changes_nothing(tmp_path: Path):
    """Also where another role of the same claim is higher: all or nothing."""
    marks = HighWater(tmp_path)
    marks.accept_versions({"timestamp": Claim(7), "snapshot": Claim(5)}, _stands)
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(UntrustedError, match="version 4 is offered, version 5 was trusted") as refused:
        marks.accept_versions({"timestamp": Claim(8), "snapshot": Claim(4)}, _stands)
    assert refused.value.role == "snapshot"
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert marks.version("timestamp") == 7


def test_a_mark_whose_keys_were_taken_away_falls(tmp_path: Path):
    """Recovery from a fast-forward attack."""
    marks = HighWater(tmp_path)
    marks.accept_versions({"timestamp": Claim(1_000_000, ("stolen",))}, _stands)
    marks.accept_versions({"timestamp": Claim(9, ("new",))}, _fell)
    assert HighWater(tmp_path).version("timestamp") == 9


def test_an_equal_version_writes_nothing(tmp_path: Path):
    """An idle check must not wear the flash."""
    marks = HighWater(tmp_path)
    marks.accept_versions({"root": Claim(1)}, _stands)
    marks.accept_release("stable", 1)
    before = (tmp_path / FILE_NAME).stat().st_ino
    marks.accept_versions({"root": Claim(1)}, _stands)
    marks.accept_release("stable", 1)
    assert (tmp_path / FILE_NAME).stat().st_ino == before


def test_a_lower_release_is_refused_per_channel(tmp_path: Path):
    """A replayed assignment is a downgrade, even one that TUF would let through."""
    marks = HighWater(tmp_path)
    marks.accept_release("stable", 5)
    marks.accept_release("beta", 2)
    marks.accept_release("stable", 5)
    with pytest.raises(UntrustedError, match="release 4 is offered, release 5 was accepted"):
        marks.accept_release("stable", 4)


def test_time_does_not_go_back(tmp_path: Path):
    """A board that wakes in 1970 is told what time it is at least."""
    marks = HighWater(tmp_path)
    marks.raise_time_floor(NOON)
    marks.raise_time_floor(NOON - timedelta(days=1))
    assert marks.time_floor == NOON


def test_learning_only_raises(tmp_path: Path):
    """What a power cut left behind on disk may be older than the marks, and that is no attack."""
    marks = HighWater(tmp_path)
    marks.accept_versions({"timestamp": Claim(7)}, _stands)
    marks.learn_versions({"timestamp": Claim(6), "snapshot": Claim(2)})
    assert (marks.version("timestamp"), marks.version("snapshot")) == (7, 2)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"roles": {"root": {"version": -1}}}', b'{"releases": {"stable": "x"}}',
     b'{"time_floor": "2026-11-20T12:00:00"}', b"[" * 100_000, b'{"releases": {"stable": 5}}', b" " * 1_000_001],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture):
    """The device goes on, and whoever reads the log knows."""
    (tmp_path / FILE_NAME).write_bytes(damaged)
    with caplog.at_level(logging.ERROR):
        marks = HighWater(tmp_path)
    assert marks.is_new
    assert "rebuilt" in caplog.text
    assert (tmp_path / f"{FILE_NAME}.damaged").read_bytes() == damaged
    marks.accept_release("stable", 1)
    assert HighWater(tmp_path).release("stable") == 1


def test_fields_of_a_newer_version_are_no_damage(tmp_path: Path):
    """An older Holdfast after a downgrade of the program keeps its marks."""
    value = {"releases": {"stable": 5}, "later": 1}
    (tmp_path / FILE_NAME).write_text(json.dumps({**value, "sha256": _checksum(value)}))
    assert HighWater(tmp_path).release("stable") == 5


def test_any_flipped_bit_is_damage(tmp_path: Path):
    """A mark that rots must neither open the door to an older repository nor shut it on every newer one."""
    HighWater(tmp_path).accept_versions({"timestamp": Claim(7, ("ab12",))}, _stands)
    content = (tmp_path / FILE_NAME).read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (tmp_path / FILE_NAME).write_bytes(flipped)
        marks = HighWater(tmp_path)
        assert marks.is_new or marks.version("timestamp") == 7, bytes(flipped)


def test_a_disk_that_cannot_be_written_refuses_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A number that could not be recorded must not count as accepted."""
    marks = HighWater(tmp_path)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent.atomicfile.write", full)
    with pytest.raises(StateError, match="No space left"):
        marks.accept_release("stable", 1)
    assert marks.release("stable") == 0
