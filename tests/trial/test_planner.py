"""From a bundle to a stored plan: what is measured, how often, and when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from agent.bundle.reader import open_bundle
from agent.device.facts import Cpu, EpDevice, Facts
from agent.device.plan import Candidate, Measurement, Outcome
from agent.device.planstore import PlanStore
from agent.device.profile import Profile
from agent.errors import CandidateError
from agent.preparation import Preparer, Wanted
from agent.trial.planner import make_plan

FACTS = Facts(
    os="linux",
    os_version="6",
    architecture="x86_64",
    board="",
    cpu=Cpu("AMD", "EPYC", frozenset(), physical_cores=2, logical_cores=2),
    memory_bytes=8 << 30,
    runtime_version="1.31.1",
    ep_devices=(EpDevice("CPUExecutionProvider", "cpu"),),
)


class ManualClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 20, 9, 0, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.is_set()


class Bench:
    """Stands in for the trial process: knows each candidate's p99s, one for each time it is asked; None crashes."""

    def __init__(self, clock: ManualClock, p99s_ms: dict[str, list[float | None]], takes_s: float = 1.0) -> None:
        self.asked: list[str] = []
        self._clock, self._p99s_ms, self._takes_s = clock, p99s_ms, takes_s

    def __call__(self, bundle_folder, candidate, limits, stop, *, ask, loaded) -> Outcome:
        name = f"{candidate.variant}×{candidate.threads}"
        known = self._p99s_ms[name]
        p99_ms = known[min(self.asked.count(name), len(known) - 1)]
        self.asked.append(name)
        self._clock.now_s += self._takes_s
        if p99_ms is None:
            return Outcome(candidate, refusal="the trial was killed by SIGSEGV")
        nodes = {"CPUExecutionProvider": 5}
        return Outcome(candidate, Measurement(ask.runs, p99_ms, p99_ms, p99_ms, p99_ms, 5.0, p99_ms, 10**8, nodes, 1.0))


def profile(**tune: object) -> Profile:
    cpu = {"provider": "CPUExecutionProvider", "variants": ["int8", "fp32"], "threads": [1, 2]}
    return Profile.model_validate({"name": "p", "description": "d", "candidates": [cpu], "tune": tune})


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def planning(make_tiny_bundle, tiny_classifier, tmp_path, clock):
    """Return a function that makes a plan with a Bench; the bundle and the store stay the same from call to call."""
    bundle = open_bundle(make_tiny_bundle({"fp32": tiny_classifier(), "int8": tiny_classifier(0.9)}))
    (tmp_path / "plans").mkdir()

    def make(bench: Bench, used: Profile | None = None, **options: object):
        return make_plan(bundle, FACTS, used or profile(), PlanStore(tmp_path / "plans"), clock, run=bench, **options)

    return make


def apart() -> dict[str, list[float | None]]:
    return {"int8×1": [9.0], "int8×2": [2.0], "fp32×1": [7.0], "fp32×2": [5.0]}


def test_every_candidate_is_measured_once_when_the_best_is_clear(planning, clock):
    """Measuring again what is already decided would only delay the start."""
    bench = Bench(clock, apart())

    plan = planning(bench)

    assert bench.asked == ["int8×1", "int8×2", "fp32×1", "fp32×2"]
    assert (plan.chosen.variant, plan.chosen.threads) == ("int8", 2)
    assert plan.made_at == "2026-11-20T09:00:00Z"


def test_second_start_measures_nothing(planning, clock):
    """A restart must cost nothing."""
    first = planning(Bench(clock, apart()))
    bench = Bench(clock, {})

    assert planning(bench) == first
    assert bench.asked == []


def test_measure_again_means_again(planning, clock):
    """`holdfast plan measure` is how an operator gets rid of a plan that was made on a bad day."""
    planning(Bench(clock, apart()))
    bench = Bench(clock, {**apart(), "fp32×1": [1.0]})

    assert planning(bench, again=True).chosen.variant == "fp32"


def test_close_candidates_are_measured_again_in_turns_and_keep_their_median(planning, clock):
    """Neither one disturbed measurement nor one lucky one must decide for years."""
    bench = Bench(clock, {"int8×1": [9.0], "int8×2": [2.2, 2.1, 2.15], "fp32×1": [7.0], "fp32×2": [2.0, 2.5, 2.4]})

    plan = planning(bench)

    assert bench.asked[4:] == ["fp32×2", "int8×2", "fp32×2", "int8×2"]
    assert plan.chosen.variant == "int8"
    assert {o.measurement.p99_ms for o in plan.outcomes} == {9.0, 2.15, 7.0, 2.4}


