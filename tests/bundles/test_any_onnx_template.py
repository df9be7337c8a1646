"""The template for any model: what people copy must be right, the commented lines too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "bundles" / "recipes" / "any-onnx"
SIGNAL_PART = "# A time series instead of pictures:\n"


def uncommented(text: str) -> dict[str, object]:
    """Take the comment sign off every line that is a key."""
    lines = [re.sub(r"^(\s*)# ?(\s*)(?=[a-z_]+:)", r"\1\2", line) for line in text.splitlines()]
    return yaml.safe_load("\n".join(line for line in lines if not line.startswith("#")))


def test_the_template_is_valid_as_it_is_and_with_every_key_uncommented():
    """A key that the builder does not know would stop a newcomer at the first try."""
    recipe = pytest.importorskip("bundles.recipe", reason="needs the builder")
    text = (FOLDER / "bundle.yaml").read_text(encoding="utf-8")
    recipe.Recipe.model_validate(yaml.safe_load(text))
    pictures, signals = text.split(SIGNAL_PART)
    everything = uncommented(pictures)
    assert set(everything) >= {"name", "model", "input", "decoder", "golden", "calibration", "dimensions", "gates"}
    recipe.Recipe.model_validate(everything)
    recipe.Recipe.model_validate({"name": "x", "model": "model.onnx", **uncommented(signals)})


def test_the_readme_links_lead_somewhere():
    """Documentation rots first where it points elsewhere."""
    for target in re.findall(r"\]\(([^)]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8")):
        assert (FOLDER / target).exists(), target
