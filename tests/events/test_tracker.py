"""The tracker: one object keeps one id, whatever the detector and the camera do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.events import tracker as module
from agent.events.tracker import Tracker, iou, match
from agent.inference.answers import Detections

SIZE = (1000, 1000)


def seen(*boxes, scores=(), class_ids=()) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, dtype=np.float32).reshape(count, 4),
        np.array(scores or [0.9] * count, dtype=np.float32),
        np.array(class_ids or [0] * count, dtype=np.int64),
    )


def box(x: float, y: float = 500, size: float = 100) -> tuple[float, float, float, float]:
    return (x, y, x + size, y + size)


def ids(update) -> list[int]:
    return [track.id for track in update.live]


def test_object_is_confirmed_at_the_third_hit_and_not_before():
    """A single false detection must never speak."""
    tracker = Tracker()
    assert [len(tracker.update(seen(box(100)), t / 10, SIZE).live) for t in range(4)] == [0, 0, 1, 1]


def test_moving_object_keeps_its_id_through_a_second_behind_a_pillar():
    """The prediction carries the box on; without it the overlap after the pillar would be nothing."""
    tracker = Tracker()
    for t in range(20):
        update = tracker.update(seen(box(100 + 20 * t)), t / 10, SIZE)
    for t in range(20, 28):
        assert ids(tracker.update(seen(), t / 10, SIZE)) == [1]
    update = tracker.update(seen(box(100 + 20 * 28)), 2.8, SIZE)
    assert ids(update) == [1]
    assert update.live[0].hits == 21


def test_objects_that_pass_each_other_keep_their_ids():
    """Two people who cross would swap names if the nearest box won."""
    tracker = Tracker()
    for t in range(41):
        left, right = box(100 + 20 * t, 480), box(900 - 20 * t, 520)
        update = tracker.update(seen(left, right), t / 10, SIZE)
    by_id = {track.id: track.xyxy_px[0] for track in update.live}
    first = tracker.update(seen(box(100 + 20 * 41, 480), box(900 - 20 * 41, 520)), 4.1, SIZE)
    assert sorted(by_id) == [1, 2]
    assert ids(first) == [1, 2]
    assert by_id[1] == pytest.approx(900)
    assert by_id[2] == pytest.approx(100)


def test_id_of_an_object_that_is_gone_is_never_used_again():
    """A consumer joins events by track id."""
    tracker = Tracker()
    found: list[int] = []
    at_s = 0.0
    for _ in range(3):
        for _ in range(4):
            update = tracker.update(seen(box(100)), at_s, SIZE)
            at_s += 0.1
        found += ids(update)
        for _ in range(15):
            tracker.update(seen(), at_s, SIZE)
            at_s += 0.1
    assert found == [1, 2, 3]


def test_lost_time_is_in_seconds_whatever_the_frame_rate():
    """At 2 fps an object must not live fifteen times as long as at 30."""
    for rate in (5, 30):
        tracker = Tracker()
        for t in range(3):
            tracker.update(seen(box(100)), t / rate, SIZE)
        at_s, ended = 3 / rate, ()
        while not ended:
            ended = tracker.update(seen(), at_s, SIZE).ended
            at_s += 1 / rate
        assert module.LOST_S < at_s - 2 / rate < module.LOST_S + 3 / rate


def test_slow_camera_still_tracks():
    """At one frame in two seconds an object is not lost *between* two frames that both show it."""
    tracker = Tracker()
    updates = [tracker.update(seen(box(100)), 2.0 * t, SIZE) for t in range(5)]
    assert ids(updates[-1]) == [1]


def test_long_gap_ends_everything():
    """After an outage the person in the same place is another person."""
    tracker = Tracker()
    for t in range(4):
        tracker.update(seen(box(100)), t / 10, SIZE)
    update = tracker.update(seen(box(100)), 60.0, SIZE)
    assert ([track.id for track in update.ended], ids(update)) == ([1], [])


def test_time_that_goes_back_neither_ends_nor_breaks_anything():
    """A file that starts again, or a bad clock, is not the end of the world."""
    tracker = Tracker()
    for at_s in (5.0, 5.1, 5.2, 1.0, 0.0, 0.1, 0.2):
        update = tracker.update(seen(box(100)), at_s, SIZE)
    assert ids(update) == [1]
    assert update.live[0].last_seen_s >= update.live[0].first_seen_s


def test_object_survives_a_change_of_resolution():
    """Cameras change their stream's size on the fly; the objects are still there."""
    tracker = Tracker()
    for t in range(4):
        tracker.update(seen(box(600)), t / 10, SIZE)
    update = tracker.update(seen((300, 250, 350, 300)), 0.4, (500, 500))
    assert [(track.id, track.hits) for track in update.live] == [(1, 5)]
    lost = tracker.update(seen(), 0.5, (2000, 1000))
    assert lost.live[0].xyxy_px == pytest.approx((1200, 500, 1400, 600))


