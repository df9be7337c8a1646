"""A model that became slower than its plan: said, and measured again, but not at every hiccup."""

from __future__ import annotations

from itertools import pairwise

from agent.health.conditions import ClearCondition, SetCondition
from agent.pipeline.drift import AGAIN_FIRST_S, AGAIN_LIMIT_S, SUSTAINED_S, Drift, Remeasure


class Time:
    """One observation a second, with new samples each time."""

    def __init__(self, planned_ms=10.0):
        self.drift, self.now_s, self.samples = Drift("m", planned_ms), 0.0, 1000

    def run(self, p99_ms, seconds, *, new_samples=30):
        actions = []
        for _ in range(int(seconds)):
            self.now_s += 1
            self.samples += new_samples
            actions += [(self.now_s, each) for each in self.drift.observe(p99_ms, self.samples, self.now_s)]
        return actions


def remeasured(actions):
    return [at_s for at_s, each in actions if isinstance(each, Remeasure)]


def test_slow_for_five_minutes_is_said_and_measured_again_at_once():
    """A device that throttles, or shares its cores with somebody new, is not what was measured."""
    it = Time()
    assert it.run(25.0, SUSTAINED_S) == []
    actions = it.run(25.0, 2)
    assert isinstance(actions[0][1], SetCondition)
    assert actions[0][1].name == "slower-than-planned/m"
    assert len(remeasured(actions)) == 1


def test_hiccup_is_not_drift():
    """Four minutes of somebody's backup are no reason to disturb what runs with trials."""
    it = Time()
    assert it.run(50.0, SUSTAINED_S - 60) + it.run(11.0, 5) + it.run(50.0, SUSTAINED_S - 60) == []


def test_measuring_again_becomes_rarer_to_once_a_day():
    """Where another plan does not help, trials every hour would only make it worse."""
    it = Time()
    times = remeasured(it.run(25.0, 6 * 86_400))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] == AGAIN_FIRST_S
    assert gaps == sorted(gaps)
    assert gaps[-1] == AGAIN_LIMIT_S


def test_fast_again_is_no_condition_any_more():
    it = Time()
    it.run(25.0, SUSTAINED_S + 2)
    ((_, action),) = it.run(12.0, 3)
    assert action == ClearCondition("slower-than-planned/m")


def test_new_plan_is_measured_by_its_own_numbers_and_its_delays_go_on():
    """Measured again beside the load that slowed it, the plan says what is true now."""
    it = Time()
    first = remeasured(it.run(25.0, SUSTAINED_S + 2))
    it.drift.planned(24.0)
    assert isinstance(it.run(25.0, 1)[0][1], ClearCondition)
    second = remeasured(it.run(100.0, 2 * 3600))
    assert second[0] - first[0] >= AGAIN_FIRST_S


def test_model_of_microseconds_is_not_judged_by_a_wake_up():
    """Twice 0.05 ms is nothing that a measurement repeats to."""
    assert Time(0.05).run(0.9, 2 * SUSTAINED_S) == []


def test_nothing_is_said_of_few_samples_or_of_old_ones():
    """The p99 of 50 samples is their maximum; a camera that is down has no new ones."""
    it = Time()
    it.samples = 0
    assert it.run(25.0, 2 * SUSTAINED_S, new_samples=0) == []
    assert it.drift.observe(None, 5000, 1e6) == []
