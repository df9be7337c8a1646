"""What each model runs: interim and final plans, policy, and what takes over; with stand-ins for threads and processes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from agent import app, wishes
from agent.clock import SystemRandom
from agent.device.planning.plan import Candidate, Measurement, Outcome, Plan
from agent.errors import CandidateError
from agent.paths import open_state
from agent.pipeline.drift import AGAIN_FIRST_S, SUSTAINED_S
from agent.preparation import PreparationFailed, Prepared, TriedAgain
from agent.settings import Settings
from simulator.clock import VirtualClock

NPU = Candidate("VendorExecutionProvider", "npu", "int8", 1, runtime="plugin:vendor")
CPU = Candidate("CPUExecutionProvider", "cpu", "int8", 2)
SETTINGS = {
    "models": {"m": {"bundle": "parcels"}},
    "cameras": {"door": {"source": "scene://conveyor"}, "yard": {"source": "scene://conveyor"}},
}


class Begun:
    """A thread that prepares; the test says what comes of it."""

    is_running = True

    def __init__(self, first, *rest, **_):
        self.first, self.rest = first, rest

    start = stop = lambda self: None


class Workers:
    """Takes jobs; the test says how they end."""

    def __init__(self):
        self.asked, self.models, self.statuses = [], set(), []

    def swap(self, job, purpose="release"):
        self.asked.append((purpose, job))
        self.models.add(job.model)

    def add(self, job):
        self.asked.append(("add", job))
        self.models.add(job.model)

    def end(self, model):
        self.asked.append(("end", model))

    def status(self):
        return self.statuses


class Bench:
    """Core's running models on a virtual clock."""

    def __init__(self, tmp_path, **cameras):
        self.clock = VirtualClock()
        doors = {name: {**each, **cameras.get(name, {})} for name, each in SETTINGS["cameras"].items()}
        settings = Settings.model_validate({**SETTINGS, "cameras": doors})
        self.core = app.Core(settings, open_state(tmp_path), self.clock, SystemRandom())
        self.it = self.core._running
        self.workers = self.it._workers = Workers()
        self.it.start()

    def prepared(self, *ranked, wanted=None, **plan):
        wanted = wanted or self.begun.first
        measured = Measurement(200, 5, 5, 5, 5.0, 1, 1, 1)
        made = Plan(
            "f", "d", "1", "p", ranked[0], "", tuple(Outcome(each, measured) for each in ranked), ranked=ranked,
            **{"requested": "npu", "made_at": "2026-11-20T09:00:00Z", **plan},
        )  # fmt: skip
        manifest = SimpleNamespace(version="1", variant=lambda name: None)
        return Prepared(wanted, SimpleNamespace(manifest=manifest, folder=Path("/b")), made, was_stored=False)

    def run(self, *ranked, **plan):
        self.it.deal_with(self.prepared(*ranked, **plan))

    @property
    def begun(self):
        return self.core._wishes._under_way[-1]

    def last(self):
        purpose, job = self.workers.asked[-1]
        return purpose, job.candidate, [each.name for each in job.pipelines]

    @property
    def conditions(self):
        return {each.name: each.severity for each in self.core._conditions if each.name != "no-broker"}

    def model(self):
        return self.core.status.models[0]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(wishes, "Preparation", Begun)
    monkeypatch.setattr(wishes, "Retrial", Begun)
    made = []

    def make(**cameras):
        made.append(Bench(tmp_path, **cameras))
        return made[-1]

    yield make
    for each in made:
        each.core._outbox.close(0.0)


BOTH = ["door", "yard"]


def test_interim_plan_starts_the_worker_and_the_final_one_is_swapped_in(bench):
    """Nobody waits for a compiler; and no frame is lost when it is done."""
    it = bench()
    it.run(CPU, is_interim=True)
    assert it.last() == ("add", CPU, BOTH)
    assert it.model().meanwhile == "measuring npu, running on CPU int8 ×2 meanwhile"
    assert it.conditions == {}
    it.run(NPU, CPU)
    assert it.last() == ("candidate", NPU, BOTH)
    it.it.swap_ended("m", None)
    assert it.model().plan.chosen == NPU
    assert it.model().meanwhile == ""


def test_final_plan_that_chooses_what_runs_already_swaps_nothing(bench):
    """The CPU was the better one after all."""
    it = bench()
    it.run(CPU, is_interim=True)
    it.run(CPU)
    assert len(it.workers.asked) == 1
    assert not it.model().plan.is_interim


