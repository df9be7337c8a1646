"""The vendors' own providers that run on this processor: the classic OpenVINO, and Qualcomm's with its NPU in software.

Each in a child: they bring native code, and the classic wheel another ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from bundles.modelfile import read_model
from bundles.quantize import StaticQuantizer
from bundles.repair import repair

OPEN = """
import numpy as np
from agent.device.planning.plan import Candidate
from agent.device.runtimes.catalogue import find_runtimes, open_runtime
from agent.errors import CandidateError
from agent.inference.session import open_session

def refusal(open_it):
    try:
        open_it()
    except CandidateError as error:
        return str(error)

def run(session, inputs):
    return {name: value.tolist() for name, value in session.run(inputs).items()}
"""


@pytest.fixture(scope="session")
def ultraface(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UltraFace as our builder repairs it, and beside it `int8.onnx`, quantized by our builder, and an `input.npy`."""
    folder = tmp_path_factory.mktemp("ultraface")
    model = repair(read_model(shared_data / "models" / "ultraface-version-RFB-320.onnx")).model
    random = np.random.default_rng(0)
    samples = [{"input": random.normal(0, 0.5, (1, 3, 240, 320)).astype(np.float32)} for _ in range(3)]
    onnx.save(model, folder / "fp32.onnx")
    onnx.save(StaticQuantizer(model, samples).quantize(), folder / "int8.onnx")
    np.save(folder / "input.npy", samples[0]["input"])
    return folder


def on_cpu(ultraface: Path, name: str) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(ultraface / name, providers=["CPUExecutionProvider"])
    values = session.run(["scores", "boxes"], {"input": np.load(ultraface / "input.npy")})
    return dict(zip(["scores", "boxes"], values, strict=True))


def test_classic_openvino_runs_from_a_folder_beside_the_installed_runtime(
    accelerators: Path, ultraface: Path, in_child: Callable[..., Any], tmp_path: Path
) -> None:
    """The older way of vendors: a whole ONNX Runtime of their own, which cannot be installed beside ours."""
    code = (
        OPEN
        + """
wheel, models, kept = f"folder:{sys.argv[1]}", Path(sys.argv[2]), Path(sys.argv[3])
runtime = open_runtime(wheel)
ours = Candidate("OpenVINOExecutionProvider", "cpu", "fp32", 2, runtime=wheel)
inputs = {"input": np.load(models / "input.npy")}
sessions = [open_session(models / "fp32.onnx", ours, prepared=kept / "openvino") for _ in range(2)]
absent = Candidate("OpenVINOExecutionProvider", "npu", "fp32", 2, runtime=wheel)
misspelt = Candidate("OpenVINOExecutionProvider", "cpu", "fp32", 2, options=(("num_of_thread", "2"),), runtime=wheel)
answer = {
    "version": runtime.version,
    "devices": [(each.provider, each.device_type, each.runtime == wheel) for each in runtime.devices()],
    "outputs": [run(session, inputs) for session in sessions],
    "nodes": dict(sessions[0].nodes),
    "partitions": dict(sessions[0].assignment.partitions),
    "absent": refusal(lambda: open_session(models / "fp32.onnx", absent)),
    "misspelt": refusal(lambda: open_session(models / "fp32.onnx", misspelt)),
    "built-in": refusal(lambda: open_runtime("built-in")),
}
"""
    )
    found = in_child(code, accelerators / "openvino", ultraface, tmp_path)
    assert found["version"].startswith("1.")
    assert found["version"] != onnxruntime.__version__
    kinds = [["OpenVINOExecutionProvider", kind, True] for kind in ("cpu", "gpu", "npu")]
    assert found["devices"] == kinds, "the plain CPU provider is the built-in runtime's"
    for outputs in found["outputs"]:
        for name, expected in on_cpu(ultraface, "fp32.onnx").items():
            np.testing.assert_allclose(outputs[name], expected, atol=1e-4)
    assert set(found["nodes"]) == {"OpenVINOExecutionProvider"}
    assert found["nodes"]["OpenVINOExecutionProvider"] > 100
    assert found["partitions"] == {"OpenVINOExecutionProvider": 1}
    assert "OpenVINO npu fp32 runs none of this model" in found["absent"]
    assert "num_of_thread" in found["misspelt"]
    assert "already holds" in found["built-in"]


