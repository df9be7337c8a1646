"""What a model runs on when its first choice fails at run time, as a state machine: failures and the time go in, actions out.

    first choice ──failed──▶ degraded ──retry due──▶ trying ──passed──▶ returning ──used──▶ first choice
                               │  ▲ failed: the next      │ refused         │ not used
                               └──┘                       └──────▶ degraded ◀┘     (each time the delay doubles)

No thread, no process, no clock: `agent.running` carries the actions out. What takes over is the plan's next best that is not
on a device that failed (`Candidate.place`): another number of threads does not mend a driver. The plain CPU provider is the end
of the way; what fails there is not the provider's fault, and supervision deals with it. Each failure is answered by one `Use` at
most: one that comes late, of a candidate that was left already, does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.backoff import Backoff
from agent.clock import Random
from agent.device.planning.plan import Candidate, Place
from agent.health.conditions import ClearCondition, SetCondition
from agent.log import brief

RETRY_FIRST_S, RETRY_LIMIT_S = 60.0, 86_400.0
"""A driver that was reset is back within a minute; one that needs a person is asked once a day."""
STABLE_S = 600.0
"""A first choice that came back and ran for so long is well: its next failure is a first one."""


@dataclass(frozen=True, slots=True)
class Use:
    """Run this candidate instead, with what is left to fall back to."""

    candidate: Candidate
    fallbacks: tuple[Candidate, ...]
    is_return: bool = False
    """The first choice passed its trial; what runs now is well, and stays where this fails."""


@dataclass(frozen=True, slots=True)
class Try:
    """Hold a trial of the first choice, and answer with `tried`."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `tick` at this monotonic time, or soon after. Replaces the one before."""

    monotonic_s: float


Action = Use | Try | SetCondition | ClearCondition | WakeAt


def fallbacks(ranked: Sequence[Candidate], used: Candidate, failed: frozenset[Place]) -> tuple[Candidate, ...]:
    """Return what may take over from `used`, best first: one a place, none that failed, and nothing after the plain CPU."""
    if used.is_plain_cpu:
        return ()
    left: dict[Place, Candidate] = {}
    for candidate in ranked:
        if candidate.place != used.place and candidate.place not in failed:
            left.setdefault(candidate.place, candidate)
        if candidate.is_plain_cpu:
            break
    return tuple(left.values())


@dataclass(slots=True)
class Degrading:
    """One model's way down and back, for one plan.

    Args:
        model: Its name in the operator's file, for the condition.
        ranked: What the plan says can run it, best first; the first is the choice.
        random: For the jitter of retries.
    """

    model: str
    ranked: tuple[Candidate, ...]
    random: Random
    used: Candidate = field(init=False)
    """What runs, or is being started because nothing else does."""
    reason: str = field(default="", init=False)
    """Why the first choice does not run; empty where it does."""
    count: int = field(default=0, init=False)
    """How often a failure was answered with another candidate."""
    retry_at_s: float | None = field(default=None, init=False)
    _failed: set[Place] = field(default_factory=set, init=False)
    _is_trying: bool = field(default=False, init=False)
    _is_returning: bool = field(default=False, init=False)
    _returned_s: float | None = field(default=None, init=False)
    _backoff: Backoff = field(init=False)

    def __post_init__(self) -> None:
        self.used = self.first
        self._backoff = Backoff(self.random, RETRY_FIRST_S, RETRY_LIMIT_S)

    @property
    def first(self) -> Candidate:
        """The plan's choice."""
        return self.ranked[0]

    @property
    def is_degraded(self) -> bool:
        """Whether something else than the first choice runs."""
        return self.used != self.first

    @property
    def condition(self) -> str:
        """The name of the condition that says so."""
        return f"accelerator-degraded/{self.model}"

    @property
    def fallbacks(self) -> tuple[Candidate, ...]:
        """What may take over from what runs now, best first."""
        return fallbacks(self.ranked, self.used, frozenset(self._failed))

    def failed(self, candidate: Candidate, reason: str, now_s: float) -> list[Action]:
        """A candidate's provider failed, its worker crashed or hung, or it could not be started."""
        if candidate != self.used or candidate.is_plain_cpu:
            return []
        left = self.fallbacks
        if candidate == self.first and self._returned_s is not None and now_s - self._returned_s >= STABLE_S:
            self._backoff.reset()
        if not left and not self.is_degraded:
            return []  # the only one there is: supervision starts it again, and says so
        if not left:
            text = f"{candidate.label} failed and nothing else passed here: {brief(reason)}"
            return [SetCondition(self.condition, "error", f"{text}; it is started again")]
        must_wait = candidate == self.first or self._is_returning
        self._failed.add(candidate.place)
        self._is_returning = False
        self.used = left[0]
        self.count += 1
        if candidate == self.first:
            self.reason = reason
        return [Use(self.used, self.fallbacks), self._degraded(), *(self._wait(now_s) if must_wait else [])]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed. May be called at any time."""
        if self.retry_at_s is None or now_s < self.retry_at_s:
            return [] if self.retry_at_s is None else [WakeAt(self.retry_at_s)]
        self.retry_at_s = None
        self._is_trying = True
        return [Try(self.first)]

    def tried(self, refusal: str | None, now_s: float) -> list[Action]:
        """The trial of the first choice has ended: it passed (None), or why it did not."""
        if not self._is_trying:
            return []
        self._is_trying = False
        if refusal is not None:
            self.reason = refusal
            return [*self._wait(now_s), self._degraded()]
        self._is_returning = True
        return [Use(self.first, fallbacks(self.ranked, self.first, frozenset()), is_return=True)]

    def returned(self, now_s: float) -> list[Action]:
        """The first choice runs again. What else had failed may have come back with it."""
        if not self._is_returning:
            return []
        self._is_returning = False
        self._returned_s = now_s
        self._failed.clear()
        self.used, self.reason = self.first, ""
        return [ClearCondition(self.condition)]

    def not_returned(self, reason: str, now_s: float) -> list[Action]:
        """It passed its trial and did not start; what ran before runs on."""
        if not self._is_returning:
            return []
        self._is_returning = False
        self.reason = reason
        return [*self._wait(now_s), self._degraded()]

    def _wait(self, now_s: float) -> list[Action]:
        self.retry_at_s = now_s + self._backoff.next_delay_s()
        return [WakeAt(self.retry_at_s)]

    def _degraded(self) -> SetCondition:
        text = f"{self.first.label} failed: {brief(self.reason)}; {self.used.label} runs meanwhile, and the first is tried again"
        return SetCondition(self.condition, "warning", text)
