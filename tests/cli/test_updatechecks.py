"""`holdfast doctor` looks at the way that releases come: the root, and each transport, as the agent would ask it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from agent.cli import updatechecks
from agent.cli.check import Check
from agent.clock import SystemClock, SystemRandom
from agent.config import file as configfile
from agent.mqtt.settings import MqttSettings
from bundles.release.creation import create
from bundles.release.repository import Repository
from bundles.release.serving import Server
from bundles.release.settings import ExpiryDays
from simulator.mirror import Mirror


class Later(SystemClock):
    """The clock on the wall, some days on."""

    def __init__(self, days: float) -> None:
        self._days = days

    def now(self) -> datetime:
        return super().now() + timedelta(days=self._days)


@pytest.fixture
def repository(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> Repository:
    made, _ = create(tmp_path / "releases", tmp_path / "keys", expires_days=ExpiryDays(timestamp=3))
    made.add(make_tiny_bundle())
    made.publish("stable", "tiny")
    return made


@pytest.fixture
def look(tmp_path: Path, repository: Repository) -> Callable[..., list[Check]]:
    """Return a function that gives the checks of a device with these transports."""
    shutil.copy(repository.folder / "metadata" / "1.root.json", tmp_path / "root.json")

    def do(*transports: object, port: int = 1, channel: str = "stable", in_days: float = 0) -> list[Check]:
        (tmp_path / "holdfast.yaml").write_text(
            f"device: {{name: box1}}\nstate_dir: {tmp_path}/state\nmqtt: {{host: 127.0.0.1, port: {port}}}\n"
            f"models: {{m: {{channel: {channel}}}}}\ncameras: {{door: {{source: 'scene://conveyor'}}}}\n"
            f"update: {{root: root.json, transports: [{', '.join(map(str, transports))}]}}\n"
        )
        return list(updatechecks.update_checks(configfile.read(tmp_path / "holdfast.yaml"), Later(in_days)))

    return do


def test_every_transport_that_answers_says_what_it_offers(look, repository, tmp_path, start_broker):
    """MQTT, HTTP, a folder; a stick that is not in is a warning as long as another way is open."""
    port = start_broker()
    server = Server(
        repository.folder, MqttSettings(host="127.0.0.1", port=port), clock=SystemClock(), random=SystemRandom()
    )
    with server, Mirror(repository.folder) as mirror:
        found = look("mqtt", mirror.url, repository.folder, tmp_path / "stick", port=port)
    assert [check.verdict for check in found] == ["ok", "ok", "ok", "ok", "warn"]
    assert all("channel stable: release 1, tiny 1" in check.text for check in found[1:4])
    assert "stick" in found[4].advice
    assert not (tmp_path / "state" / "updates" / "trust").exists(), "a look must not change what is trusted"


def test_release_server_that_is_not_there_fails_with_the_topics_to_look_at(look, start_broker, monkeypatch):
    """With mosquitto 2.0 a forgotten line of the ACL looks just like this."""
    monkeypatch.setattr(updatechecks, "SILENCE_S", 0.5)
    root, mqtt = look("mqtt", port=start_broker())
    assert (root.verdict, mqtt.verdict) == ("ok", "fail")
    assert "holdfast/devices/box1/fetch/reply" in mqtt.text
    assert "release serve" in mqtt.advice and "ACL" in mqtt.advice


@pytest.mark.parametrize(
    ("in_days", "verdict", "words"),
    [(0, "ok", "expires"), (1.5, "warn", "release refresh"), (4, "fail", "release refresh")],
)
def test_expiry_is_said_before_it_bites(look, repository, in_days, verdict, words):
    """The server may be off for a weekend."""
    _, folder = look(repository.folder, in_days=in_days)
    assert folder.verdict == verdict
    assert words in f"{folder.text} {folder.advice}"


def test_channel_with_a_typo_names_what_to_do(look, repository):
    """It is neither the network nor an attack."""
    _, folder = look(repository.folder, channel="stabel")
    assert folder.verdict == "fail"
    assert "channels/stabel.json" in folder.text and "channel" in folder.advice


def test_root_of_another_repository_is_named_as_such(look, repository, tmp_path):
    """Somebody ran `init` twice."""
    create(tmp_path / "other", tmp_path / "other-keys")
    shutil.copy(tmp_path / "other" / "metadata" / "1.root.json", tmp_path / "root.json")
    _, folder = look(repository.folder)
    assert (folder.verdict, "update.root" in folder.advice) == ("fail", True)


def test_root_that_is_none_fails(look, repository, tmp_path):
    """An editor, a half copy."""
    (tmp_path / "root.json").write_text("{}")
    (root,) = look(repository.folder)
    assert (root.name, root.verdict, "release init" in root.advice) == ("update root", "fail", True)


def test_what_the_device_trusts_counts(look, repository, tmp_path):
    """An old stick is refused by the agent, so doctor says so."""
    old = shutil.copytree(repository.folder, tmp_path / "old")
    repository.refresh()
    from agent.update.verification.trust import Trust

    trust = Trust(
        tmp_path / "state" / "updates" / "trust",
        (tmp_path / "root.json").read_bytes(),
        lambda path, _: _read(repository.folder / path),
        SystemClock(),
    )
    trust.refresh()
    _, folder = look(old)
    assert folder.verdict == "fail"
    assert "older" in f"{folder.text} {folder.advice}"


def _read(path: Path) -> bytes:
    from agent.errors import NotThereError

    if not path.exists():
        raise NotThereError("no")
    return path.read_bytes()
