from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from agent.device.planning.plan import Candidate
from agent.errors import BundleError, CandidateError
from agent.inference.session import open_session


def test_real_model_answers_as_onnxruntime_alone_does(ultraface_path: Path, cpu: Candidate) -> None:
    session = open_session(ultraface_path, cpu)
    picture = np.random.default_rng(0).normal(0, 0.5, (1, 3, 240, 320)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    plain = onnxruntime.InferenceSession(str(ultraface_path), options, providers=["CPUExecutionProvider"])
    outputs = session.run({"input": picture})
    assert list(outputs) == ["scores", "boxes"]
    for found, expected in zip(outputs.values(), plain.run(None, {"input": picture}), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_session_tells_what_it_loaded_and_where_it_runs(ultraface_path: Path, cpu: Candidate) -> None:
    """Nothing falls back in silence: the plan compares these counts with what the candidate claims."""
    session = open_session(ultraface_path, cpu)
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [("input", "float32", (1, 3, 240, 320))]
    assert [(spec.name, spec.shape) for spec in session.outputs] == [
        ("scores", (1, 4420, 2)),
        ("boxes", (1, 4420, 4)),
    ]
    assert set(session.nodes) == {"CPUExecutionProvider"}
    assert session.nodes["CPUExecutionProvider"] > 50
    assert session.load_ms > 0


def test_sizes_that_vary_are_minus_one(make_model: Callable[..., Path], cpu: Candidate) -> None:
    path = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 3]}, {"y": ["batch", 3]})
    session = open_session(path, cpu)
    assert session.inputs[0].shape == session.outputs[0].shape == (-1, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(None, "missing", id="missing"),
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"\xffgarbage" * 100, "not a whole, valid ONNX model", id="garbage"),
        pytest.param(b"<html>404 not found</html>", "not a whole, valid ONNX model", id="error page"),
    ],
)
def test_what_is_no_model_is_refused_with_its_path(
    content: bytes | None, words: str, tmp_path: Path, cpu: Candidate
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=words) as caught:
        open_session(path, cpu)
    assert caught.value.where == str(path)
    assert caught.value.hint


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_truncated_model_is_refused(share: float, ultraface_path: Path, tmp_path: Path, cpu: Candidate) -> None:
    content = ultraface_path.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BundleError):
        open_session(path, cpu)


def test_unknown_operator_refuses_the_candidate(
    make_model: Callable[..., Path], tmp_path: Path, cpu: Candidate
) -> None:
    path = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 3]}, {"y": [1, 3]})
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises((BundleError, CandidateError), match="NoSuchOperator"):
        open_session(path, cpu)


def test_missing_external_weights_are_named(make_model: Callable[..., Path], cpu: Candidate) -> None:
    """A model may keep its weights in a second file; half a copy must not load."""
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    path = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 64]}, {"y": [1, 64]}, [weights])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    open_session(path, cpu)
    (path.parent / "weights.bin").unlink()
    with pytest.raises((BundleError, CandidateError), match=r"weights\.bin"):
        open_session(path, cpu)


def test_absent_provider_is_refused_and_names_those_present(ultraface_path: Path, cpu: Candidate) -> None:
    """ONNX Runtime alone warns on stdout and takes the CPU."""
    with pytest.raises(CandidateError, match="TensorrtExecutionProvider is not available") as caught:
        open_session(ultraface_path, replace(cpu, provider="TensorrtExecutionProvider"))
    assert "CPUExecutionProvider" in str(caught.value)


@pytest.fixture
def taking_nothing(cpu: Candidate) -> Candidate:
    """The wheel's Azure provider, which runs none of these nodes: left alone, ONNX Runtime would run all on the CPU."""
    provider = "AzureExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        pytest.skip("this build has no provider but the CPU's")
    return replace(cpu, provider=provider, device_type="gpu")


def test_provider_that_takes_no_node_is_refused_not_replaced(
    ultraface_path: Path, taking_nothing: Candidate, capfd: pytest.CaptureFixture[str]
) -> None:
    """A session in which the CPU does everything must not pass as an accelerator's."""
    with pytest.raises(CandidateError, match="Azure gpu fp32 runs none of this model: .* CPUExecutionProvider"):
        open_session(ultraface_path, taking_nothing)
    assert "Falling back" not in capfd.readouterr().out


def test_plugin_device_is_used_through_its_ep_device(
    ultraface_path: Path, cpu: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plugin providers are in no built-in list; the CPU's own device takes the same way here."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", list)
    session = open_session(ultraface_path, cpu)
    assert set(session.nodes) == {"CPUExecutionProvider"}
    with pytest.raises(CandidateError, match="no npu device here; it offers: cpu"):
        open_session(ultraface_path, replace(cpu, device_type="npu"))


def test_session_options_that_onnxruntime_refuses_are_the_candidates_fault(
    ultraface_path: Path, cpu: Candidate
) -> None:
    with pytest.raises(CandidateError, match="refused"):
        open_session(ultraface_path, replace(cpu, session_options=(("", "1"),)))


def test_candidates_own_session_options_win(ultraface_path: Path, cpu: Candidate, taking_nothing: Candidate) -> None:
    """Where a pipeline requires its accelerator, ONNX Runtime itself is told to leave the CPU out."""
    strict = (("session.disable_cpu_ep_fallback", "1"),)
    with pytest.raises(CandidateError, match="fallback to CPU EP has been explicitly disabled"):
        open_session(ultraface_path, replace(taking_nothing, session_options=strict))
    unrecorded = (("session.record_ep_graph_assignment_info", "0"),)
    assert open_session(ultraface_path, replace(cpu, session_options=unrecorded)).nodes == {}


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({"other": np.zeros((1, 3, 240, 320), np.float32)}, id="another name"),
        pytest.param({"input": np.zeros((1, 3, 24, 32), np.float32)}, id="another shape"),
        pytest.param({"input": np.zeros((1, 3, 240, 320), np.uint8)}, id="another dtype"),
        pytest.param({}, id="nothing"),
    ],
)
def test_wrong_inputs_are_refused_with_text(
    inputs: dict[str, np.ndarray], ultraface_path: Path, cpu: Candidate
) -> None:
    with pytest.raises(CandidateError, match=r"failed while running: .*input"):
        open_session(ultraface_path, cpu).run(inputs)


def test_threads_share_a_session(ultraface_path: Path, cpu: Candidate) -> None:
    """Cameras that share a model share its session: each must get its own answer."""
    session = open_session(ultraface_path, cpu)
    pictures = [np.full((1, 3, 240, 320), value, np.float32) for value in (-1, -0.3, 0.3, 1)]
    expected = [session.run({"input": picture})["boxes"] for picture in pictures]
    wrong: list[int] = []

    def work(index: int) -> None:
        answers = [session.run({"input": pictures[index]})["boxes"] for _ in range(20)]
        wrong.extend(index for found in answers if not np.array_equal(found, expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_old_exports_do_not_fill_the_log(shared_data: Path, cpu: Candidate, capfd: pytest.CaptureFixture[str]) -> None:
    """UltraFace as shipped makes 250 warnings at each load."""
    open_session(shared_data / "models" / "ultraface-version-RFB-320.onnx", cpu)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
