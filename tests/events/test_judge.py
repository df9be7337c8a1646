"""Rules: what is said, once, in order; and what must not be said."""

from __future__ import annotations

import itertools
import json
import timeit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agent.errors import ConfigurationError, OperatorError
from agent.events.judge import Judge
from agent.events.settings import RuleSettings, ZoneSettings
from agent.inference.answers import Score

from .conftest import Scene, classes, detections, frame, window

RULE = TypeAdapter(RuleSettings)
DOOR = {"door": ZoneSettings(coordinates=((0, 0), (0.5, 0), (0.5, 1), (0, 1)))}
BOTH = DOOR | {"road": ZoneSettings(coordinates=((0.5, 0), (1, 0), (1, 1), (0.5, 1)))}
IN = (200.0, 400.0, 300.0, 600.0)
OUT = (600.0, 400.0, 700.0, 600.0)


def rule(when: str, **keys) -> RuleSettings:
    return RULE.validate_python({"when": when, **keys})


def at(x: float) -> tuple[float, float, float, float]:
    """A box 100 wide whose ground point is at x."""
    return (x - 50, 400, x + 50, 600)


def walk(scene: Scene, begin: float, end: float, step: float = 20) -> None:
    count = int(abs(end - begin) / step)
    for n in range(count + 1):
        scene.show([at(begin + (end - begin) * n / count)])


def test_default_rule_tells_when_an_object_comes_and_goes(make_scene):
    """A file without rules must still say something useful."""
    scene = make_scene(zones=BOTH)
    walk(scene, 300, 700)
    scene.show([], frames=15)
    assert scene.said == [("track", "new"), ("track", "update"), ("track", "end")]
    assert {event.track_id for event in scene.events} == {1}
    assert [event.zones_entered for event in scene.events] == [("door",), ("door", "road"), ("door", "road")]


def test_track_update_comes_once_a_zone_however_often_it_is_crossed(make_scene):
    """A box that jitters between two zones is no news after the first time."""
    scene = make_scene(zones=BOTH)
    for _ in range(30):
        scene.show([at(495)])
        scene.show([at(505)])
    assert scene.said == [("track", "new"), ("track", "update")]


def test_track_rule_with_zone_label_and_score_speaks_only_of_those(make_scene):
    """The filters of the file."""
    scene = make_scene({"t": rule("track", zone="door", labels=["car"], min_score=0.8)}, BOTH)
    scene.show([IN, at(150), OUT, at(400)], class_ids=[0, 1, 1, 1], scores=[0.9, 0.9, 0.9, 0.6], frames=10)
    assert [(event.label, event.zones_current, event.phase) for event in scene.events] == [("car", ("door",), "new")]


def test_score_that_wavers_around_the_threshold_speaks_once(make_scene):
    """min_score is held against the best score so far."""
    scene = make_scene({"t": rule("track", min_score=0.7), "n": rule("count", min_score=0.7, for_s=0)})
    for score in [0.68, 0.72] * 20:
        scene.show([IN], scores=[score])
    assert scene.said == [("t", "new"), ("n", "new")]


def test_enter_waits_for_the_time_asked_and_speaks_once(make_scene):
    """Somebody who only brushes the zone has not entered it."""
    scene = make_scene({"in": rule("enter", zone="door", for_s=1.0)}, DOOR)
    scene.show([at(520)], frames=5)
    scene.show([at(480)], frames=6)
    scene.show([at(520)], frames=6)
    assert scene.events == []
    began_s = scene.at_s
    scene.show([at(480)], frames=30)
    assert scene.said == [("in", "new")]
    assert (scene.events[0].captured_at - frame(began_s).captured_at).total_seconds() == pytest.approx(1.0, abs=0.11)


def test_enter_speaks_again_after_the_object_was_truly_out(make_scene):
    """Two visits are two events."""
    scene = make_scene({"in": rule("enter", zone="door")}, DOOR)
    for _ in range(2):
        scene.show([at(480)], frames=10)
        scene.show([at(520)], frames=10)
    assert scene.said == [("in", "new")] * 2


def test_leave_speaks_when_out_for_the_time_and_when_gone(make_scene):
    """Walking out and vanishing are both leaving."""
    scene = make_scene({"out": rule("leave", zone="door", for_s=0.5)}, DOOR)
    walk(scene, 300, 700)
    assert scene.said == [("out", "new")]
    scene.show([], frames=15)
    scene.show([IN], frames=10)
    scene.show([], frames=20)
    assert scene.said == [("out", "new")] * 2
    assert scene.events[1].box == IN


