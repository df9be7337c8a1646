"""Repairs change how fast a model runs and never what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.errors import BundleError
from bundles.modelfile import read_model
from bundles.onnxlibrary import dimensions, real_inputs
from bundles.repair import repair


def run(model: onnx.ModelProto | str, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, dict(feeds))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("file", "scale", "shift"), [("ultraface-version-RFB-320", 2, -1), ("yolox_nano_coco", 255, 0)]
)
def test_real_models_say_the_same_after_repair(shared_data: Path, file: str, scale: int, shift: int):
    """The promise of the builder, to 1e-5 on real models."""
    path = shared_data / "models" / f"{file}.onnx"
    repaired = repair(read_model(path)).model
    value = real_inputs(repaired.graph)[0]
    feeds = {value.name: noise(*dimensions(value)) * scale + shift}
    for expected, found in zip(run(str(path), feeds), run(repaired, feeds), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_weights_of_ultraface_are_no_longer_inputs(shared_data: Path):
    """Listed as inputs they may change at run time, so nothing is folded: a factor of three."""
    source = read_model(shared_data / "models" / "ultraface-version-RFB-320.onnx")
    assert len(source.model.graph.input) > 200
    result = repair(source)
    assert [value.name for value in result.model.graph.input] == ["input"]
    names = [node.name for node in result.model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert any("weights taken off" in line for line in result.repairs)
    assert "Shape" not in {node.op_type for node in result.model.graph.node}
    assert len(source.model.graph.input) > 200, "the model as shipped is left as it is"


def test_repair_is_the_same_every_time(shared_data: Path):
    """Two builds of one model must have one digest."""
    path = shared_data / "models" / "ultraface-version-RFB-320.onnx"
    first, second = (repair(read_model(path)).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_repairing_twice_changes_nothing(shared_data: Path, tmp_path: Path):
    """A bundle's own model can be built again."""
    path = tmp_path / "once.onnx"
    once = repair(read_model(shared_data / "models" / "ultraface-version-RFB-320.onnx")).model
    path.write_bytes(once.SerializeToString(deterministic=True))
    again = repair(read_model(path))
    assert again.repairs == ()
    assert again.model.SerializeToString(deterministic=True) == path.read_bytes()


def test_same_names_are_made_different(save, make_classifier):
    """Some runtimes refuse two nodes of one name."""
    made = make_classifier()
    for node in made.graph.node:
        node.name = "Conv_1"
    names = [node.name for node in repair(read_model(save(made))).model.graph.node]
    assert len(set(names)) == len(names)


def test_nodes_in_no_order_are_sorted_in_bodies_too(save, make_model):
    """ONNX Runtime's float16 converter appends its casts; ONNX demands an order."""
    body = helper.make_graph(
        [helper.make_node("Relu", ["t"], ["u"]), helper.make_node("Mul", ["a", "w"], ["t"])],
        "body",
        [],
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["is"], ["y"], then_branch=body, else_branch=body),
        helper.make_node("Greater", ["m", "w"], ["is"]),
        helper.make_node("ReduceMean", ["a"], ["m"], keepdims=0),
        helper.make_node("Abs", ["x"], ["a"]),
    ]
    path = save(make_model(nodes, [numpy_helper.from_array(np.float32(0.2), "w")], [1, 4], [1, 4], "x", "y"))
    repaired = repair(read_model(path))
    assert "nodes put in the order in which they run" in repaired.repairs
    np.testing.assert_allclose(run(repaired.model, {"x": -np.ones((1, 4), np.float32)})[0], 0.2)


def test_weights_that_are_nan_are_refused_by_name(save, make_detector):
    """A Relu behind them gives 0, and nothing else would show that the training diverged."""
    made = make_detector()
    values = numpy_helper.to_array(made.graph.initializer[0]).copy()
    values[0, 0, 0, 0] = np.nan
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    with pytest.raises(BundleError, match="1 of the 768 values of weight `w` are NaN"):
        repair(read_model(save(made)))


def test_batch_is_fixed_and_other_dimensions_are_asked_for(save, make_classifier):
    """Only the batch is known to be one."""
    source = read_model(save(make_classifier(dynamic=True)))
    with pytest.raises(BundleError, match=r"x\.2 \(`size`\), x\.3") as refusal:
        repair(source)
    assert "dimensions:" in str(refusal.value.hint)
    for sizes in ({"size": 16}, {"x.2": 16, "x.3": 16}):
        result = repair(source, sizes)
        assert dimensions(result.model.graph.input[0]) == [1, 3, 16, 16]
        assert dimensions(result.model.graph.output[0]) == [1, 4]
        assert any(line.startswith("dimensions fixed: N = 1") for line in result.repairs)


def test_size_that_was_assumed_is_named_where_the_shapes_do_not_fit(save, make_model):
    """A recurrent network may take its time first; that axis is no batch."""
    nodes = [helper.make_node("Flatten", ["x"], ["f"], axis=0), helper.make_node("MatMul", ["f", "w"], ["y"])]
    weights = [numpy_helper.from_array(np.ones((12, 2), np.float32), "w")]
    path = save(make_model(nodes, weights, ["time", 1, 3], [1, 2], "x", "y"))
    with pytest.raises(BundleError, match="do not fit together") as caught:
        repair(read_model(path))
    assert caught.value.hint is not None and "time = 1: is one of them wrong?" in caught.value.hint
    repair(read_model(path), {"time": 4})


