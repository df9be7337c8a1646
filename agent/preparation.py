"""From a model to something that can run: facts and profile once, then for each model its bundle and its plan.

`Preparer` does it in the caller's thread and all of its heavy work in child processes; one model at a time, since
trials must not disturb each other's timing. `Preparation` is the thread that does it for core and posts notes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.bundle.finding import find_bundle
from agent.bundle.manifest import Manifest
from agent.bundle.reader import Bundle, open_bundle
from agent.clock import Clock
from agent.device.candidates import candidates
from agent.device.facts import Facts
from agent.device.plan import Candidate, Outcome, Plan
from agent.device.planstore import PlanStore
from agent.device.profile import Profile
from agent.device.recognition import recognise
from agent.device.tried import Tried
from agent.errors import BundleError, HoldfastError
from agent.trial.measuring import Loaded
from agent.trial.planner import make_plan, stored_plan
from agent.update.record import Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model should run: a bundle that a release brought (`slot`), or the operator's own (None)."""

    model: str
    bundle: str
    """A folder, or the name of one that ships with Holdfast."""
    slot: Slot | None = None
    is_switch: bool = False
    """Another bundle runs, and the updater waits for the outcome."""


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


PreparationNote = FactsKnown | BundleOpened | TrialProgress | Prepared | PreparationFailed
Post = Callable[[PreparationNote], None]


class StoppedPreparingError(HoldfastError):
    """The stop event was set."""


class Preparer:
    """Facts and profile of this device, probed when first needed, and the trials. Any thread may use it; one at a time measures.

    Args:
        profile: The device profile that the operator named, if any.
        store: Where plans are kept.
        runtimes: The operator's `device.runtimes`.
        tried: Which devices have worked at an earlier start; None: all are tried at each.
    """

    def __init__(
        self,
        profile: str | None,
        store: PlanStore,
        clock: Clock,
        *,
        runtimes: Sequence[str] = (),
        tried: Tried | None = None,
    ) -> None:
        self._profile_name = profile
        self._runtimes = tuple(runtimes)
        self._tried = tried
        self._store = store
        self._clock = clock
        self._measuring = threading.Lock()
        self._known: tuple[Facts, Profile] | None = None

    def device(self, stop: threading.Event) -> tuple[Facts, Profile]:
        """Return what this device is and the profile that fits it.

        Raises:
            HoldfastError: the profiles do not fit; or the probe was stopped.
        """
        if (known := self._known) is None:
            facts, selection = recognise(self._runtimes, self._profile_name, tried=self._tried, stop=stop)
            if stop.is_set():
                raise StoppedPreparingError("stopped while looking at the hardware")
            self._known = known = facts, selection.profile
        return known

    def look_again(self) -> None:
        """Forget what this device is and what worked on it: a driver that came late, or went, may change it."""
        self._known = None
        if self._tried:
            self._tried.forget()

    def variants_for(self, manifest: Manifest, stop: threading.Event) -> frozenset[str]:
        """Return the variants of a bundle that a plan for this device may choose: the others need not be fetched."""
        found, _ = candidates(*self.device(stop), manifest)
        return frozenset(candidate.variant for candidate in found)

    def prepare(self, wanted: Wanted, stop: threading.Event, post: Post) -> Prepared:
        """Open the bundle, check what will be used of it, and return it with a stored or a measured plan.

        One with a stored plan waits for no trial of another: the way back does not take as long as somebody's way in.

        Raises:
            BundleError: the bundle is damaged, or not what the release says.
            CandidateError: nothing can run it here; each refusal is in the text.
            StoppedPreparingError: `stop` was set.
        """
        facts, profile = self.device(stop)
        bundle = self._open(wanted, stop)
        post(BundleOpened(wanted, bundle))
        if stored := stored_plan(bundle, facts, profile, self._store):
            return Prepared(wanted, bundle, stored, was_stored=True)
        with self._measuring:
            plan = make_plan(
                bundle,
                facts,
                profile,
                self._store,
                self._clock,
                progress=lambda each: post(TrialProgress(wanted.model, each)),
                stop=stop,
            )
        if plan is None:
            raise StoppedPreparingError("stopped while measuring")
        return Prepared(wanted, bundle, plan, was_stored=False)

    def _open(self, wanted: Wanted, stop: threading.Event) -> Bundle:
        if wanted.slot is None:
            return open_bundle(find_bundle(wanted.bundle))
        bundle = open_bundle(Path(wanted.bundle), verify=False)
        if bundle.digest != wanted.slot.digest:
            raise BundleError(
                f"expected the manifest {wanted.slot.digest[:16]}…, found {bundle.digest[:16]}…",
                where=wanted.bundle,
                hint="nothing: it is fetched again with the next check",
            )
        return open_bundle(Path(wanted.bundle), variants=self.variants_for(bundle.manifest, stop))


class Preparation:
    """The thread that prepares models one after another.

    Args:
        wanted: What to prepare, in this order.
        post: Takes each note, in the preparing thread; should only hand over.
    """

    def __init__(self, wanted: Sequence[Wanted], preparer: Preparer, *, post: Post) -> None:
        self._wanted = tuple(wanted)
        self._preparer = preparer
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
            self._post(FactsKnown(self._preparer.device(self._stop)[0]))
        except StoppedPreparingError:
            return
        except HoldfastError as error:
            for wanted in self._wanted:
                self._post(PreparationFailed(wanted, error))
            return
        for wanted in self._wanted:
            try:
                self._post(self._preparer.prepare(wanted, self._stop, self._post))
            except StoppedPreparingError:
                return
            except HoldfastError as error:
                self._post(PreparationFailed(wanted, error))
            except Exception as error:  # the top of a thread: one model's trouble must not silence the others
                log.exception("preparing model %s failed", wanted.model)
                unknown = HoldfastError(f"{type(error).__name__}: {error}", where=wanted.bundle)
                self._post(PreparationFailed(wanted, unknown))
