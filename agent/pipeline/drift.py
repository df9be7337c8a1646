"""Whether a running model is still as fast as its plan measured: p99 values and the time go in, actions come out. Pure.

Slower than twice the planned p99 (and by more than a millisecond, so that a model of microseconds is not judged by one
wake-up) for five minutes on end is a condition, and a reason to measure again: at once the first time, then after an hour,
two, four, at most once a day, since measuring disturbs what runs. As fast as planned again, it is no condition any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.health.conditions import ClearCondition, SetCondition

FACTOR = 2.0
MARGIN_MS = 1.0
SUSTAINED_S = 300.0
ENOUGH_SAMPLES = 100
"""A p99 of fewer is their maximum."""
AGAIN_FIRST_S, AGAIN_LIMIT_S = 3600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Remeasure:
    """Make the plan again, beside what runs."""


Action = SetCondition | ClearCondition | Remeasure


@dataclass(slots=True)
class Drift:
    """One model's speed against its plan.

    Args:
        model: Its name in the operator's file, for the condition.
        planned_p99_ms: Of what runs.
    """

    model: str
    planned_p99_ms: float
    _slow_since_s: float | None = field(default=None, init=False)
    _samples: int = field(default=0, init=False)
    _again_at_s: float = field(default=float("-inf"), init=False)
    _again_s: float = field(default=AGAIN_FIRST_S, init=False)
    _is_said: bool = field(default=False, init=False)

    @property
    def condition(self) -> str:
        """The name of the condition that says that it is slower."""
        return f"slower-than-planned/{self.model}"

    def planned(self, p99_ms: float) -> None:
        """There is another plan, or another candidate runs: it is measured by its own numbers. Delays go on."""
        self.planned_p99_ms = p99_ms
        self._slow_since_s = None
        self._samples = 0

    def observe(self, p99_ms: float | None, samples: int, now_s: float) -> list[Action]:
        """Take the live p99 of `infer`, and how many samples this session has had. Without new ones it says nothing."""
        has_new = samples > self._samples
        self._samples = samples
        if p99_ms is None or samples < ENOUGH_SAMPLES or not has_new:
            return []
        if p99_ms < max(self.planned_p99_ms * FACTOR, self.planned_p99_ms + MARGIN_MS):
            self._slow_since_s = None
            return self._clear()
        if self._slow_since_s is None:
            self._slow_since_s = now_s
        if now_s - self._slow_since_s < SUSTAINED_S:
            return []
        return self._slower(now_s)

    def _slower(self, now_s: float) -> list[Action]:
        self._is_said = True
        text = (
            f"p99 of inference has been above twice the plan's {self.planned_p99_ms:.2f} ms for {SUSTAINED_S / 60:.0f} minutes: "
            "something else keeps the device busy, or it is throttled; the plan is measured again now and then"
        )
        said = SetCondition(self.condition, "warning", text)
        if now_s < self._again_at_s:
            return [said]
        self._again_at_s = now_s + self._again_s
        self._again_s = min(self._again_s * 2, AGAIN_LIMIT_S)
        return [said, Remeasure()]

    def _clear(self) -> list[Action]:
        if not self._is_said:
            return []
        self._is_said = False
        return [ClearCondition(self.condition)]