def test_final_choice_that_does_not_start_is_left_for_the_next_best(bench):
    it = bench()
    it.run(CPU, is_interim=True)
    it.run(NPU, CPU)
    it.it.swap_ended("m", "no memory")
    assert it.last() == ("degrade", CPU, BOTH)
    assert it.conditions == {"accelerator-degraded/m": "warning"}


def test_pipeline_that_requires_waits_for_the_final_plan_and_comes_then(bench):
    """It must not run on the CPU for a minute either."""
    it = bench(door={"fallback": "require"})
    it.run(CPU, is_interim=True)
    assert it.last() == ("add", CPU, ["yard"])
    assert it.conditions == {"accelerator-required/door": "info"}
    assert not it.it.are_settled
    it.run(NPU, CPU)
    assert it.last() == ("candidate", NPU, BOTH)
    it.it.swap_ended("m", None)
    assert it.conditions == {}
    assert it.it.are_settled


def test_model_whose_pipelines_all_require_has_no_worker_elsewhere(bench):
    it = bench(door={"fallback": "require"}, yard={"fallback": "require"})
    it.run(CPU, fallback="there is no npu here")
    assert it.workers.asked == [("end", "m")]
    assert it.conditions == {"accelerator-required/door": "error", "accelerator-required/yard": "error"}
    assert it.model().fallback == "there is no npu here"


def test_plan_that_is_not_what_was_asked_for_is_a_warning(bench):
    it = bench(door={"fallback": "allow"})
    it.run(CPU, fallback="there is no npu here")
    assert it.last() == ("add", CPU, BOTH)
    assert it.conditions == {"accelerator-fallback/m": "warning"}
    metrics = it.core.status.metrics()["models"]["m"]
    assert metrics["is_fallback"] is True
    json.dumps([it.core.status.info(), it.core.status.metrics()])


def fail(it, candidate=NPU, reason="device lost"):
    it.it.trouble("m", it.workers.asked[-1][1], reason)


def test_provider_that_fails_is_left_and_taken_back_after_a_trial(bench):
    """Down within one frame's error, and back without a hand."""
    it = bench()
    it.run(NPU, CPU)
    assert it.last() == ("add", NPU, BOTH)
    assert it.workers.asked[-1][1].fallbacks == (CPU,)
    fail(it)
    assert it.last() == ("degrade", CPU, BOTH)
    it.it.swap_ended("m", None)
    assert it.conditions == {"accelerator-degraded/m": "warning"}
    assert (it.model().degraded, it.model().degraded_count) == ("device lost", 1)
    it.clock.advance(it.it.tick(it.clock.monotonic()) - it.clock.monotonic())
    it.it.tick(it.clock.monotonic())
    assert it.begun.rest[0] == NPU
    it.it.deal_with(TriedAgain("m", NPU, None))
    assert it.last() == ("candidate", NPU, BOTH)
    assert "accelerator-degraded/m" in it.conditions, "until it really runs"
    it.it.swap_ended("m", None)
    assert it.conditions == {}
    assert (it.model().degraded, it.model().fallback) == ("", None)


def test_pipeline_that_requires_is_left_out_while_degraded_and_comes_back(bench):
    it = bench(door={"fallback": "require"})
    it.run(NPU, CPU)
    fail(it)
    assert it.last() == ("degrade", CPU, ["yard"])
    it.it.swap_ended("m", None)
    assert it.conditions == {"accelerator-degraded/m": "warning", "accelerator-required/door": "error"}
    it.clock.advance(120)
    it.it.tick(it.clock.monotonic())
    it.it.deal_with(TriedAgain("m", NPU, None))
    assert it.last() == ("candidate", NPU, BOTH)
    it.it.swap_ended("m", None)
    assert it.conditions == {}


def test_model_that_is_required_everywhere_stops_with_its_accelerator_and_starts_with_it(bench):
    it = bench(door={"fallback": "require"}, yard={"fallback": "require"})
    it.run(NPU, CPU)
    fail(it)
    assert it.workers.asked[-1] == ("end", "m")
    it.clock.advance(120)
    it.it.tick(it.clock.monotonic())
    it.it.deal_with(TriedAgain("m", NPU, None))
    assert it.last() == ("candidate", NPU, BOTH)


def be_slow(it, seconds):
    """Beat once a second, with new samples and a p99 of ten times the plan's."""
    for _ in range(int(seconds)):
        it.clock.advance(1)
        infer = {"count": 1000 + int(it.clock.monotonic()), "p50_ms": 50.0, "p95_ms": 50.0, "p99_ms": 50.0}
        it.workers.statuses = [SimpleNamespace(model="m", beat={"pipelines": {"door": {"stages": {"infer": infer}}}})]
        it.it.look()