def test_qualcomms_npu_runs_a_whole_int8_model_and_keeps_what_it_compiled(
    accelerators: Path, ultraface: Path, in_child: Callable[..., Any], tmp_path: Path
) -> None:
    """Its HTP backend runs in software here: what our builder makes for it is compiled, kept, and loaded again."""
    code = (
        OPEN
        + """
models, kept = Path(sys.argv[1]), Path(sys.argv[2])
inputs = {"input": np.load(models / "input.npy")}
whole = (("offload_graph_io_quantization", "0"),)
strict = (("session.disable_cpu_ep_fallback", "1"),)

def candidate(options, kind="cpu", session_options=()):
    return Candidate("QNNExecutionProvider", kind, "int8", 1, options, session_options, "plugin:onnxruntime_qnn")

def open_it(*arguments, **kept_in):
    return open_session(models / "int8.onnx", candidate(*arguments), **kept_in)

runtime = open_runtime("plugin:onnxruntime_qnn")
sessions = [open_it(whole, "cpu", strict, prepared=kept / "whole") for _ in range(2)]
mixed = open_it(())
answer = {
    "found": find_runtimes(),
    "version": runtime.version,
    "devices": [(each.provider, each.library_version) for each in runtime.devices()],
    "built-in": [each.provider for each in open_runtime("built-in").devices()],
    "nodes": [dict(session.nodes) for session in sessions],
    "was_prepared": [session.was_prepared for session in sessions],
    "outputs": [run(session, inputs) for session in sessions],
    "kept": sorted(path.name for path in (kept / "whole").iterdir()),
    "mixed": [dict(mixed.nodes), dict(mixed.assignment.partitions)],
    "misspelt": refusal(lambda: open_it((("backend_typ", "htp"),))),
    "gpu": refusal(lambda: open_it((("backend_type", "gpu"),))),
    "npu": refusal(lambda: open_it((), "npu")),
}
"""
    )
    found = in_child(code, ultraface, tmp_path, path=(accelerators / "plugins",))
    assert "plugin:onnxruntime_qnn" in found["found"]
    assert found["devices"] == [["QNNExecutionProvider", found["version"]]]
    assert found["version"] >= "2."
    assert found["built-in"] == ["CPUExecutionProvider"], "one process holds both: each has its own"
    assert set(found["nodes"][0]) == {"QNNExecutionProvider"}
    assert found["nodes"][0]["QNNExecutionProvider"] > 300
    assert found["nodes"][1] == found["nodes"][0], "an EPContext model has one node left; the record is of the whole"
    assert found["was_prepared"] == [False, True]
    assert found["kept"] == ["index.json", "model.onnx", "model_qnn.bin"]
    assert found["outputs"][0] == found["outputs"][1]
    for name, expected in on_cpu(ultraface, "int8.onnx").items():
        np.testing.assert_allclose(found["outputs"][0][name], expected, atol=0.05)
    nodes, partitions = found["mixed"]
    assert (nodes["CPUExecutionProvider"], partitions) == (3, {"QNNExecutionProvider": 1})
    assert "has no option backend_typ, and would ignore it" in found["misspelt"]
    assert "runs none of this model" in found["gpu"], "its GPU backend fails on stderr only"
    assert "offers no npu device here; it offers: cpu" in found["npu"]


def test_qualcomms_npu_that_computes_in_integers_only_is_of_use(
    accelerators: Path, in_child: Callable[..., Any], tmp_path: Path
) -> None:
    """QCS6490 (RB3 Gen 2, `soc_model` 93) opens no float graph; a newer chip does. The probe must find both of use."""
    code = """
from agent import resources
from agent.device.planning.plan import Candidate
from agent.device.runtimes.catalogue import open_runtime
from agent.device.runtimes.runtime import Opening
from agent.device.survey.probe import try_device
from agent.errors import CandidateError

def npu(chip):
    return Candidate("QNNExecutionProvider", "cpu", "probe", 1, (("soc_model", chip),), runtime="plugin:onnxruntime_qnn")

def opens_float(chip):
    try:
        return bool(open_runtime("plugin:onnxruntime_qnn").open(Opening(resources.probe_model(), npu(chip))))
    except CandidateError:
        return False

answer = [[opens_float(chip), try_device(npu(chip))] for chip in ("93", "60")]
"""
    assert in_child(code, path=(accelerators / "plugins",)) == [[False, None], [True, None]]


