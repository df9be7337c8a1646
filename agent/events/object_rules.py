"""Rules about objects in front of a camera: detect, track, enter, leave, dwell, count.

A rule's `min_score` is held against a track's *best* score so far, so that an object whose score wavers around it
begins once. A track that is unseen for a moment (`agent.events.tracker.LOST_S`) still stands where it was seen last.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.events.debounce import SETTLE_S, Debounced
from agent.events.event import Event, Phase
from agent.events.observation import Observation, TrackedObject
from agent.events.rule import Voice, frame_of, relative_box, round_box
from agent.events.settings import CountRule, DetectRule, DwellRule, EnterRule, LeaveRule, TrackRule
from agent.inference.answers import Detections

_ObjectSettings = TrackRule | EnterRule | LeaveRule | DwellRule | CountRule


class Detect:
    """Every detection of every frame, surest first; it needs no tracks."""

    def __init__(self, settings: DetectRule, voice: Voice, labels: tuple[str, ...]) -> None:
        self._settings = settings
        self._voice = voice
        self._labels = labels

    def observe(self, observation: Observation) -> list[Event]:
        detections = observation.answer
        assert isinstance(detections, Detections)
        rows = zip(detections.xyxy_px.tolist(), detections.scores.tolist(), detections.class_ids.tolist(), strict=True)
        frame = frame_of(observation)
        return [
            self._event(observation, label_of(self._labels, class_id), score, tuple(box), frame)
            for box, score, class_id in rows
            if score >= self._settings.min_score
            and (not self._settings.labels or label_of(self._labels, class_id) in self._settings.labels)
        ]

    def finish(self, last: Observation) -> list[Event]:
        del last
        return []

    def _event(
        self,
        observation: Observation,
        label: str,
        score: float,
        box: tuple[float, float, float, float],
        frame: dict[str, int] | None,
    ) -> Event:
        return Event(
            self._voice.pipeline, self._voice.kind, observation.captured_at, "new", self._voice.rule,
            label=label, score=round(score, 4), box=round_box(box),
            box_norm=relative_box(box, observation.frame_size), frame=frame,
        )  # fmt: skip


class _Watch:
    """Which objects a rule is about, and whether one is in its zone (anywhere, where it names none)."""

    def __init__(self, settings: _ObjectSettings) -> None:
        self.zone = settings.zone
        self._labels = frozenset(settings.labels)
        self._min_score = settings.min_score

    def concerns(self, seen: TrackedObject) -> bool:
        return (not self._labels or seen.label in self._labels) and seen.track.top_score >= self._min_score

    def is_in(self, seen: TrackedObject) -> bool:
        return (self.zone is None or self.zone in seen.zones) and self.concerns(seen)


class TrackObjects:
    """new: an object is there (in the zone, where one is named); update: it came into another zone; end: it is gone."""

    def __init__(self, settings: TrackRule, voice: Voice) -> None:
        self._watch = _Watch(settings)
        self._voice = voice
        self._zones_told: dict[int, int] = {}
        """By track id: how many entered zones the last event named."""

    def observe(self, observation: Observation) -> list[Event]:
        events = [self._voice.about(observation, "end", seen) for seen in observation.gone if self._forget(seen)]
        for seen in observation.objects:
            if seen.track.is_seen and (phase := self._phase(seen)):
                self._zones_told[seen.track.id] = len(seen.entered)
                events.append(self._voice.about(observation, phase, seen))
        return events

    def finish(self, last: Observation) -> list[Event]:
        return self.observe(last)

    def _phase(self, seen: TrackedObject) -> Phase | None:
        told = self._zones_told.get(seen.track.id)
        if told is None:
            return "new" if self._watch.is_in(seen) else None
        return "update" if len(seen.entered) > told else None

    def _forget(self, seen: TrackedObject) -> bool:
        return self._zones_told.pop(seen.track.id, None) is not None


class Enter:
    """new, once: an object has been in the zone for `for_s` without a break. Again after it was truly out."""

    def __init__(self, settings: EnterRule, voice: Voice) -> None:
        self._watch = _Watch(settings)
        self._voice = voice
        self._for_s = settings.for_s
        self._inside: dict[int, Debounced[bool]] = {}

    def observe(self, observation: Observation) -> list[Event]:
        for seen in observation.gone:
            self._inside.pop(seen.track.id, None)
        return [
            self._voice.about(observation, "new", seen)
            for seen in observation.objects
            if self._enters(seen, observation.at_s)
        ]

    def finish(self, last: Observation) -> list[Event]:
        del last
        self._inside.clear()
        return []

    def _enters(self, seen: TrackedObject, at_s: float) -> bool:
        if not seen.track.is_seen:
            return False
        is_in = self._watch.is_in(seen)
        inside = self._inside.get(seen.track.id)
        if inside is None:
            if not is_in:
                return False
            inside = self._inside[seen.track.id] = Debounced(False, self._delay_s)
        return inside.observe(is_in, at_s) and inside.value

    def _delay_s(self, is_in: bool) -> float:  # noqa: FBT001  the debounced value itself
        return self._for_s if is_in else max(self._for_s, SETTLE_S)


@dataclass(slots=True)
class _Visit:
    """An object that is, or was, in a leave rule's zone."""

    seen: TrackedObject
    """As it was observed last."""
    is_armed: bool = True
    """Whether its leaving has yet to be told."""
    in_since_s: float | None = None
    out_since_s: float | None = None
    is_gone: bool = False


