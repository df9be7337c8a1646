"""Fixtures for parts that may be missing on a laptop and must be there in CI."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def missing(what: str) -> None:
    """Skip on a laptop, fail in CI: a test that silently never runs is worse than none."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must provide {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture
def need_tool() -> Callable[[str], str]:
    """Return a function that gives the path of a program, or ends the test."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is None:
            missing(f"the program {name}")
        assert path is not None
        return path

    return find


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real models, pictures and video that tests use but the repository does not hold."""
    folder = Path(os.environ.get("HOLDFAST_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        missing(f"the test data folder ({folder}); set HOLDFAST_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def accelerators() -> Path:
    """Return the folder that `make accelerators` fills: `plugins` (onnxruntime-qnn, onnxruntime-ep-openvino), and `openvino`,
    the classic wheel, which must not meet the ONNX Runtime of this process."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the vendors' providers run on Linux x86-64 only")
    folder = Path(os.environ.get("HOLDFAST_ACCELERATORS", REPOSITORY / ".accelerators"))
    if not all((folder / name).is_dir() for name in ("plugins", "openvino")):
        missing(f"the providers in {folder}: make accelerators")
    return folder


def _tiny_classifier(gain: float = 1.0, pooling_rounds: int = 1) -> bytes:
    """Return a 1×3×32×32 classifier of which colour is strongest. A negative gain turns every answer round."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "kernel": np.random.default_rng(7).normal(0, 0.01, (3, 3, 3, 3)).astype(np.float32),
        "matrix": (np.eye(3) * gain * 0.2).astype(np.float32),
    }
    for channel in range(3):
        weights["kernel"][channel, channel, 1, 1] += 1
    nodes = []
    last = "image"
    for number in range(pooling_rounds):
        nodes.append(helper.make_node("Conv", [last, "kernel"], [f"conv{number}"], f"conv{number}", pads=[1, 1, 1, 1]))
        last = f"conv{number}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["row"], "flatten"),
        helper.make_node("MatMul", ["row", "matrix"], ["logits"], "matmul"),
        helper.make_node("Softmax", ["logits"], ["classes"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("classes", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def make_tiny_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a built bundle of a tiny classifier with three golden pictures.

    `models` maps variant names to ONNX bytes; further keywords replace keys of the manifest.
    """

    def make(models: dict[str, bytes] | None = None, **changes: object) -> Path:
        import cv2

        folder = tmp_path / f"bundle-{len(list(tmp_path.glob('bundle-*')))}"
        (folder / "blobs").mkdir(parents=True)

        def blob(content: bytes) -> dict[str, object]:
            digest = hashlib.sha256(content).hexdigest()
            (folder / "blobs" / digest).write_bytes(content)
            return {"sha256": digest, "size_bytes": len(content)}

        models = models or {"fp32": _tiny_classifier()}
        golden = []
        for class_id, bgr in enumerate([(30, 30, 220), (30, 220, 30), (220, 30, 30)]):
            picture = cv2.imencode(".png", np.full((48, 64, 3), bgr, np.uint8))[1].tobytes()
            answer = json.dumps({"kind": "classes", "scores": [1.0], "class_ids": [class_id]}).encode()
            golden.append({"input": blob(picture), "expected": blob(answer)})
        specs = {
            "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 32, 32]}],
            "outputs": [{"name": "classes", "dtype": "float32", "shape": [1, 3]}],
        }
        manifest = {
            "name": "tiny",
            "version": "1",
            "input": {"kind": "image", "width": 32, "height": 32, "reverse_input_channels": True},
            "decoder": {"model_type": "classify", "labels": ["red", "green", "blue"], "confidence_threshold": 0.3},
            "variants": [{"name": name, "model": blob(model), "opset": 17, **specs} for name, model in models.items()],
            "golden": golden,
            **changes,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
        return folder

    return make


@pytest.fixture
def tiny_classifier() -> Callable[..., bytes]:
    """Return a function that makes the tiny classifier's ONNX bytes; `gain=-1` makes one that is always wrong."""
    return _tiny_classifier


@pytest.fixture
def rtsp_server() -> Iterator[Callable[..., object]]:
    """Return a function that starts real RTSP servers (simulator.rtsp); all are stopped at the end."""
    from simulator import rtsp

    if not rtsp.is_available():
        missing("gst-rtsp-server with the system's Python binding")
    servers: list[rtsp.RtspServer] = []

    def start(**options: object) -> rtsp.RtspServer:
        server = rtsp.RtspServer(**options)  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
