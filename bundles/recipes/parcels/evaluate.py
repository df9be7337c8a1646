"""Measures the parcel detector: mAP@0.5 of the ONNX file on generated pictures that it was not trained on.

    PYTHONPATH=<repository> python bundles/recipes/parcels/evaluate.py [--frames 600] [--model model.onnx]

Average precision is the area under the precision–recall curve with precision made monotonic, over all points, as
Pascal VOC does since 2010 (Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", 2015,
section 4.1). As with VOC's `difficult`, parcels of which less than half can be seen (cut by the picture's edge or
covered) are neither asked for nor counted as wrong when found, under either label. Decoding and NMS are written out
here, apart from the agent's, so that one can be held against the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from simulator.scenes import LABELS, ConveyorScene, TruthBox

WIDTH, HEIGHT = 320, 192
FIRST_SEED = 50_000
"""Held-out scenes have seeds from here; training has those from 100 000, calibration 60 000, golden 70 000."""
LEAST_VISIBLE = 0.5
HERE = Path(__file__).resolve().parent
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """Detections in one picture: `boxes` (count, 4) xyxy px of the picture, `scores` (count,), `labels` (count,)."""

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]


def detect(session: onnxruntime.InferenceSession, pixels: NDArray[np.uint8], least_score: float = 0.05) -> Found:
    """Run the model on a BGR picture: stretch, RGB, 0..1; then decode and suppress per class at IoU 0.6."""
    height, width = pixels.shape[:2]
    resized = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    tensor = resized[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    output = session.run(None, {session.get_inputs()[0].name: tensor})[0][0]
    labels = output[4:].argmax(0)
    scores = output[4:].max(0)
    likely = np.flatnonzero(scores >= least_score)
    likely = likely[np.argsort(-scores[likely], kind="stable")]
    middle, half = output[:2, likely].T, output[2:4, likely].T / 2
    scale = np.array((width / WIDTH, height / HEIGHT) * 2, np.float32)
    boxes = np.concatenate((middle - half, middle + half), axis=1) * scale
    boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
    kept = _suppress(boxes, labels[likely], 0.6)
    return Found(boxes[kept], scores[likely][kept], labels[likely][kept])


def _suppress(boxes: Floats, labels: NDArray[np.int64], most_iou: float) -> list[int]:
    """Return the rows to keep of boxes sorted by falling score: greedy non-maximum suppression per class."""
    kept: list[int] = []
    for row in range(len(boxes)):
        rivals = [other for other in kept if labels[other] == labels[row]]
        if not rivals or iou(boxes[row], boxes[rivals]).max() <= most_iou:
            kept.append(row)
    return kept


def iou(box: Floats, others: Floats) -> Floats:
    """Return intersection over union of one xyxy box with each of (count, 4) others."""
    inside = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - inside
    return np.asarray(inside / np.maximum(union, 1e-9), np.float32)


def held_out_frames(
    count: int, first_seed: int = FIRST_SEED
) -> Iterator[tuple[NDArray[np.uint8], tuple[TruthBox, ...]]]:
    """Draw frames, three of each scene and far apart."""
    for number in range(count):
        seed = first_seed + number // 3
        if number % 3 == 0:
            scene = ConveyorScene(seed)
        yield scene.frame(int(np.random.default_rng((seed, number)).integers(0, 150)) + 150 * (number % 3))


def average_precision(pairs: Iterable[tuple[Found, tuple[TruthBox, ...]]], label: int) -> float:
    """Return AP@0.5 of one class over all pictures."""
    scores: list[float] = []
    hits: list[bool] = []
    positives = 0
    for found, truth in pairs:
        own = [box for box in truth if box.label == LABELS[label] or box.visible_share < LEAST_VISIBLE]
        positives += sum(box.visible_share >= LEAST_VISIBLE for box in own)
        for score, is_hit in _judge(found, own, label):
            scores.append(score)
            hits.append(is_hit)
    right = np.array(hits)[np.argsort(-np.array(scores), kind="stable")].cumsum()
    recall = np.concatenate(([0.0], right / max(1, positives)))
    precision = np.concatenate(([1.0], right / np.arange(1, len(right) + 1)))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope[1:]).sum())


def _judge(found: Found, own: list[TruthBox], label: int) -> Iterator[tuple[float, bool]]:
    """Yield score and hit or miss of each detection of the class; those on hardly visible parcels are left out."""
    free = set(range(len(own)))
    boxes = np.array([box.xyxy_px for box in own], np.float32).reshape(-1, 4)
    for row in np.flatnonzero(found.labels == label):
        overlaps = iou(found.boxes[row], boxes)
        best = max(free, key=lambda index: overlaps[index], default=None)
        if best is None or overlaps[best] < 0.5:
            yield float(found.scores[row]), False
            continue
        free.remove(best)
        if own[best].visible_share >= LEAST_VISIBLE:
            yield float(found.scores[row]), True


def evaluate(model: Path, frames: int) -> dict[str, float]:
    """Return the average precision of each label and their mean, under `map50`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    pairs = [(detect(session, pixels), truth) for pixels, truth in held_out_frames(frames)]
    precisions = {name: average_precision(pairs, label) for label, name in enumerate(LABELS)}
    return {**precisions, "map50": float(np.mean(list(precisions.values())))}


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "model.onnx")
    parser.add_argument("--frames", type=int, default=600)
    options = parser.parse_args()
    for name, value in evaluate(options.model, options.frames).items():
        print(f"{name:>8} {value:.4f}")


if __name__ == "__main__":
    main()
