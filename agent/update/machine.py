"""The updates of one model, as a state machine: notes and the time go in, actions come out. `TABLE` is all of it.

No thread, no clock, no disk: `agent.update.updater` carries the actions out, in order. The rules:

1. `Save` comes before the action it permits. One that is `is_required` must succeed, or the rest is dropped and `not_saved`
   is called. Going back is never made to wait for a disk: its `Save` is not required.
2. `record.active` is what a restart would run, at each moment. It is the old confirmed bundle, or one that passed its trial
   here; never one of a denied release. None is the operator's own bundle.
3. What is not in the table does not matter in that state: a late answer, a job that was called off.
4. Whatever fails by the network or the disk comes again by itself; whatever the release is to blame for is denied, until
   a newer release number offers it.

`Switch` may name what runs already; the app answers the newest one with `Switched` or `SwitchFailed`, and no older one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from agent.backoff import Backoff
from agent.clock import Random
from agent.update import advice, meaning, selection
from agent.update.actions import Action, Cancel, Check, Collect, Fetch, Log, Save, Switch, Try, WakeAt
from agent.update.meaning import Word
from agent.update.notes import (
    CheckDue,
    Checked,
    CheckFailed,
    CoreNote,
    FetchFailed,
    Health,
    Moment,
    RollbackWanted,
    SwitchFailed,
    TrialRefused,
    Tried,
    WorkNote,
)
from agent.update.probation import ENOUGH_SAMPLES, MAX_STARTS, SLOWER_THAN_OLD, Watch
from agent.update.record import Gates, Record, Slot, State, back_to_previous, denying, following
from agent.update.settings import UpdateSettings

SWITCH_LIMIT_S = 300.0
"""A large model loads and warms up within this on a slow board, or never."""
SAVE_EVERY_S = 60.0
"""Probation's progress: a flash card need not be written every second."""
FETCH_FIRST_S, FETCH_LIMIT_S = 5.0, 900.0
PATIENCE = 3
"""Failures in a row before a person hears of them: links break."""
RECHECK_S = 60.0
"""The wall clock may be set at any time: a closed gate is looked at again."""
REST: Final[frozenset[State]] = frozenset({"idle", "confirmed", "refused", "rolled_back"})
INCOMING: Final[frozenset[State]] = frozenset({"fetching", "staged", "trying"})
SWITCHING: Final[frozenset[State]] = frozenset({"switching"})
PROBATION: Final[frozenset[State]] = frozenset({"probation"})
WORKING: Final[frozenset[State]] = frozenset({"fetching", "trying"})
CALM: Final = REST | INCOMING
"""What runs is confirmed."""
ASKING: Final = CALM | PROBATION


@dataclass(frozen=True, slots=True)
class Row:
    """In one of `states`, on `word`, `does` happens: it saves `saves`, then does `then`."""

    states: Collection[State]
    word: Word
    does: Callable[[Machine, Any], None]
    saves: str
    then: str


@dataclass(frozen=True, slots=True)
class Resume:
    """In one of `states` a restart goes on with `does`: it saves `saves`, then does `then`."""

    states: Collection[State]
    does: Callable[[Machine], None]
    saves: str
    then: str


