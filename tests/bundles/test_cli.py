"""`holdfast bundle`: what a person types and reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.errors import BundleError, OperatorError
from bundles.cli import app

RUNNER = CliRunner()


def run(*words: str | Path) -> str:
    """Return what is printed; the main program turns our errors into text, so here they come through."""
    result = RUNNER.invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def model(save, make_classifier) -> Path:
    return save(make_classifier(), "colours.onnx")


@pytest.fixture
def built(model: Path, tmp_path: Path) -> Path:
    run("build", model, "--output", tmp_path / "out", "--normalise", "unit", "--labels", "red,green,blue,grey")
    return tmp_path / "out"


def test_build_reports_variants_repairs_and_assumptions(model: Path, pictures: Path, tmp_path: Path):
    """What was decided for the person stands where they look."""
    words = ["--normalise", "unit", "--calibration", pictures, "--golden", pictures, "--max-drop", "1"]
    text = run("build", model, "--output", tmp_path / "out", *words)
    for part in (
        "fp32",
        "int8-dynamic",
        "top1_agreement",
        "were named",
        "resize_type crop: usual for classify",
        "digest",
    ):
        assert part in text


def test_build_as_json(model: Path, tmp_path: Path):
    """The same object, for programs."""
    values = json.loads(run("build", model, "--output", tmp_path / "out", "--normalise", "unit", "--json"))
    assert values["variants"][0]["name"] == "fp32" and len(values["digest"]) == 64
    assert values["variants"][1]["is_included"] is False and "golden" in values["variants"][1]["verdict"]


def test_trade_off_of_layers_left_in_float_is_printed(save, make_fragile, colours: Path, tmp_path: Path):
    """How much was given up for the gate, and which sets were tried, in text and for programs."""
    words = ["build", save(make_fragile()), "--output", tmp_path / "out", "--normalise", "unit", "--variants", "int8"]
    words += ["--labels", "none,red,green,blue", "--calibration", colours, "--golden", colours]
    text = run(*words)
    assert "int8: layers left in float32" in text and "chosen" in text and "misses" in text
    assert "2 of 4 layers left in float: before, fragile" in text
    int8 = json.loads(run(*words, "--json"))["variants"][1]
    assert int8["float_layers"] == ["before", "fragile"]
    assert [len(each["float_layers"]) for each in int8["tries"]] == [0, 2, 1, 1]
    assert int8["tries"][0]["accuracy"]["drop"] > 0.01 and int8["tries"][0]["failure"]


def test_target_chooses_the_variants(model: Path, tmp_path: Path):
    """By the hardware, as often as there are kinds of it."""
    words = ["build", model, "--output", tmp_path / "out", "--normalise", "unit", "--json"]
    values = json.loads(run(*words, "--target", "qnn,gpu"))
    assert [each["name"] for each in values["variants"]] == ["fp32", "fp16", "int8-s8", "int8-qnn"]


def test_default_output_is_beside_the_model(model: Path):
    """One word is enough to try."""
    run("build", model, "--normalise", "unit")
    assert (model.parent / "colours.bundle" / "manifest.json").is_file()


def test_inspect(built: Path):
    """Everything that decides an answer, and why a variant is not there."""
    text = run("inspect", built)
    assert "red, green, blue, grey" in text and "int8 was left out: there are no golden samples" in text
    values = json.loads(run("inspect", built, "--json"))
    assert values["decoder"]["labels"] == ["red", "green", "blue", "grey"] and len(values["digest"]) == 64


def test_verify(built: Path):
    """Whole, or the blob that is not."""
    assert "whole" in run("verify", built)
    assert json.loads(run("verify", built, "--json"))["is_whole"] is True
    blob = next((built / "blobs").iterdir())
    blob.write_bytes(b"X" + blob.read_bytes()[1:])
    with pytest.raises(BundleError, match="altered"):
        run("verify", built)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        pytest.param(["--labels", "none.txt"], "no such file of labels", id="labels"),
        pytest.param(["--golden", "nowhere"], "no such folder", id="golden"),
        pytest.param(["--dimension", "height"], "expected NAME=SIZE", id="dimension"),
        pytest.param(["--dimension", "height=640..224"], "expected NAME=SIZE or NAME=MIN..MAX", id="bounds"),
        pytest.param(["--target", "x68"], "unknown x68", id="target"),
        pytest.param(["--variants", "int7"], "unknown int7", id="variant"),
        pytest.param(["--name", "No Spaces"], "--name", id="name"),
        pytest.param(["--max-drop", "7"], "--max-drop", id="gate"),
    ],
)
def test_wrong_words_say_what_to_do(model: Path, tmp_path: Path, words: list[str], part: str):
    """Before anything is built."""
    with pytest.raises(OperatorError, match=part) as refusal:
        run("build", model, "--output", tmp_path / "out", "--normalise", "unit", *words)
    assert refusal.value.hint
    assert not (tmp_path / "out").exists()
