"""What each model should run, and what its worker was asked for: from a wish to a plan, to a job, to another one when it fails.

Belongs to core's thread. Takes what the preparing threads post, what the workers say of swaps and troubles, and the updater's
switches; gives jobs to the workers, answers to the updater, and conditions. The decisions are in machines without threads:
`agent.pipeline.degrading` (what takes over), `policy` (who may run then) and `drift` (is it as fast as planned).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from agent.clock import Clock, Random
from agent.device.planning.plan import Candidate, Plan
from agent.errors import BundleError
from agent.health.conditions import ClearCondition, Conditions, SetCondition
from agent.paths import StatePaths
from agent.pipeline import degrading, policy
from agent.pipeline.degrading import Degrading, Try, Use
from agent.pipeline.drift import Drift, Remeasure
from agent.pipeline.jobs import patience_s, planned_p99_ms
from agent.pipeline.messages import Job, PipelineJob
from agent.pipeline.overrides import with_overrides
from agent.pipeline.workers import Purpose, Workers
from agent.preparation import PreparationFailed, PreparationNote, Prepared, TriedAgain, Wanted
from agent.reporting import Reporter
from agent.settings import Settings
from agent.update.record import Slot
from agent.update.slots import Slots
from agent.updating import Updating
from agent.wishes import Wishes

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Run:
    """A model's plan at work."""

    prepared: Prepared
    pipelines: tuple[PipelineJob, ...]
    """All of the model's, with what the release says over the operator's file."""
    degrading: Degrading
    job: Job
    """What the worker runs of it, or was asked to."""

    @property
    def plan(self) -> Plan:
        """What was measured."""
        return self.prepared.plan


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A swap that the worker was asked for. What comes of an older one answers no question any more."""

    run: Run
    job: Job
    use: Use | None = None
    """Of the run that goes on; None: a new run, whose first choice this is."""


class Running:
    """The models of this device. `updating` is set once it exists: it needs `switch`.

    Args:
        pipelines: By model.
        wishes: Their threads' notes come back through `deal_with`.
    """

    def __init__(
        self,
        settings: Settings,
        paths: StatePaths,
        pipelines: Mapping[str, tuple[PipelineJob, ...]],
        *,
        wishes: Wishes,
        workers: Workers,
        reporter: Reporter,
        conditions: Conditions,
        clock: Clock,
        random: Random,
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._pipelines = pipelines
        self._wishes = wishes
        self._workers = workers
        self._reporter = reporter
        self._conditions = conditions
        self._clock = clock
        self._random = random
        self.updating: Updating | None = None
        self._runs: dict[str, Run] = {}
        self._asked: dict[str, _Asked] = {}
        self._drifts: dict[str, Drift] = {}

    # -- order of life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Prepare what each model should run."""
        for model in self._pipelines:
            if (wanted := self.wanted_at_start(model)) is not None:
                self._wishes.prepare(wanted)

    def tick(self, now_s: float) -> float | None:
        """Do what is due; return the monotonic time of the next call, or None where nothing is coming up."""
        for wanted in self._wishes.due(now_s):
            run = self._runs.get(wanted.model)
            if run is None or self._is_calm(wanted.model, run):
                self._wishes.prepare(wanted)
            else:
                self._wishes.look_later(run.prepared)
        for model, run in list(self._runs.items()):
            self._act(model, run, run.degrading.tick(now_s))
        times = [self._wishes.next_at_s, *(run.degrading.retry_at_s for run in self._runs.values())]
        return min((at_s for at_s in times if at_s is not None), default=None)

    def look(self) -> None:
        """Compare each model's speed with its plan's; about once a second."""
        now_s = self._clock.monotonic()
        for worker in self._workers.status():
            run, drift = self._runs.get(worker.model), self._drifts.get(worker.model)
            if run is None or drift is None or worker.beat is None or not self._is_calm(worker.model, run):
                continue
            infer = [pipeline["stages"]["infer"] for pipeline in worker.beat["pipelines"].values()]
            p99_ms = max((times["p99_ms"] for times in infer if times["count"]), default=None)
            self._act(worker.model, run, drift.observe(p99_ms, sum(times["count"] for times in infer), now_s))

    @property
    def are_settled(self) -> bool:
        """Whether no pipeline waits for an accelerator that is still being compiled."""
        return all(not run.plan.is_interim or run.job.pipelines == run.pipelines for run in self._runs.values())

    # -- wishes ------------------------------------------------------------------------------------------------------

    def wanted_at_start(self, model: str) -> Wanted | None:
        """What the last release left, else the operator's bundle; None where the first release has yet to come."""
        if self.updating and (slot := self.updating.active(model)):
            return self.updating.wanted(model, slot)
        return self._factory(model)

    def _factory(self, model: str) -> Wanted | None:
        name, bundle = f"no-bundle-yet/{model}", self._settings.models[model].bundle
        channel = self._settings.models[model].channel
        if channel is None and (slot := Slots(self._paths.updates).load(model).active):
            text = f"{slot.name} {slot.version} of a release ran here; without `channel:` the model's `bundle:` runs"
            self._conditions.set(f"release-unused/{model}", "info", text)
        if bundle is None:
            self._conditions.set(name, "info", f"waiting for the first release of the channel {channel}")
            return None
        return Wanted(model, bundle)

    def switch(self, model: str, slot: Slot | None) -> None:
        """The updater wants another bundle to run: verify it again, and let the worker swap between two samples.

        Only the newest switch of a model is answered: by `_cannot_run`, by `swap_ended`, or here.
        """
        assert self.updating is not None, "nobody else switches"
        self._wishes.cancel(model)
        wanted = self.updating.wanted(model, slot) if slot else self._factory(model)
        if wanted is None:
            self._wishes.forget(model)
            for known in (self._runs, self._asked, self._drifts):
                cast("dict[str, object]", known).pop(model, None)
            self._workers.end(model)
            self.updating.switched(model)
        else:
            self._wishes.prepare(replace(wanted, is_switch=True))

    # -- what the preparing threads say --------------------------------------------------------------------------------

    def deal_with(self, note: PreparationNote) -> None:
        """Take a note that is about what a model may run; one about an older wish does not matter."""
        match note:
            case Prepared() if self._wishes.is_newest(note.wanted):
                self._take_prepared(note)
            case PreparationFailed(wanted, error) if self._wishes.is_newest(wanted):
                self._cannot_run(wanted, str(error))
            case TriedAgain(model, candidate, refusal) if (run := self._runs.get(model)) is not None:
                if candidate == run.degrading.first:
                    self._act(model, run, run.degrading.tried(refusal, self._clock.monotonic()))

    def _cannot_run(self, wanted: Wanted, reason: str) -> None:
        run = self._runs.get(wanted.model)
        if run is not None and not (wanted.is_switch or run.plan.is_interim):  # it was looked whether there is better
            log.warning("model %s was not measured again, and runs on: %s", wanted.model, reason)
            self._wishes.restore(run.prepared.wanted)
            self._wishes.look_later(run.prepared)
            return
        log.error("model %s cannot run %s: %s", wanted.model, wanted.bundle, reason)
        self._conditions.set(f"model-unusable/{wanted.model}", "error", reason)
        if wanted.slot is None:  # the last resort: there is nothing else to go back to
            self._wishes.attempt_later(wanted)
        if self.updating and (wanted.slot or wanted.is_switch):
            self.updating.switch_failed(wanted.model, reason)

    def _take_prepared(self, prepared: Prepared) -> None:
        """A plan is there: the first, the final one after an interim one, a newer one, or another bundle's."""
        wanted, model = prepared.wanted, prepared.wanted.model
        before = self._runs.get(model)
        if prepared.plan.is_interim and before is not None and not before.plan.is_interim:
            return  # it was looked whether there is better, and what runs is no worse than the processor
        try:
            run = self._make_run(prepared)
        except BundleError as error:  # a release for the bundle that runs has no trial, and operators change their file
            self._cannot_run(wanted, str(error))
            return
        self._conditions.clear(f"model-unusable/{model}")
        self._conditions.clear(f"no-bundle-yet/{model}")
        log.info("model %s: %s", model, run.plan.reason)
        if run.plan.is_interim:
            log.info("model %s: %s", model, policy.elsewhere_at_start(run.plan))
        if wanted.is_switch and run.job.pipelines:
            self._ask(model, _Asked(run, run.job), "release")
        elif wanted.is_switch:  # every pipeline requires what this bundle does not run on: no fault of its own
            self._workers.end(model)
            self._switched(model, _Asked(run, run.job), None)
        elif before is not None and not self._differs(model, before, run):
            run.job = before.job
            self._install(model, run)
        elif before is not None and model in self._workers.models and run.job.pipelines:
            self._ask(model, _Asked(run, run.job), "candidate")
        else:
            self._install(model, run)
            self._start(model, run.job)

    def _make_run(self, prepared: Prepared) -> Run:
        """Raises BundleError where what a release says over the operator's file fits no pipeline."""
        wanted, plan = prepared.wanted, prepared.plan
        said = wanted.slot.pipelines if wanted.slot else {}
        pipelines = with_overrides(self._pipelines[wanted.model], said)
        ranked = policy.in_order(plan)
        machine = Degrading(wanted.model, ranked, self._random)
        ruling = policy.rule(wanted.model, pipelines, elsewhere=policy.elsewhere_at_start(plan))
        job = self._make_job(prepared, plan.chosen, machine.fallbacks, ruling.pipelines)
        return Run(prepared, pipelines, machine, job)

    def _make_job(
        self, prepared: Prepared, candidate: Candidate, left: tuple[Candidate, ...], pipelines: tuple[PipelineJob, ...]
    ) -> Job:
        compiled = self._wishes.prepared_for(prepared.plan)
        return Job(
            prepared.wanted.model,
            str(prepared.bundle.folder),
            candidate,
            pipelines,
            fallbacks=left,
            prepared=str(compiled) if compiled else None,
            patience_s=patience_s(prepared.plan, candidate),
        )

    def _differs(self, model: str, before: Run, run: Run) -> bool:
        """Whether the worker must do something else than it does. Fallbacks may change: it only knows whether there are any."""
        if model in self._asked:
            return True
        old, new = before.job, run.job
        return (old.bundle, old.candidate, old.pipelines, not old.fallbacks) != (
            new.bundle, new.candidate, new.pipelines, not new.fallbacks
        )  # fmt: skip

    def _start(self, model: str, job: Job) -> None:
        if not job.pipelines:
            self._workers.end(model)
        elif model in self._workers.models:
            self._workers.swap(job, "candidate")
        else:
            self._workers.add(job)

    def _install(self, model: str, run: Run) -> None:
        """Make this run the model's."""
        plan, variant = run.plan, run.prepared.bundle.manifest.variant(run.plan.chosen.variant)
        before, self._runs[model] = self._runs.get(model), run
        if before is not None:
            self._conditions.clear(before.degrading.condition)
        self._watch_speed(model, run)
        self._rule(model, run, policy.elsewhere_at_start(plan))
        self._reporter.update_model(
            model,
            plan=plan,
            plan_is_stored=run.prepared.was_stored,
            trying=None,
            outcomes=plan.outcomes,
            variant=variant,
        )
        self._report(model, run)
        self._wishes.look_later(run.prepared)

    # -- what the workers say --------------------------------------------------------------------------------------------

    def trouble(self, model: str, job: Job, reason: str) -> None:
        """A provider failed at run time, or the worker crashed or hung."""
        if (run := self._runs.get(model)) is not None:
            self._act(model, run, run.degrading.failed(job.candidate, reason, self._clock.monotonic()))

    def swap_ended(self, model: str, error: str | None) -> None:
        """A worker has taken the job that it was asked for last, or could not; then it does what it did before."""
        asked = self._asked.pop(model, None)
        if asked is None:
            return
        if asked.use is not None:
            self._used(model, asked, error)
        elif asked.run.prepared.wanted.is_switch:
            self._switched(model, asked, error)
        else:
            self._install(model, asked.run)
            if error is not None:
                now_s = self._clock.monotonic()
                self._act(model, asked.run, asked.run.degrading.failed(asked.job.candidate, error, now_s))

    def _switched(self, model: str, asked: _Asked, error: str | None) -> None:
        assert self.updating is not None, "nobody else switches"
        if error is None:
            self._install(model, asked.run)
        if not self._wishes.is_newest(asked.run.prepared.wanted):
            return
        if error is None:
            self.updating.switched(model)
        else:
            self.updating.switch_failed(model, error)

    def _used(self, model: str, asked: _Asked, error: str | None) -> None:
        run, use, now_s = asked.run, asked.use, self._clock.monotonic()
        assert use is not None
        if error is None:
            run.job = asked.job
            self._watch_speed(model, run)
        if not use.is_return:
            self._act(model, run, run.degrading.failed(use.candidate, error, now_s) if error is not None else [])
        elif error is None:
            self._act(model, run, run.degrading.returned(now_s))
            self._rule(model, run, policy.elsewhere_at_start(run.plan))
        else:
            self._act(model, run, run.degrading.not_returned(error, now_s))
        self._report(model, run)

    # -- carrying out ----------------------------------------------------------------------------------------------------

    def _act(self, model: str, run: Run, actions: Iterable[degrading.Action | Remeasure]) -> None:
        for action in actions:
            match action:
                case SetCondition() | ClearCondition():
                    self._conditions.apply(action)
                case Use():
                    self._use(model, run, action)
                case Try(candidate):
                    log.info("model %s: %s is tried again", model, candidate.label)
                    self._wishes.try_again(run.prepared, candidate)
                case Remeasure():
                    self._wishes.prepare(replace(run.prepared.wanted, is_switch=False, is_again=True))
                case _:
                    pass  # WakeAt: `tick` looks at the machine itself

    def _use(self, model: str, run: Run, use: Use) -> None:
        on_its_way = self._asked.get(model)
        if use.is_return and on_its_way is not None and on_its_way.use is None:  # whoever asked waits for the outcome
            reason = "another job is on its way in"
            self._act(model, run, run.degrading.not_returned(reason, self._clock.monotonic()))
            return
        reason = run.degrading.reason
        elsewhere = policy.elsewhere_degraded(run.plan, use.candidate, reason)
        ruling = policy.rule(model, run.pipelines, elsewhere=elsewhere, fallback=run.plan.fallback)
        job = self._make_job(run.prepared, use.candidate, use.fallbacks, ruling.pipelines)
        if use.is_return:
            log.info("model %s: %s works again and takes over", model, use.candidate.label)
        else:
            log.error("model %s: %s takes over: %s", model, use.candidate.label, reason)
            run.job = job  # there is nothing to go back to
            self._rule(model, run, elsewhere)
        if job.pipelines:
            self._ask(model, _Asked(run, job, use), "candidate" if use.is_return else "degrade")
        else:
            self._asked.pop(model, None)
            self._workers.end(model)
        self._report(model, run)

    def _ask(self, model: str, asked: _Asked, purpose: Purpose) -> None:
        before = self._asked.get(model)
        if before is not None and before.use is not None and before.use.is_return and asked.use is None:
            reason = "another job took its turn"
            self._act(model, before.run, before.run.degrading.not_returned(reason, self._clock.monotonic()))
        self._asked[model] = asked
        self._workers.swap(asked.job, purpose)

    def _rule(self, model: str, run: Run, elsewhere: str | None) -> None:
        plan = run.plan
        ruling = policy.rule(
            model, run.pipelines, elsewhere=elsewhere, fallback=plan.fallback, is_interim=plan.is_interim
        )
        for condition in ruling.conditions:
            self._conditions.apply(condition)

    def _watch_speed(self, model: str, run: Run) -> None:
        """Compare with what the plan measured of what runs now, a run at a time: pipelines that share it wait for each other."""
        planned_ms = planned_p99_ms(run.plan, run.job.candidate)
        if planned_ms is None:
            self._drifts.pop(model, None)
            return
        self._drifts.setdefault(model, Drift(model, planned_ms)).planned(planned_ms * max(1, len(run.job.pipelines)))

    def _report(self, model: str, run: Run) -> None:
        machine = run.degrading
        self._reporter.update_model(model, degraded=machine.reason, degraded_count=machine.count)

    def _is_calm(self, model: str, run: Run) -> bool:
        """Whether nothing is on its way in, and the choice of a final plan runs: else its speed proves nothing."""
        is_newest = self._wishes.is_newest(run.prepared.wanted)
        return is_newest and not (model in self._asked or run.plan.is_interim or run.degrading.is_degraded)