def test_model_that_became_slow_is_measured_again_and_another_choice_is_swapped_in(bench):
    """Beside what runs."""
    it = bench()
    it.run(NPU, CPU)
    be_slow(it, SUSTAINED_S + 3)
    assert it.conditions == {"slower-than-planned/m": "warning"}
    assert it.begun.first.is_again
    it.run(CPU, NPU)
    assert it.last() == ("candidate", CPU, BOTH)


def test_measuring_again_that_fails_changes_nothing_and_is_done_again_later(bench):
    """The device was busy; that is no reason to call the model unusable."""
    it = bench()
    it.run(NPU, CPU)
    be_slow(it, SUSTAINED_S + 3)
    first = it.begun
    it.it.deal_with(PreparationFailed(first.first, CandidateError("the device is busy")))
    assert it.conditions == {"slower-than-planned/m": "warning"}
    assert len(it.workers.asked) == 1
    be_slow(it, AGAIN_FIRST_S)
    assert it.begun is not first
    assert it.begun.first.is_again


def test_only_first_choices_that_run_are_judged_by_their_speed(bench):
    """What took over for a minute is slower, and everybody knows."""
    it = bench()
    it.run(NPU, CPU)
    fail(it)
    it.it.swap_ended("m", None)
    begun = it.begun
    be_slow(it, SUSTAINED_S + 3)
    assert it.begun is begun


def test_accelerator_that_comes_back_during_a_release_s_switch_lets_the_release_go_first(bench):
    """The updater waits for the outcome: a swap that took the release's place would leave it waiting for ever."""
    it = bench()
    it.run(NPU, CPU)
    fail(it)
    it.it.swap_ended("m", None)
    it.clock.advance(120)
    it.it.tick(it.clock.monotonic())
    answers = []
    it.it.updating = SimpleNamespace(switched=answers.append)
    it.core._wishes.prepare(replace(it.it._runs["m"].prepared.wanted, bundle="newer", is_switch=True))
    it.run(CPU)
    release = it.workers.asked[-1]
    assert release[0] == "release"

    it.it.deal_with(TriedAgain("m", NPU, None))

    assert it.workers.asked[-1] is release
    it.it.swap_ended("m", None)
    assert answers == ["m"]
    assert it.conditions == {}


def test_look_for_an_accelerator_that_fails_changes_nothing_and_is_repeated(bench):
    """A disk that was full for a moment is no reason to call a model unusable that runs, nor to take a release back."""
    it = bench(door={"fallback": "allow"})
    it.run(CPU, fallback="there is no npu here")
    before = it.conditions
    refused = []
    it.it.updating = SimpleNamespace(switch_failed=lambda *said: refused.append(said))
    for _ in range(3):
        it.clock.advance(7200)
        first = it.begun
        it.it.tick(it.clock.monotonic())
        assert it.begun is not first
        it.it.deal_with(PreparationFailed(it.begun.first, CandidateError("no space left")))
        assert it.conditions == before
    assert (len(it.workers.asked), refused) == (1, [])


@pytest.mark.parametrize(("years", "is_again"), [(-1, True), (0, False), (1, True)])
def test_plan_of_another_time_is_measured_again_once(bench, years, is_again):
    """A clock that was a year ahead when it was made would keep what was broken then from ever being measured again."""
    it = bench()
    made_at = it.clock.now() + timedelta(days=365 * years)
    it.run(CPU, fallback="the npu's driver crashed", made_at=made_at.isoformat())
    it.clock.advance(120)
    it.it.tick(it.clock.monotonic())
    assert it.begun.first.is_again is is_again


def test_interim_plan_takes_nothing_away_from_what_runs(bench):
    """A stick that is found while the GPU serves compiles for minutes: the processor would be worse meanwhile."""
    it = bench()
    it.run(GPU, CPU, fallback="there is no npu here")
    asked = len(it.workers.asked)
    it.clock.advance(120)
    it.it.tick(it.clock.monotonic())
    it.run(CPU, is_interim=True)
    assert len(it.workers.asked) == asked
    assert it.it._runs["m"].plan.chosen == GPU


