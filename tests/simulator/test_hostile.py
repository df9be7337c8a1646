"""Mischief happens on cue, is counted, and ends: else an attack in a test would prove nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, get_args

import pytest

from agent.clock import SystemClock
from agent.errors import UnavailableError
from agent.update.transports.transport import NotThereError, Transport, WrongContentError
from simulator.hostile import HostileRepository
from simulator.mischief import EVERYWHERE, Cues, Mischief

TIMESTAMP = "metadata/timestamp.json"
LIMIT_BYTES = 4096
NOW = threading.Event()


@pytest.fixture
def hostile(honest: Path, older: Path) -> HostileRepository:
    repository = HostileRepository(honest, older, clock=SystemClock(), patience_s=0.01)
    as_transport: Transport = repository  # what a device is given
    assert as_transport.name == "hostile"
    return repository


def test_honest_until_it_is_told(hostile: HostileRepository, honest: Path, chunks: Any, blob_path: str) -> None:
    """The mischief, not the part, must be what a test sees."""
    assert hostile.read(TIMESTAMP, LIMIT_BYTES, NOW) == (honest / TIMESTAMP).read_bytes()
    hostile.fetch(blob_path, chunks, NOW)
    assert chunks.is_whole
    assert not hostile.cues.fired
    assert hostile.asked == [TIMESTAMP, blob_path]


@pytest.mark.parametrize("mischief", sorted(EVERYWHERE - {"duplicate"}))
def test_no_mischief_with_a_small_file_passes_unseen(
    hostile: HostileRepository, honest: Path, mischief: Mischief
) -> None:
    """What comes is never the honest file; the vocabulary holds no empty words."""
    hostile.cues.play(mischief, TIMESTAMP)
    found = None
    try:
        found = hostile.read(TIMESTAMP, LIMIT_BYTES, NOW)
    except UnavailableError:
        pass
    assert found != (honest / TIMESTAMP).read_bytes()
    assert found is None or len(found) <= LIMIT_BYTES
    hostile.cues.check()


@pytest.mark.parametrize("mischief", sorted(EVERYWHERE))
def test_no_mischief_with_a_blob_leaves_a_wrong_chunk(
    hostile: HostileRepository, chunks: Any, blob_path: str, mischief: Mischief
) -> None:
    """Chunks are checked by whoever keeps them; afterwards the honest rest still fits."""
    hostile.cues.play(mischief)
    try:
        hostile.fetch(blob_path, chunks, NOW)
    except UnavailableError:
        pass
    assert hostile.cues.fired[mischief] == 1
    hostile.cues.behave()
    hostile.fetch(blob_path, chunks, NOW)
    assert b"".join(chunks.taken[index] for index in sorted(chunks.taken)) == chunks.content


def test_replay_gives_the_older_role_under_any_version(hostile: HostileRepository, older: Path) -> None:
    """The version is in the path; a liar does not care."""
    hostile.cues.play("replay", "metadata/*.snapshot.json")
    assert hostile.read("metadata/2.snapshot.json", LIMIT_BYTES, NOW) == b'{"snapshot": 1}'
    assert hostile.read(TIMESTAMP, LIMIT_BYTES, NOW) == b'{"version": 2}'


def test_wrong_bytes_are_reported_as_wrong(hostile: HostileRepository, chunks: Any, blob_path: str) -> None:
    """An updater goes on with another transport on this error, and only on this one."""
    hostile.cues.play("wrong bytes")
    with pytest.raises(WrongContentError):
        hostile.fetch(blob_path, chunks, NOW)
    assert chunks.refused >= 3


def test_file_that_is_not_there_is_said_so(hostile: HostileRepository) -> None:
    """Truly or falsely: it sounds the same."""
    with pytest.raises(NotThereError):
        hostile.read("metadata/9.root.json", LIMIT_BYTES, NOW)


def test_mischief_ends_after_so_many_times() -> None:
    """A test of the recovery wants the first three answers spoilt and the fourth honest."""
    cues = Cues()
    cues.play("drop", "blobs/*", times=2)
    assert [cues.next("blobs/x") for _ in range(3)] == ["drop", "drop", None]
    assert cues.next("metadata/x") is None


def test_fault_that_never_fired_fails_the_test() -> None:
    """The commonest way in which a suite of attacks is green for no reason."""
    cues = Cues()
    cues.play("drop", "blobs/*")
    with pytest.raises(AssertionError, match="drop of blobs"):
        cues.check()
    cues.next("blobs/x")
    cues.check()


def test_part_refuses_what_it_cannot_do() -> None:
    """`crossed` needs topics."""
    assert "crossed" in get_args(Mischief)
    with pytest.raises(ValueError, match="crossed"):
        Cues().play("crossed")
