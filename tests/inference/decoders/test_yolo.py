from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.errors import CandidateError
from agent.inference.decoders.selection import Selection
from agent.inference.decoders.yolo import YoloDecoder, misfit
from agent.inference.placement import place

Objects = list[tuple[list[float], float, int]]
IMAGE = ImageInput(width=640, height=640, resize_type="fit_to_window_letterbox", pad_value=114)
LABELS = tuple(f"class {index}" for index in range(80))


def crowded(seed: int) -> np.ndarray:
    """An output [1, 84, 8400] with 150 boxes, many of which overlap, over noise below the threshold."""
    random = np.random.default_rng(seed)
    output = np.zeros((1, 84, 8400), np.float32)
    output[0, :4] = random.uniform(1, 640, (4, 8400))
    output[0, 4:] = random.uniform(0, 0.2, (80, 8400))
    for column in random.choice(8400, 150, replace=False):
        output[0, :2, column] = random.uniform(150, 450, 2)
        output[0, 2:4, column] = random.uniform(40, 160, 2)
        output[0, 4 + random.integers(0, 4), column] = random.uniform(0.3, 1)
    return output


@pytest.mark.parametrize("is_transposed", [False, True], ids=["[1, 84, 8400]", "[1, 8400, 84]"])
@pytest.mark.parametrize("is_agnostic", [False, True], ids=["per class", "agnostic"])
@pytest.mark.parametrize("seed", range(3))
def test_finds_what_the_plain_decoder_finds(
    seed: int,
    is_agnostic: bool,
    is_transposed: bool,
    spec: Callable[..., TensorSpec],
    plain_suppression: Callable[..., Objects],
    same_objects: Callable[..., None],
) -> None:
    decoder = Decoder(
        model_type="yolo", labels=LABELS, confidence_threshold=0.25, iou_threshold=0.5, agnostic_nms=is_agnostic
    )
    output = crowded(seed)
    given = np.ascontiguousarray(output.transpose(0, 2, 1)) if is_transposed else output
    yolo = YoloDecoder(decoder, IMAGE, [spec("images", 1, 3, 640, 640)], [spec("output0", *given.shape)])
    answer = yolo.decode({"output0": given}, Selection.of(decoder), place(1280, 720, IMAGE))

    candidates: Objects = []
    for column in output[0].T:
        class_id = int(np.argmax(column[4:]))
        if column[4 + class_id] >= 0.25:
            x, y, width, height = (float(value) for value in column[:4])
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            candidates.append((box, float(column[4 + class_id]), class_id))
    expected: Objects = []
    for box, score, class_id in plain_suppression(candidates, 0.5, is_agnostic=is_agnostic):
        left, top, right, bottom = box[0] * 2, (box[1] - 140) * 2, box[2] * 2, (box[3] - 140) * 2
        clipped = [max(left, 0), max(top, 0), min(right, 1280), min(bottom, 720)]
        if clipped[2] > clipped[0] and clipped[3] > clipped[1]:
            expected.append((clipped, score, class_id))
    assert 20 < len(expected) < len(candidates)
    same_objects(answer, expected)


def test_answer_is_the_agreed_types_also_when_empty(spec: Callable[..., TensorSpec]) -> None:
    """Stages behind this one index these arrays without asking."""
    decoder = Decoder(model_type="yolo", labels=LABELS)
    yolo = YoloDecoder(decoder, IMAGE, [spec("images", 1, 3, 640, 640)], [spec("output0", 1, 84, 8400)])
    for output in (np.zeros((1, 84, 8400), np.float32), crowded(0), crowded(0).astype(np.float16)):
        answer = yolo.decode({"output0": output}, Selection.of(decoder), place(640, 480, IMAGE))
        assert answer.xyxy_px.dtype == answer.scores.dtype == np.float32
        assert answer.class_ids.dtype == np.int64
        assert answer.xyxy_px.shape == (len(answer), 4)


def test_another_shape_at_run_time_is_refused(spec: Callable[..., TensorSpec]) -> None:
    decoder = Decoder(model_type="yolo", labels=LABELS)
    yolo = YoloDecoder(decoder, IMAGE, [spec("images", 1, 3, 640, 640)], [spec("output0", 1, 84, -1)])
    with pytest.raises(CandidateError, match=r"expected shape \[1, 84, \?\], found \[1, 85, 8400\]"):
        yolo.decode({"output0": np.zeros((1, 85, 8400), np.float32)}, Selection.of(decoder), place(640, 480, IMAGE))


def test_misfits_are_named(spec: Callable[..., TensorSpec]) -> None:
    inputs = [spec("images", 1, 3, 640, 640)]
    assert misfit(inputs, [spec("output0", 1, 84, 8400)], 80) is None
    assert misfit(inputs, [spec("output0", 1, 8400, 84)], 80) is None
    assert misfit(inputs, [spec("output0", 1, 5, 8400)], 1) is None
    assert "[1, 84, N]" in (misfit(inputs, [spec("output0", 1, 25200, 85)], 80) or "")
    assert "one output" in (misfit(inputs, [spec("output0", 1, 116, 8400), spec("output1", 1, 32, 160, 160)], 80) or "")
    assert "picture input" in (misfit([spec("x", 1, 9)], [spec("output0", 1, 84, 8400)], 80) or "")
