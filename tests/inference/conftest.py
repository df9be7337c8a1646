"""Real models, small synthetic ones, and a plain reference for suppression."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.bundle.manifest import Blob, Decoder, ImageInput, Manifest, SignalInput, TensorSpec, Variant
from agent.bundle.reader import Bundle
from agent.device.planning.plan import Candidate
from agent.inference.session import open_session
from agent.sources.sample import Frame

CPU = Candidate(provider="CPUExecutionProvider", device_type="cpu", variant="fp32", threads=1)


@pytest.fixture
def cpu() -> Candidate:
    return CPU


@pytest.fixture(scope="session")
def ultraface_path(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UltraFace with its weights taken off the graph's inputs, as the builder ships it."""
    model = onnx.load(shared_data / "models" / "ultraface-version-RFB-320.onnx")
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    path = tmp_path_factory.mktemp("models") / "ultraface.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def yolox_path(shared_data: Path) -> Path:
    return shared_data / "models" / "yolox_nano_coco.onnx"


@pytest.fixture(scope="session")
def pictures(shared_data: Path) -> list[np.ndarray]:
    """Photographs with objects, and frames of both videos."""
    found = [cv2.imread(str(path)) for path in sorted((shared_data / "images").glob("ms_*.jpg"))]
    for name, positions in (("one-by-one-person-detection.mp4", (100, 300, 600)), ("vtest_small.avi", (50, 400))):
        capture = cv2.VideoCapture(str(shared_data / "video" / name))
        for position in positions:
            capture.set(cv2.CAP_PROP_POS_FRAMES, position)
            is_read, frame = capture.read()
            assert is_read
            found.append(frame)
        capture.release()
    assert all(picture is not None for picture in found)
    return found


@pytest.fixture
def frame() -> Callable[..., Frame]:
    def make(pixels: np.ndarray, number: int = 0) -> Frame:
        return Frame("door", number, datetime(2026, 1, 1, tzinfo=UTC), 0.0, pixels)

    return make


@pytest.fixture
def spec() -> Callable[..., TensorSpec]:
    def make(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    return make


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a small model: `nodes` between float inputs and outputs, given as {name: shape}."""

    def make(
        nodes: Sequence[onnx.NodeProto],
        inputs: dict[str, Sequence[int | str]],
        outputs: dict[str, Sequence[int | str]],
        weights: Sequence[onnx.TensorProto] = (),
        name: str = "small.onnx",
    ) -> Path:
        graph = helper.make_graph(
            list(nodes),
            "small",
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in inputs.items()],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()],
            list(weights),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Put a model file into a built bundle; `pinned` replaces parts of the variant."""

    def make(model_path: Path, image: ImageInput | SignalInput, decoder: Decoder, **pinned: object) -> Bundle:
        content = model_path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / digest).write_bytes(content)
        session = open_session(model_path, CPU)
        fields: dict[str, object] = {"inputs": session.inputs, "outputs": session.outputs} | pinned
        variant = Variant(name="fp32", model=Blob(sha256=digest, size_bytes=len(content)), opset=17, **fields)  # type: ignore[arg-type]
        manifest = Manifest(name="test", version="1", input=image, decoder=decoder, variants=(variant,))
        return Bundle(tmp_path, manifest, "0" * 64)

    return make


@pytest.fixture(scope="session")
def plain_iou() -> Callable[..., float]:
    def iou(a: Sequence[float], b: Sequence[float]) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return 0.0
        shared = width * height
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    return iou


@pytest.fixture(scope="session")
def plain_suppression(plain_iou: Callable[..., float]) -> Callable[..., list[tuple[list[float], float, int]]]:
    """Greedy non-maximum suppression as the textbook says it, box by box."""

    def suppress(
        candidates: list[tuple[list[float], float, int]], iou_threshold: float, *, is_agnostic: bool = False
    ) -> list[tuple[list[float], float, int]]:
        kept: list[tuple[list[float], float, int]] = []
        for box, score, class_id in sorted(candidates, key=lambda candidate: -candidate[1]):
            rivals = [other for other, _, other_class in kept if is_agnostic or other_class == class_id]
            if all(plain_iou(box, other) <= iou_threshold for other in rivals):
                kept.append((box, score, class_id))
        return kept

    return suppress


@pytest.fixture(scope="session")
def same_objects(plain_iou: Callable[..., float]) -> Callable[..., None]:
    """Assert that an answer has the expected objects: same count, class, IoU and score."""

    def check(answer, expected: list[tuple[list[float], float, int]], min_iou: float = 0.99) -> None:  # type: ignore[no-untyped-def]
        assert len(answer) == len(expected)
        assert (np.diff(answer.scores) <= 0).all()
        left = list(range(len(answer)))
        for box, score, class_id in expected:
            best = max(left, key=lambda i: plain_iou(box, answer.xyxy_px[i]) + (answer.class_ids[i] == class_id))
            left.remove(best)
            assert answer.class_ids[best] == class_id
            assert plain_iou(box, answer.xyxy_px[best]) >= min_iou
            assert abs(answer.scores[best] - score) <= 1e-4

    return check
