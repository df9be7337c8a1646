"""From facts, a profile and a bundle to a measured plan: the order of the steps.

The rules are elsewhere and pure: `agent.device.planning.candidates`, `halving`, `judging` and `choosing`. A stored plan that
still holds is taken as it is (`Planner.stored`). Otherwise, within the profile's time budget:

1. What runs on the processor is measured, while the device is quiet.
2. The best of it is handed out as an interim plan where an accelerator follows: compiling may take minutes, and service
need not wait.
3. Accelerators are measured, beside whoever runs the interim plan.
4. Where nothing that the operator asked for passed: the accelerators that nobody asked for.
5. For throughput, the choice is tried with threads that spin; one whose graph is split over providers is traced once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent import scratch
from agent.bundle.reader import Bundle
from agent.clock import Clock
from agent.device.facts import Facts
from agent.device.planning import preparedmodels
from agent.device.planning.candidates import candidates, is_requested, reference
from agent.device.planning.choosing import choose, spinning, still_holds
from agent.device.planning.plan import Candidate, Demand, Outcome, Plan, plan_key
from agent.device.planning.planstore import PlanStore
from agent.device.profiles.profile import Profile
from agent.trial.measuring import Budget, Measuring, Progress, RunTrial
from agent.trial.running import run_trial

log = logging.getLogger(__name__)

ACCELERATORS_SHARE = 0.5
"""Of the budget, where there are any: the processor's candidates must not use it up."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes and finds the plans of one device."""

    facts: Facts
    """What the probe saw."""
    profile: Profile
    """The selected one."""
    store: PlanStore
    """Where plans are kept. When it cannot be written, a plan is returned all the same, and logged."""
    clock: Clock
    """For the budget and the plan's date."""
    prepared: Path | None = None
    """The root of all prepared models (`StatePaths.prepared`); None: nothing is kept, and each trial compiles again."""
    run: RunTrial = run_trial
    """Measures one candidate."""

    def stored(self, bundle: Bundle, demand: Demand) -> Plan | None:
        """Return the plan that was measured here before, if it still holds. Nothing is measured, so nobody is disturbed."""
        found, _ = candidates(self.facts, self.profile, bundle.manifest, bundle.variants_present(), demand)
        stored = self.store.load(self._key(bundle, demand))
        return stored if stored and still_holds(stored, self.profile, found) else None

    def measure(
        self,
        bundle: Bundle,
        demand: Demand,
        *,
        progress: Progress = lambda _: None,
        interim: Callable[[Plan], None] = lambda _: None,
        stop: threading.Event | None = None,
        known: Sequence[Outcome] = (),
    ) -> Plan | None:
        """Measure what may run a bundle here, choose, and store the plan.

        Args:
            bundle: An opened bundle.
            demand: What the operator wants of this model.
            progress: Called from this thread.
            interim: Called from this thread with a plan that can be run already, where accelerators are still to be measured.
            stop: When set, the trial that runs is killed and None is returned, within a second.
            known: What was measured for the same demand, and is not measured again.

        Raises:
            CandidateError: nothing can run this bundle here; the message lists every refusal.
        """
        found, refused = candidates(self.facts, self.profile, bundle.manifest, bundle.variants_present(), demand)
        with contextlib.ExitStack() as stack:
            measuring = Measuring(
                bundle_folder=bundle.folder,
                manifest=bundle.manifest,
                profile=self.profile,
                demand=demand,
                budget=Budget(self.clock, self.profile.tune.budget_s),
                run=self.run,
                progress=progress,
                stop=stop or threading.Event(),
                prepared=_prepared_folder(self.prepared, self._key(bundle, demand)),
                scratch=self._scratch(stack),
            )
            measuring.take(each for each in known if each.candidate in found)
            plan = _Planning(bundle, self.facts, demand, self.clock, measuring, found, refused).plan(interim)
        if plan is not None:
            self._keep(plan)
        return plan

    def _scratch(self, stack: contextlib.ExitStack) -> Path | None:
        """Return a folder until the stack is left: in our own state, where a read-only system has none for temporary files."""
        try:
            if self.prepared is not None:
                self.prepared.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(scratch.folder(".holdfast-trials-", self.prepared))
        except OSError as error:
            log.warning("nothing can be written for trials to compare with: %s", error)
            return None

    def _key(self, bundle: Bundle, demand: Demand) -> str:
        return plan_key(self.facts.fingerprint, bundle.digest, self.facts.runtime_version, demand)

    def _keep(self, plan: Plan) -> None:
        try:
            self.store.save(plan)
        except OSError as error:
            log.warning("the plan cannot be stored and is measured again at the next start: %s", error)
        if self.prepared is not None:
            preparedmodels.keep_best(self.prepared, plan)
            preparedmodels.forget(self.prepared, in_use={plan.key})


