from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.bundle.reader import Bundle
from agent.device.planning.plan import Candidate
from agent.errors import BundleError, CandidateError
from agent.inference.decoders.selection import Selection
from agent.inference.decoders.yolox import YoloxDecoder, misfit
from agent.inference.model import open_model
from agent.inference.placement import place
from agent.sources.sample import Frame

Objects = list[tuple[list[float], float, int]]
COCO = tuple(f"class {index}" for index in range(80))
IMAGE = ImageInput(width=416, height=416, resize_type="fit_to_window", pad_value=114)


def plain_rows(rows: np.ndarray, side: int, ratio: float, size: tuple[int, int], threshold: float) -> Objects:
    """Decode row by row: YOLOX's grid, exponential and product of scores."""
    found: Objects = []
    row = 0
    for stride in (8, 16, 32):
        for y in range(side // stride):
            for x in range(side // stride):
                values = [float(value) for value in rows[row]]
                row += 1
                class_id = int(np.argmax(values[5:]))
                score = values[4] * values[5 + class_id]
                if score < threshold:
                    continue
                centre_x, centre_y = (values[0] + x) * stride, (values[1] + y) * stride
                width, height = math.exp(values[2]) * stride, math.exp(values[3]) * stride
                box = [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
                limits = [size[0], size[1]] * 2
                found.append(
                    ([min(max(v / ratio, 0), limit) for v, limit in zip(box, limits, strict=True)], score, class_id)
                )
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.1])
def test_real_model_on_real_pictures_finds_what_the_plain_decoder_finds(
    threshold: float,
    yolox_path: Path,
    pictures: list[np.ndarray],
    cpu: Candidate,
    make_bundle: Callable[..., Bundle],
    frame: Callable[..., Frame],
    plain_suppression: Callable[..., Objects],
    same_objects: Callable[..., None],
) -> None:
    """The whole way, against code that shares nothing with it but the model file."""
    decoder = Decoder(model_type="yolox", labels=COCO, confidence_threshold=threshold, iou_threshold=0.45)
    model = open_model(make_bundle(yolox_path, IMAGE, decoder), cpu)
    plain_session = onnxruntime.InferenceSession(str(yolox_path), providers=["CPUExecutionProvider"])
    total = 0
    for pixels in pictures:
        sample = frame(pixels)
        answer = model.decode(model.infer(model.prepare(sample)), sample)
        height, width = pixels.shape[:2]
        ratio = min(416 / width, 416 / height)
        padded = np.full((416, 416, 3), 114, np.uint8)
        small = cv2.resize(pixels, (int(width * ratio), int(height * ratio)))
        padded[: small.shape[0], : small.shape[1]] = small
        (rows,) = plain_session.run(None, {"images": padded.transpose(2, 0, 1)[None].astype(np.float32)})
        candidates = plain_rows(rows[0], 416, ratio, (width, height), threshold)
        expected = plain_suppression(candidates, 0.45)
        same_objects(answer, expected, min_iou=0.95)  # the plain one ignores that the resize rounds to whole pixels
        total += len(expected)
    assert total >= 10


@pytest.fixture
def spec_yolox(spec: Callable[..., TensorSpec]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    return [spec("images", 1, 3, 64, 64)], [spec("output", 1, 84, 8)]


def decoder_of(labels: int, **fields: Any) -> Decoder:
    return Decoder(model_type="yolox", labels=tuple("abcdefgh"[:labels]), **fields)


def test_one_cell_of_each_stride_lands_where_it_should(
    spec_yolox: tuple[list[TensorSpec], list[TensorSpec]],
) -> None:
    """64×64 has 64 + 16 + 4 cells; boxes by hand: centre (offset + cell) × stride, size exp × stride."""
    decoder = decoder_of(3)
    image = ImageInput(width=64, height=64)
    rows = np.zeros((1, 84, 8), np.float32)
    rows[0, 8 * 2 + 3] = [0.5, 0.5, 0, math.log(2), 0.9, 0, 1, 0]  # stride 8, cell x 3 y 2
    rows[0, 64 + 4 * 1 + 2] = [0, 0, 0, 0, 0.8, 1, 0, 0]  # stride 16, cell x 2 y 1
    rows[0, 64 + 16 + 3] = [0, 0, math.log(0.5), 0, 0.75, 0, 0, 1]  # stride 32, cell x 1 y 1
    answer = YoloxDecoder(decoder, image, *spec_yolox).decode(
        {"output": rows}, Selection.of(decoder), place(64, 64, image)
    )
    np.testing.assert_allclose(answer.xyxy_px, [[24, 12, 32, 28], [24, 8, 40, 24], [24, 16, 40, 48]], atol=1e-4)
    np.testing.assert_allclose(answer.scores, [0.9, 0.8, 0.75])
    assert answer.class_ids.tolist() == [1, 0, 2]


@pytest.mark.parametrize(("object_score", "is_found"), [(0.5, True), (np.nextafter(np.float32(0.5), 0), False)])
def test_score_equal_to_the_threshold_counts(
    object_score: float, is_found: bool, spec_yolox: tuple[list[TensorSpec], list[TensorSpec]]
) -> None:
    decoder = decoder_of(3, confidence_threshold=0.5)
    image = ImageInput(width=64, height=64)
    rows = np.zeros((1, 84, 8), np.float32)
    rows[0, 20] = [0, 0, 1, 1, object_score, 0, 1, 0]
    answer = YoloxDecoder(decoder, image, *spec_yolox).decode(
        {"output": rows}, Selection.of(decoder), place(64, 64, image)
    )
    assert len(answer) == is_found


def test_size_that_overflows_is_refused_not_dropped(spec_yolox: tuple[list[TensorSpec], list[TensorSpec]]) -> None:
    decoder = decoder_of(3)
    image = ImageInput(width=64, height=64)
    rows = np.zeros((1, 84, 8), np.float32)
    rows[0, 20] = [0, 0, 500, 0, 0.9, 0, 1, 0]
    with pytest.raises(CandidateError, match="infinity"):
        YoloxDecoder(decoder, image, *spec_yolox).decode({"output": rows}, Selection.of(decoder), place(64, 64, image))


def test_logits_are_refused(spec_yolox: tuple[list[TensorSpec], list[TensorSpec]]) -> None:
    """An export without its last sigmoid finds hundreds of objects of score 4."""
    decoder = decoder_of(3)
    image = ImageInput(width=64, height=64)
    rows = np.zeros((1, 84, 8), np.float32)
    rows[0, 20] = [0, 0, 0, 0, 3.0, 0, 4.0, 0]
    with pytest.raises(CandidateError, match="scores from 0 to 1, found 12"):
        YoloxDecoder(decoder, image, *spec_yolox).decode({"output": rows}, Selection.of(decoder), place(64, 64, image))


def test_misfits_are_named(spec: Callable[..., TensorSpec]) -> None:
    inputs = [spec("images", 1, 3, 416, 416)]
    assert misfit(inputs, [spec("output", 1, 3549, 85)], 80) is None
    assert misfit(inputs, [spec("output", 1, 3549, 85)], None) is None
    assert "3549 rows" in (misfit(inputs, [spec("output", 1, 25200, 85)], 80) or "")
    assert "8 columns for 3 labels" in (misfit(inputs, [spec("output", 1, 3549, 85)], 3) or "")
    assert "one output" in (misfit(inputs, [spec("a", 1, 3549, 85), spec("b", 1)], 80) or "")
    assert "picture input" in (misfit([spec("x", 1, 9)], [spec("output", 1, 3549, 85)], 80) or "")
    with pytest.raises(BundleError, match="yolox does not fit"):
        YoloxDecoder(decoder_of(3), IMAGE, inputs, [spec("output", 1, 3549, 85)])
