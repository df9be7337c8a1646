"""Before a model runs: what the device is, probed once, and again where nothing could run."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agent.clock import SystemClock
from agent.device.facts import Cpu, EpDevice, Facts
from agent.device.planning.plan import Candidate, Measurement, Outcome, Plan
from agent.device.planning.planstore import PlanStore
from agent.preparation import BundleOpened, Preparation, Prepared, Preparer, Wanted
from agent.trial.planner import Planner
from agent.turns import Turns
from simulator.clock import VirtualClock

CPU = Cpu("x", "y", frozenset({"avx2"}), 2, 4)
EARLY = Facts("linux", "6", "x86_64", "", CPU, 2**30, runtime_version="1.31", ep_devices=(), findings=())
CANDIDATE = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
MEASURED = (Outcome(CANDIDATE, Measurement(200, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1)),)
LATE = replace(EARLY, ep_devices=(EpDevice("CPUExecutionProvider", "cpu"),))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Facts]:
    """What the probe will see, one after another."""
    seen = [EARLY, LATE]
    monkeypatch.setattr("agent.device.survey.recognition.probe_facts", lambda *_, **__: seen.pop(0))
    return seen


def test_hardware_is_looked_at_once(tmp_path, probes):
    """A probe starts a process and takes a second; an update asks several times."""
    preparer = Preparer(None, PlanStore(tmp_path), VirtualClock())
    assert [preparer.device(threading.Event())[0] for _ in range(2)] == [EARLY, EARLY]


def test_driver_that_comes_late_is_found_by_the_next_attempt(tmp_path, probes):
    """Nothing could run, so it is tried again later: with the device as it is then, not as it was at the start."""
    preparer = Preparer(None, PlanStore(tmp_path), VirtualClock())
    assert preparer.device(threading.Event())[0] == EARLY
    preparer.look_again()
    assert preparer.device(threading.Event())[0] == LATE


def test_processor_serves_while_a_driver_hangs_and_is_not_measured_twice(make_tiny_bundle, tmp_path, monkeypatch):
    """It may take 20 s to be listed and 60 s to be tried, at each start: nobody would be served meanwhile."""
    released, posted, asked = threading.Event(), queue.SimpleQueue(), []
    cpu = EpDevice("CPUExecutionProvider", "cpu")

    def hang(*_, first, **__):
        first(replace(EARLY, ep_devices=(cpu,)))
        released.wait(60)
        return replace(EARLY, ep_devices=(cpu, EpDevice("XExecutionProvider", "npu", runtime="plugin:x")))

    def measure(self, bundle, demand, *, stop, known=(), **_):
        asked.append(known)
        plan = Plan(
            self.facts.fingerprint, bundle.digest, "1.31", "p", CANDIDATE, "", MEASURED, "2026-11-20T09:00:00Z", demand
        )
        return None if stop.is_set() and not known else plan

    monkeypatch.setattr("agent.device.survey.recognition.probe_facts", hang)
    monkeypatch.setattr("agent.preparation.EARLY_AFTER_S", 0.01)
    monkeypatch.setattr(Planner, "measure", measure)
    (tmp_path / "plans").mkdir()
    preparer = Preparer(None, PlanStore(tmp_path / "plans"), SystemClock())
    preparation = Preparation(Wanted("m", str(make_tiny_bundle())), preparer, post=posted.put)
    preparation.start()

    assert isinstance(posted.get(timeout=20), BundleOpened)
    interim = posted.get(timeout=20)
    assert interim.plan.is_interim
    assert interim.plan.outcomes == MEASURED
    released.set()
    preparation.join(20)
    *_, final = iter(lambda: None if posted.empty() else posted.get(), None)
    assert not final.plan.is_interim
    assert final.plan.fingerprint != interim.plan.fingerprint
    assert asked == [(), MEASURED]


def test_turns_come_in_the_order_of_asking(eventually_waiting):
    """A plain lock would let whoever gave it back take it again, and a model's CPU would wait for another's compiler."""
    turns, order, threads = Turns(), [], []
    with turns:
        for number in range(3):
            thread = threading.Thread(target=lambda number=number: take(turns, order, number), daemon=True)
            thread.start()
            threads.append(thread)
            eventually_waiting(turns, number + 2)
        turns.yield_()
        order.append("back")
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, "back"]


def take(turns, order, number):
    with turns:
        order.append(number)


@pytest.fixture
def eventually_waiting():
    def wait(turns, count):
        clock, never = SystemClock(), threading.Event()
        deadline_s = clock.monotonic() + 20
        while len(turns._waiting) < count:
            assert clock.monotonic() < deadline_s
            clock.wait(never, 0.002)

    return wait


def test_second_models_processor_is_measured_while_the_first_ones_accelerator_waits(
    tmp_path, monkeypatch, eventually_waiting
):
    """Each model serves soon, though one of them compiles for minutes; and no two measure at the same time."""
    preparer = Preparer(None, PlanStore(tmp_path), VirtualClock())
    preparer._known = (LATE, SimpleNamespace(tune=SimpleNamespace(objective="latency")))
    steps, posted, measuring = [], [], threading.Lock()

    def stored(*_):
        return None

    def plan(self, bundle, *_, interim, **__):
        with measuring:
            steps.append((bundle, "cpu"))
            if bundle == "first":
                eventually_waiting(preparer._measuring, 2)
        interim(f"interim of {bundle}")
        with measuring:
            steps.append((bundle, "accelerator"))
        return f"plan of {bundle}"

    monkeypatch.setattr(Planner, "stored", stored)
    monkeypatch.setattr(Planner, "measure", plan)
    monkeypatch.setattr(Preparer, "_open", lambda self, wanted, *_: wanted.bundle)
    threads = [Preparation(Wanted(name, name), preparer, post=posted.append) for name in ("first", "second")]
    threads[0].start()
    eventually_waiting(preparer._measuring, 1)
    threads[1].start()
    for each in threads:
        each.join(20)
    assert steps == [("first", "cpu"), ("second", "cpu"), ("first", "accelerator"), ("second", "accelerator")]
    plans = [each.plan for each in posted if isinstance(each, Prepared)]
    assert plans == ["interim of first", "interim of second", "plan of first", "plan of second"]


@pytest.mark.parametrize("how", ["is_switch", "is_again"])
def test_no_interim_plan_where_something_runs_already(tmp_path, monkeypatch, how):
    """The old bundle runs until the new one is measured to the end; and a slow model is better than three swaps."""
    preparer = Preparer(None, PlanStore(tmp_path), VirtualClock())
    preparer._known = (LATE, SimpleNamespace(tune=SimpleNamespace(objective="latency")))
    posted = []

    def stored(*_):
        assert how != "is_again", "a new measurement was asked for"

    def plan(*_, interim, **__):
        interim("interim")
        return "plan"

    monkeypatch.setattr(Planner, "stored", stored)
    monkeypatch.setattr(Planner, "measure", plan)
    monkeypatch.setattr(Preparer, "_open", lambda self, wanted, *_: wanted.bundle)
    prepared = preparer.prepare(Wanted("m", "b", **{how: True}), threading.Event(), posted.append)
    assert prepared.plan == "plan"
    assert not any(isinstance(each, Prepared) for each in posted)
