"""INT8 variants are what the profiles expect, reproducible, and leave nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from agent.errors import CandidateError
from bundles.modelfile import read_model
from bundles.quantize import StaticQuantizer, dynamic_int8
from bundles.recipe import Quantize
from bundles.repair import repair


@pytest.fixture
def fp32(save, make_classifier) -> onnx.ModelProto:
    return repair(read_model(save(make_classifier()))).model


def samples(count: int = 4) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    return [{"x": generator.random((1, 3, 16, 16), dtype=np.float32)} for _ in range(count)]


def static(model: onnx.ModelProto, name: str = "int8", **settings: object) -> onnx.ModelProto:
    return StaticQuantizer(model, samples(), name, Quantize(**settings)).quantize()


def zero_points(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    weights = {each.name: each for each in model.graph.initializer}
    return [weights[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


def test_static_int8_is_qdq_u8s8_per_channel(fp32):
    """Unsigned activations and signed weights run fastest on x86; accelerators want QDQ with a scale a channel."""
    made = static(fp32)
    weights = {each.name: each for each in made.graph.initializer}
    kinds = {node.op_type for node in made.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    scale, zero = weights["w_scale"], weights["w_zero_point"]
    assert list(scale.dims) == [8] and zero.data_type == TensorProto.INT8
    assert {each.data_type for each in zero_points(made)} == {TensorProto.UINT8}
    assert all(each.domain in {"", "ai.onnx"} for each in made.opset_import)
    onnx.checker.check_model(made, full_check=True)


def test_int8_s8_is_signed_and_symmetric(fp32):
    """TensorRT refuses a zero point that is not zero."""
    found = zero_points(static(fp32, "int8-s8"))
    assert {each.data_type for each in found} == {TensorProto.INT8}
    assert all(not onnx.numpy_helper.to_array(each).any() for each in found)


def test_int8_qnn_has_16_bit_activations_and_8_bit_weights(fp32):
    """The HTP computes with both; eight bits for activations cost a detector its small objects."""
    made = static(fp32, "int8-qnn")
    assert {each.data_type for each in zero_points(made)} == {TensorProto.UINT16}
    weights = {each.name: each for each in made.graph.initializer}
    assert weights["w_zero_point"].data_type == TensorProto.INT8
    steps = {node.domain for node in made.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}}
    assert steps == {"com.microsoft"}, "ONNX's own know 16 bits from opset 21 only"
    assert all(node.input[0] != "x" for node in made.graph.node if node.op_type == "Conv"), "the input too"


def test_int8_qnn_gives_sigmoid_the_scale_that_the_htp_wants(save, make_transformer):
    """Its manual fixes it: 1/65536 for 16 bits. With any other the compiler refuses the node."""
    model = repair(read_model(save(make_transformer("bert")))).model
    feeds = {"x": np.random.default_rng(1).random((1, 16, 4), dtype=np.float32)}
    made = StaticQuantizer(model, [feeds], "int8-qnn").quantize()
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in made.graph.initializer}
    sigmoid = next(node for node in made.graph.node if node.op_type == "Sigmoid")
    after = next(node for node in made.graph.node if node.input[0] == sigmoid.output[0])
    assert weights[after.input[1]] == pytest.approx(1 / 65536)


@pytest.mark.parametrize("name", ["int8", "int8-s8", "int8-qnn"])
def test_int8_answers_nearly_the_same(fp32, name: str):
    """Quantized, not broken."""
    feeds = samples(1)[0]
    np.testing.assert_allclose(run(static(fp32, name), feeds), run(fp32, feeds), atol=0.05)


@pytest.mark.parametrize(
    "settings",
    [{"calibration": "entropy"}, {"calibration": "percentile", "percentile": 90.0}, {"per_channel": False}],
    ids=["entropy", "percentile", "per tensor"],
)
def test_each_way_to_choose_ranges_gives_a_model_of_its_own(fp32, settings, capsys):
    """A setting that changes nothing would be a setting that was not passed on."""
    made, usual = static(fp32, **settings), static(fp32)
    assert made.SerializeToString(deterministic=True) != usual.SerializeToString(deterministic=True)
    feeds = samples(1)[0]
    np.testing.assert_allclose(run(made, feeds), run(fp32, feeds), atol=0.1)
    assert capsys.readouterr().out == "", "ONNX Runtime's calibrators print; standard output is for --json"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(static, id="int8"),
        pytest.param(lambda model: static(model, "int8-qnn"), id="int8-qnn"),
        pytest.param(lambda model: static(model, calibration="entropy"), id="entropy"),
        pytest.param(dynamic_int8, id="int8-dynamic"),
    ],
)
def test_same_bytes_twice_and_nothing_left_on_disk(fp32, make, tmp_path: Path, monkeypatch):
    """The digest of a build must not depend on the day."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    first, second = (make(fp32).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert list(scratch.iterdir()) == []


