"""Rules about a sample as a whole: level (one number about a window) and class (what the sample most likely is)."""

from __future__ import annotations

import math

from agent.errors import ConfigurationError, Problem
from agent.events.debounce import Debounced
from agent.events.event import Event, Phase
from agent.events.object_rules import label_of
from agent.events.observation import Observation
from agent.events.rule import Voice
from agent.events.settings import ClassRule, LevelRule
from agent.inference.answers import Classes, Score


class Level:
    """new: the score has been at or above `above` for `for_s`; end: it has been under `below` for `for_s`.

    Between the two nothing changes (hysteresis). A score that is no finite number is no observation.

    Raises:
        ConfigurationError: there is no threshold, or `below` is above `above`.
    """

    def __init__(self, settings: LevelRule, voice: Voice, anomaly_threshold: float | None) -> None:
        above = anomaly_threshold if settings.above is None else settings.above
        if above is None:
            raise ConfigurationError([_no_threshold(voice)])
        # 0.9 × above where it is positive; a tenth lower where it is not, since 0.9 × −10 would be higher.
        below = above - 0.1 * abs(above) if settings.below is None else settings.below
        if below > above:
            raise ConfigurationError([_upside_down(voice, above, below)])
        self._above = above
        self._below = below
        self._voice = voice
        self._is_high = Debounced(False, lambda _: settings.for_s)

    def observe(self, observation: Observation) -> list[Event]:
        score = observation.answer
        assert isinstance(score, Score)
        if not math.isfinite(score.value):
            return []
        is_high = score.value >= self._above or (self._is_high.value and score.value >= self._below)
        if not self._is_high.observe(is_high, observation.at_s):
            return []
        return [self._tell(observation, "new" if is_high else "end", score.value)]

    def finish(self, last: Observation) -> list[Event]:
        if not self._is_high.value:
            return []
        self._is_high.value = False
        score = last.answer
        return [self._tell(last, "end", score.value if isinstance(score, Score) else math.nan)]

    def _tell(self, observation: Observation, phase: Phase, value: float) -> Event:
        return self._voice.say(
            observation,
            phase,
            value=round(value, 6) if math.isfinite(value) else None,
            extra={"above": self._above, "below": round(self._below, 6)},
        )


class LikeliestClass:
    """The likeliest class changed and stayed so for `for_s`: new from none, update from another, end to none.

    None is a sample whose likeliest class is not among the rule's labels, or is under its `min_score`.
    """

    def __init__(self, settings: ClassRule, voice: Voice, labels: tuple[str, ...]) -> None:
        self._settings = settings
        self._voice = voice
        self._labels = labels
        self._label: Debounced[str | None] = Debounced(None, lambda _: settings.for_s)

    def observe(self, observation: Observation) -> list[Event]:
        label, score = self._likeliest(observation)
        before = self._label.value
        if not self._label.observe(label, observation.at_s):
            return []
        if label is None:
            return [self._voice.say(observation, "end", label=before)]
        if before is None:
            return [self._voice.say(observation, "new", label=label, score=score)]
        return [self._voice.say(observation, "update", label=label, score=score, extra={"previous": before})]

    def finish(self, last: Observation) -> list[Event]:
        before, self._label.value = self._label.value, None
        return [self._voice.say(last, "end", label=before)] if before is not None else []

    def _likeliest(self, observation: Observation) -> tuple[str | None, float | None]:
        classes = observation.answer
        assert isinstance(classes, Classes)
        if len(classes.scores) == 0:
            return None, None
        label, score = label_of(self._labels, int(classes.class_ids[0])), float(classes.scores[0])
        is_asked = not self._settings.labels or label in self._settings.labels
        return (label, score) if is_asked and score >= self._settings.min_score else (None, None)


def _no_threshold(voice: Voice) -> Problem:
    return Problem(
        voice.pipeline,
        f"rules.{voice.rule}.above",
        "there is no threshold: the rule names none and the bundle brings none",
        "add `above: NUMBER` to the rule",
    )


def _upside_down(voice: Voice, above: float, below: float) -> Problem:
    return Problem(
        voice.pipeline,
        f"rules.{voice.rule}.below",
        f"`below` ({below:g}) is higher than `above` ({above:g})",
        "make `below` the lower one: an alarm ends under it",
    )
