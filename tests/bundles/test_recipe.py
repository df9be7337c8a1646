"""bundle.yaml: everything wrong in it is said at once, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import BundleError, ConfigurationError
from bundles.recipe import Gates, SignalInputRecipe, open_recipe


def recipe(folder: Path, text: str) -> Path:
    (folder / "bundle.yaml").write_text(text)
    (folder / "model.onnx").write_bytes(b"x")
    return folder


def test_two_lines_are_enough(tmp_path: Path):
    """No model keys are typed where the file says the rest."""
    opened = open_recipe(recipe(tmp_path, "name: faces\nmodel: model.onnx\n"))
    assert opened.model == (tmp_path / "model.onnx").resolve()
    assert opened.recipe.gates == Gates(max_drop=0.01)


def test_every_mistake_has_its_place_and_the_nearest_key(tmp_path: Path):
    """The same promise as for the operator's file."""
    text = "name: Bad Name\nmodel: model.onnx\ninput: {kind: image, mean_value: 1}\ngates: {max_drp: 2}\n"
    with pytest.raises(ConfigurationError) as refusal:
        open_recipe(recipe(tmp_path, text))
    shown = str(refusal.value)
    assert "bundle.yaml:1:1: name" in shown
    assert "bundle.yaml:3:22: input.mean_value: unknown key\n  → did you mean `mean_values`?" in shown
    assert "bundle.yaml:4:9: gates.max_drp: unknown key\n  → did you mean `max_drop`?" in shown


def test_paths_must_be_there_and_inside(tmp_path: Path):
    """A recipe from elsewhere must not read other folders of this machine."""
    text = "name: x\nmodel: ../secret.onnx\ncalibration: none\ngolden: /etc\ndecoder: {labels: none.txt}\n"
    with pytest.raises(ConfigurationError) as refusal:
        open_recipe(recipe(tmp_path, text))
    shown = str(refusal.value)
    assert "bundle.yaml:2:1: model: `../secret.onnx` leads out" in shown
    assert "bundle.yaml:3:1: calibration: there is no folder `none`" in shown
    assert "golden: `/etc` leads out" in shown
    assert "bundle.yaml:5:11: decoder.labels: there is no file `none.txt`" in shown


def test_labels_from_a_file(tmp_path: Path):
    """One a line, as every framework writes them."""
    (tmp_path / "labels.txt").write_text("cat\nbig dog\n\n")
    text = "name: x\nmodel: model.onnx\ndecoder: {labels: labels.txt}\n"
    assert open_recipe(recipe(tmp_path, text)).labels == ("cat", "big dog")


def test_signals_say_their_window(tmp_path: Path):
    """Nothing about a time series can be seen in the model."""
    text = "name: x\nmodel: model.onnx\ninput: {kind: signal, rate_hz: 100, window_size: 64, hop_size: 32}\n"
    assert isinstance(open_recipe(recipe(tmp_path, text)).recipe.input, SignalInputRecipe)
    with pytest.raises(ConfigurationError, match=r"input\.window_size: is required"):
        open_recipe(recipe(tmp_path, "name: x\nmodel: model.onnx\ninput: {kind: signal, rate_hz: 1, hop_size: 1}\n"))


def test_folder_without_recipe(tmp_path: Path):
    """The wrong folder."""
    with pytest.raises(BundleError, match=r"no bundle\.yaml"):
        open_recipe(tmp_path)
