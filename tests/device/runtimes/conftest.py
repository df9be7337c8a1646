"""Sessions on real runtimes; what must not share this process's ONNX Runtime runs in a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.device.planning.plan import Candidate

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def cpu() -> Candidate:
    return Candidate("CPUExecutionProvider", "cpu", "fp32", 1)


@pytest.fixture
def in_child(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs code in a process of its own and gives what the code put into `answer`."""

    def run(code: str, *arguments: object, path: tuple[Path, ...] = ()) -> Any:
        file = tmp_path / "answer.json"
        program = (
            f"import json, sys\nfrom pathlib import Path\n{code}\nPath({str(file)!r}).write_text(json.dumps(answer))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *path)))},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(file.read_text())

    return run


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A convolution and what can be fused into it, with a word of its exporter."""
    weights = np.random.default_rng(1).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weights"], ["mapped"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["mapped"], ["positive"], "relu"),
            helper.make_node("GlobalAveragePool", ["positive"], ["pooled"], "pool"),
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, 8, 1, 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"labels": "red,green"})
    onnx.save(model, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(2).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)
