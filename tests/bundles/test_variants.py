"""Each variant on a model it is for, judged by number, and what the search for layers to leave in float reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from agent.bundle.manifest import VariantName
from agent.bundle.reader import open_bundle
from agent.device.planning.plan import Candidate
from agent.device.runtimes.providers import CPU_PROVIDER
from agent.errors import BundleError, CandidateError
from agent.inference.model import open_model
from bundles.build import BuildReport, VariantReport, build
from bundles.evaluate import deviation, outputs
from bundles.fusion import family, fuse
from bundles.modelfile import read_model
from bundles.options import Options
from bundles.precision import MOST_FP16_DEVIATION, fp16, int4
from bundles.recipe import Int4
from bundles.repair import repair

LABELS = ("none", "red", "green", "blue")
EVERY = get_args(VariantName)


def of(report: BuildReport, name: str) -> VariantReport:
    return next(each for each in report.variants if each.name == name)


@pytest.fixture
def make(save, colours: Path, tmp_path: Path) -> Callable[..., BuildReport]:
    """Return a function that builds a bundle of a classifier of colours at `tmp_path / "out"`."""

    def run(
        model: onnx.ModelProto, *variants: str, progress: Callable[[str], None] | None = None, **fields: object
    ) -> BuildReport:
        options = Options(
            **{
                "normalise": "unit",
                "labels": LABELS,
                "calibration": colours,
                "golden": colours,
                "variants": variants,
                **fields,
            }
        )
        return build(save(model), tmp_path / "out", options, progress)

    return run


def repaired(save, model: onnx.ModelProto) -> onnx.ModelProto:
    return repair(read_model(save(model))).model


def test_every_variant_of_a_transformer(make, make_transformer, tmp_path: Path):
    """Each opens on the CPU, answers, is smaller or faster in form, and names its nodes.

    ONNX Runtime 1.21 refuses a model whose nameless nodes meet after an optimiser pass, and fleets are mixed.
    """
    model = make_transformer("vit")
    for node in model.graph.node:
        node.name = ""
    report = make(model, *EVERY, max_drop=1)
    bundle = open_bundle(tmp_path / "out")
    assert [variant.name for variant in bundle.manifest.variants] == list(EVERY), report.variants
    for variant in bundle.manifest.variants:
        open_model(bundle, Candidate(CPU_PROVIDER, "cpu", variant.name, 1)).warm_up()
        model = onnx.load_model(bundle.model_path(variant.name))
        onnx.checker.check_model(model)
        names = [node.name for node in model.graph.node]
        assert all(names) and len(set(names)) == len(names), variant.name
    assert of(report, "fp16").size_bytes < 0.7 * of(report, "fp32").size_bytes
    assert of(report, "int4").size_bytes < 0.5 * of(report, "fp32").size_bytes
    assert "fused: 2 Attention, 4 SkipLayerNormalization, 2 BiasGelu" in of(report, "fp32-fused").verdict


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_fusion_knows_transformers(save, make_transformer, kind: str):
    """Both shapes of them, before anything is tried."""
    model = repaired(save, make_transformer(kind))
    assert family(model) == kind
    assert fuse(model).gained["Attention"] == 2


def test_what_is_no_transformer_is_not_fused(save, make_classifier):
    """A copy of fp32 under another name would be downloaded for nothing."""
    with pytest.raises(CandidateError, match="fusion covers transformers"):
        fuse(repaired(save, make_classifier()))


def test_transformer_in_which_nothing_is_fused_is_no_variant(save, make_model):
    """Attention written in a way that ONNX Runtime's patterns do not know."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "x"], ["y"]),
    ]
    model = repaired(save, make_model(nodes, [], [1, 4, 8], [1, 4, 8], "x", "y"))
    with pytest.raises(CandidateError, match=r"nothing was fused, though the graph looks like a transformer \(bert\)"):
        fuse(model)


