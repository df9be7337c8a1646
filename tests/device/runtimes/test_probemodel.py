"""The tiny model that devices are tried with: what is in the file, and that wrong numbers are seen."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent import resources
from agent.device.facts import BUILT_IN
from agent.device.planning.plan import Candidate
from agent.device.runtimes import probemodel
from agent.device.runtimes.catalogue import open_runtime
from agent.device.runtimes.runtime import Assignment, Opening
from agent.device.survey.probe import answer, try_device
from agent.errors import CandidateError


def make(*, is_quantized: bool = False) -> bytes:
    """Make the model again. `python -c "import test_probemodel; …write_bytes(make())"` after a change of its numbers."""
    weights, biases = probemodel.kernel()
    if is_quantized:
        nodes, values = quantized(weights, biases)
    else:
        values = {"weights": weights, "biases": biases}
        nodes = [
            helper.make_node("Conv", ["input", "weights", "biases"], ["convolved"], "conv", kernel_shape=[3, 3]),
            helper.make_node("Relu", ["convolved"], ["output"], "relu"),
        ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=7, producer_name="holdfast")
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def quantized(weights: np.ndarray, biases: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Give the same in 8 bits: inputs, weights and biases are exact in steps of 1/64, the output is in steps of 1/32.

    Its zero point is 0, so quantizing cuts off what is negative, as Relu does.
    """
    step, fine, coarse = np.float32(1 / 64), np.float32(1 / 4096), np.float32(1 / 32)
    values = {
        "step": step, "fine": fine, "coarse": coarse, "zero": np.uint8(0), "zero8": np.int8(0), "zero32": np.int32(0),
        "weights": (weights / step).astype(np.int8), "biases": (biases / fine).astype(np.int32),
    }  # fmt: skip
    dequantize = [
        ("bytes", "step", "zero", "image"), ("weights", "step", "zero8", "weighing"), ("biases", "fine", "zero32", "bias"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["bytes"], "quantize"),
        *(helper.make_node("DequantizeLinear", [a, scale, zero], [to], to) for a, scale, zero, to in dequantize),
        helper.make_node("Conv", ["image", "weighing", "bias"], ["convolved"], "conv", kernel_shape=[3, 3]),
        helper.make_node("QuantizeLinear", ["convolved", "coarse", "zero"], ["positive"], "requantize"),
        helper.make_node("DequantizeLinear", ["positive", "coarse", "zero"], ["output"], "dequantize"),
    ]
    return nodes, {name: np.asarray(value) for name, value in values.items()}


@pytest.mark.parametrize("is_quantized", [False, True])
def test_the_file_is_what_the_numbers_make(is_quantized):
    """It ships with the agent, and nobody can read it: this is what it is."""
    content = resources.probe_model(is_quantized=is_quantized).read_bytes()

    assert content == make(is_quantized=is_quantized)
    assert len(content) < 1500
    assert all(node.name for node in onnx.load_from_string(content).graph.node)


def test_right_numbers_pass_and_wrong_ones_are_seen():
    """Half precision and bfloat16's rounding are right; zeros, NaN, a turned picture and one bad channel are not."""
    right = probemodel.expected()
    assert right[0, :, 0, 0].tolist() == [10 / 64, 0, 3 * 10 / 64 + 3.5, 2 / 64]  # row 1, column 1 of the ramp is 10/64

    for fine in (right, right.astype(np.float16), right * (1 + 2**-8), np.asfortranarray(right)):
        assert probemodel.difference(fine) is None
    bad = right.copy()
    bad[0, 0] = 0
    wrong = [right * 0, right + np.nan, right + np.inf, right.transpose(0, 1, 3, 2), right[:, ::-1], bad, right + 0.2]
    for each in (*wrong, right[:, :, :5], right[0]):
        assert probemodel.difference(each)


@pytest.mark.parametrize(("is_quantized", "step"), [(False, 0), (True, 1 / 32)])
def test_the_cpu_computes_it(is_quantized, step):
    """The real runtime agrees with the numbers; in int8 within half a step of the output."""
    cpu = Candidate("CPUExecutionProvider", "cpu", "probe", 1)
    session = open_runtime(BUILT_IN).open(Opening(resources.probe_model(is_quantized=is_quantized), cpu))

    output = session.run({probemodel.INPUT: probemodel.given()})[probemodel.OUTPUT]
    np.testing.assert_allclose(output, probemodel.expected(), rtol=0, atol=step / 2)
    assert probemodel.difference(output) is None


def test_a_question_that_is_none_is_answered():
    """A newer agent after an update, with an older child: words, no traceback."""
    assert answer({"is": "dance"})["is"] == "failed"


class Fake:
    """A runtime whose provider takes part of the graph, or nothing, and answers as it is told."""

    version = "1"

    def __init__(
        self, *, nodes: dict[str, int], output=None, error: Exception | None = None, takes: str = "probe"
    ) -> None:
        self.nodes, self.output, self.error, self.takes, self.entries = nodes, output, error, takes, []

    def open(self, opening):
        if not opening.model_path.stem.startswith(self.takes):
            raise CandidateError("it takes no float graph")
        self.entries.append(opening.candidate.session_options)
        if opening.candidate.session_options and "CPUExecutionProvider" in self.nodes:
            raise CandidateError("…, but fallback to CPU EP has been explicitly disabled by the user.")
        self.assignment = Assignment(nodes=self.nodes)
        return self

    def run(self, inputs):
        if self.error:
            raise self.error
        return {"output": probemodel.expected() if self.output is None else self.output}


@pytest.mark.parametrize(("device_type", "text"), [("npu", None), ("gpu", "it takes no float graph")])
def test_an_npu_that_computes_in_integers_only_is_of_use(monkeypatch, device_type, text):
    """Hexagon v68 opens no float graph: tried with one alone it would be shown as broken, and its int8 models left out."""
    fake = Fake(nodes={"XExecutionProvider": 7}, takes="probe-int8")
    monkeypatch.setattr("agent.device.runtimes.catalogue.open_runtime", lambda _: fake)

    assert try_device(Candidate("XExecutionProvider", device_type, "probe", 1)) == text


@pytest.mark.parametrize(
    ("fake", "text"),
    [
        pytest.param(Fake(nodes={"XExecutionProvider": 2}), None, id="all"),
        pytest.param(Fake(nodes={"XExecutionProvider": 1, "CPUExecutionProvider": 3}), None, id="its part"),
        pytest.param(Fake(nodes={"CPUExecutionProvider": 2}), "explicitly disabled", id="nothing"),
        pytest.param(Fake(nodes={"XExecutionProvider": 2}, output=np.zeros((1, 4, 6, 6))), "wrongly", id="zeros"),
        pytest.param(Fake(nodes={"XExecutionProvider": 2}, error=KeyError("x")), "KeyError: 'x'", id="throws"),
    ],
)
def test_a_device_is_of_use_when_it_takes_a_node_and_computes_it_right(monkeypatch, fake, text):
    """A provider that turns the layout round leaves that to the CPU and is fine; one that takes nothing is not."""
    monkeypatch.setattr("agent.device.runtimes.catalogue.open_runtime", lambda _: fake)

    found = try_device(Candidate("XExecutionProvider", "npu", "probe", 1))

    assert found is None if text is None else text in found
    assert fake.entries[0] == (("session.disable_cpu_ep_fallback", "1"),)
