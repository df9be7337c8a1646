"""What each model should run: the newest wish, the threads that prepare it, and when it is to be looked at again.

Belongs to core's thread. A wish comes from the start, from a release, or from a look whether there is better now. Only the newest
of a model counts: what comes of an older one answers no question any more. What becomes of a wish is `agent.running`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from agent.backoff import Backoff
from agent.clock import PLAUSIBLE_YEARS, Clock, Random
from agent.device.planning.plan import Candidate, Plan
from agent.preparation import Preparation, PreparationNote, Prepared, Preparer, Retrial, Wanted

NEXT_ATTEMPT_FIRST_S, NEXT_ATTEMPT_LIMIT_S = 30.0, 600.0
"""Where nothing can run the operator's own bundle: a driver may come late."""
LOOK_FIRST_S, LOOK_LIMIT_S = 60.0, 3600.0
"""Where a plan had to do without the accelerator that was asked for: how often it is looked whether that works now."""
TOO_OLD = timedelta(days=1)
"""Such a plan is measured anew, since what crashed in a trial looks the same to a probe before and after it is repaired."""


class Wishes:
    """The wishes of all models.

    Args:
        post: Takes the preparing threads' notes.
    """

    def __init__(
        self, preparer: Preparer, *, clock: Clock, random: Random, post: Callable[[PreparationNote], None]
    ) -> None:
        self._preparer = preparer
        self._clock = clock
        self._random = random
        self._post = post
        self._under_way: list[Preparation] = []
        self._newest: dict[str, Wanted] = {}
        self._later: dict[str, tuple[float, Wanted]] = {}
        self._attempts: dict[str, Backoff] = {}
        self._looks: dict[str, Backoff] = {}

    # -- now -----------------------------------------------------------------------------------------------------------

    def prepare(self, wanted: Wanted) -> None:
        """From now on this is what the model should run."""
        self._newest[wanted.model] = wanted
        self._begin(Preparation(wanted, self._preparer, post=self._post))

    def try_again(self, prepared: Prepared, candidate: Candidate) -> None:
        """Hold one trial of a candidate that failed at run time."""
        self._begin(Retrial(prepared, candidate, self._preparer, post=self._post))

    def _begin(self, preparation: Preparation) -> None:
        self._under_way = [each for each in self._under_way if each.is_running] + [preparation]
        preparation.start()

    def is_newest(self, wanted: Wanted) -> bool:
        """Whether this is still what the model should run."""
        return self._newest.get(wanted.model) is wanted

    def restore(self, wanted: Wanted) -> None:
        """A newer wish came to nothing, and this one runs on."""
        self._newest[wanted.model] = wanted

    def forget(self, model: str) -> None:
        """The model is to run nothing."""
        self.cancel(model)
        self._newest.pop(model, None)
        self._attempts.pop(model, None)
        self._looks.pop(model, None)

    def prepared_for(self, plan: Plan) -> Path | None:
        """Return the folder of what a plan's candidates compiled."""
        return self._preparer.prepared_for(plan)

    # -- later ---------------------------------------------------------------------------------------------------------

    def attempt_later(self, wanted: Wanted) -> None:
        """Nothing can run it now, and there is nothing else to go back to."""
        attempts = self._attempts.setdefault(
            wanted.model, Backoff(self._random, NEXT_ATTEMPT_FIRST_S, NEXT_ATTEMPT_LIMIT_S)
        )
        self._put_off(wanted, attempts)

    def look_later(self, prepared: Prepared) -> None:
        """See to it that an accelerator which could not be used is found when it can: a driver that was repaired, a stick."""
        plan, model = prepared.plan, prepared.wanted.model
        self.cancel(model)
        self._attempts.pop(model, None)
        if plan.fallback is None or plan.is_interim:
            self._looks.pop(model, None)
            return
        looks = self._looks.setdefault(model, Backoff(self._random, LOOK_FIRST_S, LOOK_LIMIT_S))
        is_again = self._is_too_old(datetime.fromisoformat(plan.made_at))
        self._put_off(replace(prepared.wanted, is_switch=False, is_again=is_again), looks)

    def _is_too_old(self, made_at: datetime) -> bool:
        """Also one from the future: the clock was ahead when it was made, and it would not be old for years."""
        now = self._clock.now()
        return now - made_at > TOO_OLD or (now.year in PLAUSIBLE_YEARS and made_at - now > TOO_OLD)

    def _put_off(self, wanted: Wanted, backoff: Backoff) -> None:
        self._later[wanted.model] = self._clock.monotonic() + backoff.next_delay_s(), wanted

    def cancel(self, model: str) -> None:
        """Do nothing later."""
        self._later.pop(model, None)

    def due(self, now_s: float) -> list[Wanted]:
        """Return what was put off until now, once; the device is looked at anew for it."""
        due = [wanted for at_s, wanted in self._later.values() if now_s >= at_s]
        if due:
            self._preparer.look_again()
        for wanted in due:
            self.cancel(wanted.model)
        return due

    @property
    def next_at_s(self) -> float | None:
        """The monotonic time at which something is due; None where nothing was put off."""
        return min((at_s for at_s, _ in self._later.values()), default=None)

    # -- the end -------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the probes and trials under way. Does not wait: see `join`."""
        for preparation in self._under_way:
            preparation.stop()

    def join(self, timeout_s: float) -> None:
        """Wait for each of their threads, for at most `timeout_s`."""
        for preparation in self._under_way:
            preparation.join(timeout_s)
