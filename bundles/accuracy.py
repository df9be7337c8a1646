"""How much worse a variant answers than fp32, by the metric of its task.

Takes the answers of both on the same golden samples, and the truth where the recipe has it; gives one Accuracy. With
truth: mAP@0.5 (detectors), share of right classes, AUROC (anomaly). Without: agreement with fp32's own answers, by the
comparison that a trial on the device uses too. No model is run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Accuracy, Decoder
from agent.inference import golden
from agent.inference.answers import Answer, Classes, Detections, Score
from bundles.samples import TrueAnswer, TrueObject

MAP_MIN_SCORE = 0.01
"""mAP looks at the whole curve of precision over recall, so detections far below the threshold count too."""

_IOU = 0.5


def judge(
    reference: Sequence[Answer],
    answers: Sequence[Answer],
    truth: Sequence[TrueAnswer | None],
    decoder: Decoder,
    gate: float,
) -> Accuracy:
    """Compare a variant's answers with fp32's.

    Args:
        reference: What fp32 answered; at least one.
        answers: What the variant answered, in the same order.
        truth: What is true of each sample, or None for all of them.
        decoder: For labels and thresholds.
        gate: The largest drop allowed.
    """
    metric, expected, value = _values(reference, answers, truth, decoder)
    return Accuracy(metric=metric, value=round(value, 6), drop=round(expected - value, 6), gate=gate)


def uses_truth(truth: Sequence[TrueAnswer | None], decoder: Decoder) -> bool:
    """Whether the metric is measured against the truth: it must be there, and for AUROC hold both kinds."""
    if not truth or any(each is None for each in truth):
        return False
    return decoder.model_type != "anomaly" or len(set(truth)) == 2


def _values(
    reference: Sequence[Answer], answers: Sequence[Answer], truth: Sequence[TrueAnswer | None], decoder: Decoder
) -> tuple[str, float, float]:
    """Return the metric's name, fp32's value and the variant's."""
    if uses_truth(truth, decoder):
        known = [each for each in truth if each is not None]
        if decoder.model_type == "anomaly":
            return "auroc", auroc(reference, known), auroc(answers, known)
        if decoder.model_type == "classify":
            return "top1_accuracy", _right(reference, known, decoder), _right(answers, known, decoder)
        return (
            "map@0.5",
            mean_average_precision(reference, known, decoder.labels),
            mean_average_precision(answers, known, decoder.labels),
        )
    if decoder.model_type == "anomaly":
        return "score_agreement", 1.0, 1.0 - _largest_deviation(reference, answers, decoder)
    name = "top1_agreement" if decoder.model_type == "classify" else "detection_f1@0.5"
    tolerance = replace(golden.QUANTIZED, score=0.0) if is_undecided(reference, decoder) else golden.QUANTIZED
    shares = [
        golden.agreement(expected, actual, tolerance, threshold=decoder.confidence_threshold)
        for expected, actual in zip(reference, answers, strict=True)
    ]
    return name, 1.0, float(np.mean(shares))


def is_undecided(reference: Sequence[Answer], decoder: Decoder) -> bool:
    """Whether every class that fp32 names, of all that it may name, is as good as the best on all samples.

    Near-ties count as equal elsewhere; here any answer at all would pass.
    """
    most = min(decoder.topk, len(decoder.labels))
    spreads = [
        float(np.ptp(each.scores)) if isinstance(each, Classes) and len(each.scores) == most > 1 else np.inf
        for each in reference
    ]
    return bool(spreads) and max(spreads) <= golden.QUANTIZED.score


def _largest_deviation(reference: Sequence[Answer], answers: Sequence[Answer], decoder: Decoder) -> float:
    """Return the largest change of a score as a share of the threshold (or, without one, of the largest score)."""
    expected, found = _scores(reference), _scores(answers)
    scale = abs(decoder.anomaly_threshold or 0.0) or float(np.abs(expected).max()) or 1.0
    return float(np.abs(found - expected).max()) / scale


def _scores(answers: Sequence[Answer]) -> NDArray[np.float64]:
    return np.array([answer.value if isinstance(answer, Score) else np.nan for answer in answers])


def auroc(answers: Sequence[Answer], truth: Sequence[TrueAnswer]) -> float:
    """Return the chance that an unusual window scores higher than a usual one; ties count half (Mann-Whitney U)."""
    scores, unusual = _scores(answers), np.array([each is True for each in truth])
    difference = scores[unusual][:, None] - scores[~unusual][None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _right(answers: Sequence[Answer], truth: Sequence[TrueAnswer], decoder: Decoder) -> float:
    right = [
        isinstance(answer, Classes) and len(answer.class_ids) > 0 and decoder.labels[int(answer.class_ids[0])] == true
        for answer, true in zip(answers, truth, strict=True)
    ]
    return float(np.mean(right))


def mean_average_precision(answers: Sequence[Answer], truth: Sequence[TrueAnswer], labels: Sequence[str]) -> float:
    """Return mAP at IoU 0.5 over the classes that occur in the truth.

    It is the area under precision over recall at all points (PASCAL VOC 2010); a box takes the best object that is
    still free (COCO).
    """
    present = {each.label for objects in truth if isinstance(objects, tuple) for each in objects}
    values = [
        _average_precision(answers, truth, class_id, label) for class_id, label in enumerate(labels) if label in present
    ]
    return float(np.mean(values)) if values else 0.0


def _average_precision(answers: Sequence[Answer], truth: Sequence[TrueAnswer], class_id: int, label: str) -> float:
    hits: list[tuple[float, bool]] = []
    count = 0
    for answer, objects in zip(answers, truth, strict=True):
        assert isinstance(answer, Detections) and isinstance(objects, tuple), "a detector's answers and truth"
        true = _boxes([each for each in objects if each.label == label])
        count += len(true)
        hits += _hits(answer, class_id, true)
    order = sorted(range(len(hits)), key=lambda index: -hits[index][0])
    right = np.cumsum([hits[index][1] for index in order])
    precision = right / np.arange(1, len(right) + 1)
    # Precision at a recall is the best at that recall or any higher one.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(right, prepend=0) / max(count, 1)
    return float(np.sum(best * gained))


def _boxes(objects: Sequence[TrueObject]) -> NDArray[np.float32]:
    return np.array([each.xyxy_px for each in objects], np.float32).reshape(-1, 4)


def _hits(answer: Detections, class_id: int, true: NDArray[np.float32]) -> list[tuple[float, bool]]:
    """Return score and rightness of each detection of a class; an object is found once, by the best-scored box."""
    chosen = answer.class_ids == class_id
    overlap = golden.iou(answer.xyxy_px[chosen], true)
    found: list[tuple[float, bool]] = []
    for index, score in enumerate(answer.scores[chosen]):  # sorted by score, highest first
        best = int(overlap[index].argmax()) if len(true) else -1
        is_right = best >= 0 and bool(overlap[index, best] >= _IOU)
        if is_right:
            overlap[:, best] = -1.0
        found.append((float(score), is_right))
    return found