def test_a_crash_while_measuring_again_turns_the_candidate_down(planning, clock):
    """What crashed once in three trials crashes in the field."""
    bench = Bench(clock, {"int8×1": [9.0], "int8×2": [2.0, None, 2.0], "fp32×1": [7.0], "fp32×2": [2.1, 2.1, 2.1]})

    plan = planning(bench)

    assert plan.chosen.variant == "fp32"
    assert next(o for o in plan.outcomes if o.candidate.variant == "int8" and o.candidate.threads == 2).refusal


def test_a_spent_budget_is_said_of_each_candidate_left_out(planning, clock):
    """What was not measured must not look as if it had lost."""
    bench = Bench(clock, apart(), takes_s=10.0)

    plan = planning(bench, profile(budget_s=15))

    assert bench.asked == ["int8×1", "int8×2"]
    assert [o.refusal for o in plan.outcomes][2:] == ["not measured: the budget of 15 s was spent"] * 2


def test_budget_goes_on_until_something_passed(planning, clock):
    """A device without any plan would be worse than a slow start."""
    bench = Bench(clock, {"int8×1": [None], "int8×2": [None], "fp32×1": [7.0], "fp32×2": [5.0]}, takes_s=10.0)

    plan = planning(bench, profile(budget_s=15))

    assert bench.asked == ["int8×1", "int8×2", "fp32×1"]
    assert plan.chosen.variant == "fp32"


def test_as_listed_stops_at_the_first_that_passes(planning, clock):
    """The operator gave the order; still nothing runs that no trial has seen."""
    bench = Bench(clock, {"int8×1": [None], "int8×2": [9.0], "fp32×1": [1.0], "fp32×2": [1.0]})

    plan = planning(bench, profile(mode="as-listed"))

    assert bench.asked == ["int8×1", "int8×2"]
    assert (plan.chosen.variant, plan.chosen.threads) == ("int8", 2)


def test_stop_ends_without_a_plan(planning, clock):
    """SIGTERM during the first plan: nothing half measured may be stored."""
    stop = threading.Event()
    bench = Bench(clock, apart())

    assert planning(bench, stop=stop, progress=lambda _: stop.set()) is None
    assert bench.asked == ["int8×1"]
    assert planning(Bench(clock, apart())) is not None


def test_nothing_that_runs_is_an_error_and_not_stored(planning, clock):
    """The next start must try again: a driver may have come back."""
    with pytest.raises(CandidateError, match="SIGSEGV"):
        planning(Bench(clock, {name: [None] for name in apart()}))

    assert planning(Bench(clock, apart())) is not None


def test_progress_tells_of_each_trial_before_and_after(planning, clock):
    """The demo's table grows by this."""
    news: list[Candidate | Outcome] = []

    planning(Bench(clock, apart()), progress=news.append)

    assert [type(each) for each in news] == [Candidate, Outcome] * 4
    assert all(news[i] == news[i + 1].candidate for i in range(0, 8, 2))


def test_a_full_disk_does_not_cost_the_plan(planning, clock, tmp_path, monkeypatch):
    """The plan is a cache; the device must run without it."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent.atomicfile.write", full)

    assert planning(Bench(clock, apart())).chosen.variant == "int8"


def test_real_trials_choose_the_variant_that_is_right(make_tiny_bundle, tiny_classifier, tmp_path, clock: ManualClock):
    """The whole way: a small int8 variant that answers wrongly, and a larger fp32 one that does not."""
    models: dict[str, Callable[..., bytes]] = {
        "fp32": tiny_classifier(pooling_rounds=4),
        "int8": tiny_classifier(gain=-1.0),
    }
    bundle = open_bundle(make_tiny_bundle(models))
    from agent.clock import SystemClock

    plan = make_plan(bundle, FACTS, profile(), PlanStore(tmp_path), SystemClock())

    assert plan.chosen.variant == "fp32"
    refusals = {o.candidate.variant: o.refusal for o in plan.outcomes}
    assert refusals == {"fp32": None, "int8": "agrees with the golden answers by 0.000; at least 0.900 is required"}


def test_bundle_with_a_plan_waits_for_nobody_s_trial(make_tiny_bundle, tiny_classifier, tmp_path, clock):
    """The way back, and the start of the device, once took as long as the trial of another model's release."""
    folder = make_tiny_bundle({"fp32": tiny_classifier(), "int8": tiny_classifier(0.9)})
    store = PlanStore(tmp_path / "plans")
    (tmp_path / "plans").mkdir()
    plan = make_plan(open_bundle(folder), FACTS, profile(), store, clock, run=Bench(clock, apart()))
    preparer = Preparer(None, store, clock)
    preparer._known = FACTS, profile()
    with preparer._measuring:
        prepared = preparer.prepare(Wanted("m", str(folder)), threading.Event(), lambda note: None)
    assert (prepared.plan, prepared.was_stored) == (plan, True)
