"""The state machine of one model, row by row, on a virtual clock and a real disk, with the power cut between any two actions.

`Device` is one model of a device: its disk is real; what its worker, its network and its trials do is said by the test.
It checks after each action what must always hold.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.health.conditions import ClearCondition, SetCondition
from agent.update.actions import Cancel, Check, Collect, Fetch, Log, Save, Switch, Try, WakeAt
from agent.update.machine import CALM, INCOMING, REST, RESUMES, SWITCH_LIMIT_S, TABLE, Machine
from agent.update.notes import (
    ApplyWanted,
    CheckDue,
    Checked,
    CheckFailed,
    FetchFailed,
    Health,
    Moment,
    RollbackWanted,
    Staged,
    Switched,
    SwitchFailed,
    Time,
    TrialRefused,
    Tried,
)
from agent.update.record import Denied, Gates, Record, Slot
from agent.update.settings import ProbationSettings, UpdateSettings
from agent.update.slots import Slots
from simulator.clock import SeededRandom, VirtualClock

PROBATION_S = 20
SETTINGS = UpdateSettings(root=Path("root.json"), probation=ProbationSettings(seconds=PROBATION_S, samples=10))
CLOSED = "22:00-23:00"
"""The virtual clock begins at 09:00."""


def slot(release, *, bundle=None, **fields):
    number = bundle or release
    return Slot(release, "parcels", f"{number}.0.0", f"{number:064x}", **fields)


OLDER, OLD, NEW, NEWER = slot(4), slot(5), slot(6), slot(9)


class PowerCutError(Exception):
    """The power is gone, here."""


class Device:
    """One model. `assigned` is what the channel says; bundles in `bad` crash three seconds after each start."""

    def __init__(self, folder, record=None, settings=SETTINGS, has_factory=True):
        self.slots, self.settings, self.has_factory = Slots(folder), settings, has_factory
        self.clock, self.random = VirtualClock(), SeededRandom(1)
        self.assigned, self.bad = None, set()
        self.tried, self.starts = set(), {}
        self.disk_is_full = self.had_disk_trouble = False
        self.cut_after = None
        self.confirmed = [None]
        if record:
            self.slots.save(record)
            self.confirmed += [record.previous] + ([record.active] if record.is_confirmed else [])
            self.tried |= {each.digest for each in self.confirmed if each}
        self.boot()

    # -- the world

    def boot(self):
        """The agent starts, from what is on the disk."""
        self.running, self.jobs, self.wake_s, self.conditions, self.history = "nothing", [], None, {}, []
        self.run_s = self.samples = self.crashes = 0
        self.slots = Slots(self.slots._folder)
        self.machine = Machine(self.slots.load("m"), "stable", self.settings, self.random, has_factory=self.has_factory)
        self.seen = []
        self.carry_out(self.machine.start(self.now))
        self.run(self.machine.record.active)

    def run(self, wanted):
        self.running, self.run_s = wanted, 0
        self.samples = self.crashes = 0
        self.count_start()

    def count_start(self):
        if self.running is not None and not self.machine.record.is_confirmed:
            self.starts[self.running.release] = self.starts.get(self.running.release, 0) + 1

    @property
    def now(self):
        return Moment(self.clock.monotonic(), self.clock.now())

    @property
    def record(self):
        return self.machine.record

    def tell(self, note):
        """Return the actions, without bookkeeping, after carrying all out."""
        self.seen = []
        if isinstance(note, Tried):
            self.tried.add(note.digest)
        self.carry_out(self.machine.on(note, self.now))
        return [each for each in self.seen if not isinstance(each, Save | Log | WakeAt | SetCondition | ClearCondition)]

    def carry_out(self, actions):
        for action in actions:
            if self.cut_after is not None:
                if self.cut_after == 0:
                    raise PowerCutError
                self.cut_after -= 1
            if isinstance(action, Save) and not self.save(action):
                return
            self.seen.append(action)
            match action:
                case Check() | Fetch() | Try() | Switch():
                    self.jobs.append(action)
                case Cancel():
                    self.jobs = [job for job in self.jobs if not isinstance(job, Fetch | Try)]
                case WakeAt(at_s):
                    self.wake_s = at_s
                case SetCondition(name):
                    self.conditions[name] = action
                case ClearCondition(name):
                    self.conditions.pop(name, None)
                case Log():
                    self.history.append((action.before, action.after))
            self.look(action)

    def save(self, action):
        if self.disk_is_full:
            self.had_disk_trouble = True
            if action.is_required:
                self.carry_out(self.machine.not_saved("the disk is full.", self.now))
                return False
            return True
        self.slots.save(action.record)
        return True

    def look(self, action):
        """What must hold after each action."""
        for record in (self.machine.record, Slots(self.slots._folder).load("m")):
            active = record.active
            assert active is None or active.digest in self.tried, "runs what never passed a trial"
            assert not any(active and each.release == active.release for each in record.denied), "runs what is denied"
        if isinstance(action, Switch) and action.slot not in self.confirmed:
            disk = Slots(self.slots._folder).load("m")
            assert (disk.active, disk.is_confirmed) == (action.slot, False), "switched before it was recorded"

    def answer(self, job):
        """The world answers a job well."""
        self.jobs.remove(job)
        match job:
            case Check():
                return self.tell(Checked("m", self.assigned.release if self.assigned else 1, self.assigned))
            case Fetch(wanted):
                return self.tell(Staged("m", wanted.digest))
            case Try(wanted):
                return self.tell(Tried("m", wanted.digest))
            case Switch(wanted):
                self.run(wanted)
                return self.tell(Switched())
        raise AssertionError(job)

    def work(self):
        """Answer every job that can be answered, in the order of `Work`, switches first."""
        order = (Switch, Check, Try, Fetch)
        while self.jobs:
            self.answer(min(self.jobs, key=lambda job: order.index(type(job))))

    def second(self, *, crash=False, samples=1, **health):
        """One second of the worker, as core sees it."""
        self.clock.advance(1)
        self.run_s += 1
        self.samples += samples
        if crash or (self.running not in (None, "nothing") and self.running.digest in self.bad and self.run_s >= 3):
            self.crashes, self.run_s = self.crashes + 1, 0
            was = self.running
            health["last_failure"] = "SIGSEGV"
        else:
            was = None
        values = {"last_failure": "", "invalid_answers": 0, "p99_ms": 5.0, "rss_bytes": 1, **health}
        done = self.tell(Health(running_s=self.run_s, samples=self.samples, crashes=self.crashes, **values))
        if was is not None and self.record.active == was:
            self.count_start()  # supervision starts it again
        if (
            self.record.is_confirmed and self.record.active
        ):  # in whatever state: another release may have waited for this
            self.confirmed.append(self.record.active)
        return done

    def pass_time(self):
        """Do what is due next, if anything is."""
        if self.wake_s is not None:
            self.clock.advance(max(0.0, self.wake_s - self.clock.monotonic()))
            self.tell(Time())

    def settle(self):
        """All faults are over: the device must come to rest."""
        self.cut_after, self.disk_is_full = None, False
        self.work()
        self.tell(CheckDue())
        for _ in range(400):
            self.work()
            if self.record.state == "probation":
                self.second()
            elif self.wake_s is not None:
                if self.machine.waits_for:
                    self.clock.advance(1000)
                self.pass_time()
            elif self.record.state in REST and not self.jobs:
                return
        raise AssertionError(f"no rest: {self.record}")


# -- each row ---------------------------------------------------------------------------------------------------------


def confirmed_device(folder, **record):
    fields = {"state": "confirmed", "active": OLD, "previous": OLDER, **record}
    return Device(folder, Record("m", "stable", **fields))


def at(state, folder):
    """Return a device in this state; the candidate, or what is being watched, is NEW."""
    match state:
        case "idle":
            return Device(folder)
        case "confirmed":
            return confirmed_device(folder)
        case "refused" | "rolled_back":
            return confirmed_device(folder, state=state, denied=(Denied(3, "3" * 64, "slow."),), reason="slow.")
    device = confirmed_device(folder)
    device.jobs.clear()
    device.assigned = NEW if state != "staged" else replace(NEW, window=CLOSED)
    if state == "staged":
        device.clock.set_wall(device.clock.now().replace(hour=22))
    device.tell(CheckDue())
    device.answer(Check())
    for reached in ("fetching", "staged", "trying", "switching", "probation"):
        if state == "staged" and device.record.state == "fetching":
            device.clock.set_wall(device.clock.now() + timedelta(hours=6))
        if reached == state:
            break
        if reached != "staged":
            device.answer(device.jobs[0])
    if state == "staged":
        device.clock.set_wall(device.clock.now() + timedelta(hours=18))
    assert device.record.state == state
    return device


NOTES = {
    "check due": lambda device: CheckDue(),
    "check failed": lambda device: CheckFailed("m", "nobody answers."),
    "assigned nothing": lambda device: Checked("m", 9, None),
    "assigned active": lambda device: Checked("m", 9, replace(device.record.active or OLD, release=9)),
    "assigned candidate": lambda device: Checked("m", 9, device.record.candidate),
    "assigned new": lambda device: Checked("m", 9, NEWER),
    "time": lambda device: Time(),
    "apply": lambda device: ApplyWanted(),
    "staged": lambda device: Staged("m", NEW.digest),
    "release bad": lambda device: FetchFailed("m", NEW.digest, "no manifest.", is_final=True),
    "fetch failed": lambda device: FetchFailed("m", NEW.digest, "the link broke."),
    "trial refused": lambda device: TrialRefused("m", NEW.digest, "NaN."),
    "tried": lambda device: Tried("m", NEW.digest),
    "switched": lambda device: Switched(),
    "switch failed": lambda device: SwitchFailed("a blob is damaged."),
    "rollback": lambda device: RollbackWanted("too many false alarms"),
    "watched": lambda device: Health(1, 1, 0, "", 0, 5.0, 1),
    "passed": lambda device: Health(99, 99, 0, "", 0, 5.0, 1),
    "failed": lambda device: Health(0, 1, 1, "SIGSEGV", 0, 5.0, 1),
}
BACK = {"state": "rolled_back", "active": OLD, "is_confirmed": True, "denies": 6, "does": [Switch(OLD)]}
REFUSED = {"state": "refused", "active": OLD, "denies": 6, "does": [Collect()], "candidate": None}
KEPT = {"does": []}
# What each row does; by the state and the word. What is not named stays as it was.
EXPECTED = {
    **{(state, "check due"): {"does": [Check()]} for state in REST | {"staged", "trying", "probation"}},
    ("fetching", "check due"): {"does": [Cancel(), Check()]},
    ("switching", "check due"): KEPT,
    **{(state, "check failed"): KEPT for state in INCOMING - {"staged"}},
    ("staged", "check failed"): {"state": "trying", "does": [Try(replace(NEW, window=CLOSED))]},
    **{(state, "assigned nothing"): KEPT for state in REST},
    ("idle", "assigned active"): {"state": "fetching", "does": [Fetch(replace(OLD, release=9))]},
    **{
        (state, "assigned active"): {"state": "confirmed", "active": replace(OLD, release=9), "does": []}
        for state in REST - {"idle"}
    },
    **{(state, "assigned new"): {"state": "fetching", "candidate": NEWER, "does": [Fetch(NEWER)]} for state in REST},
    ("fetching", "assigned nothing"): {"state": "confirmed", "candidate": None, "does": [Cancel(), Collect()]},
    ("staged", "assigned nothing"): {"state": "confirmed", "candidate": None, "does": [Collect()]},
    ("trying", "assigned nothing"): {"state": "confirmed", "candidate": None, "does": [Cancel(), Collect()]},
    **{
        (state, "assigned active"): {
            "state": "confirmed",
            "candidate": None,
            "active": replace(OLD, release=9),
            "does": [] if state == "staged" else [Cancel()],
        }
        for state in INCOMING
    },
    **{(state, "assigned candidate"): KEPT for state in INCOMING - {"staged"}},
    ("staged", "assigned candidate"): {"state": "trying", "does": [Try(replace(NEW, window=CLOSED))]},
    ("staged", "assigned new"): {"state": "fetching", "candidate": NEWER, "does": [Fetch(NEWER)]},
    **{
        (state, "assigned new"): {"state": "fetching", "candidate": NEWER, "does": [Cancel(), Fetch(NEWER)]}
        for state in ("fetching", "trying")
    },
    ("switching", "assigned new"): KEPT,
    ("probation", "assigned nothing"): {"does": []},
    ("probation", "assigned active"): {"active": replace(NEW, release=9), "does": []},
    ("probation", "assigned new"): {"candidate": NEWER, "does": []},
    **{(state, word): KEPT for state in ("fetching", "trying") for word in ("time", "apply")},
    **{("staged", word): {"state": "trying", "does": [Try(replace(NEW, window=CLOSED))]} for word in ("time", "apply")},
    ("fetching", "staged"): {"state": "trying", "does": [Try(NEW)]},
    ("fetching", "release bad"): REFUSED,
    ("fetching", "fetch failed"): {"state": "fetching", "does": []},
    ("trying", "fetch failed"): {"state": "fetching", "does": []},
    ("trying", "trial refused"): REFUSED,
    ("trying", "tried"): {
        "state": "switching",
        "active": NEW,
        "previous": OLD,
        "candidate": None,
        "is_confirmed": False,
        "does": [Switch(NEW)],
    },
    ("switching", "switched"): {"state": "probation", "does": []},
    ("switching", "switch failed"): {**BACK, "state": "refused"},
    ("switching", "time"): {**BACK, "state": "refused"},
    ("switching", "rollback"): KEPT,
    ("probation", "watched"): {"does": []},
    ("probation", "passed"): {"state": "confirmed", "is_confirmed": True, "does": [Collect()]},
    ("probation", "failed"): BACK,
    ("probation", "switch failed"): BACK,
    ("probation", "rollback"): BACK,
    ("idle", "rollback"): KEPT,
    **{
        (state, "rollback"): {"state": "rolled_back", "active": OLDER, "denies": 5, "does": [Switch(OLDER)]}
        for state in REST - {"idle"} | {"staged"}
    },
    **{
        (state, "rollback"): {
            "state": "rolled_back",
            "active": OLDER,
            "candidate": None,
            "denies": 5,
            "does": [Cancel(), Switch(OLDER)],
        }
        for state in ("fetching", "trying")
    },
    **{(state, "switched"): KEPT for state in CALM - {"staged"}},
    ("staged", "switched"): {"state": "trying", "does": [Try(replace(NEW, window=CLOSED))]},
    ("idle", "switch failed"): KEPT,
    **{
        (state, "switch failed"): {"active": OLDER, "previous": None, "does": [Switch(OLDER)]}
        for state in CALM - {"idle"}
    },
    **{(state, "watched"): KEPT for state in CALM},
}
PAIRS = sorted({(state, row.word) for row in TABLE for state in row.states})


def ready_for(state, word, folder):
    """Return a device in this state to which this word is said next."""
    device = at(state, folder)
    if (state, word) == ("switching", "time"):
        device.clock.advance(SWITCH_LIMIT_S)
    if (state, word) == ("probation", "passed"):
        for _ in range(PROBATION_S):
            device.second()
        device.clock.advance(1)
    if (state, word) == ("probation", "failed"):
        device.second()
    return device


def named(pair):
    return f"{pair[0]}: {pair[1]}"


def test_every_row_is_tested():
    """A row that is added without its line here would be trusted unseen."""
    assert set(EXPECTED) == set(PAIRS)


def test_no_two_rows_answer_the_same():
    """The later one would win in silence."""
    pairs = [(state, row.word) for row in TABLE for state in row.states]
    assert len(pairs) == len(set(pairs))


def test_every_state_of_a_record_has_a_resume():
    """A restart may find each of them on the disk."""
    states = [state for resume in RESUMES for state in resume.states]
    assert len(states) == len(set(states))
    assert set(states) == REST | INCOMING | {"switching", "probation"}


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_row(pair, tmp_path):
    """The record and the actions of this row, and nothing else."""
    device = ready_for(*pair, tmp_path)
    before, expected = device.record, dict(EXPECTED[pair])
    assert device.tell(NOTES[pair[1]](device)) == expected.pop("does")
    if denies := expected.pop("denies", None):
        assert device.record.denied[-1].release == denies
    else:
        assert device.record.denied == before.denied
    for field in ("state", "active", "previous", "candidate", "is_confirmed"):
        if field in expected or (field in ("state", "active", "is_confirmed") and pair != ("idle", "assigned active")):
            assert getattr(device.record, field) == expected.get(field, getattr(before, field)), field


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_power_cut_in_row(pair, tmp_path):
    """Before each action of the row the power goes: the next start has a bundle that may run, and takes the next release."""
    cut = 0
    while True:
        folder = tmp_path / str(cut)
        device = ready_for(*pair, folder)
        device.cut_after = cut
        try:
            device.tell(NOTES[pair[1]](device))
        except PowerCutError:
            device.cut_after = None
            device.boot()
            device.look(None)
            device.assigned = NEWER
            device.settle()
            assert (device.record.state, device.record.active, device.running) == ("confirmed", NEWER, NEWER)
            cut += 1
            continue
        break
    assert cut > 0


@pytest.mark.parametrize(
    "state", ["idle", "fetching", "staged", "trying", "switching", "probation", "confirmed", "refused"]
)
def test_disk_full_in_every_state_stops_nothing_that_runs(state, tmp_path):
    """Steps wait until the disk has room again; then the release is taken."""
    device = at(state, tmp_path)
    running, device.disk_is_full, device.assigned = device.running, True, NEWER
    device.tell(CheckDue())
    for _ in range(5):
        if device.jobs:
            device.answer(device.jobs[0])
    assert device.running in (running, NEW)
    device.settle()
    device.tell(CheckDue())
    device.settle()
    assert device.record.active == NEWER


# -- promises that span rows ------------------------------------------------------------------------------------------


def test_release_goes_all_the_way(tmp_path):
    """The plain case: fetched, tried, switched, watched, confirmed; the old one stays as the way back."""
    device = confirmed_device(tmp_path)
    device.assigned = NEW
    device.settle()
    assert (device.record.active, device.record.previous, device.running) == (NEW, OLD, NEW)
    assert [after for _, after in device.history] == [
        "fetching", "staged", "trying", "switching", "probation", "confirmed"
    ]  # fmt: skip
    assert not device.conditions


def test_same_assignment_again_writes_nothing(tmp_path):
    """An idle device that asks once a day must not wear its flash."""
    device = confirmed_device(tmp_path)
    device.assigned = OLD
    device.settle()
    device.seen = []
    device.tell(CheckDue())
    device.work()
    assert not [action for action in device.seen if isinstance(action, Save)]


def test_crashing_release_is_denied_and_a_newer_number_may_offer_it_again(tmp_path):
    """The bundle may have been innocent; only a person can know, and says so by a new release."""
    device = confirmed_device(tmp_path)
    device.assigned, device.bad = NEW, {NEW.digest}
    device.settle()
    assert (device.record.state, device.running) == ("rolled_back", OLD)
    assert "SIGSEGV" in device.conditions["rolled-back/m"].text
    device.settle()
    assert device.starts[NEW.release] == 1, "a denied release was tried again"
    device.bad, device.assigned = set(), replace(NEW, release=7)
    device.settle()
    assert device.record.active == replace(NEW, release=7)
    assert not device.conditions


@pytest.mark.parametrize("seconds", [0, 1, 2, 5])
def test_crashing_bundle_gets_three_starts_at_most_whatever_else_dies(seconds, tmp_path):
    """A bundle that takes the agent down with it leaves no time for a verdict: only the count on the disk ends it."""
    device = at("probation", tmp_path)
    device.starts = {NEW.release: 1}
    for _ in range(6):
        for _ in range(seconds):
            device.second()
        device.boot()
    assert device.starts[NEW.release] <= 3
    assert (device.record.state, device.running) == ("rolled_back", OLD)


def test_trial_that_ends_the_agent_is_given_up(tmp_path):
    """A memory bomb may take the whole device down; the next start must not try it for ever."""
    device = at("trying", tmp_path)
    for _ in range(3):
        device.boot()
    assert device.record.state == "refused"
    assert device.record.denied[-1].release == NEW.release


def test_window_that_closes_pauses_the_fetch_and_opens_again(tmp_path):
    """Bytes may cost money by day; the candidate is kept."""
    device = confirmed_device(tmp_path)
    device.clock.set_wall(device.clock.now().replace(hour=22, minute=59))
    device.assigned = replace(NEW, window=CLOSED)
    device.tell(CheckDue())
    device.answer(Check())
    assert device.jobs == [Fetch(device.assigned)]
    device.pass_time()
    assert device.jobs == []
    assert device.record.candidate == device.assigned
    assert device.machine.waits_for == f"outside the window {CLOSED} UTC"
    device.settle()
    assert device.record.active == device.assigned
    assert device.clock.now().hour == 22


def test_trial_that_ends_after_the_window_does_not_switch(tmp_path):
    """A switch is what the window is for."""
    device = at("trying", tmp_path)
    device.machine.record = replace(device.record, candidate=replace(NEW, window=CLOSED))
    assert device.tell(Tried("m", NEW.digest)) == []
    assert (device.record.state, device.running) == ("staged", OLD)


def test_trials_that_the_window_ends_are_not_counted(tmp_path):
    """Three are allowed where each took the agent down with it; here nothing died."""
    device = confirmed_device(tmp_path)
    device.assigned = replace(NEW, window=CLOSED)
    for _ in range(5):
        device.clock.set_wall(device.clock.now().replace(hour=22, minute=0))
        device.tell(CheckDue())
        device.answer(device.jobs[-1])
        if device.record.state == "fetching":
            device.answer(device.jobs[-1])
        device.tell(Time())
        assert device.record.state == "trying"
        device.clock.advance(3600)
        device.tell(Time())
        assert (device.record.state, device.jobs) == ("staged", [])


@pytest.mark.parametrize(
    ("own_ms", "usual_ms", "gate_ms"), [(40.0, 5.0, 40.0), (None, 5.0, 15.0), (None, None, None)], ids=str
)
def test_gate_of_p99_is_the_bundles_own_or_three_times_the_old_ones(own_ms, usual_ms, gate_ms, tmp_path):
    """It is on the disk: a restart in probation must judge by the same numbers."""
    device = at("trying", tmp_path)
    if usual_ms is not None:
        device.second(samples=500, p99_ms=usual_ms)
        device.second(samples=-490, p99_ms=400.0)
    device.tell(Tried("m", NEW.digest, max_p99_ms=own_ms, max_rss_bytes=1000))
    assert Slots(tmp_path).load("m").gates == Gates(gate_ms, 1000)


def test_probation_is_written_down_once_a_minute(tmp_path):
    """A restart goes on where it was; a flash card is not worn out for it."""
    settings = SETTINGS.model_copy(update={"probation": ProbationSettings(seconds=600, samples=10)})
    device = Device(tmp_path, Record("m", "stable", "confirmed", OLD), settings)
    device.assigned = NEW
    device.tell(CheckDue())
    device.work()
    device.saved = 0
    for _ in range(200):
        device.second()
        device.saved += any(isinstance(action, Save) for action in device.seen)
    assert device.saved == 3
    device.boot()
    assert 170 <= device.machine.watch.seconds <= 200
    for _ in range(430):
        device.second()
    assert device.record.state == "confirmed"


def test_damaged_active_bundle_is_fetched_again_and_not_denied(tmp_path):
    """A bad sector is not the release's fault."""
    device = confirmed_device(tmp_path)
    device.assigned = OLD
    assert device.tell(SwitchFailed("a blob is damaged.")) == [Switch(OLDER)]
    device.work()
    assert device.record.state == "probation"
    assert device.record.active == OLD
    device.settle()
    assert (device.record.active, device.record.denied) == (OLD, ())