def test_fusion_needs_no_samples(save, make_transformer, tmp_path: Path):
    """It computes the same; the outputs themselves are compared."""
    options = Options(normalise="unit", labels=LABELS, variants=("fp32-fused", "fp16"))
    report = build(save(make_transformer("vit")), tmp_path / "out", options)
    assert of(report, "fp32-fused").is_included and "outputs differ by" in of(report, "fp32-fused").verdict
    assert "no golden samples" in of(report, "fp16").verdict


def test_fusion_that_changes_answers_is_refused(make, make_transformer, monkeypatch):
    """ONNX Runtime's tools match patterns by hand; a wrong match must be seen."""
    from bundles import fusion

    real = fusion.fuse

    def wrong(model: onnx.ModelProto) -> fusion.Fused:
        result = real(model)
        for tensor in result.model.graph.initializer:
            if tensor.name == "head":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, "head"))
        return result

    monkeypatch.setattr(fusion, "fuse", wrong)
    found = of(make(make_transformer("vit"), "fp32-fused"), "fp32-fused")
    assert not found.is_included and "its outputs differ from fp32's by" in found.verdict


def test_values_beyond_float16_stay_in_float32(make, make_fragile, tmp_path: Path):
    """65504 is the largest; 255 times 1000 is not exotic in a model of raw pixels, and a CPU computes it all the same."""
    found = of(make(make_fragile(), "fp16", normalise="none"), "fp16")
    assert found.is_included and "3 nodes stay in float32" in found.verdict
    model = onnx.load_model(open_bundle(tmp_path / "out").model_path("fp16"))
    types = {each.name: each.data_type for each in model.graph.initializer}
    assert types["before.weight"] == onnx.TensorProto.FLOAT and types["after.weight"] == onnx.TensorProto.FLOAT16
    assert "stay in float32" not in of(make(make_fragile(), "fp16"), "fp16").verdict


def test_variant_that_does_not_load_is_left_out_and_the_others_are_not(make, make_fragile, tmp_path, monkeypatch):
    """A fault of one tool must not cost the bundle."""
    from bundles import precision

    def broken(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        made.graph.node[0].op_type = "Convolution"
        return made

    monkeypatch.setattr(precision, "fp16", broken)
    report = make(make_fragile(), "fp16", "int8-qnn")
    verdict = of(report, "fp16").verdict
    assert "ONNX Runtime refuses what its own tool made" in verdict
    assert str(tmp_path) not in verdict and "blobs" not in verdict, "it is in the manifest, whose digest must repeat"
    assert of(report, "int8-qnn").is_included


def test_float16_that_loses_the_answer_is_refused(make, make_model):
    """2049 is 2048 in float16, and the model lives from the difference."""
    first, second = np.zeros((6, 3), np.float32), np.zeros((4, 6), np.float32)
    for colour in range(3):
        first[2 * colour : 2 * colour + 2, colour] = 2049, 2048
        second[colour + 1, 2 * colour : 2 * colour + 2] = 1, -1
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["c"], "conv"),
        helper.make_node("Conv", ["c", "second"], ["d"], "difference"),
        helper.make_node("GlobalAveragePool", ["d"], ["m"], "mean"),
        helper.make_node("Flatten", ["m"], ["f"], "flatten"),
        helper.make_node("Softmax", ["f"], ["y"], "softmax"),
    ]
    weights = [
        numpy_helper.from_array(values[:, :, None, None], name)
        for name, values in (("first", first), ("second", second))
    ]
    found = of(make(make_model(nodes, weights, [1, 3, 16, 16], [1, 4], "x", "y"), "fp16"), "fp16")
    assert not found.is_included and "its outputs differ from fp32's by" in found.verdict


