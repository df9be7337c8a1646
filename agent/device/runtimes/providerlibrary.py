"""The library that a wheel keeps one of its providers in: what it needs is loaded first, and why it did not load is told.

ONNX Runtime looks for such a library when the first session asks for the provider. Where it cannot be loaded, the reason goes
to stderr and the session is made without the provider. Takes the ONNX Runtime that this process has imported; a wheel whose
providers are all inside has no such library, and nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import onnxruntime

_LIBRARIES = {
    "CUDAExecutionProvider": "onnxruntime_providers_cuda",
    "TensorrtExecutionProvider": "onnxruntime_providers_tensorrt",
    "MIGraphXExecutionProvider": "onnxruntime_providers_migraphx",
    "OpenVINOExecutionProvider": "onnxruntime_providers_openvino",
    "VitisAIExecutionProvider": "onnxruntime_providers_vitisai",
}
"""As ONNX Runtime's provider_bridge_ort.cc names them."""


def load_dependencies() -> None:
    """Load CUDA and cuDNN where a wheel is built for them: from NVIDIA's packages beside it, else as the system finds them.

    Without this, libraries that pip installed are not found: they lie in folders that no loader searches
    (https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Preload DLLs"). What is missing is printed.
    """
    if getattr(onnxruntime, "cuda_version", None) and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.suppress(Exception):  # the session says what is missing
            onnxruntime.preload_dlls()


def why_it_does_not_load(provider: str) -> str | None:
    """Return the loader's words, such as `libcublasLt.so.13: cannot open shared object file`; None where nothing is wrong."""
    name = _LIBRARIES.get(provider)
    path = Path(onnxruntime.__file__).parent / "capi" / _file_name(name or "")
    if name is None or not path.is_file():
        return None
    try:
        ctypes.CDLL(str(path), winmode=0)  # as ONNX Runtime does on Windows: PATH counts
    except OSError as error:
        return f"{path.name}: {error}"
    return None


def _file_name(name: str) -> str:
    return f"{name}.dll" if sys.platform == "win32" else f"lib{name}.so"
