from __future__ import annotations

import subprocess
import sys

PRINT_MODULES = "import sys; print(*sys.modules, sep=chr(10))"


def modules_after(*names: str) -> set[str]:
    code = "".join(f"import {name}\n" for name in names) + PRINT_MODULES
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {line.partition(".")[0] for line in done.stdout.split()}


def test_core_supervises_without_numpy_opencv_or_onnx_runtime():
    """Core stays small, and no native code can crash it."""
    assert not modules_after("agent.pipeline.workers") & {"numpy", "cv2", "onnxruntime"}


def test_worker_loads_nothing_of_cores():
    """Each worker pays for its imports in memory, on boxes with a gigabyte."""
    loaded = modules_after(
        "agent.pipeline.worker", "agent.bundle.reader", "agent.inference.model", "agent.events.judge",
        "agent.sources.opening", "agent.sources.rtsp", "agent.sources.windows",
    )  # fmt: skip
    assert not loaded & {"typer", "rich", "paho", "sqlite3", "sqlite_utils", "psutil", "yaml", "asyncio"}