def test_one_cell_of_thousands_is_no_deviation():
    """YOLOX-Nano in float16 is off by a sixth of the peak in one background cell, and finds every object."""

    class Fixed:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def prepare(self, _sample: object) -> None:
            pass

        def infer(self, _tensors: object) -> dict[str, np.ndarray]:
            return {"y": self.values}

    expected = np.sin(np.arange(20_000, dtype=np.float32))
    one, many = expected.copy(), expected + np.float32(0.3)
    one[7] += 0.3
    near, far, broken = (
        deviation(Fixed(expected), Fixed(values), [None]) for values in (one, many, np.full_like(expected, np.nan))
    )  # type: ignore[arg-type]
    assert near < 0.01 < MOST_FP16_DEVIATION < far < broken == np.inf


def test_float16_keeps_inputs_and_outputs_and_what_it_cannot_hold(save, make_model):
    """The agent feeds float32; a mask of -1e9 would become -65504."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node("Add", ["c", "mask"], ["y"], "add")]
    weights = [
        numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.array([-1e9], np.float32), "mask"),
    ]
    made = fp16(repaired(save, make_model(nodes, weights, [1, 3, 4, 4], [1, 2, 4, 4], "x", "y")))
    types = {each.name: each.data_type for each in made.graph.initializer}
    assert types == {"w": onnx.TensorProto.FLOAT16, "mask": onnx.TensorProto.FLOAT}
    assert made.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert made.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_float16_casts_once_what_two_nodes_read(save, make_model):
    """ONNX Runtime's converter makes two casts of one name, which it refuses itself: detectors sort their corners so."""
    make_node = onnx.helper.make_node
    nodes = [
        make_node("Conv", ["x", "w"], ["c"], "conv"),
        make_node("Min", ["c", "half"], ["low"], "low"),
        make_node("Max", ["c", "half"], ["high"], "high"),
        make_node("Sub", ["high", "low"], ["y"], "sub"),
    ]
    weights = [
        numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.float32(0.5), "half"),
    ]
    made = fp16(repaired(save, make_model(nodes, weights, [1, 3, 4, 4], [1, 2, 4, 4], "x", "y")))
    given = [name for node in made.graph.node for name in node.output]
    assert len(set(given)) == len(given)
    assert outputs(made, [{"x": np.ones((1, 3, 4, 4), np.float32)}])[0][0].max() == 2.5


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("rows", [64, 72], ids=["whole blocks", "a part of a block"])
def test_int4_computes_what_it_packed(save, make_model, rows: int, is_symmetric: bool):
    """Against the definition, in NumPy: blocks along K, scale by the value of largest magnitude or by the range."""
    import onnxruntime

    generator = np.random.default_rng(2)
    values = (generator.standard_normal((rows, 8)) + 0.5).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")]
    model = make_model(nodes, [numpy_helper.from_array(values, "w")], [1, rows], [1, 8], "x", "y")
    x = generator.standard_normal((1, rows)).astype(np.float32)
    made = int4(model, Int4(block_size=32, symmetric=is_symmetric))
    found = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})[0]

    restored = np.zeros_like(values)
    for start in range(0, rows, 32):
        block = values[start : start + 32]
        if is_symmetric:
            scale, zero = block[np.abs(block).argmax(axis=0), range(8)] / -8, 8
        else:
            low, high = np.minimum(block.min(axis=0), 0), np.maximum(block.max(axis=0), 0)
            scale = (high - low) / 15
            zero = np.round(-low / scale)
        restored[start : start + 32] = (np.clip(np.round(block / scale + zero), 0, 15) - zero) * scale
    np.testing.assert_allclose(found, x @ restored, rtol=1e-3, atol=1e-3)
    assert np.abs(restored - values).max() < np.abs(values).max() / 8


