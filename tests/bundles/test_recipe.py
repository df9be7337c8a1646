"""bundle.yaml: everything wrong in it is said at once, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

import bundles
from agent.errors import BundleError, ConfigurationError
from bundles.recipe import TARGETS, Gates, SignalInputRecipe, open_recipe


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


def test_how_close_fp32_must_come_on_a_device_is_checked_like_the_rest(tmp_path: Path):
    """It goes into the manifest, where nobody would find the typing error."""
    text = "name: x\nmodel: model.onnx\ngates: {agreement: {iou: 0.9, required: 0.95}}\n"
    agreement = open_recipe(recipe(tmp_path, text)).recipe.gates.agreement
    assert (agreement.iou, agreement.score, agreement.required) == (0.9, None, 0.95)

    with pytest.raises(ConfigurationError, match="gates.agreement.iuo"):
        open_recipe(recipe(tmp_path, text.replace("iou", "iuo")))


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


def test_variants_come_from_names_and_targets_in_the_manifests_order(tmp_path: Path):
    """What people know is the hardware; which variants it wants is ours to know."""
    for text, wanted in (
        ("", ["fp32", "int8", "int8-dynamic"]),
        ("targets: [qnn]\n", ["fp32", "int8-qnn"]),
        ("targets: [gpu, x86]\n", ["fp32", "fp16", "int8", "int8-s8", "int8-dynamic"]),
        ("targets: [qnn]\nvariants: [int4]\n", ["fp32", "int8-qnn", "int4"]),
        ("variants: [fp32]\n", ["fp32"]),
    ):
        opened = open_recipe(recipe(tmp_path, f"name: x\nmodel: model.onnx\n{text}"))
        assert list(opened.recipe.wanted) == wanted, text


def test_every_target_is_documented_where_people_choose():
    """A set that nobody can read about is a guess."""
    page = (Path(bundles.__file__).parent / "recipes" / "any-onnx" / "README.md").read_text("utf-8")
    for target, variants in TARGETS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{target}` "))
        assert all(f"`{variant}`" in row for variant in variants), row


def test_mistakes_in_how_variants_are_made_have_their_place(tmp_path: Path):
    """Before minutes are spent."""
    text = (
        "name: x\nmodel: model.onnx\ntargets: [x68]\nvariants: [int7]\n"
        "dimensions: {height: {min: 640, max: 224}}\n"
        "quantize:\n  calibration: mean\n  percentile: 101\n  exclude: ['Conv_(']\n  per_chanel: true\n"
        "  int4: {block_size: 33}\n"
    )
    with pytest.raises(ConfigurationError) as refusal:
        open_recipe(recipe(tmp_path, text))
    shown = str(refusal.value)
    for line, part in (
        (3, "targets"),
        (4, "variants"),
        (5, "min 640 is not below max 224"),
        (7, "quantize.calibration"),
        (8, "quantize.percentile"),
        (9, "is no regular expression"),
        (10, "did you mean `per_channel`"),
        (11, "block_size"),
    ):
        assert f"bundle.yaml:{line}:" in shown and part in shown, shown