def test_apply_overrules_windows_once(tmp_path):
    """The operator stands beside the device."""
    device = confirmed_device(tmp_path)
    device.assigned = replace(NEW, window=CLOSED)
    device.tell(CheckDue())
    device.answer(Check())
    assert device.jobs == []
    device.tell(ApplyWanted())
    device.work()
    assert device.record.state == "probation"
    device.assigned = replace(NEWER, window=CLOSED)
    device.settle()
    assert device.record.active == NEWER or device.clock.now().hour == 22


def test_other_overrides_switch_without_a_fetch(tmp_path):
    """Thresholds by channel: no byte of a bundle travels."""
    device = confirmed_device(tmp_path)
    device.assigned = replace(OLD, release=8, pipelines={"door": {"min_score": 0.9}})
    device.tell(CheckDue())
    device.answer(Check())
    assert device.jobs == [Switch(device.assigned)]
    device.settle()
    assert (device.record.active, device.record.previous) == (device.assigned, OLD)


def test_older_release_is_not_taken_without_a_signed_rollback(tmp_path):
    """Neither a repository's mistake nor a lowered percentage may downgrade a device."""
    device = confirmed_device(tmp_path)
    device.assigned = OLDER
    device.settle()
    assert device.record.active == OLD
    assert "older" in device.machine.waits_for


