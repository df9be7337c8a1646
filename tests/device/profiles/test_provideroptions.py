"""The table of options: what it refuses, and that it agrees with the runtimes that are here."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from agent.device.profiles.provideroptions import PROVIDERS, SESSION, complaint, session_complaint

VINO, TENSORRT, QNN = "OpenVINOExecutionProvider", "TensorrtExecutionProvider", "QNNExecutionProvider"
OTHER_BUILDS = {"mlas.enable_gemm_fastmath_arm64_bfloat16", "ep.nnapi.partitioning_stop_ops"}
"""Known to ONNX Runtime for ARM and for Android only."""


@pytest.mark.parametrize(
    ("provider", "option", "value", "message", "hint"),
    [
        pytest.param(QNN, "htp_perfomance_mode", "burst", "has no option", "did you mean `htp_performance_mode`?", id="name"),
        pytest.param(QNN, "htp_performance_mode", "Burst", "expected one of burst", "QNN-Execution", id="value"),
        pytest.param(TENSORRT, "trt_fp16_enable", "1", "expected one of True, False", "TensorRT-Exec", id="python-takes-words"),
        pytest.param(TENSORRT, "trt_max_workspace_size", "1 GiB", "expected a whole number", "TensorRT-Exec", id="unit"),
        pytest.param(TENSORRT, "trt_profile_min_shapes", "images=1x3", "expected shapes such as", "TensorRT-", id="shapes"),
        pytest.param(TENSORRT, "trt_engine_cache_path", "/tmp", "not for a profile to set", "state folder", id="holdfasts"),
        pytest.param(VINO, "device_type", "NPU", "not for a profile to set", "`device_type`", id="device-type"),
        pytest.param(VINO, "precision", "FP16", "has no option", "OpenVINO-Exec", id="deprecated"),
        pytest.param(VINO, "load_config", "{", "expected JSON", "OpenVINO-Exec", id="no-json"),
        pytest.param(VINO, "load_config", '{"CPU": 1}', "expected properties by device", "OpenVINO-", id="no-properties"),
        pytest.param(VINO, "load_config", '{"VPU": {}}', "one of CPU, GPU, NPU in place of VPU", "OpenVINO-", id="device"),
        pytest.param(VINO, "load_config", '{"CPU": {"INFERENCE_PRECISION": "f32"}}', "INFERENCE_PRECISION_HINT", "OpenVINO-",
                     id="property"),
        pytest.param(VINO, "load_config", '{"CPU": {"INFERENCE_PRECISION_HINT": "fp32"}}', "one of f32, f16, bf16", "OpenVINO-",
                     id="property-value"),
        pytest.param("CUDAExecutionProvider", "enable_cuda_graph", "1", "not for a profile to set", "one thread", id="shared"),
        pytest.param("DmlExecutionProvider", "performance_preference", "minimum_power", "not for a profile to set", "of its own",
                     id="passed-over"),
        pytest.param("NnapiExecutionProvider", "use_fp16", "1", "has no option", "NNAPI-", id="provider-without-options"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_with_what_was_expected(provider, option, value, message, hint):
    """Most providers ignore what they do not know: nobody else would say it."""
    found = complaint(provider, option, value)

    assert found is not None
    assert message in found[0]
    assert hint in str(found[1])


@pytest.mark.parametrize(
    ("provider", "option", "value"),
    [
        pytest.param(VINO, "load_config", '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}', id="json"),
        pytest.param(TENSORRT, "trt_profile_min_shapes", "images:1x3x320x320,mask:1", id="shapes"),
        pytest.param("MineExecutionProvider", "anything", "goes", id="a-provider-of-the-operators-own"),
    ],
)
def test_a_good_option_passes(provider, option, value):
    """An operator's own plugin is not known here, and is not refused for it."""
    assert complaint(provider, option, value) is None


def test_a_misspelt_session_entry_is_refused():
    """ONNX Runtime takes any entry and ignores those it does not know."""
    found = session_complaint("session.intra_op.allow_spining", "1")

    assert found is not None
    assert "did you mean `session.intra_op.allow_spinning`?" in str(found[1])
    assert session_complaint("session.intra_op.allow_spinning", "1") is None


def test_every_provider_names_its_document():
    """A table without sources cannot be corrected by who comes later."""
    assert all(known.document.startswith("https://") for known in PROVIDERS.values())


def test_session_entries_are_those_of_the_installed_runtime():
    """An entry that ONNX Runtime dropped would be allowed for ever, and do nothing."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    library = next(path for path in folder.iterdir() if path.name.startswith("onnxruntime_pybind11_state"))
    content = library.read_bytes()

    assert {name for name in SESSION.options if name.encode() not in content} <= OTHER_BUILDS
