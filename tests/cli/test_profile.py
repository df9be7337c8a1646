"""`holdfast profile`: list, show, check, explain."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from agent.cli.profile import app
from agent.errors import ConfigurationError, OperatorError


def run(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_list_names_every_profile():
    """The list is the documentation of what is known."""
    listed = json.loads(run("list", "--json").stdout)

    assert len(listed) == 9
    text = run("list").stdout
    assert all(profile["name"] in text for profile in listed)


def test_show_one():
    """What is tried, within which limits."""
    text = run("show", "raspberry-pi-4").stdout

    assert "board Raspberry Pi 4" in text
    assert "512 MiB" in text
    assert json.loads(run("show", "raspberry-pi-4", "--json").stdout)["limits"]["memory_mb"] == 512


def test_show_of_an_unknown_name_suggests_one():
    """A typing error gets the nearest name."""
    assert isinstance(run("show", "raspbery-pi-4").exception, OperatorError)


def test_check_passes_for_what_ships():
    """CI runs this on every change of a profile."""
    result = run("check")

    assert result.exit_code == 0
    assert "no problem found" in result.stdout


def test_check_of_an_own_folder_finds_a_tie(tmp_path):
    """An operator's profile that ties with a shipped one is found before a device does."""
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ndescription: d\nmatch: {architecture: aarch64}\n"
        "candidates: [{provider: CPUExecutionProvider, variants: [fp32]}]\n"
    )

    error = run("check", str(tmp_path)).exception
    assert isinstance(error, ConfigurationError)
    assert "aarch64-plain, mine" in str(error)
    as_json = run("check", str(tmp_path), "--json")
    assert as_json.exit_code == ConfigurationError.exit_code
    assert json.loads(as_json.stdout)[0]["where"] == "aarch64-plain, mine"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    """An empty answer would look like a passed check."""
    with pytest.raises(OperatorError, match="no such folder"):
        raise run("check", str(tmp_path / "nowhere")).exception


def test_explain_gives_a_reason_for_each():
    """Why this one, and why not the others."""
    explained = json.loads(run("explain", "--json").stdout)

    assert explained["selected"] in {verdict["profile"] for verdict in explained["verdicts"]}
    assert all(verdict["text"] for verdict in explained["verdicts"])
    assert explained["selected"] in run("explain").stdout