def test_object_that_nobody_sees_neither_enters_nor_dwells(make_scene):
    """Hidden right after it came in: the tracker still believes in it, the rules must not."""
    scene = make_scene({"in": rule("enter", zone="door", for_s=0.8), "d": rule("dwell", zone="door", for_s=0.8)}, DOOR)
    scene.show([IN], frames=5)
    scene.show([], frames=30)
    assert scene.events == []


def test_leave_of_an_object_that_is_gone_still_waits_its_time(make_scene):
    """for_s longer than the tracker's patience."""
    scene = make_scene({"out": rule("leave", zone="door", for_s=3)}, DOOR)
    scene.show([IN], frames=10)
    scene.show([], frames=25)
    assert scene.events == []
    scene.show([], frames=10)
    assert scene.said == [("out", "new")]
    scene.show([], frames=50)
    assert len(scene.events) == 1


def test_end_of_the_source_is_no_leaving(make_scene):
    """Nobody saw anyone leave; but whoever waits for an end gets it."""
    scene = make_scene({"out": rule("leave", zone="door"), "t": rule("track"), "d": rule("dwell", for_s=0.2)}, DOOR)
    scene.show([IN], frames=10)
    assert [(event.rule, event.phase) for event in scene.judge.finish()] == [("t", "end"), ("d", "end")]
    assert scene.judge.finish() == []


def test_dwell_speaks_after_the_time_and_at_the_end_with_the_seconds(make_scene):
    """A parked car, and how long it stood."""
    scene = make_scene({"d": rule("dwell", zone="door", for_s=2)}, DOOR)
    scene.show([IN], frames=15)
    assert scene.events == []
    scene.show([IN], frames=35)
    walk(scene, 250, 700)
    assert scene.said == [("d", "new"), ("d", "end")]
    assert [event.value for event in scene.events] == [pytest.approx(2.0, abs=0.11), pytest.approx(6.1, abs=0.2)]


def test_glitch_of_one_box_does_not_start_a_long_wait_anew(make_scene):
    """One bad frame in thirty seconds would otherwise hide every dweller."""
    scene = make_scene({"d": rule("dwell", zone="door", for_s=2)}, DOOR)
    for _ in range(4):
        scene.show([at(480)], frames=7)
        scene.show([at(520)], frames=1)
    assert scene.said == [("d", "new")]


def test_count_follows_debounced_and_ends_at_zero(make_scene):
    """A counter at the broker must come back to zero."""
    scene = make_scene({"n": rule("count", zone="door", for_s=0.5, labels=["person"])}, DOOR)
    scene.show([], frames=10)
    scene.show([at(100)], frames=15)
    scene.show([at(100), at(300)], frames=15)
    scene.show([at(100)], frames=25)
    scene.show([], frames=25)
    assert [(event.phase, event.value) for event in scene.events] == [
        ("new", 1), ("update", 2), ("update", 1), ("end", 0),
    ]  # fmt: skip
    assert {event.label for event in scene.events} == {"person"}


def test_count_ends_at_zero_when_the_source_ends(make_scene):
    """The last count would otherwise stand for ever."""
    scene = make_scene({"n": rule("count")})
    scene.show([IN], frames=20)
    assert [(event.phase, event.value) for event in scene.judge.finish()] == [("end", 0)]


def test_detector_that_flickers_does_not_change_the_count(make_scene):
    """Every third frame without the object: still one object."""
    scene = make_scene({"n": rule("count", for_s=0)})
    for _ in range(3):
        scene.show([IN])
    for _ in range(20):
        scene.show([IN], frames=2)
        scene.show([])
    assert [event.value for event in scene.events] == [1]


def test_detect_tells_every_detection_surest_first(make_scene):
    """The raw stream, without waiting for a track."""
    scene = make_scene({"d": rule("detect", min_score=0.5)})
    scene.show([IN, OUT, at(400)], scores=[0.9, 0.6, 0.4], class_ids=[1, 0, 0])
    assert [(e.label, e.score, e.box, e.track_id) for e in scene.events] == [
        ("car", 0.9, IN, None), ("person", 0.6, OUT, None),
    ]  # fmt: skip
    assert scene.events[0].box_norm == (0.2, 0.4, 0.3, 0.6)
    assert scene.events[0].frame == {"id": 0, "w": 1000, "h": 1000}