def test_newer_release_waits_for_the_end_of_probation(tmp_path):
    """Else nothing would ever be confirmed where releases come often."""
    device = at("probation", tmp_path)
    device.assigned = NEWER
    device.tell(CheckDue())
    device.work()
    assert (device.record.state, device.record.active, device.record.candidate) == ("probation", NEW, NEWER)
    device.settle()
    assert (device.record.active, device.record.previous) == (NEWER, NEW)


def test_signed_rollback_ends_probation_at_once(tmp_path):
    """The operator has seen what the probation has not."""
    device = at("probation", tmp_path)
    device.assigned = replace(OLD, release=7, rollback_reason="false alarms")
    device.tell(CheckDue())
    device.work()
    assert (device.running, device.record.active.release, device.record.state) == (OLD, 7, "confirmed")


def test_damaged_way_back_ends_at_the_factory_bundle(tmp_path):
    """Each step back is verified; the last one is what the operator installed."""
    device = at("probation", tmp_path)
    device.second()
    assert device.second(crash=True) == [Switch(OLD)]
    device.jobs.clear()
    assert device.tell(SwitchFailed("a blob is damaged.")) == [Switch(None)]
    device.work()
    assert (device.running, device.record.active) == (None, None)


def test_damaged_bundle_is_not_called_a_release_that_failed(tmp_path):
    """It comes again by itself; told to publish a newer one, the operator would do work for nothing."""
    device = Device(tmp_path, Record("m", "stable", "confirmed", NEW, previous=OLD))
    device.tell(SwitchFailed("a blob is damaged."))
    said = device.conditions["rolled-back/m"].text
    assert "a blob is damaged. Now runs" in said
    assert "fetched again by itself" in said
    assert "publish" not in said
    assert device.record.denied == ()


