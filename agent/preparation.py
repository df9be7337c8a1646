"""From names in the operator's file to something that can run: facts, then for each model its bundle and its plan.

Takes: the models. Gives, by callbacks: the facts, each trial as it ends, and for each model a bundle with a plan or the
error that stops it. Runs in one thread of core and does all of its heavy work in child processes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent import resources
from agent.bundle.reader import Bundle, open_bundle
from agent.clock import Clock
from agent.device.facts import Facts
from agent.device.plan import Candidate, Outcome, Plan
from agent.device.planstore import PlanStore
from agent.device.probing import probe_facts
from agent.device.profile import Profile
from agent.device.profiles import load_profiles, select
from agent.errors import HoldfastError, OperatorError
from agent.trial.planner import make_plan

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that can run."""

    model: str
    bundle: Bundle
    plan: Plan


class PreparationEvents(Protocol):
    """Who hears of progress. Called in the preparing thread."""

    def facts_known(self, facts: Facts, profile: Profile) -> None: ...
    def bundle_opened(self, model: str, bundle: Bundle) -> None: ...
    def trial_progress(self, model: str, progress: Candidate | Outcome) -> None: ...
    def prepared(self, prepared: Prepared) -> None: ...
    def preparation_failed(self, model: str, error: HoldfastError) -> None: ...


def find_bundle(name: str) -> Path:
    """Return the folder of a built bundle: a path, or the name of one that ships with Holdfast.

    Raises:
        OperatorError: there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.replace("-", "").isalnum() and resources.shipped_bundle(name).is_dir():
        return resources.shipped_bundle(name)
    raise OperatorError(
        "no such bundle folder, and no bundle of that name ships with Holdfast",
        where=name,
        hint="build one with `holdfast bundle build MODEL.onnx --output FOLDER`, or use `parcels` or `bearing`",
    )


class Preparation:
    """The thread that prepares every model, one after another: trials must not disturb each other's timing."""

    def __init__(
        self, models: Mapping[str, str], profile: str | None, store: PlanStore, clock: Clock, events: PreparationEvents
    ) -> None:
        self._models = models
        self._profile = profile
        self._store = store
        self._clock = clock
        self._events = events
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End trials under way and wait for the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            facts = probe_facts(PROBE_TIMEOUT_S, stop=self._stop)
            profile = choose_profile(facts, self._profile)
        except HoldfastError as error:
            for model in self._models:
                self._events.preparation_failed(model, error)
            return
        self._events.facts_known(facts, profile)
        for model, bundle_name in self._models.items():
            if self._stop.is_set():
                return
            try:
                self._prepare(model, bundle_name, facts, profile)
            except HoldfastError as error:
                if not self._stop.is_set():
                    self._events.preparation_failed(model, error)
            except Exception as error:  # top of a thread: one model's trouble must not silence the others
                log.exception("preparing model %s failed", model)
                self._events.preparation_failed(model, HoldfastError(f"{type(error).__name__}: {error}", where=bundle_name))

    def _prepare(self, model: str, bundle_name: str, facts: Facts, profile: Profile) -> None:
        bundle = open_bundle(find_bundle(bundle_name))
        self._events.bundle_opened(model, bundle)
        plan = make_plan(
            bundle,
            facts,
            profile,
            self._store,
            self._clock,
            progress=lambda progress: self._events.trial_progress(model, progress),
            stop=self._stop,
        )
        self._events.prepared(Prepared(model, bundle, plan))


def choose_profile(facts: Facts, name: str | None) -> Profile:
    """Return the profile named by the operator, else the most specific one that matches.

    Raises:
        OperatorError: there is no profile of that name.
    """
    profiles = load_profiles([resources.device_profiles()])
    if name is None:
        return select(facts, profiles).profile
    for profile in profiles:
        if profile.name == name:
            return profile
    raise OperatorError(f"no device profile is named {name!r}", hint="`holdfast profile list` shows them")