def test_weights_that_only_a_body_reads_are_kept(make, make_model):
    """An `If` reads those of the graph around it."""
    branches = {
        f"{which}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["f", which], [f"{which}_out"])],
            which,
            [],
            [onnx.helper.make_tensor_value_info(f"{which}_out", onnx.TensorProto.FLOAT, None)],
        )
        for which in ("then", "else")
    }
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["f"]),
        onnx.helper.make_node("ReduceMean", ["f"], ["m"], keepdims=0),
        onnx.helper.make_node("Greater", ["m", "half"], ["is"]),
        onnx.helper.make_node("If", ["is"], ["h"], **branches),
        onnx.helper.make_node("MatMul", ["h", "last"], ["l"]),
        onnx.helper.make_node("Softmax", ["l"], ["y"]),
    ]
    generator = np.random.default_rng(3)
    shapes = {"then": (192, 32), "else": (192, 32), "last": (32, 4)}
    weights = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32) / 4, each)
        for each, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.float32(0.5), "half"))
    found = of(make(make_model(nodes, weights, [1, 3, 8, 8], [1, 4], "x", "y"), "int4", max_drop=1.0), "int4")
    assert found.is_included, found.verdict


def test_int4_without_dense_weights_is_refused(make, make_fragile):
    """With what it would have covered."""
    found = of(make(make_fragile(), "int4"), "int4")
    assert not found.is_included and "INT4 covers MatMul with constant weights" in found.verdict


def test_layers_that_int8_breaks_stay_in_float(make, make_fragile, tmp_path: Path):
    """The two that need it, found among four, and named where people look: report, manifest, verdict."""
    said: list[str] = []
    report = make(make_fragile(), "int8", progress=said.append)
    found = of(report, "int8")
    assert "it misses its gate: measuring which of its 4 layers lose most" in said, "this part takes minutes"
    assert found.is_included and set(found.float_layers) == {"before", "fragile"}
    assert "2 of 4 layers left in float: before, fragile" in found.verdict
    assert [bool(each.failure) for each in found.tries] == [True, False, True, True]
    assert [len(each.float_layers) for each in found.tries] == [0, 2, 1, 1]
    bundle = open_bundle(tmp_path / "out")
    variant = bundle.manifest.variant("int8")
    assert variant is not None and variant.float_layers == found.float_layers
    weights = {each.name for each in onnx.load_model(bundle.model_path("int8")).graph.initializer}
    assert {"before.weight", "fragile.weight", "after.weight_quantized"} <= weights


def test_sixteen_bits_need_no_layer_in_float(make, make_fragile):
    """Where the hardware has them, nothing is given away."""
    found = of(make(make_fragile(), "int8-qnn"), "int8-qnn")
    assert found.is_included and found.float_layers == () and len(found.tries) == 1


def test_search_ends_at_its_time_limit(save, make_fragile, colours: Path, tmp_path: Path):
    """And says how to go on."""

    class Hurried:
        """Each look at it is an hour later."""

        now_s = 0.0

        def monotonic(self) -> float:
            self.now_s += 3600
            return self.now_s

    options = Options(normalise="unit", labels=LABELS, calibration=colours, golden=colours, variants=("int8",))
    report = build(save(make_fragile()), tmp_path / "out", options, clock=Hurried())
    assert "raise `quantize.search_s`" in of(report, "int8").verdict


def test_same_bytes_in_another_process(make, make_fragile, make_transformer, colours: Path, tmp_path: Path):
    """Searching, fusing and converting included; hash seeds must not matter."""
    script = (
        "import sys; from pathlib import Path; from bundles.build import build; from bundles.options import Options\n"
        "folder, p = map(Path, sys.argv[1:3])\n"
        "for name, gate, variants in zip(*[iter(sys.argv[3:])] * 3):\n"
        "    o = Options(normalise='unit', labels=('none', 'red', 'green', 'blue'), calibration=p, golden=p,\n"
        "                max_drop=float(gate), variants=tuple(variants.split(',')))\n"
        "    print(build(folder / name, folder / 'other', o).digest)\n"
    )
    cases = (
        ("fragile.onnx", make_fragile(), 0.01, ("int8", "fp16")),
        ("vit.onnx", make_transformer("vit"), 1.0, ("fp32-fused", "fp16", "int8-qnn", "int4")),
    )
    words, digests = [], []
    for name, model, gate, variants in cases:
        digests.append(make(model, *variants, max_drop=gate, name=name.removesuffix(".onnx")).digest)
        onnx.save_model(model, tmp_path / name)
        words += [name, str(gate), ",".join(variants)]
    other = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(colours), *words],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == digests