def test_only_bundle_that_does_not_start_is_kept_and_tried_at_the_next_start(tmp_path):
    """A driver that was late, and no network to fetch it again: forgetting it would leave the device without one for good."""
    device = Device(tmp_path, Record("m", "stable", "confirmed", OLD), has_factory=False)
    assert device.tell(SwitchFailed("no candidate can run.")) == [Switch(None)]
    assert OLD.digest in device.machine.keep()
    assert "Nothing is left" in device.conditions["update-failed/m"].text
    device.boot()
    assert (device.running, device.record.previous) == (OLD, None)


def test_first_release_that_fails_without_a_factory_bundle_says_that_nothing_runs(tmp_path):
    """And is denied all the same: nothing is better than what crashes."""
    device = Device(tmp_path, has_factory=False)
    device.assigned, device.bad = NEW, {NEW.digest}
    device.settle()
    assert (device.running, device.record.active, device.record.denied[-1].release) == (None, None, NEW.release)
    assert "Now runs nothing" in device.conditions["rolled-back/m"].text


def test_operator_does_not_go_back_to_nothing(tmp_path):
    """Without a factory bundle and a previous one there is nowhere to go."""
    device = Device(tmp_path, Record("m", "stable", "confirmed", OLD), has_factory=False)
    assert device.tell(RollbackWanted("")) == []
    assert device.record.active == OLD


