"""Golden answers: they survive being written, and agreement means what people mean by it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from agent.bundle.manifest import Agreement, Decoder, ImageInput, SignalInput
from agent.clock import SystemClock
from agent.errors import BundleError
from agent.inference.answers import Classes, Detections, Score
from agent.inference.golden import (
    EXACT,
    QUANTIZED,
    agreement,
    from_json,
    iou,
    sample_from,
    threshold_of,
    to_json,
    tolerance_for,
)

BOX = (10.0, 10.0, 110.0, 110.0)


def boxes(*entries: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    return Detections(
        np.array([box for box, _, _ in entries], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in entries], np.float32),
        np.array([class_id for _, _, class_id in entries], np.int64),
    )


def classes(*pairs: tuple[int, float]) -> Classes:
    return Classes(np.array([s for _, s in pairs], np.float32), np.array([c for c, _ in pairs], np.int64))


@pytest.mark.parametrize(
    "answer",
    [boxes((BOX, 0.9, 2), (BOX, 0.5, 0)), boxes(), classes((2, 0.75), (0, 0.25)), classes(), Score(-0.125)],
    ids=["boxes", "no-boxes", "classes", "no-classes", "score"],
)
def test_an_answer_survives_being_written(answer):
    """What the builder writes is what the trial compares with."""
    again = from_json(to_json(answer))

    assert type(again) is type(answer)
    assert agreement(answer, again, EXACT) == 1.0
    assert to_json(again) == to_json(answer)


def test_nan_is_never_a_golden_answer():
    """A NaN would agree with nothing, and the bundle would be refused everywhere without saying why."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(Score(float("nan")))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[1]", b'{"kind": "poem"}', b'{"kind": "score"}', b'{"kind": "score", "value": "high"}',
        b'{"kind": "detections", "boxes": [[1, 2, 3]], "scores": [1], "class_ids": [0]}',
        b'{"kind": "detections", "boxes": [[1, 2, 3, 4]], "scores": [1, 2], "class_ids": [0, 1]}',
        b'{"kind": "classes", "scores": [1], "class_ids": []}',
    ],
)  # fmt: skip
def test_a_bad_document_is_refused(text):
    """A damaged golden answer must not pass for an empty one."""
    with pytest.raises(BundleError, match="no golden answer"):
        from_json(text)


@pytest.mark.parametrize(
    ("actual", "tolerance", "expected"),
    [
        pytest.param(boxes((BOX, 0.9, 0)), EXACT, 1.0, id="same"),
        pytest.param(boxes((BOX, 0.93, 0)), EXACT, 0.0, id="score-off"),
        pytest.param(boxes((BOX, 0.93, 0)), QUANTIZED, 1.0, id="score-off-but-quantized"),
        pytest.param(boxes((BOX, 0.9, 1)), QUANTIZED, 0.0, id="other-class"),
        pytest.param(boxes(((20.0, 10.0, 120.0, 110.0), 0.9, 0)), EXACT, 0.0, id="moved"),
        pytest.param(boxes(((20.0, 10.0, 120.0, 110.0), 0.9, 0)), QUANTIZED, 1.0, id="moved-but-quantized"),
        pytest.param(boxes((BOX, 0.9, 0), (BOX, 0.9, 0)), QUANTIZED, 2 / 3, id="twice"),
        pytest.param(boxes(), QUANTIZED, 0.0, id="missed"),
        pytest.param(boxes((BOX, float("nan"), 0)), QUANTIZED, 0.0, id="nan-score"),
        pytest.param(boxes(((float("nan"),) * 4, 0.9, 0)), QUANTIZED, 0.0, id="nan-box"),
        pytest.param(Score(0.9), QUANTIZED, 0.0, id="other-kind"),
    ],
)
def test_agreement_of_boxes(actual, tolerance, expected):
    """F1 of one-to-one matches: what is missed, invented or doubled all costs."""
    assert agreement(boxes((BOX, 0.9, 0)), actual, tolerance, threshold=0.5) == pytest.approx(expected)


def test_fp32_keeps_the_score_of_a_class_too():
    """A provider whose softmax is off names the same class, and no rule on its score speaks again."""
    right, weak = classes((1, 0.9), (2, 0.05)), classes((1, 0.5), (2, 0.3))
    assert agreement(right, weak, EXACT) == 0.0
    assert agreement(right, classes((1, 0.885)), EXACT) == 1.0
    assert agreement(right, weak, QUANTIZED) == 1.0


