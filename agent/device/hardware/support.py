"""Which provider of ONNX Runtime computes on whose hardware, and what brings it: the advice beside an unused accelerator.

Sources: the execution providers' pages of ONNX Runtime's documentation, and the vendors' own where they build the wheel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Support:
    """What would use a kind of accelerator; `provider` is empty where nothing in ONNX Runtime does."""

    provider: str
    hint: str


JETSON = "NVIDIA Jetson"
"""A vendor of its own here: PyPI's wheels are not for it."""

_OPENVINO = "OpenVINOExecutionProvider"
_PLUGIN = "pip install onnxruntime-ep-openvino"
_FOLDER = "into a folder of its own (`pip install --no-deps --target FOLDER …`), `folder:FOLDER` under `device: {runtimes: […]}`"
_QNN = Support(
    "QNNExecutionProvider",
    "pip install onnxruntime-qnn, which drives Hexagon v68 and newer; the board's image must bring Qualcomm's user-space drivers "
    "(libcdsprpc.so, /dev/fastrpc-cdsp)",
)
_COREML = Support("CoreMLExecutionProvider", "it is in the onnxruntime wheel for macOS: install that one")
_RYZEN_AI = (
    "install AMD's Ryzen AI software, whose ONNX Runtime brings the Vitis AI provider, and name its folder as "
    "`folder:FOLDER` under `device: {runtimes: […]}`"
)

_SUPPORT = {
    ("Intel", "gpu"): Support(
        _OPENVINO, f"{_PLUGIN}, and Intel's compute runtime (intel-opencl-icd); its user must be in `render`"
    ),
    ("Intel", "npu"): Support(
        _OPENVINO, f"{_PLUGIN}, and Intel's NPU driver (intel/linux-npu-driver); its user must be in `render`"
    ),
    ("NVIDIA", "gpu"): Support(
        "CUDAExecutionProvider", f"install onnxruntime-gpu with NVIDIA's libraries {_FOLDER}; see docs/devices.md"
    ),
    (JETSON, "gpu"): Support(
        "CUDAExecutionProvider", f"install an onnxruntime-gpu wheel for this JetPack {_FOLDER}; see docs/devices.md"
    ),
    ("AMD", "gpu"): Support(
        "MIGraphXExecutionProvider",
        f"install AMD's onnxruntime-migraphx wheel for this ROCm {_FOLDER}",
    ),
    ("AMD", "npu"): Support("VitisAIExecutionProvider", _RYZEN_AI),
    ("Apple", "gpu"): _COREML,
    ("Apple", "npu"): _COREML,
    ("Qualcomm", "gpu"): _QNN,
    ("Qualcomm", "npu"): _QNN,
    ("Rockchip", "npu"): Support(
        "RknpuExecutionProvider",
        "no wheel brings the provider: build ONNX Runtime with --use_rknpu (RK1808 and its like), or leave it unused",
    ),
}  # fmt: skip


def support_of(vendor: str, kind: str) -> Support:
    """Return what would use an accelerator of this vendor and kind (`gpu`, `npu`)."""
    nothing = Support(
        "", "ONNX Runtime has no provider for it: it stays unused, and `holdfast device accept` says that is fine"
    )
    return _SUPPORT.get((vendor, kind), nothing)
