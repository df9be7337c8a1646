"""`holdfast profile`: list, show, check, explain."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from agent import resources
from agent.cli.profile import app
from agent.errors import ConfigurationError, OperatorError


def run(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_list_names_every_profile():
    """The list is the documentation of what is known."""
    listed = json.loads(run("list", "--json").stdout)

    assert {profile["name"] for profile in listed} == {path.stem for path in resources.device_profiles().glob("*.yaml")}
    text = run("list").stdout
    assert all(profile["name"] in text for profile in listed)
    assert "QNNExecutionProvider" in text


def test_show_one():
    """What is tried, within which limits."""
    text = run("show", "raspberry-pi-4").stdout

    assert "board Raspberry Pi 4" in text
    assert "512 MiB" in text
    assert json.loads(run("show", "raspberry-pi-4", "--json").stdout)["limits"]["memory_mb"] == 512


def test_show_of_an_accelerators_profile_has_its_options_and_limits():
    """What `plan explain` names is what can be looked up: also each part of a composed name."""
    text = " ".join(run("show", "safe-default+tensorrt").stdout.split())

    assert "Any device; the CPU with few threads" in text
    assert "Matches: a device of TensorrtExecutionProvider" in text
    assert "1800 s to compile" in text
    names = [part["name"] for part in json.loads(run("show", "safe-default+tensorrt", "--json").stdout)]
    assert names == ["safe-default", "tensorrt"]


def test_show_cuts_no_option_off():
    """On a serial console too: half an option cannot be copied."""
    text = CliRunner().invoke(app, ["show", "openvino"], env={"COLUMNS": "80"}).stdout

    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


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


def test_check_of_an_own_accelerator_names_file_line_and_the_nearest_option(tmp_path):
    """A misspelt option is ignored by its provider: here it has a place."""
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ndescription: d\naccelerator: CUDAExecutionProvider\nmatch: {board: Acme}\ncandidates:\n"
        "  - provider: CUDAExecutionProvider\n    device_type: gpu\n    variants: [fp16]\n"
        "    options: {cudnn_conv_algo_serch: HEURISTIC}\n"
    )

    error = str(run("check", str(tmp_path)).exception)

    assert "mine.yaml:9:15: candidates[0].options.cudnn_conv_algo_serch: CUDAExecutionProvider has no option" in error
    assert "did you mean `cudnn_conv_algo_search`?" in error


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    """An empty answer would look like a passed check."""
    with pytest.raises(OperatorError, match="no such folder"):
        raise run("check", str(tmp_path / "nowhere")).exception


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("", "a folder is checked", id="a file"),
        pytest.param("mine.yml", "call it mine.yaml", id="another suffix"),
        pytest.param("mine.txt", "no *.yaml in this folder", id="none at all"),
    ],
)
def test_check_of_nothing_does_not_pass(tmp_path, name, words):
    """`25 profiles, no problem found` would be believed."""
    target = tmp_path / (name or "mine.yaml")
    target.write_text("name: mine\n")
    error = run("check", str(tmp_path if name else target)).exception
    assert isinstance(error, OperatorError)
    assert words in str(error)


def test_explain_gives_a_reason_for_each():
    """Why this one, and why not the others."""
    explained = json.loads(run("explain", "--json").stdout)

    selected = {verdict["profile"] for verdict in explained["verdicts"] if verdict["selected"]}
    assert set(explained["selected"].split("+")) == selected
    assert all(verdict["text"] for verdict in explained["verdicts"])
    assert explained["selected"] in run("explain").stdout


def test_explain_says_why_a_runtime_brings_nothing(tmp_path, monkeypatch):
    """Somebody who just installed a provider asks here why its profile is not selected."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holdfast.yaml").write_text("device: {runtimes: ['folder:nowhere']}\n")

    words = f"folder:{tmp_path}/nowhere: there is no ONNX Runtime in this folder"
    assert words in run("explain").stdout
    assert json.loads(run("explain", "--json").stdout)["findings"][0]["probe"] == f"folder:{tmp_path}/nowhere"