class Machine:
    """One model's updates.

    Args:
        record: As it was on disk.
        channel: What the operator's file names now; release numbers of another one mean nothing here.
        settings: The window and the probation.
        random: Jitter.
        has_factory: Whether the operator's file names a bundle of its own.
    """

    def __init__(
        self, record: Record, channel: str, settings: UpdateSettings, random: Random, *, has_factory: bool = True
    ) -> None:
        self.record = following(record, channel)
        self.waits_for = ""
        """Why nothing is taken now, for people."""
        self._settings, self._has_factory = settings, has_factory
        self._actions: list[Action] = []
        self._now: Moment
        self._safe = (self.record, False)
        """What to be again when a required Save fails: the record, and whether a switch was under way."""
        self._has_job = self._is_checking = self._is_switching = self._is_applied = self._check_waits = False
        self._rollback_waits = ""
        self._backoff = Backoff(random, FETCH_FIRST_S, FETCH_LIMIT_S)
        self._retry_s = self._switch_limit_s = self._saved_s = float("-inf")
        self._wake_s: float | None = None
        self._watch = Watch()
        self._usual_p99_ms: float | None = None

    @property
    def state(self) -> State:
        """For people. `checking` is never on disk, since a check changes nothing."""
        return "checking" if self._is_checking and self.record.state in REST else self.record.state

    @property
    def watch(self) -> Watch:
        """What probation has seen so far."""
        return self._watch

    def keep(self) -> frozenset[str]:
        """Return the digests of the bundles that must stay in the store."""
        slots = (self.record.active, self.record.previous, self.record.candidate)
        return frozenset(slot.digest for slot in slots if slot)

    def start(self, now: Moment) -> list[Action]:
        """The agent starts: see `RESUMES`. Then `record.active` is what the app runs; there is no `Switch` for it."""
        self._begin(now)
        _RESUMES[self.record.state].does(self)
        return self._end()

    def on(self, note: WorkNote | CoreNote, now: Moment) -> list[Action]:
        """Something happened: see `TABLE`."""
        self._begin(now)
        if isinstance(note, Checked | CheckFailed):
            self._is_checking = False
        if isinstance(note, Checked):
            self.record = replace(self.record, seen_release=note.release)
            self.waits_for = meaning.of_assignment(note.slot, self.record)[1]
        if isinstance(note, Health) and self.record.state == "probation":
            self._watch = self._watch.observe(note, self.record.gates, now.monotonic_s)
        self._look_up(meaning.of_note(note, self.record, self._watch, self._settings.probation), note)
        return self._end()

    def not_saved(self, reason: str, now: Moment) -> list[Action]:
        """A required Save failed: what it would have permitted did not happen, and comes again later."""
        self._begin(now)
        self.record, self._is_switching = self._safe
        if self.record.state == "trying":
            self.record = replace(self.record, state="staged")
        self._has_job = False
        self._retry_s = self._wake_s = now.monotonic_s + self._backoff.next_delay_s()
        self._do(advice.disk(self.record.model, reason))
        return self._end()

    # -- asking -------------------------------------------------------------------------------------------------------

    def _check(self, _: object) -> None:
        if self.record.state == "fetching":
            self._call_off()
        self._is_checking = True
        self._do(Check())

    def _check_later(self, _: object) -> None:
        self._check_waits = True

    def _keep(self, _: object) -> None:
        self._is_applied = False

    def _renumber(self, checked: Checked) -> None:
        """What runs is what is assigned: only its release number may be new."""
        self._call_off()
        self._is_applied = False
        state = "probation" if self.record.state == "probation" else self._rest()
        self._save(state=state, active=checked.slot, candidate=None, reason="")
        self._do(*advice.settled(self.record.model))

    def _drop(self, _: object) -> None:
        self._call_off()
        self._is_applied = False
        self._save(state=self._rest(), candidate=None, reason=self.waits_for)
        self._do(Collect())

    # -- the way in ---------------------------------------------------------------------------------------------------

    def _take(self, checked: Checked) -> None:
        candidate, active = checked.slot, self.record.active
        assert candidate
        self._call_off()
        self._backoff.reset()
        self._retry_s = float("-inf")
        is_here = active is not None and candidate.digest == active.digest
        self._require(state="staged" if is_here else "fetching", candidate=candidate, starts=0, reason="")
        self._pursue()

    def _pursue(self, _: object = None) -> None:
        """Go on with the candidate, where its gate is open and nothing is in the way."""
        candidate, now_s = self.record.candidate, self._now.monotonic_s
        if candidate is None:
            return
        gate = self._gate(candidate)
        self.waits_for = gate.reason
        self._wake_s = now_s + min(gate.changes_in_s or RECHECK_S, RECHECK_S)
        if not gate.is_open:
            self._call_off()
            if self.record.state == "trying":
                self._save(state="staged", starts=0)
        elif now_s < self._retry_s:
            self._wake_s = min(self._retry_s, self._wake_s)
        elif not (self._has_job or self._is_checking or self._is_switching):
            self._go_on_with(candidate)

    def _go_on_with(self, candidate: Slot) -> None:
        if self.record.state == "fetching":
            self._has_job = True
            self._do(Fetch(candidate))
        elif self.record.active and candidate.digest == self.record.active.digest:
            self._switch(self.record.gates)
        elif self.record.starts >= MAX_STARTS:
            self._refuse_for(f"the agent ended in each of {MAX_STARTS} trials of it.")
        else:
            self._require(state="trying", starts=self.record.starts + 1)
            self._has_job = True
            self._do(Try(candidate))

    def _have_staged(self, _: object) -> None:
        self._has_job = False
        self._backoff.reset()
        self._do(advice.arrives(self.record.model))
        self._save(state="staged")
        self._pursue()

    def _retry(self, failed: FetchFailed) -> None:
        self._has_job = False
        self._save(state="fetching", starts=0)
        self._retry_s = self._now.monotonic_s + self._backoff.next_delay_s()
        if self._backoff.attempts >= PATIENCE:
            self._do(advice.late(self.record.model, failed.reason))
        self._pursue()

    def _refuse(self, note: FetchFailed | TrialRefused) -> None:
        self._refuse_for(note.reason)

    def _refuse_for(self, reason: str) -> None:
        candidate = self.record.candidate
        assert candidate
        self._has_job = self._is_applied = False
        denied = denying(self.record, candidate, reason)
        self._save(state="refused", candidate=None, denied=denied, reason=reason, starts=0)
        self._do(advice.refused(self.record.model, candidate, reason), Collect())

    def _have_tried(self, tried: Tried) -> None:
        assert self.record.candidate
        self._has_job = False
        if self._is_switching or not self._gate(self.record.candidate).is_open:
            self._save(state="staged", starts=0)  # its plan is stored: the next trial takes a moment
            self._pursue()
            return
        usual = None if self._usual_p99_ms is None else self._usual_p99_ms * SLOWER_THAN_OLD
        self._switch(Gates(usual if tried.max_p99_ms is None else tried.max_p99_ms, tried.max_rss_bytes))

    def _apply(self, _: object) -> None:
        self._is_applied = True
        self._pursue()

    # -- switch and probation -----------------------------------------------------------------------------------------

    def _switch(self, gates: Gates) -> None:
        old, new = self.record.active, self.record.candidate
        self._require(
            state="switching", active=new, is_confirmed=False, previous=old, candidate=None,
            starts=1, probation_s=0.0, probation_samples=0, gates=gates,
        )  # fmt: skip
        self._is_applied = False
        self._send_switch(new)

    def _have_switched(self, _: object) -> None:
        self._is_switching = False
        self._watch = Watch(self.record.starts)
        self._save(state="probation")
        self._catch_up()

    def _give_up_switching(self, _: object) -> None:
        if self._now.monotonic_s >= self._switch_limit_s:
            self._go_back(f"the worker did not switch within {SWITCH_LIMIT_S:.0f} s.")

    def _watch_on(self, _: object) -> None:
        watch, has_crashed = self._watch, self._watch.starts != self.record.starts
        if has_crashed or self._now.monotonic_s >= self._saved_s + SAVE_EVERY_S:
            self._save(starts=watch.starts, probation_s=watch.seconds, probation_samples=watch.samples)

    def _note_usual(self, health: Health) -> None:
        if health.p99_ms is not None and health.samples >= ENOUGH_SAMPLES and not self._is_switching:
            self._usual_p99_ms = health.p99_ms

    def _confirm(self, _: object) -> None:
        seconds, samples = self._watch.seconds, self._watch.samples
        self._save(
            state="confirmed", is_confirmed=True, reason="", starts=0, probation_s=seconds, probation_samples=samples
        )
        self._do(*advice.settled(self.record.model), Collect())
        self._catch_up()

    def _let_wait(self, checked: Checked) -> None:
        """A newer release comes in probation. One that goes back on purpose ends it; any other waits for its end."""
        assert checked.slot
        self._save(candidate=checked.slot)
        if checked.slot.rollback_reason is not None:
            self._go_back(f"release {checked.slot.release} goes back: {checked.slot.rollback_reason}.")

    def _forget_waiting(self, _: object) -> None:
        self._save(candidate=None)

    # -- the way back -------------------------------------------------------------------------------------------------

    def _fail(self, _: object) -> None:
        self._go_back(f"{self._watch.failure(self.record.gates)}.")

    def _fail_switch(self, failed: SwitchFailed) -> None:
        self._go_back(failed.reason)

    def _roll_back(self, wanted: RollbackWanted) -> None:
        if self._is_switching:
            self._rollback_waits = wanted.reason or "no reason given"
        elif self.record.active is None or (self.record.previous is None and not self._has_factory):
            self.waits_for = "there is nothing to go back to"
        else:
            self._call_off()
            if self.record.state != "probation":
                self._check_waits = self.record.candidate is not None
                self.record = replace(self.record, candidate=None)
            self._go_back(f"the operator went back: {wanted.reason or 'no reason given'}.")

    def _go_back(self, reason: str, *, is_running: bool = True) -> None:
        """Deny the active release and return to what was confirmed before it."""
        bad, has_run = self.record.active, self.record.state != "switching"
        assert bad
        record = back_to_previous(self.record, "rolled_back" if has_run else "refused", reason)
        self._save_record(replace(record, denied=denying(record, bad, reason)))
        if has_run:
            self._do(advice.rolled_back(self.record, bad, reason, has_factory=self._has_factory))
        else:
            self._do(advice.refused(self.record.model, bad, reason))
        if is_running:
            self._send_switch(self.record.active)
        else:
            self._catch_up()

    def _went_back(self, _: object) -> None:
        self._is_switching = False
        self._catch_up()

    def _fall_back(self, failed: SwitchFailed) -> None:
        """The confirmed bundle is damaged: its release is not to blame, and a check brings it again."""
        self._is_switching = False
        broken = self.record.active
        if broken is None:
            self._do(advice.nothing_left(self.record.model, failed.reason))
            self._catch_up()
            return
        self._check_waits = True
        record = back_to_previous(self.record, self.record.state, failed.reason)
        if record.active is None and not self._has_factory:  # it stays: the next start may like it better
            self._save_record(replace(record, previous=broken))
            self._do(advice.nothing_left(self.record.model, failed.reason))
        else:
            self._save_record(record)
            self._do(advice.damaged(self.record, broken, failed.reason, has_factory=self._has_factory))
        self._send_switch(self.record.active)

    def _catch_up(self) -> None:
        """Do what had to wait for the switch or the probation."""
        if self._rollback_waits and not self._is_switching:
            wanted, self._rollback_waits = RollbackWanted(self._rollback_waits), ""
            self._look_up("rollback", wanted)
        if self._check_waits and not self._is_switching:
            self._check_waits = False
            self._look_up("check due", CheckDue())
        candidate = self.record.candidate
        if self.record.state in REST and candidate and not self._is_switching:
            self.record = replace(self.record, candidate=None)
            word, self.waits_for = meaning.of_assignment(candidate, self.record)
            self._look_up(word, Checked(self.record.model, self.record.seen_release, candidate))
        elif self.record.state in INCOMING:
            self._pursue()

    # -- a restart ----------------------------------------------------------------------------------------------------

    def _resume_at_rest(self) -> None:
        if self.record.active is None and not self._has_factory and self.record.previous:
            self._save(active=self.record.previous, previous=None)
        self._do(*advice.remembered(self.record), Collect())
        self._catch_up()

    def _resume_way_in(self) -> None:
        if self.record.state == "trying":
            self.record = replace(self.record, state="staged")
        self._pursue()

    def _resume_probation(self) -> None:
        record = self.record
        if record.starts >= MAX_STARTS:
            self._go_back(f"it was started {record.starts} times and never passed its probation.", is_running=False)
            return
        self._watch = Watch(record.starts + 1, record.probation_s, record.probation_samples)
        self._require(state="probation", starts=record.starts + 1)
        self._safe = (back_to_previous(record, "rolled_back", "its start could not be recorded."), False)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _begin(self, now: Moment) -> None:
        self._now, self._actions = now, []

    def _end(self) -> list[Action]:
        if self.record.state in REST | PROBATION:
            self._wake_s = None
        return [*self._actions, WakeAt(self._wake_s)]

    def _look_up(self, word: Word, note: object) -> None:
        if row := _ROWS.get((self.record.state, word)):
            row.does(self, note)

    def _do(self, *actions: Action) -> None:
        self._actions += actions

    def _require(self, **changes: Any) -> None:  # noqa: ANN401  fields of Record
        self._safe = (self.record, self._is_switching)
        self._save_record(replace(self.record, **changes), is_required=True)

    def _save(self, **changes: Any) -> None:  # noqa: ANN401  fields of Record
        self._save_record(replace(self.record, **changes))

    def _save_record(self, record: Record, *, is_required: bool = False) -> None:
        before, self.record = self.record, record
        if before == record:
            return
        self._saved_s = self._now.monotonic_s
        self._do(Save(record, is_required))
        about = before.candidate or record.candidate or before.active
        if before.state != record.state and about:
            self._do(Log(about.release, about.version, before.state, record.state, record.reason))

    def _send_switch(self, slot: Slot | None) -> None:
        self._is_switching = True
        self._switch_limit_s = self._wake_s = self._now.monotonic_s + SWITCH_LIMIT_S
        self._do(Switch(slot))

    def _call_off(self) -> None:
        if self._has_job:
            self._has_job = False
            self._do(Cancel())

    def _gate(self, candidate: Slot) -> selection.Gate:
        if self._is_applied:
            return selection.Gate(is_open=True)
        windows = [window for window in (candidate.window, self._settings.window) if window]
        return selection.gate(candidate.not_before, windows, self._now.utc)

    def _rest(self) -> State:
        return "confirmed" if self.record.active else "idle"

    # fmt: off
    TABLE: ClassVar = (
        #   in            on                    does                saves                            then
        Row(ASKING,       "check due",          _check,             "",                              "Check; a fetch pauses"),
        Row(SWITCHING,    "check due",          _check_later,       "",                              "Check after the switch"),
        Row(INCOMING,     "check failed",       _pursue,            "",                              "go on"),
        Row(REST,         "assigned nothing",   _keep,              "",                              ""),
        Row(REST,         "assigned active",    _renumber,          "active's release number",       "end conditions"),
        Row(REST,         "assigned new",       _take,              "fetching, candidate",           "Fetch"),
        Row(INCOMING,     "assigned nothing",   _drop,              "confirmed, no candidate",       "Cancel, Collect"),
        Row(INCOMING,     "assigned active",    _renumber,          "confirmed, no candidate",       "Cancel"),
        Row(INCOMING,     "assigned candidate", _pursue,            "",                              "go on"),
        Row(INCOMING,     "assigned new",       _take,              "fetching, newer candidate",     "Cancel, Fetch"),
        Row(SWITCHING,    "assigned new",       _check_later,       "",                              "Check after the switch"),
        Row(PROBATION,    "assigned nothing",   _forget_waiting,    "no candidate",                  ""),
        Row(PROBATION,    "assigned active",    _renumber,          "active's release number",       "end conditions"),
        Row(PROBATION,    "assigned new",       _let_wait,          "candidate",                     "rollback: go back"),
        Row(INCOMING,     "time",               _pursue,            "trying, starts + 1",            "Fetch, Try; shut: Cancel"),
        Row(INCOMING,     "apply",              _apply,             "trying, starts + 1",            "Fetch, Try in any case"),
        Row({"fetching"}, "staged",             _have_staged,       "staged; trying, starts + 1",    "Try"),
        Row({"fetching"}, "release bad",        _refuse,            "refused, denied, no candidate", "Collect"),
        Row(WORKING,      "fetch failed",       _retry,             "fetching",                      "Fetch after a delay"),
        Row({"trying"},   "trial refused",      _refuse,            "refused, denied, no candidate", "Collect"),
        Row({"trying"},   "tried",              _have_tried,        "switching, active=candidate",   "Switch(candidate)"),
        Row(SWITCHING,    "switched",           _have_switched,     "probation",                     "what had to wait"),
        Row(SWITCHING,    "switch failed",      _fail_switch,       "refused, active=previous",      "Switch(previous)"),
        Row(SWITCHING,    "time",               _give_up_switching, "refused, active=previous",      "Switch(previous)"),
        Row(SWITCHING,    "rollback",           _roll_back,         "",                              "go back afterwards"),
        Row(PROBATION,    "watched",            _watch_on,          "starts, seconds, samples",      ""),
        Row(PROBATION,    "passed",             _confirm,           "confirmed",                     "Collect, the next one"),
        Row(PROBATION,    "failed",             _fail,              "rolled_back, active=previous",  "Switch(previous)"),
        Row(PROBATION,    "switch failed",      _fail_switch,       "rolled_back, active=previous",  "Switch(previous)"),
        Row(PROBATION,    "rollback",           _roll_back,         "rolled_back, active=previous",  "Switch(previous)"),
        Row(CALM,         "rollback",           _roll_back,         "rolled_back, active=previous",  "Switch(previous)"),
        Row(CALM,         "switched",           _went_back,         "",                              "what had to wait"),
        Row(CALM,         "switch failed",      _fall_back,         "active=previous or factory",    "Switch(active); Check"),
        Row(CALM,         "watched",            _note_usual,        "",                              "remember the usual p99"),
    )
    RESUMES: ClassVar = (
        Resume(REST,                  _resume_at_rest,   "active=what was given up, if nothing else", "waiting candidate"),
        Resume(INCOMING,              _resume_way_in,    "trying, starts + 1; after 3: refused",      "Fetch or Try"),
        Resume(SWITCHING | PROBATION, _resume_probation, "probation, starts + 1; after 3: rolled_back", ""),
    )
    # fmt: on


TABLE: Final[tuple[Row, ...]] = Machine.TABLE
RESUMES: Final[tuple[Resume, ...]] = Machine.RESUMES
_ROWS: Final = {(state, row.word): row for row in TABLE for state in row.states}
_RESUMES: Final = {state: resume for resume in RESUMES for state in resume.states}
