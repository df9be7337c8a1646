"""Straightforward detectors for two real models, in plain float arithmetic with plain loops: the judge of the agent's own code.

Written from the models' descriptions, sharing nothing with agent/: OpenCV resizes, ONNX Runtime runs the file as shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort


@dataclass(frozen=True)
class Box:
    """One object: class index, score, and left, top, right, bottom in pixels of the picture."""

    label: int
    score: float
    xyxy: tuple[float, float, float, float]


Detector = Callable[[np.ndarray], list[Box]]


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0


def suppress(boxes: list[Box], limit: float) -> list[Box]:
    """Greedy non-maximum suppression within each class."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda each: -each.score):
        if all(box.label != other.label or iou(box.xyxy, other.xyxy) <= limit for other in kept):
            kept.append(box)
    return kept


def clip(xyxy: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """Cut a box at the picture's border."""
    left, top, right, bottom = xyxy
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)


def ultraface(path: Path, threshold: float, nms: float) -> Detector:
    """320×240 RGB, (pixel − 127) / 128; scores [1, 4420, 2], boxes [1, 4420, 4] normalised corners."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def detect(picture: np.ndarray) -> list[Box]:
        height, width = picture.shape[:2]
        small = cv2.cvtColor(cv2.resize(picture, (320, 240)), cv2.COLOR_BGR2RGB).astype(np.float64)
        tensor = ((small - 127) / 128).transpose(2, 0, 1)[None].astype(np.float32)
        scores, boxes = session.run(["scores", "boxes"], {session.get_inputs()[0].name: tensor})
        found = []
        for index in np.flatnonzero(scores[0, :, 1] >= threshold):
            left, top, right, bottom = (float(value) for value in boxes[0, index])
            xyxy = clip((left * width, top * height, right * width, bottom * height), width, height)
            found.append(Box(0, float(scores[0, index, 1]), xyxy))
        return suppress(found, nms)

    return detect


def yolox(path: Path, threshold: float, nms: float) -> Detector:
    """416×416 BGR 0..255, aspect kept, padded with 114 at the right and bottom; [1, 3549, 85] on grids of stride 8, 16, 32."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    cells = [(x, y, stride) for stride in (8, 16, 32) for y in range(416 // stride) for x in range(416 // stride)]

    def detect(picture: np.ndarray) -> list[Box]:
        height, width = picture.shape[:2]
        scale = min(416 / width, 416 / height)
        small = cv2.resize(picture, (int(width * scale), int(height * scale)), interpolation=cv2.INTER_LINEAR)
        canvas = np.full((416, 416, 3), 114, np.uint8)
        canvas[: small.shape[0], : small.shape[1]] = small
        tensor = canvas.transpose(2, 0, 1)[None].astype(np.float32)
        rows = session.run(None, {session.get_inputs()[0].name: tensor})[0][0]
        found = []
        assert len(rows) == len(cells)
        for index in np.flatnonzero(rows[:, 4] * rows[:, 5:].max(axis=1) >= threshold):
            (x, y, stride), row = cells[index], rows[index]
            label = int(np.argmax(row[5:]))
            score = float(row[4] * row[5 + label])
            centre_x, centre_y = (float(row[0]) + x) * stride, (float(row[1]) + y) * stride
            half_w, half_h = float(np.exp(row[2])) * stride / 2, float(np.exp(row[3])) * stride / 2
            corners = (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
            left, top, right, bottom = (value / scale for value in corners)
            found.append(Box(label, score, clip((left, top, right, bottom), width, height)))
        return suppress(found, nms)

    return detect
