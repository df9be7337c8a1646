"""The updater as core sees it: real records, history and requests; the network, the trial and the worker are said by the test."""

from __future__ import annotations

import json
import queue
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.errors import StateError
from agent.health.conditions import Conditions
from agent.update.history import History
from agent.update.notes import Checked, CheckFailed, FetchFailed, FetchProgress, Health, Staged, TrialRefused, Tried
from agent.update.record import Record, Slot
from agent.update.requests import Request, Requests
from agent.update.settings import ProbationSettings, UpdateSettings
from agent.update.slots import Slots
from agent.update.updater import Updater
from agent.update.work import Work
from simulator.clock import SeededRandom, VirtualClock

SETTINGS = UpdateSettings(root=Path("root.json"), probation=ProbationSettings(seconds=20, samples=10))
OLD = Slot(5, "parcels", "1.1.0", "5" * 64)
NEW = Slot(6, "parcels", "1.2.0", "6" * 64)
EXPIRES = datetime(2026, 12, 1, tzinfo=UTC)


class Jobs(list):
    """What the updater's thread would do, unanswered."""

    def __getattr__(self, name):
        return lambda *job: self.append((name.strip("_"), *job))


class Bench:
    """An updater and its core. `answers` False: a switch is left open."""

    def __init__(self, folder, models=("m",), settings=SETTINGS):
        self.folder, self.models, self.settings = folder, models, settings
        self.clock, self.switches, self.answers, self.samples = VirtualClock(), [], True, 0
        self.boot()

    def boot(self):
        self.jobs, self.conditions = Jobs(), Conditions(self.clock)
        self.updater = Updater(
            dict.fromkeys(self.models, "stable"),
            self.settings,
            self.folder,
            factories=self.models,
            random=SeededRandom(1),
            clock=self.clock,
            conditions=self.conditions,
            work=self.jobs,
            switch=self.switch,
        )
        self.updater.start()
        self.jobs.clear()

    def switch(self, model, slot):
        self.switches.append((model, slot))
        if self.answers:
            self.updater.switched(model)

    def pass_s(self, seconds):
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.updater.tick(self.clock.monotonic())

    def healthy(self, seconds, model="m"):
        for second in range(seconds):
            self.clock.advance(1)
            self.samples += 1
            self.updater.observe(model, Health(second, self.samples, 0, "", 0, 5.0, 1))

    def model(self, name="m"):
        return self.updater.document()["models"][name]

    def names(self):
        return {condition.name for condition in self.conditions}

    def assign(self, slot, model="m"):
        self.updater.deal_with(Checked(model, slot.release, slot, timestamp=slot.release, expires=EXPIRES))


@pytest.fixture
def bench(tmp_path):
    Slots(tmp_path).save(Record("m", "stable", "confirmed", OLD))
    return Bench(tmp_path)


def test_release_goes_all_the_way(bench):
    """From the first check to the history."""
    bench.pass_s(10)
    assert bench.jobs == [("check", "m")]
    bench.assign(NEW)
    assert bench.jobs[-1] == ("fetch", "m", NEW)
    bench.updater.deal_with(FetchProgress("m", 10, 100, "mqtt"))
    document = bench.updater.document()
    assert json.loads(json.dumps(document)) == document
    assert document["trust"] == {"timestamp": 6, "expires": "2026-12-01T00:00:00.000Z"}
    assert document["models"]["m"] == {
        "channel": "stable", "state": "fetching", "release": 5, "name": "parcels", "version": "1.1.0", "digest": "5" * 64,
        "confirmed": True, "previous": None, "reason": "", "waits_for": "",
        "checked_at": "2026-11-20T09:00:10.000Z", "check_failed": None, "denied": [],
        "candidate": {"release": 6, "name": "parcels", "version": "1.2.0", "digest": "6" * 64},
        "progress": {"done_bytes": 10, "total_bytes": 100, "transport": "mqtt"},
    }  # fmt: skip
    bench.updater.deal_with(Staged("m", NEW.digest))
    assert bench.jobs[-1] == ("try", "m", NEW)
    bench.updater.deal_with(Tried("m", NEW.digest))
    assert bench.switches == [("m", NEW)]
    assert (bench.model()["state"], bench.model()["confirmed"], bench.updater.active("m")) == ("probation", False, NEW)
    bench.healthy(25)
    assert (bench.model()["state"], bench.model()["previous"]["release"]) == ("confirmed", 5)
    assert bench.jobs[-1] == ("collect", frozenset({OLD.digest, NEW.digest}))
    assert [step.after for step in reversed(History(bench.folder / "history.db").newest())] == [
        "fetching", "staged", "trying", "switching", "probation", "confirmed"
    ]  # fmt: skip
    assert bench.names() == set()


