from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.bundle.reader import Bundle
from agent.device.planning.plan import Candidate
from agent.inference.decoders.selection import Selection
from agent.inference.decoders.ultraface import UltraFaceDecoder, misfit
from agent.inference.model import open_model
from agent.inference.placement import place
from agent.sources.sample import Frame

Objects = list[tuple[list[float], float, int]]
IMAGE = ImageInput(
    width=320, height=240, reverse_input_channels=True, mean_values=(127, 127, 127), scale_values=(128, 128, 128)
)


@pytest.mark.parametrize("threshold", [0.7, 0.1])
def test_real_model_on_real_pictures_finds_what_the_plain_decoder_finds(
    threshold: float,
    ultraface_path: Path,
    pictures: list[np.ndarray],
    cpu: Candidate,
    make_bundle: Callable[..., Bundle],
    frame: Callable[..., Frame],
    plain_suppression: Callable[..., Objects],
    same_objects: Callable[..., None],
) -> None:
    decoder = Decoder(model_type="ultraface", labels=("face",), confidence_threshold=threshold, iou_threshold=0.3)
    model = open_model(make_bundle(ultraface_path, IMAGE, decoder), cpu)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(ultraface_path), options, providers=["CPUExecutionProvider"])
    total = 0
    for pixels in pictures:
        sample = frame(pixels)
        answer = model.decode(model.infer(model.prepare(sample)), sample)
        rgb = cv2.cvtColor(cv2.resize(pixels, (320, 240)), cv2.COLOR_BGR2RGB)
        tensor = ((rgb.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        scores, boxes = session.run(["scores", "boxes"], {"input": tensor})
        height, width = pixels.shape[:2]
        candidates: Objects = [
            ([float(value * side) for value, side in zip(box, (width, height) * 2, strict=True)], float(score), 0)
            for (_, score), box in zip(scores[0], boxes[0], strict=True)
            if score >= threshold
        ]
        expected = [
            ([min(max(v, 0), side) for v, side in zip(box, (width, height) * 2, strict=True)], score, class_id)
            for box, score, class_id in plain_suppression(candidates, 0.3)
        ]
        same_objects(answer, expected)
        total += len(expected)
    assert total >= (1 if threshold > 0.5 else 5)


def test_boxes_are_shares_of_the_input(spec: Callable[..., TensorSpec]) -> None:
    decoder = Decoder(model_type="ultraface", labels=("face",))
    inputs, outputs = [spec("input", 1, 3, 240, 320)], [spec("boxes", 1, 3, 4), spec("scores", 1, 3, 2)]
    answer = UltraFaceDecoder(decoder, IMAGE, inputs, outputs).decode(
        {
            "scores": np.array([[[0.1, 0.9], [0.9, 0.1], [0.3, 0.7]]], np.float32),
            "boxes": np.array([[[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0.5, 0.5, 1.2, 0.75]]], np.float32),
        },
        Selection.of(decoder),
        place(1000, 500, IMAGE),
    )
    np.testing.assert_allclose(answer.xyxy_px, [[100, 100, 300, 200], [500, 250, 1000, 375]], atol=1e-3)
    np.testing.assert_allclose(answer.scores, [0.9, 0.7])
    assert answer.class_ids.tolist() == [0, 0]


def test_misfits_are_named(spec: Callable[..., TensorSpec]) -> None:
    inputs = [spec("input", 1, 3, 240, 320)]
    good = [spec("scores", 1, 4420, 2), spec("boxes", 1, 4420, 4)]
    assert misfit(inputs, good, 1) is None
    assert "one label" in (misfit(inputs, good, 2) or "")
    assert "scores [1, N, 2]" in (misfit(inputs, good[:1], 1) or "")
    assert "scores [1, N, 2]" in (misfit(inputs, [good[0], spec("boxes", 1, 99, 4)], 1) or "")
