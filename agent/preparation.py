"""From a model to something that can run: facts and profile once, then for each model its bundle and its plan.

`Preparer` does it in the caller's thread and all of its heavy work in child processes; one model at a time, since
trials must not disturb each other's timing. While an accelerator is compiled for one model, which takes minutes on some, the
CPU's candidates of the next one get their turn first, so that each model serves soon. Nor is a driver waited for that hangs
when it is asked what it drives: the CPU is measured meanwhile, and serves. `Preparation` is the thread that does it for core
and posts notes, and `Retrial` the one that looks whether a candidate that failed works again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.bundle.finding import find_bundle
from agent.bundle.manifest import Manifest
from agent.bundle.reader import Bundle, open_bundle
from agent.clock import Clock
from agent.device.facts import Facts
from agent.device.planning.candidates import candidates
from agent.device.planning.judging import judge
from agent.device.planning.plan import Candidate, Demand, Outcome, Plan
from agent.device.planning.planstore import PlanStore
from agent.device.profiles.profile import Profile
from agent.device.survey.recognition import profile_for, recognise
from agent.device.survey.tried import Tried
from agent.errors import BundleError, HoldfastError
from agent.pipeline.demands import Asked
from agent.trial.measuring import Loaded
from agent.trial.planner import Planner
from agent.trial.running import Ask, run_trial
from agent.turns import Turns
from agent.update.record import Slot

log = logging.getLogger(__name__)

EARLY_AFTER_S = 3.0
"""So long drivers may take to say what is here; a wake-up takes one or two. Then the processor begins without them."""
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model should run: a bundle that a release brought (`slot`), or the operator's own (None)."""

    model: str
    bundle: str
    """A folder, or the name of one that ships with Holdfast."""
    slot: Slot | None = None
    is_switch: bool = False
    """Another bundle runs, and the updater waits for the outcome."""
    is_again: bool = False
    """It runs, slower than its plan says: everything is measured again beside it."""


