from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.bundle.manifest import TensorSpec
from agent.device.planning.plan import Candidate
from agent.inference.decoders.recognition import recognise
from agent.inference.session import open_session

Shape = tuple[int, ...]
COCO_NAMES = str({index: f"class {index}" for index in range(80)})


@pytest.fixture
def families(spec: Callable[..., TensorSpec]) -> Callable[..., list[tuple[str, int | None]]]:
    def ask(
        input_shape: Shape, outputs: dict[str, Shape], metadata: dict[str, str] | None = None
    ) -> list[tuple[str, int | None]]:
        specs = [spec(name, *shape) for name, shape in outputs.items()]
        found = recognise(specs, [spec("images", *input_shape)], metadata or {})
        return [(one.model_type, one.labels_count) for one in found]

    return ask


@pytest.mark.parametrize(
    ("input_shape", "outputs", "expected"),
    [
        pytest.param((1, 3, 416, 416), {"o": (1, 3549, 85)}, [("yolox", 80)], id="yolox coco"),
        pytest.param((1, 3, 640, 640), {"o": (1, 84, 8400)}, [("yolo", 80)], id="yolo coco"),
        pytest.param((1, 3, 640, 640), {"o": (1, 8400, 84)}, [("yolo", 80)], id="yolo coco transposed"),
        pytest.param((1, 3, 640, 640), {"o": (1, 5, 8400)}, [("yolo", 1)], id="yolo one class"),
        pytest.param((1, 3, 640, 640), {"o": (1, 7, -1)}, [("yolo", 3)], id="yolo open count"),
        pytest.param((1, 3, 416, 416), {"o": (1, 3549, 8)}, [("yolox", 3), ("yolo", 4)], id="3 or 4 classes"),
        pytest.param((1, 3, -1, -1), {"o": (1, -1, 85)}, [("yolox", 80), ("yolo", 81)], id="open size proves nothing"),
        pytest.param((1, 3, 640, 640), {"o": (1, 25200, 85)}, [], id="yolov5 is neither"),
        pytest.param((1, 3, 640, 640), {"o": (1, 300, 6)}, [], id="end2end is neither"),
        pytest.param((1, 3, 640, 640), {"o": (1, 116, 8400), "p": (1, 32, 160, 160)}, [], id="segmentation"),
        pytest.param(
            (1, 3, 240, 320), {"scores": (1, 4420, 2), "boxes": (1, 4420, 4)}, [("ultraface", 1)], id="ultraface"
        ),
        pytest.param(
            (1, 300, 300, 3),
            {"detection_boxes": (1, 10, 4), "detection_classes": (1, 10), "detection_scores": (1, 10), "n": (1,)},
            [("ssd", None)],
            id="ssd",
        ),
        pytest.param((1, 3, 300, 300), {"out": (1, 1, 200, 7)}, [("ssd", None)], id="detection output"),
        pytest.param((1, 3, 224, 224), {"p": (1, 1000)}, [("classify", 1000)], id="classify"),
        pytest.param((1, 3, 224, 224), {"p": (1, 1000, 1, 1)}, [("classify", 1000)], id="squeezenet"),
        pytest.param((1, 16), {"score": (1, 1)}, [("anomaly", 0)], id="anomaly"),
        pytest.param((-1, 16), {"score": (-1, 1)}, [("anomaly", 0)], id="anomaly, any batch"),
        pytest.param((1, 3, 224, 224), {"map": (1, 1, 224, 224)}, [], id="anomaly map"),
        pytest.param((1, 3, 224, 224), {}, [], id="nothing"),
    ],
)
def test_family_by_shape(
    input_shape: Shape,
    outputs: dict[str, Shape],
    expected: list[tuple[str, int | None]],
    families: Callable[..., list[tuple[str, int | None]]],
) -> None:
    """Two are a question to the user and none is a refusal: a wrong guess shows no error, only wrong boxes."""
    assert families(input_shape, outputs) == expected


@pytest.mark.parametrize(
    ("metadata", "outputs", "expected"),
    [
        pytest.param({"task": "detect", "names": COCO_NAMES}, (1, 84, 8400), [("yolo", 80)], id="detect"),
        pytest.param(
            {"task": "detect", "names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd'}"}, (1, 8400, 8), [("yolo", 4)], id="decides"
        ),
        pytest.param({"task": "classify", "names": "['a', 'b']"}, (1, 2), [("classify", 2)], id="classify"),
        pytest.param({"task": "pose", "names": "{0: 'person'}"}, (1, 56, 8400), [], id="pose has no decoder"),
        pytest.param({"task": "obb", "names": COCO_NAMES}, (1, 85, 8400), [], id="obb has no decoder"),
        pytest.param(
            {"task": "detect", "names": COCO_NAMES, "end2end": "True"}, (1, 300, 6), [], id="end2end has no decoder"
        ),
        pytest.param({"task": "detect", "names": "{0: 'a'}"}, (1, 84, 8400), [], id="names contradict the shape"),
        pytest.param({"task": "detect", "names": "__import__('os')"}, (1, 84, 8400), [], id="no literal"),
    ],
)
def test_ultralytics_own_words_decide(
    metadata: dict[str, str],
    outputs: Shape,
    expected: list[tuple[str, int | None]],
    families: Callable[..., list[tuple[str, int | None]]],
) -> None:
    assert families((1, 3, 640, 640), {"output0": outputs}, metadata) == expected


def test_real_models_are_recognised(ultraface_path: Path, yolox_path: Path, cpu: Candidate) -> None:
    for path, expected in ((ultraface_path, ("ultraface", 1)), (yolox_path, ("yolox", 80))):
        session = open_session(path, cpu)
        (found,) = recognise(session.outputs, session.inputs, session.metadata)
        assert (found.model_type, found.labels_count) == expected
        assert found.why
