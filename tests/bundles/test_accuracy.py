"""The number that decides whether a variant is in the bundle."""

from __future__ import annotations

import numpy as np
import pytest

from agent.bundle.manifest import Decoder
from agent.inference.answers import Classes, Detections, Score
from bundles.accuracy import auroc, judge, mean_average_precision, uses_truth
from bundles.samples import TrueObject

DETECTOR = Decoder(model_type="yolo", labels=("cat", "dog"), confidence_threshold=0.5)
ANOMALY = Decoder(model_type="anomaly", anomaly_threshold=2.0)
CLASSIFIER = Decoder(model_type="classify", labels=("cat", "dog"))


def found(*boxes: tuple[float, float, float, float], scores=None, classes=None) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores if scores is not None else [0.9] * count, np.float32),
        np.array(classes if classes is not None else [0] * count, np.int64),
    )


def classes(*ids: int) -> Classes:
    return Classes(np.linspace(0.9, 0.1, len(ids)).astype(np.float32), np.array(ids, np.int64))


A, B, C = (0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 60, 60)


def test_a_lost_detection_is_a_drop():
    """Without truth, fp32's own answers are the measure."""
    result = judge([found(A, B)], [found(A)], [None], DETECTOR, 0.01)
    assert result.metric == "detection_f1@0.5"
    assert result.value == pytest.approx(2 / 3, abs=1e-5) and result.drop == pytest.approx(1 / 3, abs=1e-5)
    assert result.gate == 0.01


def test_an_invented_detection_is_a_drop_too():
    """False alarms cost as much."""
    assert judge([found(A)], [found(A, B)], [None], DETECTOR, 0).drop > 0.3
    assert judge([found(A)], [found(A, classes=[1])], [None], DETECTOR, 0).drop == 1


def test_equal_answers_lose_nothing():
    """Also when there is nothing in the picture."""
    assert judge([found(A, B), found()], [found(A, B), found()], [None, None], DETECTOR, 0).drop == 0


def test_map_of_known_cases():
    """Checked by hand against the definition (area under precision over recall, all points)."""
    truth = [(TrueObject(label="cat", xyxy_px=A), TrueObject(label="cat", xyxy_px=B))]
    assert mean_average_precision([found(A, B)], truth, ("cat", "dog")) == 1
    assert mean_average_precision([found(A)], truth, ("cat", "dog")) == 0.5
    # A false one between two right ones: precision 1 up to recall 1/2, then 2/3.
    between = found(A, C, B, scores=[0.9, 0.8, 0.7])
    assert mean_average_precision([between], truth, ("cat", "dog")) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # The same object found twice counts once.
    assert mean_average_precision([found(A, A)], truth, ("cat", "dog")) == 0.5
    assert mean_average_precision([found()], truth, ("cat", "dog")) == 0


def test_classes_that_do_not_occur_do_not_count():
    """A golden set of cats says nothing about dogs."""
    truth = [(TrueObject(label="dog", xyxy_px=A),), ()]
    answers = [found(A, classes=[1]), found()]
    assert mean_average_precision(answers, truth, ("cat", "dog")) == 1


def test_truth_decides_where_it_is_there():
    """A variant that finds what fp32 missed has lost nothing."""
    truth = [(TrueObject(label="cat", xyxy_px=A), TrueObject(label="cat", xyxy_px=B))]
    result = judge([found(A)], [found(A, B)], truth, DETECTOR, 0.01)
    assert result.metric == "map@0.5" and result.value == 1 and result.drop == -0.5


def test_auroc():
    """The chance that an unusual window scores higher; ties count half."""
    scores = [Score(1.0), Score(2.0), Score(2.0), Score(3.0)]
    assert auroc(scores, [False, False, True, True]) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    result = judge(scores, [Score(3.0), Score(2.0), Score(1.0), Score(0.0)], [False, False, True, True], ANOMALY, 0)
    assert result.metric == "auroc" and result.value < 0.2 and result.drop > 0.6


def test_scores_without_truth_are_compared_with_the_threshold():
    """A shift by a tenth of the threshold is a tenth."""
    result = judge([Score(1.0), Score(3.0)], [Score(1.1), Score(2.8)], [None, None], ANOMALY, 0.01)
    assert result.metric == "score_agreement" and result.drop == pytest.approx(0.1, abs=1e-5)
    assert not uses_truth([True, True], ANOMALY), "AUROC needs both kinds"


def test_classifiers():
    """Top one, against fp32 or against the truth."""
    agreed = judge([classes(0, 1), classes(1, 0)], [classes(0, 1), classes(0, 1)], [None, None], CLASSIFIER, 0)
    assert agreed.metric == "top1_agreement" and agreed.value == 0.5
    right = judge([classes(0), classes(0)], [classes(0), classes(1)], ["cat", "dog"], CLASSIFIER, 0)
    assert right.metric == "top1_accuracy" and right.value == 1 and right.drop == -0.5
