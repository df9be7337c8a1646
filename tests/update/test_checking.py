"""Reading a channel: only its own document, only forward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import OperatorError, UnavailableError, UntrustedError
from agent.update.documents import ChannelDocument
from agent.update.verification.checking import read_channel
from agent.update.verification.highwater import FILE_NAME, HighWater
from agent.update.verification.trust import Trust
from simulator.clock import VirtualClock
from simulator.tufrepository import TufRepository

STABLE = "channels/stable.json"


def _document(release: int, channel: str = "stable", **changes: object) -> bytes:
    bundle = {"name": "parcels", "version": str(release), "manifest_sha256": f"{release:064x}"}
    assignment = {"release": release, "bundle": bundle}
    document = {"channel": channel, "release": release, "issued": "2026-11-20T09:00:00Z", "assignments": [assignment]}
    return json.dumps({**document, **changes}).encode()


@pytest.fixture
def repository() -> TufRepository:
    repository = TufRepository()
    repository.publish({STABLE: _document(3)})
    return repository


@pytest.fixture
def trust(tmp_path: Path, repository: TufRepository) -> Trust:
    return Trust(tmp_path, repository.first_root, repository.read, VirtualClock())


def _read(trust: Trust) -> ChannelDocument:
    return read_channel(trust, trust.high_water, "stable")


def test_the_release_number_is_on_disk_when_the_document_is_handed_out(trust: Trust, tmp_path: Path):
    """Whatever happens next, an older one is refused from now on."""
    document = _read(trust)
    assert (document.release, document.assignments[0].bundle.version) == (3, "3")
    assert HighWater(tmp_path).release("stable") == 3


def test_the_same_release_may_be_read_again(trust: Trust):
    """Every check does."""
    assert _read(trust) == _read(trust)


def test_a_lower_release_number_is_refused_though_all_is_signed_and_newest(trust: Trust, repository: TufRepository):
    """The second lock on downgrades: whoever signs targets by mistake or by force cannot go back in silence."""
    _read(trust)
    repository.publish({STABLE: _document(2)})
    with pytest.raises(UntrustedError, match="release 2 is offered, release 3 was accepted"):
        _read(trust)


def test_a_release_number_is_rebuilt_with_a_lost_mark(trust: Trust, repository: TufRepository, tmp_path: Path):
    """The document that was trusted last is still in the cache."""
    _read(trust)
    (tmp_path / FILE_NAME).unlink()
    repository.publish({STABLE: _document(2)})
    reborn = Trust(tmp_path, repository.first_root, repository.read, VirtualClock())
    with pytest.raises(UntrustedError, match="release 2 is offered, release 3 was accepted"):
        _read(reborn)


def test_the_document_of_another_channel_is_refused(trust: Trust, repository: TufRepository):
    """A test group's bundle must not reach everybody because two files were swapped."""
    repository.publish({STABLE: _document(4, "beta")})
    with pytest.raises(UntrustedError, match="of channel 'beta', not of 'stable'"):
        _read(trust)
    assert trust.high_water.release("stable") == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"[" * 10_000, _document(0), _document(4, schema_version=2), _document(4, assignments=[{}])],
    ids=["empty", "no text", "list", "deep", "release 0", "newer schema", "empty assignment"],
)
def test_a_signed_document_that_makes_no_sense_names_its_problem(
    trust: Trust, repository: TufRepository, content: bytes
):
    """It is no attack; the publisher must correct it."""
    repository.publish({STABLE: content})
    with pytest.raises(OperatorError, match=r"channels/stable\.json: is signed but cannot be understood: .+"):
        _read(trust)


def test_a_document_that_made_no_sense_does_not_block_its_correction(trust: Trust, repository: TufRepository):
    """The cache holds the bad one when the good one comes."""
    repository.publish({STABLE: b"{}"})
    with pytest.raises(OperatorError):
        _read(trust)
    repository.publish({STABLE: _document(4)})
    assert _read(trust).release == 4


def test_unknown_fields_of_a_newer_repository_are_kept(trust: Trust, repository: TufRepository):
    """An old device reads what a newer repository writes."""
    repository.publish({STABLE: _document(4, later={"a": 1})})
    assert _read(trust).model_extra == {"later": {"a": 1}}


def test_a_channel_that_nobody_publishes_is_told_from_an_attack(trust: Trust):
    """A typing error in `models:`."""
    with pytest.raises(UnavailableError, match="signs no such document"):
        read_channel(trust, trust.high_water, "stabel")


@pytest.mark.parametrize("where", ["document", "assignment"])
def test_number_that_sqlite_cannot_hold_is_refused(trust: Trust, repository: TufRepository, where: str):
    """It once came as far as the history, whose error ended core at every start."""
    document = json.loads(_document(4))
    (document if where == "document" else document["assignments"][0])["release"] = 2**63
    repository.publish({STABLE: json.dumps(document).encode()})
    with pytest.raises(OperatorError, match="less than"):
        _read(trust)