@dataclass(frozen=True, slots=True)
class _Planning:
    """One plan in the making."""

    bundle: Bundle
    facts: Facts
    demand: Demand
    clock: Clock
    measuring: Measuring
    found: Sequence[Candidate]
    refused: Sequence[Outcome]

    def plan(self, interim: Callable[[Plan], None]) -> Plan | None:
        """Measure and choose; None where somebody stopped it."""
        if self.measuring.profile.tune.mode == "as-listed":
            self.measuring.in_order(sorted(self.found, key=lambda each: not is_requested(each, self.demand)))
        else:
            self._measure(interim)
        if self.measuring.stop.is_set():
            return None
        plan = self._with_time_share(self._with_spinning(self._choose()))
        return None if self.measuring.stop.is_set() else plan

    def _measure(self, interim: Callable[[Plan], None]) -> None:
        asked = [each for each in self.found if is_requested(each, self.demand)]
        on_cpu = [each for each in self.found if each.is_plain_cpu or (each in asked and each.device_type == "cpu")]
        accelerators = [each for each in asked if each.device_type != "cpu"]
        others = [each for each in self.found if each not in asked and each not in on_cpu]
        on_cpu = [each for each in on_cpu if each not in self.measuring.trials]
        self.measuring.halve(on_cpu, reference(on_cpu), ACCELERATORS_SHARE if accelerators else 0.0)
        follows = accelerators or (others and not self.measuring.has_passed(asked))
        if follows and self.measuring.has_passed() and not self.measuring.stop.is_set():
            began_s = self.clock.monotonic()
            interim(self._choose(is_interim=True))  # others may measure meanwhile: that is not this plan's time
            self.measuring.budget.ends_s += self.clock.monotonic() - began_s
        self.measuring.halve(accelerators)
        if not self.measuring.has_passed(asked):
            self.measuring.halve(others)
        for candidate in others:
            self.measuring.leave_out(
                candidate, f"not measured: `run_on: {self.demand.run_on}` was asked for, and something there passed"
            )

    def _choose(self, *, is_interim: bool = False) -> Plan:
        return choose(
            self.facts,
            self.measuring.profile,
            self.bundle.manifest,
            digest=self.bundle.digest,
            outcomes=[*self.measuring.outcomes(), *self.refused],
            made_at=self.clock.now().isoformat(timespec="seconds").replace("+00:00", "Z"),
            demand=self.demand,
            is_interim=is_interim,
        )

    def _with_spinning(self, plan: Plan) -> Plan:
        """Try the choice with threads that spin, for throughput; the ordinary rules say whether that pays."""
        chosen = plan.chosen
        if self.demand.objective != "throughput" or not chosen.is_plain_cpu or chosen.threads < 2:
            return plan
        self.measuring.again(spinning(chosen))
        return self._choose()

    def _with_time_share(self, plan: Plan) -> Plan:
        """Add the share of time by provider, where the choice runs on more than one."""
        outcomes = list(plan.outcomes)
        at = next(index for index, each in enumerate(outcomes) if each.candidate == plan.chosen)
        measured = outcomes[at].measurement
        if measured is None or len(measured.nodes) < 2 or self.measuring.stop.is_set():
            return plan
        share = self.measuring.trace(plan.chosen)
        outcomes[at] = replace(outcomes[at], measurement=replace(measured, time_share=share))
        return replace(plan, outcomes=tuple(outcomes))


def _prepared_folder(root: Path | None, key: str) -> Path | None:
    if root is None:
        return None
    try:
        return preparedmodels.folder_of(root, key)
    except OSError as error:
        log.warning("what is compiled cannot be kept and is compiled again at each start: %s", error)
        return None