class Leave:
    """new, once: an object that was in the zone is out of it, or gone, for `for_s`.

    The end of the source is no leaving: nobody saw it.
    """

    def __init__(self, settings: LeaveRule, voice: Voice) -> None:
        self._watch = _Watch(settings)
        self._voice = voice
        self._for_s = settings.for_s
        self._visits: dict[int, _Visit] = {}

    def observe(self, observation: Observation) -> list[Event]:
        for seen in observation.objects:
            if seen.track.is_seen:
                self._follow(seen, observation.at_s)
        for seen in observation.gone:
            if visit := self._visits.get(seen.track.id):
                visit.is_gone = True
                visit.out_since_s = seen.track.last_seen_s if visit.out_since_s is None else visit.out_since_s
        events = [self._voice.about(observation, "new", visit.seen) for visit in self._left(observation.at_s)]
        for track_id in [key for key, visit in self._visits.items() if visit.is_gone and not visit.is_armed]:
            del self._visits[track_id]
        return events

    def finish(self, last: Observation) -> list[Event]:
        del last
        self._visits.clear()
        return []

    def _follow(self, seen: TrackedObject, at_s: float) -> None:
        visit = self._visits.get(seen.track.id)
        if self._watch.is_in(seen):
            visit = visit or self._visits.setdefault(seen.track.id, _Visit(seen, in_since_s=at_s))
            visit.out_since_s = None
            visit.in_since_s = at_s if visit.in_since_s is None else visit.in_since_s
            visit.is_armed = visit.is_armed or at_s - visit.in_since_s >= SETTLE_S
        elif visit:
            visit.in_since_s = None
            visit.out_since_s = at_s if visit.out_since_s is None else visit.out_since_s
        if visit:
            visit.seen = seen

    def _left(self, at_s: float) -> list[_Visit]:
        left = [
            visit
            for _, visit in sorted(self._visits.items())
            if visit.is_armed and visit.out_since_s is not None and at_s - visit.out_since_s >= self._for_s
        ]
        for visit in left:
            visit.is_armed = False
        return left


class Dwell:
    """new: an object has been in the zone for `for_s`; end: it is out of it, or gone. `value` is the time so far.

    Leaving counts after SETTLE_S, so a glitch of one box does not start a long wait anew.
    """

    def __init__(self, settings: DwellRule, voice: Voice) -> None:
        self._watch = _Watch(settings)
        self._voice = voice
        self._for_s = settings.for_s
        self._stays: dict[int, _Stay] = {}

    def observe(self, observation: Observation) -> list[Event]:
        events = [self._end(observation, seen) for seen in observation.gone if self._ends(seen)]
        for seen in observation.objects:
            match self._phase(seen, observation.at_s):
                case "new":
                    events.append(self._tell(observation, seen))
                case "end":
                    events.append(self._end(observation, seen))
        return events

    def finish(self, last: Observation) -> list[Event]:
        return self.observe(last)

    def _phase(self, seen: TrackedObject, at_s: float) -> Phase | None:
        stay = self._stays.get(seen.track.id)
        if not seen.track.is_seen:
            return None
        if self._watch.is_in(seen):
            stay = stay or self._stays.setdefault(seen.track.id, _Stay(at_s, at_s))
            stay.last_in_s = at_s
            if not stay.is_told and at_s - stay.began_s >= self._for_s:
                stay.is_told = True
                return "new"
        elif stay and at_s - stay.last_in_s >= SETTLE_S:
            if stay.is_told:
                return "end"
            del self._stays[seen.track.id]
        return None

    def _ends(self, seen: TrackedObject) -> bool:
        stay = self._stays.get(seen.track.id)
        if stay and not stay.is_told:
            del self._stays[seen.track.id]
        return bool(stay and stay.is_told)

    def _tell(self, observation: Observation, seen: TrackedObject) -> Event:
        stay = self._stays[seen.track.id]
        return self._voice.about(observation, "new", seen, value=round(observation.at_s - stay.began_s, 3))

    def _end(self, observation: Observation, seen: TrackedObject) -> Event:
        stay = self._stays.pop(seen.track.id)
        return self._voice.about(observation, "end", seen, value=round(stay.last_in_s - stay.began_s, 3))


@dataclass(slots=True)
class _Stay:
    """An object in a dwell rule's zone."""

    began_s: float
    last_in_s: float
    is_told: bool = False


class Count:
    """The number of objects in the zone changed and stayed so: new from none, update, end when none is left."""

    def __init__(self, settings: CountRule, voice: Voice) -> None:
        self._watch = _Watch(settings)
        self._voice = voice
        self._label = settings.labels[0] if len(settings.labels) == 1 else None
        self._count = Debounced(0, lambda _: settings.for_s)

    def observe(self, observation: Observation) -> list[Event]:
        before = self._count.value
        now = sum(map(self._watch.is_in, observation.objects))
        if not self._count.observe(now, observation.at_s):
            return []
        phase: Phase = "end" if now == 0 else "update" if before else "new"
        return [self._tell(observation, phase, now, before)]

    def finish(self, last: Observation) -> list[Event]:
        before, self._count.value = self._count.value, 0
        return [self._tell(last, "end", 0, before)] if before else []

    def _tell(self, observation: Observation, phase: Phase, now: int, before: int) -> Event:
        return self._voice.say(
            observation, phase, label=self._label, value=float(now), zone=self._watch.zone, extra={"previous": before}
        )


def label_of(labels: tuple[str, ...], class_id: int) -> str:
    """Return the label of a class; its number where the bundle names none."""
    return labels[class_id] if 0 <= class_id < len(labels) else str(class_id)
