"""The way from the command line to the running agent."""

from __future__ import annotations

import pytest

from agent.errors import StateError
from agent.update.requests import AT_ONCE, Request, Requests
from simulator.clock import SeededRandom


def test_request_arrives_once(tmp_path):
    """A rollback that came twice would go back twice."""
    requests = Requests(tmp_path / "requests")
    assert requests.take() == []
    wanted = Request(verb="rollback", model="people", reason="too many false alarms")
    requests.post(wanted, SeededRandom(1))
    assert requests.take() == [wanted]
    assert requests.take() == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b'{"verb": "reboot"}', b'{"verb": "check", "url": "http://x"}', b"[" * 3000, b"\xff", b"x" * 10_000_000,
     b'{"verb": "check", "reason": "' + b"x" * 600 + b'"}'],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_garbage_is_removed(content, tmp_path, caplog):
    """It must neither stop the agent nor be read again each second."""
    (tmp_path / "a.json").write_bytes(content)
    requests = Requests(tmp_path)
    requests.post(Request(verb="check"), SeededRandom(1))
    assert requests.take() == [Request(verb="check")]
    assert list(tmp_path.iterdir()) == []
    assert "a.json" in caplog.text


def test_link_is_not_followed(tmp_path):
    """The agent may run with more rights than who wrote here."""
    secret = tmp_path / "secret"
    secret.write_text('{"verb": "check"}')
    folder = tmp_path / "requests"
    folder.mkdir()
    (folder / "a.json").symlink_to(secret)
    assert Requests(folder).take() == []
    assert secret.exists()


def test_flood_is_taken_in_turns(tmp_path):
    """Core does other things too."""
    requests, random = Requests(tmp_path), SeededRandom(1)
    for _ in range(AT_ONCE + 1):
        requests.post(Request(verb="check"), random)
    assert len(requests.take()) == AT_ONCE
    assert len(requests.take()) == 1


def test_request_that_stays_is_not_acted_on(tmp_path):
    """A folder in its place cannot be unlinked: acting on it would be for ever."""
    (tmp_path / "a.json").mkdir()
    assert Requests(tmp_path).take() == []


def test_folder_that_cannot_be_written_is_said(tmp_path):
    """The operator must not believe that it was asked for."""
    (tmp_path / "requests").write_text("a file")
    with pytest.raises(StateError, match="cannot be written"):
        Requests(tmp_path / "requests").post(Request(verb="check"), SeededRandom(1))