@dataclass(frozen=True, slots=True)
class FactsKnown:
    """The probe has answered."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class BundleOpened:
    """A model's bundle is there and every byte of it is right."""

    wanted: Wanted
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class TrialProgress:
    """A trial begins (Candidate), its model is loaded and compiled (Loaded), or it has ended (Outcome)."""

    model: str
    progress: Candidate | Loaded | Outcome


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model can run."""

    wanted: Wanted
    bundle: Bundle
    plan: Plan
    was_stored: bool
    """The plan was measured at an earlier start."""


@dataclass(frozen=True, slots=True)
class PreparationFailed:
    """A model cannot run now."""

    wanted: Wanted
    error: HoldfastError


@dataclass(frozen=True, slots=True)
class TriedAgain:
    """The trial of a candidate that had failed at run time has ended."""

    model: str
    candidate: Candidate
    refusal: str | None
    """None: it passed."""


PreparationNote = FactsKnown | BundleOpened | TrialProgress | Prepared | PreparationFailed | TriedAgain
Post = Callable[[PreparationNote], None]


class StoppedPreparingError(HoldfastError):
    """The stop event was set."""


class Preparer:
    """Facts and profile of this device, probed when first needed, and the trials. Any thread may use it; one at a time measures.

    Args:
        profile: The device profile that the operator named, if any.
        store: Where plans are kept.
        prepared: Where what candidates compile is kept, a folder a plan; None: nothing is kept.
        runtimes: The operator's `device.runtimes`.
        profiles: A folder with profiles of the operator's own, if any.
        tried: Which devices have worked at an earlier start; None: all are tried at each.
        asked: What the operator's file says of each model; the defaults for one that it does not name.
    """

    def __init__(
        self,
        profile: str | None,
        store: PlanStore,
        clock: Clock,
        *,
        prepared: Path | None = None,
        runtimes: Sequence[str] = (),
        profiles: Path | None = None,
        tried: Tried | None = None,
        asked: Mapping[str, Asked] | None = None,
    ) -> None:
        self._profile_name = profile
        self._profiles = profiles
        self._tried = tried
        self._store = store
        self._clock = clock
        self._prepared = prepared
        self._runtimes = tuple(runtimes)
        self._asked = dict(asked or {})
        self._measuring = Turns()
        self._probing = threading.Lock()
        self._known: tuple[Facts, Profile] | None = None
        self._has_looked = False
        """Whether all drivers have answered once; what then runs is not disturbed by measuring the processor."""
        self._first: Facts | None = None
        """What is known though they have not."""
        self._early: dict[str, Plan] = {}
        """By model: what was measured while they had not."""

    def device(self, stop: threading.Event) -> tuple[Facts, Profile]:
        """Return what this device is and the profile that fits it.

        Raises:
            HoldfastError: the profiles do not fit; or the probe was stopped.
        """
        with self._probing:
            if (known := self._known) is None:
                facts, selection = recognise(
                    self._runtimes,
                    self._profile_name,
                    profiles=self._profiles,
                    tried=self._tried,
                    stop=stop,
                    first=self._take_first,
                )
                if stop.is_set():
                    raise StoppedPreparingError("stopped while looking at the hardware")
                self._known = known = facts, selection.profile
                self._has_looked = True
            return known

    def _take_first(self, facts: Facts) -> None:
        self._first = facts

    def look(self, wanted: Wanted, stop: threading.Event, post: Post) -> Facts:
        """Return what this device is. Where a driver takes its time to tell, or hangs, the CPU serves meanwhile: what it does
        best is posted as `Prepared` (`Plan.is_interim`). At the start only; later, something runs already.

        Raises:
            HoldfastError: as `device`.
        """
        has_answered, first = threading.Event(), None

        def ask() -> None:
            try:
                self.device(stop)
            except HoldfastError:
                pass  # it is raised again below
            finally:
                has_answered.set()

        threading.Thread(target=ask, name="survey", daemon=True).start()
        is_start = not (self._has_looked or wanted.is_switch or wanted.is_again)
        is_over = self._clock.wait(has_answered, EARLY_AFTER_S) or not is_start
        while not is_over and (first := self._first) is None:  # a slow board: its own facts take longer, too
            is_over = self._clock.wait(has_answered, LOOK_S)
        if not is_over and first is not None:
            try:
                self._serve_early(wanted, first, has_answered, post)
            except HoldfastError as error:
                log.info("model %s does not run before all drivers have answered: %s", wanted.model, error)
        return self.device(stop)[0]

    def _serve_early(self, wanted: Wanted, facts: Facts, has_answered: threading.Event, post: Post) -> None:
        """Plan as if the plain CPU were all there is, which may be known from an earlier start; ended by the drivers' answer."""
        profile = profile_for(facts, self._profile_name, profiles=self._profiles)
        demand = self._asked.get(wanted.model, Asked()).demand(facts, profile)
        bundle = self._open(wanted, facts, profile)
        post(BundleOpened(wanted, bundle))
        planner = Planner(facts, profile, self._store, self._clock, self._prepared)
        with self._measuring:
            plan = planner.stored(bundle, demand) or planner.measure(
                bundle,
                demand,
                progress=lambda each: post(TrialProgress(wanted.model, each)),
                stop=has_answered,
            )
        if plan is not None and not has_answered.is_set():
            self._early[wanted.model] = plan
            interim = replace(plan, is_interim=True, requested="what drivers offer that have not answered yet")
            post(Prepared(wanted, bundle, interim, was_stored=False))

    def look_again(self) -> None:
        """Forget what this device is and what worked on it: a driver that came late, or went, may change it."""
        with self._probing:
            self._known = None
            self._early.clear()
            if self._tried:
                self._tried.forget()

    def demand(self, model: str, stop: threading.Event) -> Demand:
        """Return what a model's plan is to be made for here.

        Raises:
            HoldfastError: as `device`.
        """
        return self._asked.get(model, Asked()).demand(*self.device(stop))

    def variants_for(self, manifest: Manifest, stop: threading.Event) -> frozenset[str]:
        """Return the variants of a bundle that a plan for this device may choose: the others need not be fetched."""
        return _variants_for(manifest, *self.device(stop))

    def prepare(self, wanted: Wanted, stop: threading.Event, post: Post) -> Prepared:
        """Open the bundle, check what will be used of it, and return it with a stored or a measured plan.

        One with a stored plan waits for no trial of another: the way back does not take as long as somebody's way in. Where an
        accelerator takes its time, what the CPU can do meanwhile is posted as `Prepared` too (`Plan.is_interim`); not while an
        older bundle runs.

        Raises:
            BundleError: the bundle is damaged, or not what the release says.
            CandidateError: nothing can run it here; each refusal is in the text.
            StoppedPreparingError: `stop` was set.
        """
        facts, profile = self.device(stop)
        demand = self.demand(wanted.model, stop)
        bundle = self._open(wanted, facts, profile)
        post(BundleOpened(wanted, bundle))
        planner = Planner(facts, profile, self._store, self._clock, self._prepared)

        def stored() -> Plan | None:
            return None if wanted.is_again else planner.stored(bundle, demand)

        def serve_meanwhile(plan: Plan) -> None:
            if not (wanted.is_switch or wanted.is_again):
                post(Prepared(wanted, bundle, plan, was_stored=False))
            self._measuring.yield_()

        if plan := stored():
            return Prepared(wanted, bundle, plan, was_stored=True)
        with self._measuring:
            plan = stored() or planner.measure(  # another model may have had the same bundle measured meanwhile
                bundle,
                demand,
                progress=lambda each: post(TrialProgress(wanted.model, each)),
                interim=serve_meanwhile,
                stop=stop,
                known=early.outcomes if (early := self._early.get(wanted.model)) and early.demand == demand else (),
            )
        if plan is None:
            raise StoppedPreparingError("stopped while measuring")
        return Prepared(wanted, bundle, plan, was_stored=False)

    def prepared_for(self, plan: Plan) -> Path | None:
        """Return the folder of what a plan's candidates compiled."""
        return self._prepared / plan.key if self._prepared else None

    def try_again(self, bundle: Bundle, plan: Plan, candidate: Candidate, stop: threading.Event) -> str | None:
        """Hold one trial of a candidate of a plan. Return why it is refused; None where it passed.

        Raises:
            StoppedPreparingError: `stop` was set.
        """
        profile = self.device(stop)[1]
        with self._measuring:
            ask = Ask(prepared=self.prepared_for(plan))
            outcome = run_trial(bundle.folder, candidate, profile.limits_for(candidate.provider), stop, ask=ask)
        if stop.is_set():
            raise StoppedPreparingError("stopped while measuring")
        return judge(outcome, profile, bundle.manifest).refusal

    def _open(self, wanted: Wanted, facts: Facts, profile: Profile) -> Bundle:
        if wanted.slot is None:
            return open_bundle(find_bundle(wanted.bundle))
        bundle = open_bundle(Path(wanted.bundle), verify=False)
        if bundle.digest != wanted.slot.digest:
            raise BundleError(
                f"expected the manifest {wanted.slot.digest[:16]}…, found {bundle.digest[:16]}…",
                where=wanted.bundle,
                hint="nothing: it is fetched again with the next check",
            )
        return open_bundle(Path(wanted.bundle), variants=_variants_for(bundle.manifest, facts, profile))


