"""From a model's answer to events: tracks, zones and rules of one pipeline, put together.

    observation = judge.track(answer, sample)
    for event in judge.judge(observation): …

The two steps are apart so that the pipeline can time them apart. Pure: time comes with the samples. A sample whose
clock went back counts as taken at the same moment as the one before it. Events of one sample come in the order of the
rules in the operator's file; within a rule, objects that are gone first, then by track id.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from agent.errors import ConfigurationError, OperatorError, Problem
from agent.events.event import Event
from agent.events.object_rules import Count, Detect, Dwell, Enter, Leave, TrackObjects, label_of
from agent.events.observation import Observation, TrackedObject
from agent.events.rule import Rule, Voice
from agent.events.sample_rules import Level, LikeliestClass
from agent.events.settings import (
    ClassRule,
    CountRule,
    DetectRule,
    DwellRule,
    EnterRule,
    LeaveRule,
    LevelRule,
    RuleSettings,
    TrackRule,
    ZoneSettings,
)
from agent.events.tracker import Track, Tracker
from agent.events.zones import Zones
from agent.inference.answers import Answer, Classes, Detections, Score
from agent.sources.sample import Frame, Sample

AnswerKind = Literal["detections", "classes", "score"]

DEFAULT_RULES: Mapping[AnswerKind, RuleSettings] = {
    "detections": TrackRule(when="track"),
    "classes": ClassRule(when="class"),
    "score": LevelRule(when="level"),
}
"""The one rule of a pipeline whose operator gave none; its name is its kind's."""


class Judge:
    """The judgement of one pipeline. It is used from one thread.

    Args:
        pipeline: The camera's or sensor's name in the operator's file.
        labels: The bundle's labels; a class id is an index into them.
        zones: By name; cameras only.
        rules: By name, in the operator's order. None: one default rule, by what the model answers.
        anomaly_threshold: The bundle's, for level rules that name none.
        answers: What the model answers, so that rules that cannot fit are refused now; None: at the first answer.

    Raises:
        ConfigurationError: unknown zones or labels, a level without threshold, a rule about
            something that the model does not answer. All problems are listed.
    """

    def __init__(
        self,
        pipeline: str,
        labels: Sequence[str],
        zones: Mapping[str, ZoneSettings],
        rules: Mapping[str, RuleSettings],
        anomaly_threshold: float | None = None,
        *,
        answers: AnswerKind | None = None,
    ) -> None:
        self.pipeline = pipeline
        self._labels = tuple(labels)
        self._zones = Zones(zones)
        self._settings = dict(rules)
        self._anomaly_threshold = anomaly_threshold
        self._kind: AnswerKind | None = None
        self._rules: tuple[Rule, ...] = ()
        self._tracker: Tracker | None = None
        self._entered: dict[int, tuple[str, ...]] = {}
        self._at_s = 0.0
        self._last_monotonic_s: float | None = None
        self._last: Observation | None = None
        problems = list(self._unknown_names())
        if problems:
            raise ConfigurationError(problems)
        self._rules = tuple(self._make(self._settings))
        if answers is not None:
            self._begin(answers)

    def track(self, answer: Answer, sample: Sample) -> Observation:
        """Take the next answer and the sample that it is about; say which objects are there.

        Raises:
            OperatorError: a rule is about something that this model does not answer.
        """
        kind = kind_of(answer)
        if kind != self._kind:
            self._begin(kind)
        at_s = self._advance(sample.captured_monotonic_s)
        if isinstance(answer, Detections):
            assert isinstance(sample, Frame), "only frames have detections"
            observation = self._observe_frame(answer, sample, at_s)
        else:
            observation = Observation(sample.id, sample.captured_at, at_s, answer, frame_size_of(sample))
        self._last = observation
        return observation

    def judge(self, observation: Observation) -> list[Event]:
        """Return what the rules have to say about an observation that `track` just gave."""
        return [event for rule in self._rules for event in rule.observe(observation)]

    def finish(self) -> list[Event]:
        """Return the `end` of everything that was begun. The source has ended, or the pipeline stops."""
        if self._last is None:
            return []
        ended = self._tracker.finish() if self._tracker else ()
        last = replace(self._last, objects=(), gone=self._place(ended, self._last.frame_size))
        self._entered.clear()
        self._last = None
        return [event for rule in self._rules for event in rule.finish(last)]

    def _advance(self, monotonic_s: float) -> float:
        """Return the time of this sample on a clock of our own, which never goes back."""
        if self._last_monotonic_s is not None:
            self._at_s += max(0.0, monotonic_s - self._last_monotonic_s)
        self._last_monotonic_s = monotonic_s
        return self._at_s

    def _observe_frame(self, detections: Detections, frame: Frame, at_s: float) -> Observation:
        frame_size = frame_size_of(frame)
        assert frame_size is not None
        if self._tracker is None:
            return Observation(frame.id, frame.captured_at, at_s, detections, frame_size)
        update = self._tracker.update(detections, at_s, frame_size)
        objects = self._place(update.live, frame_size)
        gone = self._place(update.ended, frame_size)
        for seen in gone:
            self._entered.pop(seen.track.id, None)
        return Observation(frame.id, frame.captured_at, at_s, detections, frame_size, objects, gone)

    def _place(self, tracks: tuple[Track, ...], frame_size: tuple[int, int] | None) -> tuple[TrackedObject, ...]:
        if not tracks or frame_size is None:
            return ()
        placed = self._zones.containing(tracks, frame_size)
        return tuple(self._object(track, zones) for track, zones in zip(tracks, placed, strict=True))

    def _object(self, track: Track, zones: tuple[str, ...]) -> TrackedObject:
        entered = self._entered.get(track.id, ())
        if new := tuple(zone for zone in zones if zone not in entered):
            entered = self._entered[track.id] = entered + new
        return TrackedObject(track, label_of(self._labels, track.class_id), zones, entered)

    def _begin(self, kind: AnswerKind) -> None:
        """Now that it is known what the model answers: take the default rule where there is none, refuse misfits."""
        if self._kind is not None:
            raise OperatorError(
                f"the model answered {self._kind} and now {kind}", where=self.pipeline, hint="rebuild the bundle"
            )
        problems = [self._misfit(name, settings, kind) for name, settings in self._settings.items()]
        if found := [problem for problem in problems if problem]:
            raise ConfigurationError(found)
        if not self._settings:
            default = DEFAULT_RULES[kind]
            self._rules = tuple(self._make({default.when: default}))
        self._kind = kind
        if kind == "detections" and not all(isinstance(rule, Detect) for rule in self._rules):
            self._tracker = Tracker()

    def _make(self, rules: Mapping[str, RuleSettings]) -> Iterable[Rule]:
        problems: list[Problem] = []
        for name, settings in rules.items():
            try:
                yield make_rule(
                    settings, Voice(self.pipeline, settings.when, name), self._labels, self._anomaly_threshold
                )
            except ConfigurationError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigurationError(problems)

    def _misfit(self, name: str, settings: RuleSettings, kind: AnswerKind) -> Problem | None:
        fits = _FITS[settings.when]
        if fits == kind:
            return None
        usable = ", ".join(when for when, fitting in _FITS.items() if fitting == kind)
        return Problem(
            self.pipeline,
            f"rules.{name}.when",
            f"a `{settings.when}` rule wants {fits}, and this model gives {kind}",
            f"use one of: {usable}",
        )

    def _unknown_names(self) -> Iterable[Problem]:
        for name, settings in self._settings.items():
            zone = getattr(settings, "zone", None)
            if zone is not None and zone not in self._zones.names:
                yield _unknown(self.pipeline, f"rules.{name}.zone", "zone", zone, self._zones.names)
            for label in getattr(settings, "labels", ()):
                if label not in self._labels:
                    yield _unknown(self.pipeline, f"rules.{name}.labels", "label", label, self._labels)


