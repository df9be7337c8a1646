from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.bundle.manifest import ImageInput
from agent.inference.decoders.selection import Selection, select_boxes
from agent.inference.placement import place

Objects = list[tuple[list[float], float, int]]
IMAGE = ImageInput(width=100, height=100)
PLACEMENT = place(100, 100, IMAGE)
SELECTION = Selection(min_score=0.1, iou_threshold=0.5, agnostic_nms=False, topk=100, labels_count=3)


def select(objects: Objects, selection: Selection = SELECTION, image: ImageInput = IMAGE, size: int = 100):  # type: ignore[no-untyped-def]
    boxes = np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in objects], np.float32)
    classes = np.array([class_id for _, _, class_id in objects], np.int64)
    return select_boxes(boxes, scores, classes, selection, place(size, size, image))


CORNER = st.integers(-4, 22).map(lambda step: step * 5)  # coarse, so that boxes often overlap
SIDE = st.sampled_from([20, 25, 40])


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[float], float, int]:
    left, top = draw(CORNER), draw(CORNER)
    return [left, top, left + draw(SIDE), top + draw(SIDE)], draw(st.integers(0, 1000)) / 1000, draw(st.integers(0, 2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(boxes(), max_size=30, unique_by=lambda box: box[1]), st.booleans())
def test_suppression_is_the_textbooks(
    plain_suppression: Callable[..., Objects], objects: Objects, is_agnostic: bool
) -> None:
    """The library's suppression, moved about by class, against the definition."""
    candidates = [(box, score, class_id) for box, score, class_id in objects if np.float32(score) >= 0.1]
    kept = plain_suppression(candidates, 0.5, is_agnostic=is_agnostic)
    expected = []
    for box, score, class_id in kept:
        clipped = [min(max(value, 0), 100) for value in box]
        if clipped[2] > clipped[0] and clipped[3] > clipped[1]:
            expected.append((clipped, np.float32(score), class_id))
    answer = select(objects, replace(SELECTION, agnostic_nms=is_agnostic))
    found = [
        (box.tolist(), score, class_id)
        for box, score, class_id in zip(answer.xyxy_px, answer.scores, answer.class_ids, strict=True)
    ]
    assert found == expected


def test_chosen_classes_are_not_pushed_out_by_others() -> None:
    """One person among 300 cars is still the answer when only persons are asked for."""
    cars: Objects = [([i % 20 * 5, i // 20 * 5, i % 20 * 5 + 4, i // 20 * 5 + 4], 0.9, 1) for i in range(300)]
    person: Objects = [([10, 10, 20, 30], 0.3, 0)]
    selection = replace(SELECTION, topk=5, class_ids=frozenset({0}))
    answer = select(cars + person, selection)
    assert answer.class_ids.tolist() == [0]
    assert select(cars + person, replace(SELECTION, topk=5)).class_ids.tolist() == [1] * 5


def test_classes_do_not_meet_left_of_the_frame() -> None:
    """Classes are told apart by shifting them; a box that begins left of the frame must not reach another class."""
    objects: Objects = [([-19, 10, 1, 30], 0.9, 1), ([80, 10, 100, 30], 0.5, 0)]
    assert select(objects).class_ids.tolist() == [1, 0]


def test_boxes_without_area_are_no_objects() -> None:
    assert len(select([([10, 10, 10, 20], 0.9, 0), ([30, 30, 20, 40], 0.9, 0)])) == 0


def test_objects_in_the_padding_are_no_objects() -> None:
    """A wide frame in a square input has grey below it; a model may see things there."""
    image = ImageInput(width=100, height=100, resize_type="fit_to_window")
    placement = place(100, 50, image)
    boxes_px = np.array([[10, 60, 30, 90], [10, 40, 30, 60]], np.float32)
    answer = select_boxes(boxes_px, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), SELECTION, placement)
    np.testing.assert_allclose(answer.xyxy_px, [[10, 40, 30, 50]])
    np.testing.assert_allclose(answer.scores, [0.8])


def test_rounding_above_one_is_cut() -> None:
    """A quantized sigmoid may come out as 1.004."""
    assert select([([1, 1, 9, 9], 1.004, 0)]).scores.tolist() == [1.0]
