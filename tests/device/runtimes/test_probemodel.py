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


def make() -> bytes:
    """Make the model again. `python -c "import test_probemodel; …write_bytes(make())"` after a change of its numbers."""
    weights, biases = probemodel.kernel()
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "weights", "biases"], ["convolved"], "conv", kernel_shape=[3, 3]),
            helper.make_node("Relu", ["convolved"], ["output"], "relu"),
        ],
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(biases, "biases")],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=7, producer_name="holdfast")
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def test_the_file_is_what_the_numbers_make():
    """It ships with the agent, and nobody can read it: this is what it is."""
    content = resources.probe_model().read_bytes()

    assert content == make()
    assert len(content) < 1000
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


def test_the_cpu_computes_it():
    """The real runtime agrees with the numbers."""
    cpu = Candidate("CPUExecutionProvider", "cpu", "probe", 1)
    session = open_runtime(BUILT_IN).open(Opening(resources.probe_model(), cpu))

    output = session.run({probemodel.INPUT: probemodel.given()})[probemodel.OUTPUT]
    assert np.array_equal(output, probemodel.expected())


def test_a_question_that_is_none_is_answered():
    """A newer agent after an update, with an older child: words, no traceback."""
    assert answer({"is": "dance"})["is"] == "failed"


class Fake:
    """A runtime whose provider takes part of the graph, or nothing, and answers as it is told."""

    version = "1"

    def __init__(self, *, nodes: dict[str, int], output=None, error: Exception | None = None) -> None:
        self.nodes, self.output, self.error, self.entries = nodes, output, error, []

    def open(self, opening):
        self.entries.append(opening.candidate.session_options)
        if opening.candidate.session_options and "CPUExecutionProvider" in self.nodes:
            raise CandidateError("…, but fallback to CPU EP has been explicitly disabled by the user.")
        self.assignment = Assignment(nodes=self.nodes)
        return self

    def run(self, inputs):
        if self.error:
            raise self.error
        return {"output": probemodel.expected() if self.output is None else self.output}


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