def test_external_data_is_quantized_like_any_other(make_fragile, colours: Path, tmp_path: Path):
    """Weights in files of their own are how large models are exported."""
    path = tmp_path / "model.onnx"
    onnx.save_model(make_fragile(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    options = Options(normalise="unit", labels=LABELS, calibration=colours, golden=colours, variants=("int8", "fp16"))
    report = build(path, tmp_path / "out", options)
    assert all(each.is_included for each in report.variants)
    (tmp_path / "weights.bin").unlink()
    bundle = open_bundle(tmp_path / "out")
    for variant in bundle.manifest.variants:
        open_model(bundle, Candidate(CPU_PROVIDER, "cpu", variant.name, 1)).warm_up()


def recipe(folder: Path, model: onnx.ModelProto, text: str) -> Path:
    onnx.save_model(model, folder / "model.onnx")
    (folder / "bundle.yaml").write_text(
        "name: colours\nmodel: model.onnx\ncalibration: colours\ngolden: colours\n"
        "input: {kind: image, normalise: unit}\ndecoder: {model_type: classify, labels: [none, red, green, blue]}\n"
        + text
    )
    return folder


def test_excluded_nodes_stay_in_float_in_every_variant(make_fragile, colours: Path, tmp_path: Path):
    """What a person knows of their model needs no search; a regular expression names many."""
    text = "variants: [int8, fp16]\nquantize: {exclude: [before, 'frag.*']}\n"
    report = build(recipe(colours.parent, make_fragile(), text), tmp_path / "out")
    assert len(of(report, "int8").tries) == 1 and of(report, "int8").is_included
    bundle = open_bundle(tmp_path / "out")
    for name in ("int8", "fp16"):
        types = {each.name: each.data_type for each in onnx.load_model(bundle.model_path(name)).graph.initializer}
        assert types["before.weight"] == types["fragile.weight"] == onnx.TensorProto.FLOAT, name
        assert types.get("after.weight") != onnx.TensorProto.FLOAT, name


def test_excluding_what_is_not_there_is_a_mistake(make_fragile, colours: Path, tmp_path: Path):
    """A layer renamed by a new export would be quantized in silence."""
    folder = recipe(colours.parent, make_fragile(), "quantize: {exclude: [befor]}\n")
    with pytest.raises(BundleError, match="names `befor`, and the model has no such node") as refusal:
        build(folder, tmp_path / "out")
    assert "before" in refusal.value.hint


def test_open_dimension_is_recorded_and_run_at_both_ends(make, make_classifier, tmp_path: Path):
    """So that a device knows what it may feed, and a profile that wants fixed shapes passes the bundle over."""
    from bundles.recipe import Bounds

    report = make(
        make_classifier(dynamic=True), "int8", "int8-qnn", max_drop=1, dimensions={"size": Bounds(min=8, max=32)}
    )
    assert of(report, "int8").is_included
    assert "QNN takes fixed shapes only" in of(report, "int8-qnn").verdict
    bundle = open_bundle(tmp_path / "out")
    for variant in bundle.manifest.variants:
        assert variant.inputs[0].shape == (1, 3, -1, -1) and not variant.is_fixed
        assert variant.inputs[0].bounds == {2: (8, 32), 3: (8, 32)}
    assert (bundle.manifest.input.width, bundle.manifest.input.height) == (32, 32)


def test_model_that_fails_at_an_end_of_its_bounds_is_refused(make, make_model):
    """An export says `dynamic` of a graph with a constant inside more often than not."""
    from bundles.recipe import Bounds

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["maps"], kernel_shape=[5, 5]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.ones((4, 3, 5, 5), np.float32), "w")]
    model = make_model(nodes, weights, [1, 3, "h", "w_"], [1, 4], "x", "y")
    dimensions = {"h": Bounds(min=4, max=32), "w_": Bounds(min=8, max=32)}
    with pytest.raises(BundleError):
        make(model, "fp32", dimensions=dimensions)
    dimensions["h"] = Bounds(min=8, max=32)
    assert make(model, "fp32", dimensions=dimensions).variants[0].is_included