def test_level_has_hysteresis_and_waits(make_scene):
    """On at 1.0, off under 0.9, nothing in between."""
    scene = make_scene({"hot": rule("level", above=1.0, for_s=0.3)})
    scene.score(1.2, frames=2)
    scene.score(0.95, frames=2)
    assert scene.events == []
    scene.score(1.2, frames=5)
    scene.score(0.95, frames=20)
    scene.score(float("nan"), frames=3)
    assert scene.said == [("hot", "new")]
    scene.score(0.5, frames=5)
    assert scene.said == [("hot", "new"), ("hot", "end")]
    assert scene.events[0].value == pytest.approx(1.2)


def test_level_defaults_to_the_bundles_threshold(make_scene):
    """No rule and no number typed: the bundle knows."""
    scene = make_scene(threshold=3.0)
    scene.score(3.5, frames=2)
    assert scene.said == [("level", "new")]
    assert scene.events[0].frame is None
    assert [(e.phase, e.value) for e in scene.judge.finish()] == [("end", 3.5)]


def test_negative_threshold_has_its_hysteresis_on_the_right_side(make_scene):
    """0.9 × −10 is above −10."""
    scene = make_scene({"hot": rule("level", above=-10)})
    for value in (-9.5, -10.5, -9.5, -10.5):
        scene.score(value)
    assert scene.said == [("hot", "new")]
    scene.score(-11.5)
    assert scene.said == [("hot", "new"), ("hot", "end")]


def test_class_speaks_when_the_likeliest_class_stayed(make_scene):
    """One odd sample is no change of class."""
    scene = make_scene({"c": rule("class", for_s=0.3, min_score=0.5)}, labels=("ok", "scratched"))
    for class_id, frames in ((0, 10), (1, 2), (0, 5), (1, 10)):
        scene.feed(classes(class_id), frames=frames)
    scene.feed(classes(1, 0.2), frames=10)
    assert [(e.phase, e.label) for e in scene.events] == [("new", "ok"), ("update", "scratched"), ("end", "scratched")]
    assert scene.events[1].extra == {"previous": "ok"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=40, max_size=80), st.sampled_from(["enter", "leave", "dwell"]))
def test_box_that_jitters_at_the_border_does_not_chatter(sides, when):
    """Whatever the jitter: never two events within the time it takes to be truly on the other side."""
    judge = Judge("cam", ["person"], DOOR, {"r": rule(when, zone="door", for_s=0.5)})
    scene = Scene(judge)
    for is_in in sides:
        scene.show([at(495 if is_in else 505)])
    gaps = [b.captured_at - a.captured_at for a, b in itertools.pairwise(scene.events)]
    assert all(gap.total_seconds() >= 0.5 - 1e-6 for gap in gaps)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.951, 1.05), min_size=10, max_size=80))
def test_value_at_the_threshold_speaks_at_most_once(values):
    """Noise smaller than the hysteresis."""
    scene = Scene(Judge("vib", [], {}, {"hot": rule("level", above=1.0)}))
    for value in values:
        scene.score(value)
    assert len(scene.events) <= 1


def test_new_and_end_pair_up_whatever_happens(make_scene):
    """A consumer that switches a lamp must not be left in the dark: every new has one end."""
    rules = {"t": rule("track"), "d": rule("dwell", zone="door", for_s=0.3), "n": rule("count", for_s=0)}
    scene = make_scene(rules, BOTH)
    for begin, end in ((100, 800), (800, 200), (300, 320)):
        walk(scene, begin, end)
        scene.show([], frames=12)
    scene.show([IN, OUT], frames=10)
    scene.events += scene.judge.finish()
    for name in rules:
        phases = [event.phase for event in scene.events if event.rule == name]
        assert phases.count("new") == phases.count("end") > 0


def test_same_samples_give_the_same_events(make_scene):
    """Record and replay byte for byte begins here."""
    runs = []
    for _ in range(2):
        scene = make_scene({"t": rule("track"), "n": rule("count"), "d": rule("detect")}, BOTH)
        walk(scene, 100, 800)
        scene.show([IN, OUT, at(50)], frames=5)
        runs.append(json.dumps([event.to_message() for event in scene.events + scene.judge.finish()]))
    assert runs[0] == runs[1]


