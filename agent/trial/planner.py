"""From facts, a profile and a bundle to a measured plan: the order of the steps. `agent.device.planning` has the rules.

A stored plan is taken as it is. Otherwise each candidate gets a trial, one after another so that none disturbs another,
within the profile's time budget. Then those whose p99 is within 25 % of the best are measured again in turns, since one
measurement repeats only to that: noise comes and goes over seconds, and turns spread it evenly. Each candidate keeps the
trial with its median p99: the lowest would favour whichever is sometimes lucky, and a long tail is what p99 is about.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.bundle.reader import Bundle
from agent.clock import Clock
from agent.device.facts import Facts
from agent.device.plan import Candidate, Outcome, Plan, plan_key
from agent.device.planning import candidates, choose, judge, still_holds
from agent.device.planstore import PlanStore
from agent.device.profile import Limits, Profile
from agent.trial.running import run_trial

log = logging.getLogger(__name__)

Progress = Callable[[Candidate | Outcome], None]
"""Told of a candidate when its trial begins, and of the outcome when it ends."""

CONTENDER_P99 = 1.25
"""Candidates within this factor of the best p99 are measured again."""
MOST_CONTENDERS = 3
ROUNDS = 2


class RunTrial(Protocol):
    """`agent.trial.running.run_trial`, or a stand-in that knows its outcomes."""

    def __call__(
        self, bundle_folder: Path, candidate: Candidate, limits: Limits, stop: threading.Event, /
    ) -> Outcome: ...


def make_plan(
    bundle: Bundle,
    facts: Facts,
    profile: Profile,
    store: PlanStore,
    clock: Clock,
    *,
    run: RunTrial = run_trial,
    progress: Progress = lambda _: None,
    stop: threading.Event | None = None,
    again: bool = False,
) -> Plan | None:
    """Return the stored plan for this device and bundle, or measure one and store it.

    Args:
        bundle: An opened bundle.
        facts: What the probe saw.
        profile: The selected profile.
        store: Where plans are kept. When it cannot be written, the plan is returned all the same, and logged.
        clock: For the budget and the plan's date.
        run: Measures one candidate.
        progress: Called from this thread.
        stop: When set, the trial that runs is killed and None is returned, within a second.
        again: Measure even where a plan is stored.

    Raises:
        CandidateError: nothing can run this bundle here; the message lists every refusal.
    """
    if not again and (stored := stored_plan(bundle, facts, profile, store)):
        return stored
    found, refused = candidates(facts, profile, bundle.manifest, bundle.variants_present())
    measuring = _Measuring(bundle, profile, clock, run, progress, stop or threading.Event())
    outcomes = [*measuring.settle(measuring.all_of(found)), *refused]
    if measuring.stop.is_set():
        return None
    plan = choose(facts, profile, bundle.manifest, digest=bundle.digest, outcomes=outcomes, made_at=_rfc3339(clock))
    _save(store, plan)
    return plan


def stored_plan(bundle: Bundle, facts: Facts, profile: Profile, store: PlanStore) -> Plan | None:
    """Return the plan that was measured here before, if it still holds. Nothing is measured, so nobody is disturbed."""
    found, _ = candidates(facts, profile, bundle.manifest, bundle.variants_present())
    stored = store.load(plan_key(facts.fingerprint, bundle.digest, facts.runtime_version))
    return stored if stored and still_holds(stored, profile, found) else None


@dataclass(frozen=True, slots=True)
class _Measuring:
    """What the trials of one plan have in common."""

    bundle: Bundle
    profile: Profile
    clock: Clock
    run: RunTrial
    progress: Progress
    stop: threading.Event
    started_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "started_s", self.clock.monotonic())

    def all_of(self, found: Sequence[Candidate]) -> list[Outcome]:
        """Measure each candidate once; as-listed stops at the first that passes.

        A spent budget ends it only once something passed: a device without any plan would be worse than a slow start.
        """
        outcomes: list[Outcome] = []
        why_not: str | None = None
        for candidate in found:
            if self.stop.is_set():
                break
            if why_not is None:
                outcomes.append(self._trial(candidate))
                why_not = self._enough(outcomes)
            else:
                outcomes.append(Outcome(candidate, refusal=why_not))
        return outcomes

    def settle(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Measure those that are close to the best again, in turns, and keep each one's trial with the median p99."""
        contenders = self._contenders(outcomes)
        trials = {outcome.candidate: [outcome] for outcome in outcomes}
        for _ in range(ROUNDS if len(contenders) > 1 else 0):
            for candidate in contenders:
                if self.stop.is_set() or self._budget_spent():
                    break
                trials[candidate].append(self._trial(candidate))
        return [_typical(of_one) for of_one in trials.values()]

    def _trial(self, candidate: Candidate) -> Outcome:
        self.progress(candidate)
        outcome = self.run(self.bundle.folder, candidate, self.profile.limits, self.stop)
        if not self.stop.is_set():
            self.progress(outcome)
        return outcome

    def _enough(self, outcomes: Sequence[Outcome]) -> str | None:
        """Return why nothing more is measured; None to go on."""
        if not any(self._passes(outcome) for outcome in outcomes):
            return None
        if self.profile.tune.mode == "as-listed":
            return "not measured: one before it in the profile's order passed"
        if self._budget_spent():
            return f"not measured: the budget of {self.profile.tune.budget_s:g} s was spent"
        return None

    def _contenders(self, outcomes: Sequence[Outcome]) -> list[Candidate]:
        if self.profile.tune.mode == "as-listed":
            return []
        passed = [
            (each.measurement.p99_ms, each.candidate) for each in outcomes if each.measurement and self._passes(each)
        ]
        passed.sort(key=lambda pair: pair[0])
        return [candidate for p99_ms, candidate in passed if p99_ms <= passed[0][0] * CONTENDER_P99][:MOST_CONTENDERS]

    def _passes(self, outcome: Outcome) -> bool:
        return judge(outcome, self.profile, self.bundle.manifest) is None

    def _budget_spent(self) -> bool:
        return self.clock.monotonic() - self.started_s >= self.profile.tune.budget_s


def _typical(trials: Sequence[Outcome]) -> Outcome:
    """Return the trial with the median p99 (of two: the higher). A refusal stands: what crashed once will again."""
    refused = [each for each in trials if each.measurement is None]
    if refused:
        return refused[0]
    return sorted(trials, key=lambda each: each.measurement.p99_ms if each.measurement else 0.0)[len(trials) // 2]


def _rfc3339(clock: Clock) -> str:
    return clock.now().isoformat(timespec="seconds").replace("+00:00", "Z")


def _save(store: PlanStore, plan: Plan) -> None:
    try:
        store.save(plan)
    except OSError as error:
        log.warning("the plan cannot be stored and is measured again at the next start: %s", error)
