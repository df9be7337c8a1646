from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.errors import CandidateError
from agent.inference.decoders.selection import Selection
from agent.inference.decoders.ssd import SsdDecoder, misfit
from agent.inference.placement import place

IMAGE = ImageInput(width=300, height=300, layout="NHWC", dtype="uint8")
DECODER = Decoder(model_type="ssd", labels=("background", "person", "dog"))
PLACEMENT = place(1000, 500, IMAGE)


@pytest.fixture
def tensorflow(spec: Callable[..., TensorSpec]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    return [spec("image_tensor", 1, 300, 300, 3, dtype="uint8")], [
        spec("num_detections", 1),
        spec("detection_scores", 1, 4),
        spec("detection_boxes", 1, 4, 4),
        spec("detection_classes", 1, 4),
    ]


def tensorflow_outputs(count: float = 3) -> dict[str, np.ndarray]:
    return {
        "num_detections": np.array([count], np.float32),
        "detection_scores": np.array([[0.9, 0.8, 0.3, 0.99]], np.float32),
        "detection_boxes": np.array(
            [[[0.1, 0.2, 0.5, 0.4], [0.5, 0.5, 1.0, 1.0], [0, 0, 1, 1], [0, 0, 0.1, 0.1]]], np.float32
        ),
        "detection_classes": np.array([[1, 2, 1, 1]], np.float32),
    }


def test_tensorflow_boxes_are_top_left_bottom_right(
    tensorflow: tuple[list[TensorSpec], list[TensorSpec]],
) -> None:
    """And what comes after the count is left-over memory, however well it scores."""
    answer = SsdDecoder(DECODER, IMAGE, *tensorflow).decode(tensorflow_outputs(), Selection.of(DECODER), PLACEMENT)
    np.testing.assert_allclose(answer.xyxy_px, [[200, 50, 400, 250], [500, 250, 1000, 500]], atol=1e-3)
    np.testing.assert_allclose(answer.scores, [0.9, 0.8])
    assert answer.class_ids.tolist() == [1, 2]


def test_tensorflow_without_a_count(spec: Callable[..., TensorSpec]) -> None:
    outputs = [spec("boxes", 1, -1, 4), spec("scores", 1, -1), spec("labels", 1, -1, dtype="int64")]
    ssd = SsdDecoder(DECODER, IMAGE, [spec("image", 1, 300, 300, 3)], outputs)
    given = tensorflow_outputs()
    answer = ssd.decode(
        {
            "boxes": given["detection_boxes"],
            "scores": given["detection_scores"],
            "labels": given["detection_classes"].astype(np.int64),
        },
        Selection.of(DECODER),
        PLACEMENT,
    )
    assert answer.class_ids.tolist() == [1, 1, 2]


@pytest.mark.parametrize("count", [-1, 5, float("nan")])
def test_impossible_count_is_refused(count: float, tensorflow: tuple[list[TensorSpec], list[TensorSpec]]) -> None:
    with pytest.raises(CandidateError, match="num_detections"):
        SsdDecoder(DECODER, IMAGE, *tensorflow).decode(tensorflow_outputs(count), Selection.of(DECODER), PLACEMENT)


def test_class_without_a_label_is_refused(tensorflow: tuple[list[TensorSpec], list[TensorSpec]]) -> None:
    """A label list that is shifted by one names a dog a person; one too short is seen here."""
    decoder = Decoder(model_type="ssd", labels=("person", "dog"))
    with pytest.raises(CandidateError, match=r"class ids from 0 to 1, .* found 1 to 2"):
        SsdDecoder(decoder, IMAGE, *tensorflow).decode(tensorflow_outputs(), Selection.of(decoder), PLACEMENT)


def test_detection_output_ends_at_the_first_negative_picture(spec: Callable[..., TensorSpec]) -> None:
    rows = np.array(
        [
            [0, 2, 0.6, 0.0, 0.0, 0.5, 0.5],
            [0, 1, 0.9, 0.2, 0.1, 0.4, 0.5],
            [-1, 0, 0, 0, 0, 0, 0],
            [0, 1, 0.99, 0.6, 0.6, 0.9, 0.9],
        ],
        np.float32,
    )[None, None]
    ssd = SsdDecoder(DECODER, IMAGE, [spec("data", 1, 3, 300, 300)], [spec("detection_out", 1, 1, 200, 7)])
    answer = ssd.decode({"detection_out": rows}, Selection.of(DECODER), PLACEMENT)
    np.testing.assert_allclose(answer.xyxy_px, [[200, 50, 400, 250], [0, 0, 500, 250]], atol=1e-3)
    assert answer.class_ids.tolist() == [1, 2]


def test_two_outputs_of_one_shape_without_telling_names_do_not_fit(spec: Callable[..., TensorSpec]) -> None:
    """Taking them in order would be a guess: exporters differ."""
    inputs = [spec("image", 1, 300, 300, 3)]
    boxes = spec("StatefulPartitionedCall:0", 1, 10, 4)
    assert misfit(inputs, [boxes, spec("a", 1, 10), spec("b", 1, 10)], None) is not None
    assert misfit(inputs, [boxes, spec("classes", 1, 10), spec("scores", 1, 10)], None) is None
    assert misfit(inputs, [spec("x", 1, 1, 200, 7)], None) is None
    assert misfit(inputs, [spec("x", 1, 1, 200, 6)], None) is not None