def test_record_is_on_disk_when_the_worker_is_told(bench):
    """A power cut inside the switch must find what is to be watched."""
    seen = []
    bench.updater._switch = lambda model, slot: seen.append(Slots(bench.folder).load(model))
    bench.assign(NEW)
    bench.updater.deal_with(Staged("m", NEW.digest))
    bench.updater.deal_with(Tried("m", NEW.digest))
    assert [(each.active, each.is_confirmed, each.previous) for each in seen] == [(NEW, False, OLD)]


def test_full_disk_keeps_what_runs_and_goes_on_later(bench, monkeypatch):
    """Rather no update than one that a restart does not know of."""
    bench.assign(NEW)
    bench.updater.deal_with(Staged("m", NEW.digest))
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "save", _full)
        bench.updater.deal_with(Tried("m", NEW.digest))
        bench.pass_s(30)
        assert bench.switches == []
        assert "update-failed/m" in bench.names()
        assert bench.updater.active("m") == OLD
    bench.jobs.clear()
    bench.pass_s(30)
    bench.assign(NEW)
    assert ("try", "m", NEW) in bench.jobs
    bench.updater.deal_with(Tried("m", NEW.digest))
    assert bench.switches == [("m", NEW)]


def test_going_back_does_not_wait_for_a_disk(bench, monkeypatch):
    """A crashing bundle on a read-only disk: away from it at once, and written down as soon as possible."""
    bench.assign(NEW)
    bench.updater.deal_with(Staged("m", NEW.digest))
    bench.updater.deal_with(Tried("m", NEW.digest))
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "save", _full)
        bench.updater.observe("m", Health(0, 0, 1, "SIGSEGV", 0, None, None))
        assert bench.switches[-1] == ("m", OLD)
    assert Slots(bench.folder).load("m").active == NEW
    bench.pass_s(40)
    assert Slots(bench.folder).load("m").active == OLD
    assert "rolled-back/m" in bench.names()


def _full(_self, record):
    raise StateError("No space left on device", where=f"{record.model}.json")


def test_restart_in_probation_counts_and_goes_on(bench):
    """Nothing that was watched is forgotten; nothing is watched for ever."""
    bench.assign(NEW)
    bench.updater.deal_with(Staged("m", NEW.digest))
    bench.updater.deal_with(Tried("m", NEW.digest))
    bench.boot()
    assert (bench.updater.active("m"), bench.model()["state"]) == (NEW, "probation")
    bench.boot()
    bench.boot()
    assert (bench.updater.active("m"), bench.model()["state"]) == (OLD, "rolled_back")
    assert bench.model()["denied"][0]["release"] == 6
    assert "rolled-back/m" in bench.names()


def test_answer_from_within_the_switch_is_taken_in_order(bench):
    """The app may know at once that a bundle is damaged."""
    bench.assign(NEW)
    bench.updater.deal_with(Staged("m", NEW.digest))

    def switch(model, slot):
        bench.switches.append((model, slot))
        if slot == NEW:
            bench.updater.switch_failed(model, "a blob is damaged")
        else:
            bench.updater.switched(model)

    bench.updater._switch = switch
    bench.updater.deal_with(Tried("m", NEW.digest))
    assert bench.switches == [("m", NEW), ("m", OLD)]
    assert (bench.model()["state"], bench.model()["reason"]) == ("refused", "a blob is damaged.")
    assert bench.updater._wakeups == {}, "an older answer's wake-up came last"


def test_collecting_for_one_model_spares_the_others(tmp_path):
    """Blobs are shared: each model names what it needs."""
    Slots(tmp_path).save(Record("a", "stable", "confirmed", OLD))
    bench = Bench(tmp_path, models=("a", "b"))
    bench.assign(NEW, "b")
    bench.updater.deal_with(FetchFailed("b", NEW.digest, "no manifest.", is_final=True))
    assert bench.jobs[-1] == ("collect", frozenset({OLD.digest}))


def test_hint_makes_every_model_ask(tmp_path):
    """One timestamp for the whole repository."""
    bench = Bench(tmp_path, models=("a", "b"))
    bench.pass_s(30)
    for model in ("a", "b"):
        bench.updater.deal_with(Checked(model, 1, None, timestamp=3))
    bench.jobs.clear()
    bench.updater.hint(b"3")
    bench.pass_s(30)
    assert bench.jobs == []
    bench.updater.hint(b"4")
    bench.pass_s(30)
    assert bench.jobs == [("check", "a"), ("check", "b")]