def _variants_for(manifest: Manifest, facts: Facts, profile: Profile) -> frozenset[str]:
    found, _ = candidates(facts, profile, manifest)
    return frozenset(candidate.variant for candidate in found)


class Preparation:
    """The thread that prepares one model.

    Args:
        wanted: What to prepare.
        post: Takes each note, in the preparing thread; should only hand over.
    """

    def __init__(self, wanted: Wanted, preparer: Preparer, *, post: Post) -> None:
        self._wanted = wanted
        self._preparer = preparer
        self._post = post
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"preparation-{wanted.model}", daemon=True)

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
            self._prepare()
        except StoppedPreparingError:
            return
        except HoldfastError as error:
            self._fail(error)
        except Exception as error:  # the top of a thread: core must hear of it
            log.exception("preparing model %s failed", self._wanted.model)
            self._fail(HoldfastError(f"{type(error).__name__}: {error}", where=self._wanted.bundle))

    def _prepare(self) -> None:
        self._post(FactsKnown(self._preparer.look(self._wanted, self._stop, self._post)))
        self._post(self._preparer.prepare(self._wanted, self._stop, self._post))

    def _fail(self, error: HoldfastError) -> None:
        self._post(PreparationFailed(self._wanted, error))


class Retrial(Preparation):
    """The thread that holds one trial of a candidate that failed at run time, and posts `TriedAgain`."""

    def __init__(self, prepared: Prepared, candidate: Candidate, preparer: Preparer, *, post: Post) -> None:
        super().__init__(prepared.wanted, preparer, post=post)
        self._prepared = prepared
        self._candidate = candidate

    def _prepare(self) -> None:
        prepared = self._prepared
        refusal = self._preparer.try_again(prepared.bundle, prepared.plan, self._candidate, self._stop)
        self._post(TriedAgain(self._wanted.model, self._candidate, refusal))

    def _fail(self, error: HoldfastError) -> None:
        self._post(TriedAgain(self._wanted.model, self._candidate, str(error)))