def test_rollback_asked_for_while_switching_is_done_after_it(tmp_path):
    """It must not be lost, and two switches must not be under way at once."""
    device = at("switching", tmp_path)
    device.tell(RollbackWanted("no"))
    device.work()
    assert (device.running, device.record.denied[-1].release) == (OLD, NEW.release)


def test_release_that_arrives_while_going_back_waits_for_the_switch(tmp_path):
    """Answers to switches carry no name: only one may be open."""
    device = at("probation", tmp_path)
    device.tell(RollbackWanted("no"))
    device.assigned = NEWER
    device.tell(CheckDue())
    device.answer(Check())
    assert device.jobs == [Switch(OLD)]
    device.settle()
    assert device.record.active == NEWER


def test_fetch_that_fails_backs_off_and_keeps_its_candidate(tmp_path):
    """A link that is down for a week costs attempts that grow rarer, and nothing else."""
    device = at("fetching", tmp_path)
    delays = []
    for _ in range(12):
        device.jobs.clear()
        device.tell(NOTES["fetch failed"](device))
        began = device.clock.monotonic()
        while not device.jobs:
            device.pass_time()
        delays.append(device.clock.monotonic() - began)
    assert delays[0] <= 5
    assert 450 <= delays[-1] <= 900
    assert device.record.candidate == NEW
    assert "does not arrive" in device.conditions["update-failed/m"].text