def test_a_box_on_the_threshold_is_held_against_nobody():
    """0.505 on one machine and 0.495 on another is the same answer, though one of them has no box."""
    weak = boxes((BOX, 0.505, 0))

    assert agreement(weak, boxes(), EXACT, threshold=0.5) == 1.0
    assert agreement(boxes(), weak, EXACT, threshold=0.5) == 1.0
    assert agreement(boxes(), boxes(), EXACT, threshold=0.5) == 1.0
    assert agreement(boxes((BOX, 0.6, 0)), boxes(), EXACT, threshold=0.5) == 0.0


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        pytest.param(classes((1, 0.46), (0, 0.3)), 1.0, id="same"),
        pytest.param(classes((0, 0.46), (1, 0.3)), 0.0, id="other"),
        pytest.param(classes((2, 0.46)), 1.0, id="as-good"),
        pytest.param(classes(), 0.0, id="none"),
        pytest.param(classes((1, float("nan"))), 0.0, id="nan"),
    ],
)
def test_agreement_of_classes(actual, expected):
    """Top-1, where two classes that tie in the golden answer are equally right."""
    assert agreement(classes((1, 0.45), (2, 0.445), (0, 0.1)), actual, EXACT, threshold=0.3) == expected


def test_agreement_of_scores_is_relative_to_the_threshold():
    """Near zero, a relative error means nothing; what matters is how far both are from the alarm."""
    assert agreement(Score(0.001), Score(0.004), EXACT, threshold=0.5) == 1.0
    assert agreement(Score(0.001), Score(0.02), EXACT, threshold=0.5) == 0.0
    assert agreement(Score(2.0), Score(2.1), QUANTIZED, threshold=0.5) == 1.0
    assert agreement(Score(2.0), Score(float("nan")), QUANTIZED, threshold=0.5) == 0.0


def test_threshold_and_tolerance_come_from_the_manifest():
    """Builder and device must mean the same."""
    assert threshold_of(Decoder(model_type="yolox", confidence_threshold=0.4)) == 0.4
    assert threshold_of(Decoder(model_type="anomaly", anomaly_threshold=1.5)) == 1.5
    assert tolerance_for("fp32") is EXACT
    assert tolerance_for("int8") is QUANTIZED


def test_a_bundle_may_say_itself_how_close_fp32_must_come():
    """An accelerator that computes fp32 in half precision is no fault where the task does not mind."""
    given = Agreement(iou=0.9, required=0.95)

    assert tolerance_for("fp32", given) == tolerance_for("fp32-fused", given) == replace(EXACT, iou=0.9)
    assert tolerance_for("int8", given) is QUANTIZED


def test_iou_of_empty_boxes_is_zero():
    """A box without area must not divide by zero."""
    point = np.array([[5, 5, 5, 5]], np.float32)

    assert iou(point, point).tolist() == [[0.0]]


def array_bytes(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_golden_inputs_become_samples():
    """Pictures are BGR as every frame is; signals are windows."""
    import cv2

    picture = cv2.imencode(".png", np.full((4, 6, 3), (255, 0, 0), np.uint8))[1].tobytes()
    signal = SignalInput(rate_hz=100, window_size=5, hop_size=5)

    frame = sample_from(ImageInput(width=2, height=2), picture, 3, SystemClock())
    window = sample_from(signal, array_bytes(np.ones((5, 1), np.float32)), 0, SystemClock())

    assert frame.pixels.shape == (4, 6, 3)
    assert frame.pixels[0, 0].tolist() == [255, 0, 0]
    assert (window.values.shape, window.rate_hz, window.missing_share) == ((5, 1), 100, 0.0)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"nonsense", array_bytes(np.ones((4, 1), np.float32)), array_bytes(np.ones((5, 1), np.float64)),
        array_bytes(np.array([{}], dtype=object)),
    ],
)  # fmt: skip
def test_a_bad_golden_input_is_refused(content):
    """No pickle is ever loaded, and nothing of another shape is guessed at."""
    with pytest.raises(BundleError, match="golden sample"):
        sample_from(SignalInput(rate_hz=100, window_size=5, hop_size=5), content, 0, SystemClock())
    with pytest.raises(BundleError, match="golden sample"):
        sample_from(ImageInput(width=2, height=2), content, 0, SystemClock())