def test_plan_of_the_end_of_time_is_only_old(bench):
    """A clock that was wrong when the plan was made must not end core."""
    it = bench()
    for made_at in ("9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "1970-01-01T00:00:00Z"):
        it.run(CPU, fallback="there is no npu here", made_at=made_at)
    assert it.model().plan.made_at == "1970-01-01T00:00:00Z"


GPU = Candidate("OtherExecutionProvider", "gpu", "int8", 1, runtime="plugin:other")


class History:
    """Core among workers, threads and an updater that do what they may at any time, well or badly, by the numbers of a seed."""

    def __init__(self, it, seed):
        self.it, self.chance = it, Random(seed)
        self.waiting, self.known, self.answers = [], set(), ["none was asked"]
        self.running = self.pending = None
        self.purpose = ""
        it.workers.swap, it.workers.add, it.workers.end = self.swap, self.add, self.end
        it.it.updating = SimpleNamespace(switched=self.answers.append, switch_failed=self.go_back)

    def swap(self, job, purpose="release"):
        self.pending, self.purpose = job, purpose

    def add(self, job):
        self.running, self.pending = job, None
        self.it.workers.models.add("m")

    def end(self, _):
        self.running = self.pending = None

    def go_back(self, *refused):
        self.answers.append(refused)
        self.switch(self.it.it._runs["m"].prepared.wanted.bundle)

    def switch(self, bundle):
        wanted = self.it.it._runs["m"].prepared.wanted
        self.it.core._wishes.prepare(replace(wanted, bundle=bundle, is_switch=True, is_again=False))

    def look_at_threads(self):
        new = [each for each in self.it.core._wishes._under_way if id(each) not in self.known]
        self.known |= {id(each) for each in new}
        self.waiting += new

    def end_a_thread(self, *, is_good):
        thread = self.waiting.pop(self.chance.randrange(len(self.waiting)))
        if thread.rest and isinstance(thread.rest[0], Candidate):
            self.it.it.deal_with(TriedAgain("m", thread.rest[0], None if is_good else "no"))
            return
        may_be_interim = not (thread.first.is_switch or thread.first.is_again)
        how = "good" if is_good else self.chance.choice(["good", "error", "fallback", *["interim"] * may_be_interim])
        if how == "error":
            self.it.it.deal_with(PreparationFailed(thread.first, CandidateError("no")))
        elif how == "interim":
            self.it.it.deal_with(self.it.prepared(CPU, wanted=thread.first, is_interim=True))
            self.waiting.append(thread)
        else:
            ranked, fallback = ((NPU, GPU, CPU), None) if how == "good" else ((CPU,), "there is no npu here")
            self.it.it.deal_with(self.it.prepared(*ranked, wanted=thread.first, fallback=fallback))

    def end_the_swap(self, *, is_good):
        job, self.pending = self.pending, None
        if is_good or self.purpose == "degrade":
            self.running = job
        self.it.it.swap_ended("m", None if is_good else "it did not load")

    def pass_time(self, seconds):
        self.it.clock.advance(seconds)
        self.it.it.tick(self.it.clock.monotonic())

    def step(self):
        self.look_at_threads()
        match self.chance.choice(["thread", "thread", "swap", "swap", "fail", "time", "release"]):
            case "thread" if self.waiting:
                self.end_a_thread(is_good=self.chance.random() < 0.5)
            case "swap" if self.pending:
                self.end_the_swap(is_good=self.chance.random() < 0.6)
            case "fail" if self.running and not self.pending:
                self.it.it.trouble("m", self.running, "device lost")
            case "time":
                self.pass_time(self.chance.choice([1, 70, 4000]))
            case "release" if "m" in self.it.it._runs and self.chance.random() < 0.4:
                self.answers.clear()
                self.switch(f"release-{self.chance.random()}")

    def calm_down(self):
        for _ in range(100):
            self.look_at_threads()
            while self.waiting:
                self.end_a_thread(is_good=True)
                self.look_at_threads()
            while self.pending:
                self.end_the_swap(is_good=True)
            self.pass_time(4000)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happened_all_runs_on_the_first_choice_when_the_trouble_is_over(bench, seed):
    """Releases, failures, trials and plans meet in every order; nothing may be forgotten or left waiting."""
    policies = ["allow", "prefer", "require"]
    it = bench(door={"fallback": policies[seed % 3]}, yard={"fallback": policies[seed // 3 % 3]})
    history = History(it, seed)
    for _ in range(60):
        history.step()
    history.calm_down()

    assert history.running.candidate == NPU
    assert [each.name for each in history.running.pipelines] == BOTH
    assert it.conditions == {}
    assert history.answers, "the updater waits for the newest switch"