def test_wake_up_is_named_and_enough(bench):
    """Core sleeps until then: a step that is due later must be in it."""
    bench.assign(NEW)
    bench.updater.deal_with(FetchFailed("m", NEW.digest, "the link broke."))
    bench.jobs.clear()
    while ("fetch", "m", NEW) not in bench.jobs:
        if ("check", "m") in bench.jobs:
            bench.jobs.clear()
            bench.assign(NEW)
        next_s = bench.updater.tick(bench.clock.monotonic())
        bench.clock.advance(max(0.0, next_s - bench.clock.monotonic()))
    assert bench.clock.monotonic() < 20


def test_operator_is_heard(bench):
    """check, apply and rollback, through the folder that the command line writes."""
    bench.pass_s(30)
    bench.updater.deal_with(Checked("m", 5, OLD, timestamp=1))
    requests, random = Requests(bench.folder / "requests"), SeededRandom(2)
    bench.jobs.clear()
    requests.post(Request(verb="check"), random)
    bench.pass_s(15)
    assert bench.jobs == [("check", "m")]
    bench.assign(replace(NEW, window="22:00-23:00"))
    assert bench.model()["reason"] == "outside the window 22:00-23:00 UTC"
    requests.post(Request(verb="apply", model="m"), random)
    bench.pass_s(2)
    assert bench.jobs[-1][0] == "fetch"
    requests.post(Request(verb="rollback", reason="false alarms"), random)
    requests.post(Request(verb="rollback", model="nobody"), random)
    bench.pass_s(2)
    assert bench.switches == [("m", None)]
    assert bench.model()["denied"][0] == {"release": 5, "reason": "the operator went back: false alarms."}


def test_untrusted_metadata_is_said_and_changes_nothing(bench):
    """A hostile broker can only be noticed."""
    before = bench.model()
    bench.updater.deal_with(CheckFailed("m", "timestamp: the signature is wrong.", is_attack=True, hint="rotate it"))
    assert bench.names() == {"updates-untrusted"}
    failed = {"reason": "timestamp: the signature is wrong.", "hint": "rotate it"}
    assert bench.model() == {**before, "check_failed": failed, "checked_at": bench.model()["checked_at"]}
    bench.assign(OLD)
    assert bench.model()["check_failed"] is None


def test_refused_release_leaves_the_active_slot_untouched(bench):
    """Correctly signed and still bad."""
    bench.assign(NEW)
    bench.updater.deal_with(Staged("m", NEW.digest))
    bench.updater.deal_with(TrialRefused("m", NEW.digest, "NaN in the golden samples."))
    assert (bench.updater.active("m"), bench.switches, bench.model()["state"]) == (OLD, [], "refused")
    assert "NaN" in next(iter(bench.conditions)).text
    bench.boot()
    assert bench.names() == {"update-failed/m"}, "a restart must not hide it"


def test_damaged_record_does_not_stop_the_start(tmp_path):
    """The agent starts, with the operator's bundle, and takes the release again."""
    (tmp_path / "m.json").write_bytes(b"\0" * 300)
    bench = Bench(tmp_path)
    assert bench.updater.active("m") is None
    bench.pass_s(10)
    bench.assign(NEW)
    assert bench.jobs[-1] == ("fetch", "m", NEW)


def test_with_its_real_thread(tmp_path):
    """The parts fit: notes cross from the thread, and everything ends."""
    clock, notes, switches = SystemClock(), queue.Queue(), []
    work = Work(
        check=lambda model, stop: Checked(model, 6, NEW, 6, EXPIRES),
        fetch=lambda model, slot, progress, stop: progress(1, 1, "folder"),
        try_=lambda model, slot, stop: Tried(model, slot.digest),
        collect=lambda keep: None,
        post=notes.put,
    )
    settings = UpdateSettings(root=Path("root.json"), hint_jitter_s=0)
    updater = Updater(
        {"m": "stable"}, settings, tmp_path, factories=[], random=SeededRandom(1), clock=clock,
        conditions=Conditions(clock), work=work, switch=lambda *job: switches.append(job),
    )  # fmt: skip
    updater.start()
    updater.tick(clock.monotonic())
    while not switches:
        updater.deal_with(notes.get(timeout=20))
    updater.stop()
    updater.join(20)
    assert switches == [("m", NEW)]
    assert not work._thread.is_alive()
