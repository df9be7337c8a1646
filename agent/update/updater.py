"""The updater, as core sees it: gives each model's notes to its state machine and carries out what that answers.

Belongs to core's thread, except `agent.update.work`, which does what takes long. Takes callables instead of the trial, the
worker and the transports, so that it knows none of them. A model's record is on disk before what it permits is done.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from agent.clock import Clock, Random
from agent.errors import StateError
from agent.health.conditions import ClearCondition, Conditions, SetCondition
from agent.log import brief
from agent.update.actions import Action, Cancel, Check, Collect, Fetch, Log, Save, Switch, Try, WakeAt
from agent.update.history import History, Step
from agent.update.machine import Machine
from agent.update.notes import (
    ApplyWanted,
    CheckDue,
    Checked,
    CheckFailed,
    CoreNote,
    FetchProgress,
    Health,
    Moment,
    RollbackWanted,
    Switched,
    SwitchFailed,
    Time,
    WorkNote,
)
from agent.update.record import Record, Slot
from agent.update.requests import Request, Requests
from agent.update.schedule import CheckSchedule
from agent.update.settings import UpdateSettings
from agent.update.slots import Slots

log = logging.getLogger(__name__)

REQUESTS_EVERY_S = 1.0
SAVE_AGAIN_S = 30.0


class Worker(Protocol):
    """What the updater needs of `work.Work`."""

    def start(self) -> None:
        """Begin."""
        ...

    def check(self, model: str) -> None:
        """Ask what a model should run."""
        ...

    def fetch(self, model: str, slot: Slot) -> None:
        """Ask for a bundle's bytes."""
        ...

    def try_(self, model: str, slot: Slot) -> None:
        """Ask for a bundle's trial."""
        ...

    def collect(self, keep: frozenset[str]) -> None:
        """Remove what is not kept."""
        ...

    def cancel(self, model: str) -> None:
        """Call off a model's fetch or trial."""
        ...

    def stop(self) -> None:
        """End soon."""
        ...

    def join(self, timeout_s: float) -> None:
        """Wait for the end."""
        ...


