"""The `update:` section against the rest of the file: a device that could never take a release says so at once."""

from __future__ import annotations

import pytest

from agent.config import file as configfile
from agent.errors import ConfigurationError

CAMERA = "cameras: {door: {source: 'scene://conveyor'}}\n"


def problems_of(tmp_path, text):
    path = tmp_path / "holdfast.yaml"
    path.write_text("version: 1\n" + CAMERA + text)
    with pytest.raises(ConfigurationError) as caught:
        configfile.read(path, {})
    return [(problem.key, problem.message) for problem in caught.value.problems]


def test_a_channel_without_an_update_section_is_refused(tmp_path):
    """The device would wait for releases for ever."""
    ((key, message),) = problems_of(tmp_path, "models: {m: {channel: stable, bundle: parcels}}\n")
    assert key == "models.m.channel"
    assert "update:" in message


def test_a_root_that_is_not_there_is_named(tmp_path):
    """Without it nobody may sign anything."""
    text = "models: {m: {channel: stable}}\nupdate: {root: root.json, transports: [sticks]}\n"
    ((key, message),) = problems_of(tmp_path, text)
    assert key == "update.root"
    assert str(tmp_path / "root.json") in message


def test_mqtt_as_a_transport_needs_a_broker(tmp_path):
    """`mqtt` is the default transport, and the section is easily forgotten."""
    (tmp_path / "root.json").write_text("{}")
    ((key, _),) = problems_of(tmp_path, "models: {m: {channel: stable}}\nupdate: {root: root.json}\n")
    assert key == "update.transports"


def test_a_model_needs_a_bundle_or_a_channel(tmp_path):
    """Else there is nothing to run, ever."""
    ((key, message),) = problems_of(tmp_path, "models: {m: {}}\n")
    assert key.startswith("models.m")
    assert "channel:" in message


def test_folders_among_the_transports_are_relative_to_the_file(tmp_path):
    """As every other path of the file; addresses and `mqtt` stay as they are."""
    (tmp_path / "root.json").write_text("{}")
    path = tmp_path / "holdfast.yaml"
    text = "models: {m: {channel: stable}}\nmqtt: {host: b}\n"
    text += "update: {root: root.json, transports: [mqtt, 'https://m.example/r', stick]}\n"
    path.write_text("version: 1\n" + CAMERA + text)
    update = configfile.read(path, {}).settings.update
    assert update.transports == ("mqtt", "https://m.example/r", str(tmp_path / "stick"))
    assert update.root == tmp_path / "root.json"