def test_graph_that_an_npu_takes_in_parts_is_kept_with_the_weights_of_the_rest(
    accelerators: Path, in_child: Callable[..., Any], tmp_path: Path
) -> None:
    """Shifting bits is the CPU's here: two parts on the NPU, and the border between them is told."""
    weights = np.random.default_rng(0).integers(0, 3, (700, 700)).astype(np.uint8)
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["positive"], "relu"),
        onnx.helper.make_node("Cast", ["positive"], ["bytes"], "cast", to=onnx.TensorProto.UINT8),
        onnx.helper.make_node("BitShift", ["bytes", "weights"], ["shifted"], "shift", direction="LEFT"),
        onnx.helper.make_node("Cast", ["shifted"], ["floats"], "back", to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("ReduceMean", ["floats"], ["y"], "mean", axes=[0]),
    ]
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 700]) for name in "xy"]
    graph = onnx.helper.make_graph(
        nodes, "parts", tensors[:1], tensors[1:], [onnx.numpy_helper.from_array(weights, "weights")]
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "parts.onnx")
    code = (
        OPEN
        + """
folder = Path(sys.argv[1])
npu = Candidate("QNNExecutionProvider", "cpu", "int8", 1, runtime="plugin:onnxruntime_qnn")
sessions = [open_session(folder / "parts.onnx", npu, prepared=folder / "kept") for _ in range(2)]
answer = {
    "was_prepared": [session.was_prepared for session in sessions],
    "assignments": [[dict(each.assignment.nodes), dict(each.assignment.partitions)] for each in sessions],
    "outputs": [run(session, {"x": np.ones((1, 700), np.float32)})["y"] for session in sessions],
    "kept": sorted(path.name for path in (folder / "kept").iterdir()),
}
"""
    )
    found = in_child(code, tmp_path, path=(accelerators / "plugins",))
    placed = [
        {"QNNExecutionProvider": 4, "CPUExecutionProvider": 1},
        {"QNNExecutionProvider": 2, "CPUExecutionProvider": 1},
    ]
    assert found["assignments"] == [placed, placed]
    assert found["was_prepared"] == [False, True]
    assert "weights.bin" in found["kept"]
    for output in found["outputs"]:
        np.testing.assert_allclose(output, np.left_shift(1, weights).mean(axis=0, keepdims=True), rtol=1e-2)


def test_openvinos_virtual_npus_are_listed_and_cannot_be_used(
    accelerators: Path, ultraface: Path, in_child: Callable[..., Any], tmp_path: Path
) -> None:
    """Registered under a name that ends in `.virtual` the plugin lists NPUs that are not here: present, and unusable.

    Four of them, which no name but their PCI numbers tell apart: a candidate gets the one that it means.
    """
    package = accelerators / "plugins" / "onnxruntime_ep_openvino"
    for library in package.glob("lib*.so*"):  # the loader looks beside the name that it was given
        (tmp_path / library.name).symlink_to(library)
    (tmp_path / "openvino.virtual.so").symlink_to(package / "libonnxruntime_providers_openvino_plugin.so")
    code = (
        OPEN
        + """
from dataclasses import replace
from agent.device.runtimes import ortdevices
runtime = open_runtime(f"plugin:{sys.argv[1]}")
npu = Candidate("OpenVINOExecutionProvider", "npu", "fp32", 1, runtime=f"plugin:{sys.argv[1]}")
classic = Candidate("OpenVINOExecutionProvider", "npu", "fp32", 1, (("precision", "FP16"),), (), npu.runtime)
answer = {
    "classic": refusal(lambda: open_session(Path(sys.argv[2]) / "fp32.onnx", classic)),
    "devices": [(each.provider, each.device_type, dict(each.metadata)) for each in runtime.devices()],
    "names": [each.name for each in runtime.devices()],
    "meant": [
        [meant.device.device_id, meant.ep_metadata["npu_platform"]]
        for each in runtime.devices()
        for meant in ortdevices.matching(ortdevices.ep_devices(), replace(npu, device=each.name))
    ],
    "gone": refusal(lambda: open_session(Path(sys.argv[2]) / "fp32.onnx", replace(npu, device="[8086:7d1d]"))),
    "refusal": refusal(lambda: open_session(Path(sys.argv[2]) / "fp32.onnx", npu)),
}
"""
    )
    found = in_child(code, tmp_path / "openvino.virtual.so", ultraface)
    assert [(name, kind) for name, kind, _ in found["devices"]] == [("OpenVINOExecutionProvider", "npu")] * 4
    assert all(metadata["is_virtual"] == "1" for _, _, metadata in found["devices"])
    assert not any("library_path" in metadata for _, _, metadata in found["devices"])
    assert len(set(found["names"])) == 4
    assert [f"[8086:{number:04x}]" for number, _ in found["meant"]] == found["names"]
    assert [platform for _, platform in found["meant"]] == [each["npu_platform"] for _, _, each in found["devices"]]
    assert "offers no npu [8086:7d1d] here; it offers: " in found["gone"]
    assert "compiler" in found["refusal"]
    assert "has no option precision, and would ignore it" in found["classic"]