def test_classes_are_tracked_apart():
    """A person in front of a car is not the car."""
    tracker = Tracker()
    for t in range(4):
        update = tracker.update(seen(box(100), box(105), class_ids=[0, 1]), t / 10, SIZE)
    assert [(track.id, track.class_id) for track in update.live] == [(1, 0), (2, 1)]
    update = tracker.update(seen(box(100), class_ids=[1]), 0.4, SIZE)
    assert [track.is_seen for track in update.live] == [False, True]


def test_unsure_detection_continues_an_object_and_loses_to_a_sure_one():
    """ByteTrack's point: a low score in the right place is the same object, half hidden."""
    tracker = Tracker()
    for t in range(4):
        tracker.update(seen(box(100)), t / 10, SIZE)
    update = tracker.update(seen(box(101), scores=[0.3]), 0.4, SIZE)
    assert (ids(update), update.live[0].score) == ([1], pytest.approx(0.3))
    update = tracker.update(seen(box(130), box(101), scores=[0.9, 0.3]), 0.5, SIZE)
    assert update.live[0].score == pytest.approx(0.9)
    assert update.live[0].top_score == pytest.approx(0.9)


def test_object_that_is_never_sure_is_tracked_too():
    """The operator's threshold was applied before: what passes it is wanted."""
    tracker = Tracker()
    for t in range(4):
        update = tracker.update(seen(box(100), scores=[0.35]), t / 10, SIZE)
    assert ids(update) == [1]


def test_memory_is_bounded_however_many_objects_there_are():
    """A broken model that sees thousands of things must not eat the device."""
    tracker = Tracker()
    for t in range(6):
        boxes = [box(12 * (n % 80), 12 * (n // 80), 10) for n in range(1000)]
        update = tracker.update(seen(*boxes), t / 10, SIZE)
    assert len(update.live) == module.MAX_TRACKS


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param((float("nan"), 0, 10, 10), id="nan"),
        pytest.param((0, 0, float("inf"), 10), id="infinite"),
        pytest.param((10, 10, 10, 20), id="no-width"),
        pytest.param((20, 10, 10, 20), id="inside-out"),
    ],
)
def test_impossible_box_is_left_out(bad):
    """One NaN in the filter would poison every later frame."""
    tracker = Tracker()
    for t in range(4):
        update = tracker.update(seen(box(500), bad), t / 10, SIZE)
    assert [track.xyxy_px[0] for track in update.live] == [500]


def test_finish_gives_back_every_confirmed_object_once():
    """The `end` of each object depends on it."""
    tracker = Tracker()
    for t in range(4):
        tracker.update(seen(box(100), box(500)), t / 10, SIZE)
    assert [track.id for track in tracker.finish()] == [1, 2]
    assert tracker.finish() == ()


coordinate = st.floats(-50, 1100, width=32)
frames = st.lists(
    st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate, st.floats(0, 1, width=32)), max_size=6),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(frames, st.lists(st.floats(-5, 20), min_size=12, max_size=12))
def test_any_input_keeps_the_invariants(shown, steps):
    """Whatever comes: ids unique, each ends once and never lives again, numbers stay finite."""
    tracker = Tracker(confirm_hits=2)
    over: set[int] = set()
    at_s = 0.0
    for boxes, step_s in zip(shown, steps, strict=False):
        at_s += step_s
        update = tracker.update(seen(*[b[:4] for b in boxes], scores=[b[4] for b in boxes]), at_s, SIZE)
        live, ended = ids(update), [track.id for track in update.ended]
        assert len(set(live)) == len(live)
        assert not (set(live) | set(ended)) & over
        over.update(ended)
        assert np.isfinite(tracker._state).all()


def test_iou_agrees_with_counting_cells():
    """The formula against a picture of it."""
    first, second = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    first[2:10, 3:12] = True
    second[5:15, 6:18] = True
    expected = (first & second).sum() / (first | second).sum()
    assert iou(np.array([[3.0, 2, 12, 10]]), np.array([[6.0, 5, 18, 15]]))[0, 0] == pytest.approx(expected)


def test_match_takes_the_highest_overlap_first_and_each_only_once():
    """Two rivals for one box: the better-fitting one has it."""
    overlaps = np.array([[0.6, 0.5], [0.9, 0.0]])
    assert match(overlaps, [0, 1], [0, 1], 0.2) == {1: 0, 0: 1}
    assert match(overlaps, [0, 1], [0], 0.2) == {1: 0}