def test_nodes_named_stay_in_float_and_only_those_named_leave_it(fp32):
    """The search for sensitive layers rests on both."""
    quantizer = StaticQuantizer(fp32, samples())
    dense = next(node.name for node in quantizer.model.graph.node if node.op_type == "Gemm")
    weights = {each.name: each for each in quantizer.quantize([dense]).graph.initializer}
    assert weights["g"].data_type == TensorProto.FLOAT and "w_scale" in weights
    weights = {each.name: each for each in quantizer.quantize_only([dense]).graph.initializer}
    assert weights["w"].data_type == TensorProto.FLOAT and "g_scale" in weights
    kept = StaticQuantizer(fp32, samples(), excluded=frozenset([dense])).quantize()
    assert "g" in {each.name for each in kept.graph.initializer}, "excluded by the recipe, whatever the search says"


def test_dynamic_covers_dense_layers_only(fp32):
    """A dynamically quantized convolution is slower than fp32."""
    kinds = [node.op_type for node in dynamic_int8(fp32).graph.node]
    assert "MatMulInteger" in kinds and "Conv" in kinds and "ConvInteger" not in kinds


def test_old_dense_layers_with_known_shapes_become_int8_too(save, make_model):
    """AlexNet, VGG and ResNet of the ONNX zoo: Dropout's mask was a float at opset 9, and shapes of weights are written down."""
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", "mask"]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["w"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.1])
        ),
        helper.make_node("Gemm", ["d", "w", "b"], ["y"], transB=1),
    ]
    weights = [helper.make_tensor("shape", TensorProto.INT64, [2], [3, 8]), helper.make_tensor("b", 1, [3], [0.0] * 3)]
    model = repair(read_model(save(make_model(nodes, weights, [1, 8], [1, 3], "x", "y", opset=9)))).model

    quantized = dynamic_int8(model)

    x = np.ones((1, 8), np.float32)
    np.testing.assert_allclose(run(quantized, {"x": x}), run(model, {"x": x}), rtol=0.02)


def test_layers_behind_operators_of_onnx_runtime_are_quantized(save, make_classifier):
    """ONNX cannot infer what these give, and the quantizer wants to know."""
    made = make_classifier()
    made.graph.node[1].op_type, made.graph.node[1].domain = "Gelu", "com.microsoft"
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    samples = [{"x": np.random.default_rng(1).random((1, 3, 16, 16), np.float32)}]
    fp32 = repair(read_model(save(made))).model
    for quantized in (StaticQuantizer(fp32, samples).quantize(), dynamic_int8(fp32)):
        assert any(each.data_type == TensorProto.INT8 and len(each.dims) == 2 for each in quantized.graph.initializer)


def test_nothing_to_quantize_is_said(make_model):
    """Left out with its reason, not with a copy of fp32."""
    made = make_model([helper.make_node("Relu", ["x"], ["y"])], [], [1, 3], [1, 3], "x", "y")
    for attempt in (
        lambda: StaticQuantizer(made, [{"x": np.ones((1, 3), np.float32)}]),
        lambda: dynamic_int8(made),
    ):
        with pytest.raises(CandidateError, match="has none with weights"):
            attempt()


def test_qnn_is_refused_for_open_shapes(save, make_classifier):
    """The HTP's compiler takes none."""
    made = repair(read_model(save(make_classifier(dynamic=True))), {"size": 16}, {"N"}).model
    with pytest.raises(CandidateError, match="QNN takes fixed shapes only, and x may vary"):
        StaticQuantizer(made, samples(), "int8-qnn")


def test_old_opsets_are_raised_first(save, make_classifier):
    """One scale a channel needs opset 13; many face detectors are at 9."""
    made = make_classifier()
    made.opset_import[0].version = 11
    result = static(repair(read_model(save(made))).model)
    assert result.opset_import[0].version >= 13
    onnxruntime.InferenceSession(result.SerializeToString())