class Updater:
    """The updates of this device's models.

    Args:
        channels: The channel that each model follows.
        factories: The models whose section names a bundle of its own.
        settings: The operator's `update:` section.
        folder: `StatePaths.updates`.
        work: Carries out what takes long; its notes come to `deal_with`.
        switch: Verify a slot (None: the factory bundle) and run it. The app answers the newest one of each model with
            `switched` or `switch_failed`; what a newer one replaced has no answer. May answer from within the call.
    """

    def __init__(
        self,
        channels: Mapping[str, str],
        settings: UpdateSettings,
        folder: Path,
        *,
        factories: Collection[str],
        random: Random,
        clock: Clock,
        conditions: Conditions,
        work: Worker,
        switch: Callable[[str, Slot | None], None],
    ) -> None:
        self._channels, self._clock, self._conditions, self._work, self._switch = (
            dict(channels), clock, conditions, work, switch,
        )  # fmt: skip
        self._slots, self._history = Slots(folder), History(folder / "history.db")
        self._requests = Requests(folder / "requests")
        self._schedule = CheckSchedule(list(channels), settings, random)
        self._machines = {
            model: Machine(self._slots.load(model), channel, settings, random, has_factory=model in factories)
            for model, channel in channels.items()
        }
        self._todo: deque[tuple[str, Sequence[Action]]] = deque()
        self._is_busy = False
        self._wakeups: dict[str, float] = {}
        self._unsaved: dict[str, Record] = {}
        self._progress: dict[str, FetchProgress] = {}
        self._trust: tuple[int, datetime | None] | None = None
        self._answered_at: dict[str, datetime] = {}
        """When each model's last check was over, however it ended."""
        self._check_failed: dict[str, CheckFailed] = {}
        self._requests_s = self._save_again_s = 0.0

    # -- what core says ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Go on where the device stopped. Afterwards `active` says what to run."""
        self._work.start()
        now = self._moment()
        self._schedule.start(now.monotonic_s)
        self._requests_s = now.monotonic_s
        for model, machine in self._machines.items():
            self._carry_out(model, machine.start(now))

    def active(self, model: str) -> Slot | None:
        """Return what a worker that starts now is to run; None: the factory bundle."""
        return self._machines[model].record.active

    def deal_with(self, note: WorkNote) -> None:
        """Take what the updater's thread posted."""
        now_s = self._clock.monotonic()
        match note:
            case FetchProgress():
                self._progress[note.model] = note
            case Checked():
                self._answered_at[note.model] = self._clock.now()
                self._trust = (note.timestamp, note.expires)
                self._check_failed.pop(note.model, None)
                self._apply(self._schedule.checked(note, now_s))
            case CheckFailed():
                self._answered_at[note.model] = self._clock.now()
                self._check_failed[note.model] = note
                self._apply(self._schedule.failed(note, now_s))
        self._tell(note.model, note)

    def hint(self, payload: bytes) -> None:
        """Take what came on the hint's topic: from anybody, and worth no more than a question."""
        self._schedule.hint(payload, self._clock.monotonic())

    def observe(self, model: str, health: Health) -> None:
        """Take how a model's worker is; once a second, and at once when it died."""
        self._tell(model, health)

    def switched(self, model: str) -> None:
        """The worker runs what the last `switch` named."""
        self._tell(model, Switched())

    def switch_failed(self, model: str, reason: str) -> None:
        """What the last `switch` named, or what `active` said at the start, cannot run."""
        reason = brief(reason)
        self._tell(model, SwitchFailed(reason if reason.endswith(".") else f"{reason}."))

    def request(self, request: Request) -> None:
        """Do what an operator on this device wants."""
        models = [request.model] if request.model else list(self._machines)
        for model in models:
            if model not in self._machines:
                log.warning("update %s: no model %s follows a channel", request.verb, model)
                return
        if request.verb == "check":
            self._schedule.wanted(self._clock.monotonic())
        for model in models:
            match request.verb:
                case "apply" if self._machines[model].record.candidate is None:
                    self._schedule.wanted(self._clock.monotonic())
                case "apply":
                    self._tell(model, ApplyWanted())
                case "rollback":
                    self._tell(model, RollbackWanted(request.reason))

    def tick(self, now_s: float) -> float | None:
        """Do what is due; return when to be called again, in monotonic seconds."""
        if now_s >= self._requests_s:
            self._requests_s = now_s + REQUESTS_EVERY_S
            for request in self._requests.take():
                log.info("an operator asks for update %s", request.verb)
                self.request(request)
        if now_s >= self._schedule.due_s:
            self._schedule.began(now_s)
            for model in self._machines:
                self._tell(model, CheckDue())
        for model in [model for model, at_s in self._wakeups.items() if now_s >= at_s]:
            del self._wakeups[model]
            self._tell(model, Time())
        self._save_again(now_s)
        return min([self._requests_s, self._schedule.due_s, *self._wakeups.values()])

    def stop(self) -> None:
        """End what is under way; everything goes on at the next start. Does not wait: see `join`."""
        self._work.stop()

    def join(self, timeout_s: float) -> None:
        """Wait, for at most `timeout_s`, until the updater's thread has ended."""
        self._work.join(timeout_s)

    def document(self) -> dict[str, Any]:
        """Return the retained `update` topic's content: JSON-ready."""
        trust = None
        if self._trust:
            version, expires = self._trust
            trust = {"timestamp": version, "expires": _rfc3339(expires) if expires else None}
        return {
            "at": _rfc3339(self._clock.now()),
            "models": {model: self._describe(model) for model in self._machines},
            "trust": trust,
        }

    # -- inside ------------------------------------------------------------------------------------------------------

    def _moment(self) -> Moment:
        return Moment(self._clock.monotonic(), self._clock.now())

    def _tell(self, model: str, note: WorkNote | CoreNote) -> None:
        self._carry_out(model, self._machines[model].on(note, self._moment()))

    def _carry_out(self, model: str, actions: Sequence[Action]) -> None:
        """Do what was answered, in order. What an action itself brings about comes after all of these."""
        self._todo.append((model, actions))
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._todo:
                self._carry_out_one(*self._todo.popleft())
        finally:
            self._is_busy = False

    def _carry_out_one(self, model: str, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Save):
                if not self._save(action):
                    return
            else:
                self._act(model, action)

    def _act(self, model: str, action: Action) -> None:
        match action:
            case Check():
                self._work.check(model)
            case Fetch(slot):
                self._progress.pop(model, None)
                self._work.fetch(model, slot)
            case Try(slot):
                self._work.try_(model, slot)
            case Cancel():
                self._work.cancel(model)
            case Collect():
                kept: frozenset[str] = frozenset()
                self._work.collect(kept.union(*(machine.keep() for machine in self._machines.values())))
            case Switch(slot):
                self._switch(model, slot)
            case Log():
                self._log(model, action)
            case SetCondition() | ClearCondition():
                self._conditions.apply(action)
            case WakeAt(None):
                self._wakeups.pop(model, None)
            case WakeAt(float(at_s)):
                self._wakeups[model] = at_s

    def _save(self, save: Save) -> bool:
        """Return whether to go on."""
        model = save.record.model
        try:
            self._slots.save(save.record)
        except StateError as error:
            log.warning("%s", error)
            if not save.is_required:
                self._unsaved[model] = save.record
                return True
            now = self._moment()
            self._schedule.retry(now.monotonic_s)
            self._carry_out(model, self._machines[model].not_saved(f"{error.where}: {error.message}.", now))
            return False
        self._unsaved.pop(model, None)
        return True

    def _save_again(self, now_s: float) -> None:
        """A record that going back did not wait for."""
        if not self._unsaved or now_s < self._save_again_s:
            return
        self._save_again_s = now_s + SAVE_AGAIN_S
        for model in list(self._unsaved):
            self._save(Save(self._machines[model].record, is_required=False))

    def _apply(self, steps: Sequence[SetCondition | ClearCondition]) -> None:
        for step in steps:
            self._conditions.apply(step)

    def _log(self, model: str, row: Log) -> None:
        log.info(
            "model %s: update %s → %s (release %d, %s) %s",
            model, row.before, row.after, row.release, row.version, row.reason,
            extra={"fields": {"event": "update", "model": model, "release": row.release, "state": row.after}},
        )  # fmt: skip
        at = _rfc3339(self._clock.now())
        self._history.add(Step(at, model, row.release, row.version, row.before, row.after, row.reason))

    def _describe(self, model: str) -> dict[str, Any]:
        machine = self._machines[model]
        record, progress = machine.record, self._progress.get(model)
        active = _describe_slot(record.active) or {"release": None, "name": None, "version": None, "digest": None}
        is_fetching = record.state == "fetching" and progress is not None
        return {
            "channel": self._channels[model],
            "state": machine.state,
            **active,
            "confirmed": record.is_confirmed,
            "previous": _describe_slot(record.previous),
            "candidate": _describe_slot(record.candidate),
            "progress": _describe_progress(progress) if is_fetching and progress else None,
            "reason": record.reason or machine.waits_for,
            "waits_for": machine.waits_for,
            "checked_at": _rfc3339(at) if (at := self._answered_at.get(model)) else None,
            "check_failed": _describe_failure(self._check_failed.get(model)),
            "denied": [{"release": each.release, "reason": each.reason} for each in record.denied],
        }


def _describe_slot(slot: Slot | None) -> dict[str, Any] | None:
    if slot is None:
        return None
    return {"release": slot.release, "name": slot.name, "version": slot.version, "digest": slot.digest}


def _describe_failure(failed: CheckFailed | None) -> dict[str, Any] | None:
    return {"reason": failed.reason, "hint": failed.hint} if failed else None


def _describe_progress(progress: FetchProgress) -> dict[str, Any]:
    return {
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "transport": progress.transport,
    }


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