def test_another_channel_keeps_what_runs_and_forgets_the_numbers(tmp_path):
    """Release numbers of two channels cannot be compared; a lower one there is not a downgrade."""
    device = Device(tmp_path, Record("m", "beta", "confirmed", slot(50), denied=(Denied(2, "2" * 64, "slow."),)))
    device.assigned = slot(2)
    device.settle()
    assert device.record.active == slot(2)


def test_late_answers_change_nothing(tmp_path):
    """A job that was called off may have answered already."""
    device = at("fetching", tmp_path)
    device.assigned = NEWER
    device.tell(CheckDue())
    device.answer(Check())
    before = device.record
    for late in (Staged, Tried):
        assert device.tell(late("m", NEW.digest)) == []
    assert device.tell(TrialRefused("m", NEW.digest, "slow.")) == []
    assert device.record == before


def test_denials_are_bounded(tmp_path):
    """A channel that offers broken releases for years must not fill the record."""
    device = confirmed_device(tmp_path)
    for release in range(10, 60):
        device.assigned = slot(release)
        device.tell(CheckDue())
        device.answer(Check())
        device.jobs.clear()
        device.tell(FetchFailed("m", device.assigned.digest, "no manifest.", is_final=True))
    assert [each.release for each in device.record.denied] == list(range(28, 60))