def test_bounds_of_no_dimension_are_a_mistake(make, make_classifier):
    """As a misspelled size is."""
    from bundles.recipe import Bounds

    with pytest.raises(BundleError, match="`dimensions` bounds hight, and no input has such an open dimension"):
        make(make_classifier(dynamic=True), "fp32", dimensions={"size": 16, "hight": Bounds(min=8, max=32)})


QNN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, onnxruntime, onnxruntime_qnn
onnxruntime.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == "QNNExecutionProvider"]
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
session = onnxruntime.InferenceSession(sys.argv[2], options, enable_fallback=0)
outputs = session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[3])})
np.savez(sys.argv[4], *outputs)
nodes = {}
for part in session.get_provider_graph_assignment_info():
    nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
print(json.dumps(nodes))
"""
"""Qualcomm's HTP in software: the whole graph there, or no session."""


def on_qnn(accelerators: Path, model: Path, x: np.ndarray, tmp_path: Path) -> tuple[dict[str, int], list[np.ndarray]]:
    np.save(tmp_path / "x.npy", x)
    words = [accelerators / "plugins", model, tmp_path / "x.npy", tmp_path / "y.npz"]
    child = subprocess.run(
        [sys.executable, "-c", QNN, *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )
    assert child.returncode == 0, child.stderr[-2000:]
    with np.load(tmp_path / "y.npz") as found:
        return json.loads(child.stdout.splitlines()[-1]), [found[name] for name in found.files]


def test_small_model_runs_whole_on_qualcomms_htp(make, make_fragile, accelerators: Path, tmp_path: Path):
    """`int8-qnn` is made for one thing: no node of it on the CPU."""
    make(make_fragile(), "int8-qnn")
    bundle = open_bundle(tmp_path / "out")
    x = np.zeros((1, 3, 16, 16), np.float32)
    x[:, 1] = 1
    nodes, (found,) = on_qnn(accelerators, bundle.model_path("int8-qnn"), x, tmp_path)
    assert list(nodes) == ["QNNExecutionProvider"] and nodes["QNNExecutionProvider"] > 5
    assert found.argmax() == LABELS.index("green")


def test_real_face_detector_runs_whole_on_qualcomms_htp(shared_data: Path, accelerators: Path, tmp_path: Path):
    """And finds there what it finds on the CPU."""
    images = shared_data / "images"
    source = shared_data / "models" / "ultraface-version-RFB-320.onnx"
    variants = ("int8-qnn", "fp16")
    report = build(
        source, tmp_path / "out", Options(name="faces", calibration=images, golden=images, variants=variants)
    )
    assert all(each.is_included for each in report.variants), report.variants
    bundle = open_bundle(tmp_path / "out")
    pixels = cv2.resize(cv2.imread(str(min(images.glob("*.jpg")))), (320, 240))[..., ::-1]
    x = ((pixels.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
    nodes, found = on_qnn(accelerators, bundle.model_path("int8-qnn"), x, tmp_path)
    assert list(nodes) == ["QNNExecutionProvider"] and nodes["QNNExecutionProvider"] > 300
    fp32 = open_model(bundle, Candidate(CPU_PROVIDER, "cpu", "fp32", 1)).infer({"input": x})
    for expected, each in zip(fp32.values(), found, strict=True):
        np.testing.assert_allclose(each, expected, atol=0.08)
