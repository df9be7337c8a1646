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
from bundles import quantize
from bundles.modelfile import read_model
from bundles.repair import repair


@pytest.fixture
def fp32(save, make_classifier) -> onnx.ModelProto:
    return repair(read_model(save(make_classifier()))).model


def samples(count: int = 4) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    return [{"x": generator.random((1, 3, 16, 16), dtype=np.float32)} for _ in range(count)]


def test_static_int8_is_qdq_u8s8_per_channel(fp32):
    """Unsigned activations and signed weights run fastest on x86; accelerators want QDQ with a scale a channel."""
    made = quantize.static_int8(fp32, samples())
    weights = {each.name: each for each in made.graph.initializer}
    kinds = {node.op_type for node in made.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    scale, zero = weights["w_scale"], weights["w_zero_point"]
    assert list(scale.dims) == [8] and zero.data_type == TensorProto.INT8
    activations = [weights[node.input[2]].data_type for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert set(activations) == {TensorProto.UINT8}
    assert all(each.domain in {"", "ai.onnx"} for each in made.opset_import)
    onnx.checker.check_model(made, full_check=True)


def test_int8_answers_nearly_the_same(fp32):
    """Quantized, not broken."""
    made = quantize.static_int8(fp32, samples())
    first, second = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, samples(1)[0])[0] for model in (fp32, made)
    )
    np.testing.assert_allclose(second, first, atol=0.05)


@pytest.mark.parametrize("make", [lambda m: quantize.static_int8(m, samples()), quantize.dynamic_int8])
def test_same_bytes_twice_and_nothing_left_on_disk(fp32, make, tmp_path: Path, monkeypatch):
    """The digest of a build must not depend on the day."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    first, second = (make(fp32).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert list(scratch.iterdir()) == []


def test_scopes_leave_the_end_in_fp32(save, make_detector):
    """Boxes and scores in one tensor share one scale; the arithmetic after the last weights then loses the scores."""
    made = repair(read_model(save(make_detector(columns=6)))).model
    tensors = [{"images": sample["x"].repeat(2, axis=2).repeat(2, axis=3)} for sample in samples()]
    counts = []
    for scope in quantize.SCOPES:
        result = quantize.static_int8(made, tensors, scope)
        counts.append(sum(node.op_type == "QuantizeLinear" for node in result.graph.node))
    assert counts[0] > counts[1] > counts[2]


def test_dynamic_covers_dense_layers_only(fp32):
    """A dynamically quantized convolution is slower than fp32."""
    kinds = [node.op_type for node in quantize.dynamic_int8(fp32).graph.node]
    assert "MatMulInteger" in kinds and "Conv" in kinds and "ConvInteger" not in kinds


def test_nothing_to_quantize_is_said(make_model):
    """Left out with its reason, not with a copy of fp32."""
    made = make_model([helper.make_node("Relu", ["x"], ["y"])], [], [1, 3], [1, 3], "x", "y")
    for attempt in (
        lambda: quantize.static_int8(made, [{"x": np.ones((1, 3), np.float32)}]),
        lambda: quantize.dynamic_int8(made),
    ):
        with pytest.raises(CandidateError, match="has none with weights"):
            attempt()


def test_old_opsets_are_raised_first(save, make_classifier):
    """One scale a channel needs opset 13; many face detectors are at 9."""
    made = make_classifier()
    made.opset_import[0].version = 11
    result = quantize.static_int8(repair(read_model(save(made))).model, samples())
    assert result.opset_import[0].version >= 13
    onnxruntime.InferenceSession(result.SerializeToString())