# -- anything, in any order -------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Random notes, faults and power cuts; `Device.look` checks after each action, `teardown` that faults end well."""

    @initialize(has_old=st.booleans())
    def begin(self, has_old):
        self.folder = Path(tempfile.mkdtemp())
        record = Record("m", "stable", "confirmed", OLD, previous=OLDER) if has_old else None
        self.device = Device(self.folder, record)
        self.release = 10

    def teardown(self):
        if not hasattr(self, "device"):
            return
        device = self.device
        for _ in range(5):  # what is denied must not come again, however often the device asks
            device.settle()
        self.limits()
        self.release += 1
        device.bad, device.assigned = set(), slot(self.release)
        device.settle()
        assert (device.record.active, device.running) == (device.assigned, device.assigned)
        shutil.rmtree(self.folder)

    def do(self, step, cut):
        """Take a step; where `cut` is a number, the power goes after so many of its actions."""
        self.device.cut_after = cut
        try:
            step()
        except PowerCutError:
            self.device.cut_after = None
            self.device.boot()
        self.device.cut_after = None

    CUTS = st.one_of(st.none(), st.integers(0, 6))

    @rule(cut=CUTS)
    def check_is_due(self, cut):
        self.do(lambda: self.device.tell(CheckDue()), cut)

    @rule(is_bad=st.booleans(), is_rollback=st.booleans(), has_window=st.booleans())
    def publish(self, is_bad, is_rollback, has_window):
        self.release += 1
        reason = "false alarms" if is_rollback else None
        bundle = OLD.release if is_rollback else None
        window = CLOSED if has_window else None
        self.device.assigned = slot(self.release, bundle=bundle, rollback_reason=reason, window=window)
        if is_bad and not is_rollback:
            self.device.bad.add(self.device.assigned.digest)

    @rule()
    def withdraw(self):
        self.device.assigned = None

    @precondition(lambda self: self.device.jobs)
    @rule(data=st.data(), cut=CUTS)
    def answer_well(self, data, cut):
        job = data.draw(st.sampled_from(self.device.jobs))
        self.do(lambda: self.device.answer(job), cut)

    @precondition(lambda self: self.device.jobs)
    @rule(data=st.data(), cut=CUTS, is_final=st.booleans())
    def answer_badly(self, data, cut, is_final):
        job = data.draw(st.sampled_from(self.device.jobs))
        self.device.jobs.remove(job)
        match job:
            case Check():
                note = CheckFailed("m", "nobody answers.")
            case Fetch(wanted):
                note = FetchFailed("m", wanted.digest, "the link broke.", is_final)
            case Try(wanted):
                note = TrialRefused("m", wanted.digest, "NaN.")
            case Switch():
                note = SwitchFailed("a blob is damaged.")
        self.do(lambda: self.device.tell(note), cut)

    @rule(seconds=st.integers(1, 30), crash=st.booleans(), cut=CUTS)
    def worker_runs(self, seconds, crash, cut):
        def run():
            for second in range(seconds):
                self.device.second(crash=crash and second == seconds - 1)

        self.do(run, cut)

    @rule(cut=CUTS)
    def time_passes(self, cut):
        self.do(self.device.pass_time, cut)

    @rule(hours=st.integers(1, 12))
    def clock_jumps(self, hours):
        self.device.clock.set_wall(self.device.clock.now() + timedelta(hours=hours))

    @rule(cut=CUTS)
    def operator_goes_back(self, cut):
        self.do(lambda: self.device.tell(RollbackWanted("no")), cut)

    @rule(cut=CUTS)
    def operator_applies(self, cut):
        self.do(lambda: self.device.tell(ApplyWanted()), cut)

    @rule(is_full=st.booleans())
    def disk_fills(self, is_full):
        self.device.disk_is_full = is_full

    @rule()
    def power_cut(self):
        self.device.boot()

    @invariant()
    def limits(self):
        if hasattr(self, "device") and not self.device.had_disk_trouble:
            assert max(self.device.starts.values(), default=0) <= 3


AnyOrder.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