def make_rule(settings: RuleSettings, voice: Voice, labels: tuple[str, ...], anomaly_threshold: float | None) -> Rule:
    """Return the rule for its settings: the table of all kinds."""
    match settings:
        case DetectRule():
            return Detect(settings, voice, labels)
        case TrackRule():
            return TrackObjects(settings, voice)
        case EnterRule():
            return Enter(settings, voice)
        case LeaveRule():
            return Leave(settings, voice)
        case DwellRule():
            return Dwell(settings, voice)
        case CountRule():
            return Count(settings, voice)
        case LevelRule():
            return Level(settings, voice, anomaly_threshold)
        case ClassRule():
            return LikeliestClass(settings, voice, labels)


_FITS: Mapping[str, AnswerKind] = {
    "detect": "detections",
    "track": "detections",
    "enter": "detections",
    "leave": "detections",
    "dwell": "detections",
    "count": "detections",
    "level": "score",
    "class": "classes",
}


def kind_of(answer: Answer) -> AnswerKind:
    """Return what an answer is."""
    match answer:
        case Detections():
            return "detections"
        case Classes():
            return "classes"
        case Score():
            return "score"


def frame_size_of(sample: Sample) -> tuple[int, int] | None:
    """Return (width, height) of a frame; None for anything that is no picture."""
    if not isinstance(sample, Frame):
        return None
    height, width = sample.pixels.shape[:2]
    return (width, height)


def _unknown(pipeline: str, key: str, what: str, name: str, known: Sequence[str]) -> Problem:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {nearest[0]!r}?"
        if nearest
        else f"known: {', '.join(known)}"
        if known
        else f"there is no {what} at all"
    )
    return Problem(pipeline, key, f"there is no {what} {name!r}", hint)
