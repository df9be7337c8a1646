"""The bundles that ship with Holdfast are whole, come from their recipes as they are, and answer as they promise."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import bundles
from agent.bundle.reader import open_bundle
from agent.device.planning.plan import Candidate
from agent.device.runtimes.providers import CPU_PROVIDER
from agent.inference import golden
from agent.inference.model import open_model
from bundles.recipe import open_recipe
from bundles.samples import SampleFile

RECIPES = Path(bundles.__file__).parent / "recipes"


@pytest.mark.parametrize("name", ["parcels", "bearing"])
def test_shipped_bundle_belongs_to_its_recipe(name: str):
    """A recipe changed without a new build would ship the old model."""
    recipe = open_recipe(RECIPES / name)
    manifest = open_bundle(RECIPES / name / "built").manifest
    assert manifest.source_sha256 == hashlib.sha256(recipe.model.read_bytes()).hexdigest()
    assert (manifest.name, manifest.version, manifest.license) == (name, recipe.recipe.version, recipe.recipe.license)
    said = recipe.recipe.decoder.model_dump(exclude_none=True, exclude={"labels"})
    assert said.items() <= manifest.decoder.model_dump().items()
    assert manifest.decoder.labels == recipe.labels
    said = recipe.recipe.input.model_dump(exclude_none=True, exclude={"normalise"})
    assert said.items() <= manifest.input.model_dump().items()


@pytest.mark.parametrize("name", ["parcels", "bearing"])
def test_shipped_bundle_gives_its_golden_answers(name: str):
    """Each variant, with the tolerance that a device uses."""
    bundle = open_bundle(RECIPES / name / "built")
    assert bundle.manifest.golden
    decoder = bundle.manifest.decoder
    threshold = decoder.anomaly_threshold or decoder.confidence_threshold
    for variant in bundle.manifest.variants:
        model = open_model(bundle, Candidate(CPU_PROVIDER, "cpu", variant.name, 1))
        for sample in bundle.manifest.golden:
            read = SampleFile(bundle.blob_path(sample.input), bundle.manifest.input).read()
            expected = golden.from_json(bundle.read_blob(sample.expected))
            found = model.decode(model.infer(model.prepare(read)), read)
            agreed = golden.agreement(expected, found, golden.tolerance_for(variant.name), threshold=threshold)
            assert agreed >= (1.0 if variant.name == "fp32" else 0.9), f"{variant.name} on {sample.input.sha256}"


def test_int8_of_parcels_is_in_the_bundle():
    """Its dense convolutions were chosen so that INT8 pays."""
    manifest = open_bundle(RECIPES / "parcels" / "built").manifest
    int8 = manifest.variant("int8")
    assert int8 is not None and int8.accuracy is not None and int8.accuracy.metric == "map@0.5"
    assert int8.model.size_bytes < 0.4 * manifest.variants[0].model.size_bytes