def test_events_of_one_sample_come_in_the_order_of_the_file(make_scene):
    """Consumers and tests rely on it."""
    scene = make_scene({"z": rule("track"), "a": rule("enter"), "m": rule("detect")})
    scene.show([IN], frames=3)
    assert [event.rule for event in scene.events] == ["m", "m", "z", "a", "m"]


def test_clock_that_goes_back_does_not_fire_rules(make_scene):
    """A file that starts again: time stands still for a moment, nothing more."""
    scene = make_scene({"in": rule("enter", for_s=1.0)})
    scene.show([IN], frames=5)
    scene.at_s = 0.0
    scene.show([IN], frames=5)
    assert scene.events == []
    scene.show([IN], frames=10)
    assert scene.said == [("in", "new")]


def test_rules_that_need_no_tracks_cost_none(make_scene):
    """Raw detections for a consumer with a tracker of its own."""
    scene = make_scene({"d": rule("detect")})
    scene.show([IN], frames=5)
    assert scene.judge.track(detections([IN]), frame(9)).objects == ()


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        pytest.param({"r": rule("enter", zone="dor")}, "did you mean 'door'", id="zone"),
        pytest.param({"r": rule("track", labels=["persn"])}, "did you mean 'person'", id="label"),
        pytest.param({"r": rule("level")}, "no threshold", id="level-without-threshold"),
        pytest.param({"r": rule("level", above=1, below=2)}, "higher than", id="level-upside-down"),
    ],
)
def test_rule_that_cannot_work_is_refused_at_the_start(rules, text):
    """Not after a night of silence."""
    with pytest.raises(ConfigurationError, match=text):
        Judge("cam", ["person", "car"], DOOR, rules)


def test_all_problems_are_named_at_once():
    """One run, one list."""
    rules = {"a": rule("enter", zone="x"), "b": rule("track", labels=["y", "z"])}
    with pytest.raises(ConfigurationError) as caught:
        Judge("cam", ["person"], {}, rules)
    assert [problem.key for problem in caught.value.problems] == ["rules.a.zone", "rules.b.labels", "rules.b.labels"]


def test_rule_about_another_kind_of_answer_is_refused():
    """An `enter` rule for a vibration sensor would stay silent for ever."""
    with pytest.raises(ConfigurationError, match="gives score"):
        Judge("vib", [], {}, {"r": rule("enter")}, 1.0, answers="score")
    judge = Judge("vib", [], {}, {"r": rule("enter")}, 1.0)
    with pytest.raises(ConfigurationError, match="use one of: level"):
        judge.track(Score(1.0), window(0))


def test_score_without_any_threshold_is_refused():
    """The default rule needs one as well."""
    with pytest.raises(ConfigurationError, match="no threshold"):
        Judge("vib", [], {}, {}, None, answers="score")


def test_model_that_changes_its_kind_of_answer_is_refused(make_scene):
    """A bundle cannot be a detector now and a classifier then."""
    scene = make_scene()
    scene.show([IN])
    with pytest.raises(OperatorError, match="rebuild"):
        scene.judge.track(Score(1.0), window(1))


def test_finish_before_the_first_sample_says_nothing():
    """A camera that never opened."""
    assert Judge("cam", ["person"], {}, {}).finish() == []


def test_class_beyond_the_labels_is_named_by_its_number(make_scene):
    """Wrong labels are the bundle's fault; the event still comes."""
    scene = make_scene({"d": rule("detect")})
    scene.show([IN], class_ids=[7])
    assert scene.events[0].label == "7"


def test_event_is_ready_for_json(make_scene):
    """It crosses a pipe; numpy numbers would not."""
    scene = make_scene(zones=DOOR)
    scene.show([IN], frames=3)
    message = json.loads(json.dumps(scene.events[0].to_message()))
    assert message["zones_current"] == ["door"]
    assert message["extra"] == {"top_score": 0.9}


def speed_ms(objects: int = 10) -> float:
    """Milliseconds of track + judge a frame; printed by the benchmark, not asserted here."""
    scene = Scene(Judge("cam", ["person"], BOTH, {"t": rule("track"), "n": rule("count", zone="door")}))
    boxes = detections([at(90 * n + 60) for n in range(objects)])
    shown = [frame(n / 10) for n in range(500)]
    scene.feed(boxes, frames=5)
    return min(timeit.repeat(lambda: [scene.judge.judge(scene.judge.track(boxes, f)) for f in shown], number=1)) * 2
