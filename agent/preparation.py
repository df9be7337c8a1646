"""From names in the operator's file to something that can run: facts, then for each model its bundle and its plan.

Takes: the models. Gives, by callbacks: the facts, each trial as it ends, and for each model a bundle with a plan or the
error that stops it. Runs in one thread of core and does all of its heavy work in child processes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent import resources
from agent.bundle.finding import find_bundle
from agent.bundle.reader import Bundle, open_bundle
from agent.clock import Clock
from agent.device.facts import Facts
from agent.device.plan import Candidate, Outcome, Plan
from agent.device.planstore import PlanStore
from agent.device.probing import probe_facts
from agent.device.profile import Profile
from agent.device.profiles import load_profiles, select
from agent.errors import HoldfastError
from agent.trial.planner import make_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FactsKnown:
    """The probe has answered."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class BundleOpened:
    """A model's bundle is there and every byte of it is right."""

    model: str
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class TrialProgress:
    """A trial begins (Candidate) or has ended (Outcome)."""

    model: str
    progress: Candidate | Outcome


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model can run."""

    model: str
    bundle: Bundle
    plan: Plan
    was_stored: bool
    """The plan was measured at an earlier start."""


@dataclass(frozen=True, slots=True)
class PreparationFailed:
    """A model cannot run now."""

    model: str
    error: HoldfastError


PreparationNote = FactsKnown | BundleOpened | TrialProgress | Prepared | PreparationFailed


class Preparation:
    """The thread that prepares models one after another, since trials must not disturb each other's timing.

    Args:
        models: The bundle of each model, as the operator named it.
        profile: The device profile that the operator named, if any.
        post: Takes each note, in the preparing thread; should only hand over.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        profile: str | None,
        store: PlanStore,
        clock: Clock,
        *,
        post: Callable[[PreparationNote], None],
    ) -> None:
        self._models = models
        self._profile = profile
        self._store = store
        self._clock = clock
        self._post = post
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether there is still something to prepare."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the probe or the trial under way. Does not wait: see `join`."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait, for at most `timeout_s`, until the children of this thread are ended."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            facts = probe_facts(stop=self._stop)
            if self._stop.is_set():
                return
            profile = select(facts, load_profiles([resources.device_profiles()]), self._profile).profile
        except HoldfastError as error:
            for model in self._models:
                self._post(PreparationFailed(model, error))
            return
        self._post(FactsKnown(facts))
        for model, bundle_name in self._models.items():
            if self._stop.is_set():
                return
            try:
                self._prepare(model, bundle_name, facts, profile)
            except HoldfastError as error:
                self._post(PreparationFailed(model, error))
            except Exception as error:  # the top of a thread: one model's trouble must not silence the others
                log.exception("preparing model %s failed", model)
                self._post(
                    PreparationFailed(model, HoldfastError(f"{type(error).__name__}: {error}", where=bundle_name))
                )

    def _prepare(self, model: str, bundle_name: str, facts: Facts, profile: Profile) -> None:
        bundle = open_bundle(find_bundle(bundle_name))
        self._post(BundleOpened(model, bundle))
        trials: list[Candidate | Outcome] = []

        def progress(each: Candidate | Outcome) -> None:
            trials.append(each)
            self._post(TrialProgress(model, each))

        plan = make_plan(bundle, facts, profile, self._store, self._clock, progress=progress, stop=self._stop)
        if plan is not None:
            self._post(Prepared(model, bundle, plan, was_stored=not trials))