def test_output_keeps_the_sizes_that_it_declares(save, make_model):
    """Shape inference does not know every operator (ai.onnx.ml); what the exporter wrote is then all there is."""
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    made = make_model([node], [], ["N", 3], ["N", 3], "x", "y")
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    result = repair(read_model(save(made)))
    assert dimensions(result.model.graph.output[0]) == [1, 3]


def test_shape_arithmetic_is_folded(save, make_model):
    """Exporters compute constant shapes with a dozen nodes; accelerators cut the graph there."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array([0], np.int64), "axes"),
        numpy_helper.from_array(np.array([-1], np.int64), "minus"),
    ]
    made = make_model(nodes, constants, ["N", 3, 4], ["N", 12], "x", "y")
    result = repair(read_model(save(made)))
    assert [node.op_type for node in result.model.graph.node] == ["Reshape"]
    assert run(result.model, {"x": noise(1, 3, 4)})[0].shape == (1, 12)


def test_chance_and_quantization_are_not_folded(save, make_model):
    """Folding a random node would freeze it; folding Q and DQ would undo somebody's quantization."""
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[3]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        helper.make_node("Add", ["x", "r"], ["a"]),
        helper.make_node("Add", ["a", "d"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.int8), "q"),
        numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
    ]
    result = repair(read_model(save(make_model(nodes, constants, [3], [3], "x", "y"))))
    assert [node.op_type for node in result.model.graph.node] == [node.op_type for node in nodes]


def test_constant_output_still_comes_from_a_node(save, make_model):
    """A graph whose output is a weight is refused by some runtimes."""
    nodes = [helper.make_node("Neg", ["c"], ["y"]), helper.make_node("Relu", ["x"], ["unused"])]
    constants = [numpy_helper.from_array(np.ones(3, np.float32), "c")]
    result = repair(read_model(save(make_model(nodes, constants, [3], [3], "x", "y"))))
    np.testing.assert_array_equal(run(result.model, {"x": noise(3)})[0], [-1, -1, -1])


def test_large_constants_are_not_unfolded_into_the_file(save, make_model):
    """One Expand node must not become a megabyte to ship."""
    nodes = [helper.make_node("Expand", ["c", "s"], ["e"]), helper.make_node("Add", ["x", "e"], ["y"])]
    constants = [
        numpy_helper.from_array(np.ones(1, np.float32), "c"),
        numpy_helper.from_array(np.array([2000, 1000], np.int64), "s"),
    ]
    made = make_model(nodes, constants, [2000, 1000], [2000, 1000], "x", "y")
    assert repair(read_model(save(made))).model.ByteSize() < 2000


def test_intermediates_that_fill_the_memory_are_refused(save, make_model):
    """Known only after shape inference, and before any runtime allocates it."""
    nodes = [helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("ReduceSum", ["e"], ["y"], keepdims=0)]
    constants = [numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "s")]
    with pytest.raises(BundleError, match="tensor `e` has the shape"):
        repair(read_model(save(make_model(nodes, constants, [1], [], "x", "y"))))


def test_graphs_that_do_not_fit_together_are_refused(save, make_model):
    """Wrong shapes, unknown inputs, weights shorter than they say."""
    mismatch = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [numpy_helper.from_array(np.ones((5, 2), np.float32), "w")],
        [1, 3],
        [1, 2],
        "x",
        "y",
    )
    dangling = make_model([helper.make_node("Add", ["x", "nowhere"], ["y"])], [], [1], [1], "x", "y")
    short = make_model([helper.make_node("Add", ["x", "w"], ["y"])], [], [4], [4], "x", "y")
    short.graph.initializer.append(TensorProto(name="w", dims=[4], data_type=1, raw_data=b"\0" * 3))
    for made in (mismatch, dangling, short):
        with pytest.raises(BundleError) as refusal:
            repair(read_model(save(made)))
        assert refusal.value.hint


def test_sizes_hidden_behind_arithmetic_are_found(save, make_model):
    """The bomb's size is itself computed; it is known once that is folded, and still before any runtime runs."""
    nodes = [
        helper.make_node("Pow", ["base", "exponent"], ["p"]),
        helper.make_node("ConstantOfShape", ["p"], ["e"]),
        helper.make_node("Add", ["x", "e"], ["a"]),
        helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "base"),
        numpy_helper.from_array(np.array([1, 1], np.int64), "exponent"),
    ]
    with pytest.raises(BundleError, match=r"tensor `[ae]` has the shape"):
        repair(read_model(save(make_model(nodes, constants, [1], [], "x", "y"))))


def test_folding_goes_on_until_nothing_is_left(save, make_model):
    """What one pass makes known the next one uses; a second build of the result must change nothing."""
    nodes = [
        helper.make_node("Pow", ["base", "exponent"], ["p"]),
        helper.make_node("Expand", ["one", "p"], ["e"]),
        helper.make_node("Shape", ["e"], ["s"]),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "base"),
        numpy_helper.from_array(np.array([1, 1], np.int64), "exponent"),
        numpy_helper.from_array(np.ones(1, np.float32), "one"),
    ]
    result = repair(read_model(save(make_model(nodes, constants, [6], None, "x", "y"))))
    assert [node.op_type for node in result.model.graph.node] == ["Reshape"]
    assert dimensions(result.model.graph.output[0]) == [2, 3]
