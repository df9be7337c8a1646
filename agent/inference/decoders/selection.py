"""From a model's many boxes to the few that are the answer: thresholds, suppression, frame coordinates.

Rules, the same for every detector:

- A box counts when `score >= min_score`; a score of exactly 0 never counts.
- Non-maximum suppression is per class (or over all classes with `agnostic_nms`): of two boxes whose IoU is *above*
  `iou_threshold` the lower-scored goes.
- `class_ids` is applied before suppression, so that 300 cars never push out the one person that is asked for.
- At most `topk` boxes remain, and at most ten times as many enter suppression: its time grows with the square.
- A box that lies outside the frame (in the padding) or has no area is no object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Decoder
from agent.errors import CandidateError
from agent.inference.answers import Detections
from agent.inference.placement import Placement

_ENTERING_FACTOR = 10
_ROUNDING = 1e-2
"""How far above 1 a quantized or fp16 sigmoid may come out."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a model's boxes or classes become the answer. Fields are named as in the manifest's `Decoder`."""

    min_score: float
    iou_threshold: float
    agnostic_nms: bool
    topk: int
    labels_count: int
    """0 where the bundle has no labels and any class id is right."""
    class_ids: frozenset[int] | None = None
    """Only these; None: all."""

    @staticmethod
    def of(decoder: Decoder) -> Selection:
        """Return what the manifest says."""
        return Selection(
            min_score=decoder.confidence_threshold,
            iou_threshold=decoder.iou_threshold,
            agnostic_nms=decoder.agnostic_nms,
            topk=decoder.topk,
            labels_count=len(decoder.labels),
        )


def select_boxes(
    xyxy_px: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int64],
    selection: Selection,
    placement: Placement,
) -> Detections:
    """Return the objects among candidate boxes.

    Args:
        xyxy_px: (n, 4) in pixels of the model's *input*.
        scores: (n,)
        class_ids: (n,)
        selection: The rules.
        placement: Where the frame lies in the input.

    Raises:
        CandidateError: boxes are not finite, a score is no probability, or a class has no label.
    """
    _check(xyxy_px, scores, class_ids, selection)
    index = _entering(xyxy_px, scores, class_ids, selection)
    if not len(index):
        return no_objects()
    index = index[_suppress(xyxy_px[index], scores[index], class_ids[index], selection)]
    boxes = placement.to_frame(xyxy_px[index])
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not inside.all():
        boxes, index = boxes[inside], index[inside]
    index = index[: selection.topk]
    return Detections(boxes[: selection.topk], np.minimum(scores[index], np.float32(1)), class_ids[index])


def no_objects() -> Detections:
    """Return the answer for a frame without objects: what most cameras see most of the time, so decoders end early."""
    return Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))


def check_scores(scores: NDArray[np.float32]) -> None:
    """Refuse scores that are not between 0 and 1.

    Raises:
        CandidateError: with the largest.
    """
    if scores.size and scores.max() > 1.0 + _ROUNDING:
        raise CandidateError(
            f"expected scores from 0 to 1, found {scores.max():.4g}",
            hint="the model gives logits: export it with its last sigmoid or softmax, or build the bundle with "
            "output_raw_scores where the decoder has it",
        )


def _check(
    xyxy_px: NDArray[np.float32], scores: NDArray[np.float32], class_ids: NDArray[np.int64], selection: Selection
) -> None:
    if not np.isfinite(xyxy_px).all():
        raise CandidateError("decoded boxes hold NaN or infinity: the model's box outputs are out of range")
    check_scores(scores)
    if (
        selection.labels_count
        and class_ids.size
        and not 0 <= class_ids.min() <= class_ids.max() < selection.labels_count
    ):
        raise CandidateError(
            f"expected class ids from 0 to {selection.labels_count - 1}, one for each label, "
            f"found {class_ids.min()} to {class_ids.max()}",
            hint="list a label for every class the model knows, in its order (a background class counts)",
        )


def _entering(
    xyxy_px: NDArray[np.float32], scores: NDArray[np.float32], class_ids: NDArray[np.int64], selection: Selection
) -> NDArray[np.intp]:
    """Return the indices of the boxes that enter suppression, best first."""
    counts = (scores >= selection.min_score) & (scores > 0)
    counts &= (xyxy_px[:, 2] > xyxy_px[:, 0]) & (xyxy_px[:, 3] > xyxy_px[:, 1])
    if selection.class_ids is not None:
        counts &= np.isin(class_ids, list(selection.class_ids))
    index = np.flatnonzero(counts)
    order = np.argsort(-scores[index], kind="stable")
    return index[order[: selection.topk * _ENTERING_FACTOR]]


def _suppress(
    xyxy_px: NDArray[np.float32], scores: NDArray[np.float32], class_ids: NDArray[np.int64], selection: Selection
) -> NDArray[np.intp]:
    """Return which boxes survive, best first; the boxes come best first."""
    if len(scores) == 1:
        return np.zeros(1, np.intp)
    import cv2  # here: a worker of sensors, and a system for which OpenCV has no wheel, import this module too

    xywh = xyxy_px.astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    if not selection.agnostic_nms:
        # Each class gets its own stretch of the x axis, so that boxes of two classes never overlap. (OpenCV's
        # NMSBoxesBatched does the same but assumes that no coordinate is negative.)
        stretch = float(np.max(xyxy_px[:, 2]) - np.min(xyxy_px[:, 0])) + 1.0
        xywh[:, 0] += class_ids * stretch
    # Lists cross into OpenCV 1.5 times as fast as arrays do.
    kept = cv2.dnn.NMSBoxes(xywh.tolist(), scores.tolist(), 0.0, selection.iou_threshold)
    return np.asarray(kept, dtype=np.intp).reshape(-1)
