"""From a bundle to a stored plan: what is measured, how often, in which order, and when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.bundle.reader import open_bundle
from agent.clock import SystemClock
from agent.device.facts import Cpu, EpDevice, Facts
from agent.device.planning.plan import Candidate, Demand, Measurement, Outcome
from agent.device.planning.planstore import PlanStore
from agent.device.profiles.profile import Limits, Profile, compose
from agent.errors import CandidateError
from agent.preparation import Preparer, Wanted
from agent.trial import measuring
from agent.trial.measuring import Loaded
from agent.trial.planner import Planner

NPU, GPU = "OpenVINOExecutionProvider", "CUDAExecutionProvider"
CPU_DEVICE = EpDevice("CPUExecutionProvider", "cpu")
FACTS = Facts(
    os="linux",
    os_version="6",
    architecture="x86_64",
    board="",
    cpu=Cpu("AMD", "EPYC", frozenset(), physical_cores=2, logical_cores=2),
    memory_bytes=8 << 30,
    runtime_version="1.31.1",
    ep_devices=(CPU_DEVICE,),
)
WITH_NPU = replace(FACTS, ep_devices=(CPU_DEVICE, EpDevice(NPU, "npu", runtime="plugin:x"), EpDevice(GPU, "gpu")))
CPU_SPEC = {"provider": "CPUExecutionProvider", "variants": ["int8", "fp32"], "threads": [1, 2]}
NPU_SPEC = {"provider": NPU, "device_type": "npu", "variants": ["int8", "fp32"]}
GPU_SPEC = {"provider": GPU, "device_type": "gpu", "variants": ["fp32"]}


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


def name_of(candidate: Candidate) -> str:
    """`int8×2` on the plain CPU, `npu int8` elsewhere; with `+` where threads spin."""
    if candidate.is_plain_cpu:
        spins = any("spinning" in name for name, _ in candidate.session_options)
        return f"{candidate.variant}×{candidate.threads}{'+' * spins}"
    return f"{candidate.device_type} {candidate.variant}"


class Bench:
    """Stands in for the trial process: knows each candidate's times, one for each time it is asked, the last for ever.

    None crashes. A trial takes `takes_s`, and compiling, the first time, `compiles_s` before that.
    """

    def __init__(
        self,
        clock: ManualClock,
        times_ms: dict[str, list[float | None]],
        takes_s: float = 1.0,
        compiles_s: dict[str, float] | None = None,
        **numbers: object,
    ) -> None:
        self.asked: list[str] = []
        self.asks: list[object] = []
        self._clock, self._times_ms, self._takes_s = clock, times_ms, takes_s
        self._compiles_s, self._numbers = compiles_s or {}, numbers

    def __call__(self, bundle_folder, candidate, limits, stop, *, ask, loaded) -> Outcome:
        name = name_of(candidate)
        times_ms = self._times_ms[name]
        time_ms = times_ms[min(self.asked.count(name), len(times_ms) - 1)]
        if name not in self.asked:
            self._clock.now_s += self._compiles_s.get(name, 0.0)
        self.asked.append(name)
        self.asks.append(ask)
        if time_ms is None:
            return Outcome(candidate, refusal="the trial was killed by SIGSEGV", cause="failed")
        loaded()
        self._clock.now_s += self._takes_s
        numbers = {"nodes": {candidate.provider: 5}, "golden_agreement": 1.0, **self._numbers}
        if ask.streams > 1:
            numbers["runs_per_s"] = 1000 / time_ms
        if ask.trace:
            numbers["time_share"] = {candidate.provider: 0.9, "CPUExecutionProvider": 0.1}
        times = Measurement(ask.runs, time_ms, time_ms, time_ms, time_ms, 5.0, time_ms, 10**8)
        return Outcome(candidate, replace(times, **numbers))


def profile(*specs: dict[str, object], **tune: object) -> Profile:
    return Profile.model_validate({"name": "p", "description": "d", "candidates": specs or [CPU_SPEC], "tune": tune})


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def planning(make_tiny_bundle, tiny_classifier, tmp_path, clock):
    """Return a function that makes a plan with a Bench; the bundle and the store stay the same from call to call."""
    bundle = open_bundle(make_tiny_bundle({"fp32": tiny_classifier(), "int8": tiny_classifier(0.9)}))
    (tmp_path / "plans").mkdir()

    def make(
        bench: Bench,
        used: Profile | None = None,
        facts: Facts = FACTS,
        *,
        demand: Demand | None = None,
        prepared: Path | None = None,
        again: bool = False,
        **options: object,
    ):
        planner = Planner(facts, used or profile(), PlanStore(tmp_path / "plans"), clock, prepared, bench)
        demand = demand or Demand()
        return (None if again else planner.stored(bundle, demand)) or planner.measure(bundle, demand, **options)

    return make


def apart() -> dict[str, list[float | None]]:
    on_cpu = {"int8×1": [9.0], "int8×2": [2.0], "fp32×1": [7.0], "fp32×2": [5.0]}
    return {**on_cpu, "npu int8": [1.0], "npu fp32": [4.0], "gpu fp32": [1.5]}


def refusals(plan) -> dict[str, str | None]:
    return {name_of(each.candidate): each.refusal for each in plan.outcomes}


def test_each_gets_a_short_round_and_only_those_that_may_win_a_long_one(planning, clock):
    """A budget spent in full on each candidate is spent mostly on those that lose."""
    bench = Bench(clock, apart())

    plan = planning(bench)

    assert list(zip(bench.asked, [ask.runs for ask in bench.asks], strict=True)) == [
        *[(name, 20) for name in ("fp32×1", "int8×1", "int8×2", "fp32×2")],
        ("fp32×1", 200),  # the reference
        *[("int8×2", 200)] * 3,
    ]
    assert name_of(plan.chosen) == "int8×2"
    assert [name_of(each) for each in plan.ranked] == ["int8×2", "fp32×2", "fp32×1", "int8×1"]
    assert plan.made_at == "2026-11-20T09:00:00Z"


def test_each_trial_has_the_limits_of_the_profile_that_brings_its_candidate(planning, clock):
    """An engine that builds for half an hour would be killed after the CPU's minute."""
    npu = profile(NPU_SPEC).model_copy(update={"accelerator": NPU, "limits": Limits(compile_s=1800)})
    bench, seen = Bench(clock, apart()), set()

    def run(folder, candidate, limits, stop, **more):
        seen.add((candidate.provider, limits.compile_s))
        return bench(folder, candidate, limits, stop, **more)

    planning(run, compose(profile(CPU_SPEC, budget_s=600), [npu]), WITH_NPU)

    assert seen == {("CPUExecutionProvider", 60), (NPU, 1800)}


def test_many_candidates_are_halved_round_by_round(planning, clock):
    """Twelve candidates cost twelve short trials, six longer ones, and three in turns."""
    specs = {**CPU_SPEC, "session_options": {"x": ["1", "2", "3"]}}
    bench = Bench(clock, {"int8×1": [3.0], "int8×2": [2.0], "fp32×1": [7.0], "fp32×2": [5.0]})

    planning(bench, profile(specs, budget_s=1000))

    assert [ask.runs for ask in bench.asks] == [
        *[20] * 12,
        *[60] * 7,
        200,
        *[200] * 9,
    ]  # the reference is kept beside the better half
    assert set(bench.asked[12:18]) == {"int8×1", "int8×2"}


def test_second_start_measures_nothing(planning, clock):
    """A restart must cost nothing."""
    first = planning(Bench(clock, apart()))
    bench = Bench(clock, {})

    assert planning(bench) == first
    assert bench.asked == []


def test_another_demand_is_another_plan(planning, clock):
    """What is best for one camera need not be best for four that share the model."""
    planning(Bench(clock, apart()))
    bench = Bench(clock, {**apart(), "int8×2+": [2.0]})

    plan = planning(bench, demand=Demand(objective="throughput", streams=4))

    assert {ask.streams for ask in bench.asks} == {4}
    assert plan.demand.streams == 4
    assert planning(Bench(clock, {})).demand == Demand()


def test_measure_again_means_again(planning, clock):
    """`holdfast plan measure` is how an operator gets rid of a plan that was made on a bad day."""
    planning(Bench(clock, apart()))
    bench = Bench(clock, {**apart(), "fp32×1": [1.0]})

    assert planning(bench, again=True).chosen.variant == "fp32"


def test_close_candidates_are_measured_in_turns_and_keep_their_median(planning, clock):
    """Neither one disturbed measurement nor one lucky one must decide for years."""
    bench = Bench(
        clock, {"int8×1": [9.0], "int8×2": [2.2, 2.2, 2.1, 2.15], "fp32×1": [7.0], "fp32×2": [2.1, 1.0, 2.5, 2.4]}
    )

    plan = planning(bench)

    assert bench.asked[5:] == ["fp32×2", "int8×2"] * 3
    assert plan.chosen.variant == "int8"
    assert {each.measurement.p99_ms for each in plan.outcomes} == {9.0, 2.15, 7.0, 2.4}


def test_one_that_was_disturbed_early_comes_back_when_the_finalist_disappoints(planning, clock):
    """Twenty runs beside a backup job say little: the long ones tell, and then the others deserve theirs."""
    bench = Bench(clock, {"int8×1": [9.0], "int8×2": [2.0, 6.0], "fp32×1": [7.0], "fp32×2": [4.0]})

    plan = planning(bench)

    assert bench.asked[5:] == ["int8×2"] * 3 + ["fp32×2"] * 3
    assert name_of(plan.chosen) == "fp32×2"
    assert plan.reason.startswith("CPU fp32 ×2 has the lowest p99, 4.00 ms; next is CPU int8 ×2 with 6.00 ms.")


def test_a_crash_in_a_later_round_turns_the_candidate_down(planning, clock):
    """What crashed once in four trials crashes in the field."""
    bench = Bench(clock, {"int8×1": [9.0], "int8×2": [2.0, 2.0, None], "fp32×1": [7.0], "fp32×2": [2.1]})

    plan = planning(bench)

    assert name_of(plan.chosen) == "fp32×2"
    assert "SIGSEGV" in refusals(plan)["int8×2"]
    assert bench.asked.count("int8×2") == 3


def test_wrong_answers_of_a_prepared_model_turn_the_candidate_down(planning, clock):
    """The worker reads what the first trial compiled: when that answers wrong, the first trial's agreement is no comfort."""
    bench = Bench(clock, apart())

    def second_time_wrong(*args, **keywords) -> Outcome:
        outcome = bench(*args, **keywords)
        again = bench.asked.count("int8×2") > 1 and bench.asked[-1] == "int8×2"
        return replace(outcome, measurement=replace(outcome.measurement, golden_agreement=0.2)) if again else outcome

    plan = planning(second_time_wrong)

    assert "agrees with the golden answers by 0.200" in refusals(plan)["int8×2"]


def test_a_spent_budget_is_said_of_each_candidate_left_out(planning, clock):
    """What was not measured must not look as if it had lost."""
    bench = Bench(clock, apart(), takes_s=10.0)

    plan = planning(bench, profile(budget_s=15))

    assert bench.asked == ["fp32×1", "int8×1"]
    assert [each.refusal for each in plan.outcomes][2:] == ["not measured: the budget of 15 s was spent"] * 2


def test_leaving_out_thousands_takes_no_time(planning, clock, monkeypatch):
    """Whether something passed was asked anew for each of them, of all of them: minutes of a core for nothing."""
    judged = []
    real = measuring.judge
    monkeypatch.setattr(measuring, "judge", lambda *values: judged.append(1) or real(*values))
    many = {**CPU_SPEC, "variants": ["fp32"], "threads": [1], "options": {"x": tuple(map(str, range(1000)))}}
    times_ms = {"fp32×1": [5.0]}

    plan = planning(Bench(clock, times_ms), profile(many, budget_s=3))

    assert len(plan.outcomes) == 1000
    assert len(judged) < 20_000


def test_budget_goes_on_until_something_passed(planning, clock):
    """A device without any plan would be worse than a slow start."""
    times_ms = {"int8×1": [None], "int8×2": [None], "fp32×1": [None], "fp32×2": [5.0]}
    bench = Bench(clock, times_ms, compiles_s=dict.fromkeys(times_ms, 10.0))

    plan = planning(bench, profile(budget_s=15))

    assert bench.asked == ["fp32×1", "int8×1", "int8×2", "fp32×2"]
    assert name_of(plan.chosen) == "fp32×2"


def test_compiling_is_not_counted_against_the_budget(planning, clock):
    """An NPU that compiles for minutes is measured all the same: that is paid once."""
    bench = Bench(clock, apart(), compiles_s={"npu int8": 300.0, "npu fp32": 300.0})

    plan = planning(bench, profile(CPU_SPEC, NPU_SPEC, budget_s=60), WITH_NPU)

    assert name_of(plan.chosen) == "npu int8"
    assert bench.asked.count("npu int8") > 1


def test_the_processors_candidates_leave_half_of_the_budget(planning, clock):
    """Otherwise an accelerator would not be measured on a slow device, and silently missing."""
    bench = Bench(clock, apart(), takes_s=7.0)

    plan = planning(bench, profile(CPU_SPEC, NPU_SPEC, budget_s=30), WITH_NPU)

    assert bench.asked == ["fp32×1", "int8×1", "int8×2", "npu int8", "npu fp32"]
    assert name_of(plan.chosen) == "npu int8"


def test_the_processor_serves_while_an_accelerator_compiles(planning, clock):
    """Minutes without service, because something faster is being compiled, would be absurd."""
    bench = Bench(clock, apart())
    interims = []

    plan = planning(
        bench, profile(NPU_SPEC, CPU_SPEC), WITH_NPU, interim=lambda plan: interims.append((plan, list(bench.asked)))
    )

    ((interim, asked),) = interims
    assert (name_of(interim.chosen), interim.is_interim, interim.fallback) == ("int8×2", True, None)
    assert not any("npu" in name for name in asked)
    assert (name_of(plan.chosen), plan.is_interim) == ("npu int8", False)
    assert plan.requested == f"{NPU} npu"
    assert planning(Bench(clock, {}), profile(NPU_SPEC, CPU_SPEC), WITH_NPU) == plan  # the interim one was not stored


def test_no_interim_plan_where_nothing_follows_or_nothing_passed(planning, clock):
    """It would only be switched away from at once."""
    planning(Bench(clock, apart()), interim=pytest.fail)
    broken = {name: [1.0] if "npu" in name else [None] for name in apart()}

    assert (
        planning(Bench(clock, broken), profile(CPU_SPEC, NPU_SPEC), WITH_NPU, interim=pytest.fail).chosen.device_type
        == "npu"
    )


def test_no_interim_plan_where_the_processor_is_what_was_asked_for(planning, clock):
    """The others are not measured then; saying that something is still compiled would be wrong."""
    demand = Demand(run_on="CPUExecutionProvider")
    planning(Bench(clock, apart()), profile(CPU_SPEC, NPU_SPEC), WITH_NPU, demand=demand, interim=pytest.fail)


def test_what_was_asked_for_is_chosen_though_the_processor_is_faster(planning, clock):
    """An operator may want the processor's time for something else. The reference is measured all the same."""
    times_ms = {**apart(), "npu int8": [30.0], "npu fp32": [40.0]}
    bench = Bench(clock, times_ms)

    plan = planning(bench, profile(CPU_SPEC, NPU_SPEC, GPU_SPEC), WITH_NPU, demand=Demand(run_on="npu"))

    assert (name_of(plan.chosen), plan.requested, plan.fallback) == ("npu int8", "npu", None)
    assert "fp32×1" in bench.asked
    assert "gpu fp32" not in bench.asked
    assert "`run_on: npu` was asked for" in refusals(plan)["gpu fp32"]
    assert [name_of(each) for each in plan.ranked][:3] == ["npu int8", "npu fp32", "int8×2"]


def test_where_nothing_asked_for_works_the_next_best_is_measured_and_the_fallback_said(planning, clock):
    """`prefer` means the next best, which may be another accelerator."""
    bench = Bench(clock, {**apart(), "npu int8": [None], "npu fp32": [None]})
    interims = []

    plan = planning(
        bench, profile(CPU_SPEC, NPU_SPEC, GPU_SPEC), WITH_NPU, demand=Demand(run_on=NPU), interim=interims.append
    )

    assert name_of(plan.chosen) == "gpu fp32"
    assert plan.fallback == f"`run_on: {NPU}` was asked for, but OpenVINO npu fp32: the trial was killed by SIGSEGV"
    assert interims[0].fallback == f"`run_on: {NPU}` was asked for and is still being compiled and measured"


def test_spinning_is_kept_only_where_it_pays(planning, clock):
    """It burns a core all day, so it has to give measurably more runs a second."""
    demand = Demand(objective="throughput", streams=2)
    for spinning_ms, expected in ((1.98, "int8×2"), (1.0, "int8×2+")):
        bench = Bench(clock, {**apart(), "int8×2+": [spinning_ms]})

        plan = planning(bench, demand=demand, again=True)

        assert name_of(plan.chosen) == expected
        assert f"{1000 / spinning_ms:.1f} runs/s where 500.0 runs/s is without" in plan.reason
    assert not any("+" in name for name in asked_for_latency(planning, clock))
    assert planning(Bench(clock, {}), demand=demand) == plan  # a choice that spins still holds at the next start


def asked_for_latency(planning, clock) -> list[str]:
    bench = Bench(clock, apart())
    planning(bench, again=True)
    return bench.asked


def test_energy_decides_where_it_can_be_read(planning, clock):
    """A box on a battery."""
    plan = planning(Bench(clock, apart(), energy_mj_per_run=3.0), demand=Demand(objective="power"))
    assert "Energy is that of the processor package" in plan.reason

    plan = planning(Bench(clock, apart()), demand=Demand(objective="power"), again=True)
    assert "CPU time stands for energy" in plan.reason


def test_the_choice_on_two_providers_is_traced_once(planning, clock):
    """How much of a run is really spent on the accelerator is the number that explains a disappointing one."""
    nodes = {NPU: 8, "CPUExecutionProvider": 2}
    bench = Bench(clock, apart(), nodes=nodes)

    plan = planning(bench, profile(NPU_SPEC), replace(WITH_NPU, ep_devices=WITH_NPU.ep_devices[1:]))

    assert [bool(ask.trace) for ask in bench.asks].count(True) == 1
    shares = {name_of(each.candidate): each.measurement.time_share for each in plan.outcomes if each.measurement}
    assert shares["npu int8"] == {NPU: 0.9, "CPUExecutionProvider": 0.1}
    assert shares["npu fp32"] == {}


def test_as_listed_stops_at_the_first_that_passes(planning, clock):
    """The operator gave the order; still nothing runs that no trial has seen."""
    bench = Bench(clock, {"int8×1": [None], "int8×2": [9.0], "fp32×1": [1.0], "fp32×2": [1.0]})

    plan = planning(bench, profile(mode="as-listed"))

    assert bench.asked == ["int8×1", "int8×2"]
    assert name_of(plan.chosen) == "int8×2"


def test_stop_ends_without_a_plan(planning, clock):
    """SIGTERM during the first plan: nothing half measured may be stored."""
    stop = threading.Event()
    bench = Bench(clock, apart())
    news: list[object] = []

    def stop_at_the_first(each: object) -> None:
        news.append(each)
        stop.set()

    assert planning(bench, stop=stop, progress=stop_at_the_first, interim=pytest.fail) is None
    assert bench.asked == ["fp32×1"]
    assert not any(isinstance(each, Outcome) for each in news)
    assert planning(Bench(clock, apart())) is not None


def test_nothing_that_runs_is_an_error_and_not_stored(planning, clock):
    """The next start must try again: a driver may have come back."""
    with pytest.raises(CandidateError, match="SIGSEGV"):
        planning(Bench(clock, {name: [None] for name in apart()}))

    assert planning(Bench(clock, apart())) is not None


def test_progress_tells_when_a_trial_begins_is_loaded_and_ends(planning, clock):
    """The demo's table grows by this, and `compiling 43 s` is not `measuring`."""
    news: list[Candidate | Loaded | Outcome] = []

    planning(Bench(clock, apart()), progress=news.append)

    assert [type(each) for each in news] == [Candidate, Loaded, Outcome] * 8
    assert all(news[at] == news[at + 1].candidate == news[at + 2].candidate for at in range(0, 24, 3))


def test_a_full_disk_does_not_cost_the_plan(planning, clock, tmp_path, monkeypatch):
    """The plan is a cache, and so is what was compiled; the device must run without them."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent.atomicfile.write", full)
    monkeypatch.setattr("agent.device.planning.preparedmodels.folder_of", full)

    assert planning(Bench(clock, apart()), prepared=tmp_path / "prepared").chosen.variant == "int8"


def test_where_no_outputs_can_be_kept_to_compare_with_only_the_cpu_is_chosen(
    make_tiny_bundle, tmp_path, clock, monkeypatch
):
    """Without golden samples a wrong accelerator would pass unseen; and a full disk is no fault of the processor's."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    planner = Planner(
        WITH_NPU, profile(NPU_SPEC, CPU_SPEC), PlanStore(tmp_path), clock, tmp_path / "prepared", Bench(clock, apart())
    )

    plan = planner.measure(open_bundle(make_tiny_bundle(golden=[])), Demand())

    assert plan.chosen.is_plain_cpu
    assert "no file can be written" in (refusals(plan)["npu fp32"] or "")


def test_only_what_the_best_have_compiled_is_kept(planning, clock, tmp_path):
    """Engines take hundreds of megabytes; the choice and what may take its place are enough."""

    def compiling(folder, candidate, limits, stop, *, ask, loaded) -> Outcome:
        (ask.prepared / candidate.prepared_name).mkdir(exist_ok=True)
        return bench(folder, candidate, limits, stop, ask=ask, loaded=loaded)

    bench = Bench(clock, apart())
    plan = planning(compiling, profile(CPU_SPEC, NPU_SPEC, GPU_SPEC), WITH_NPU, prepared=tmp_path / "prepared")

    assert [name_of(each) for each in plan.ranked][:3] == ["npu int8", "gpu fp32", "int8×2"]
    left = {path.name for path in (tmp_path / "prepared" / plan.key).iterdir()}
    assert left == {candidate.prepared_name for candidate in plan.ranked[:3]}


NAMES = st.lists(
    st.sampled_from(["int8×1", "int8×2", "fp32×1", "fp32×2", "npu int8", "npu fp32", "gpu fp32"]), unique=True
)
TIMES = st.fixed_dictionaries(
    {name: st.one_of(st.none(), st.floats(0.1, 100)).map(lambda time_ms: [time_ms]) for name in apart()}
)
SPECS = [
    {"provider": provider, "device_type": kind, "variants": [variant], "threads": [threads]}
    for provider, kind, variant, threads in (
        ("CPUExecutionProvider", "cpu", "int8", 1), ("CPUExecutionProvider", "cpu", "int8", 2),
        ("CPUExecutionProvider", "cpu", "fp32", 1), ("CPUExecutionProvider", "cpu", "fp32", 2),
        (NPU, "npu", "int8", 1), (NPU, "npu", "fp32", 1), (GPU, "gpu", "fp32", 1),
    )
]  # fmt: skip
DEMANDS = st.sampled_from([Demand(), Demand(run_on="npu"), Demand(run_on="cpu"), Demand(objective="power")])
ONE_BUNDLE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def outcome_of(planning, bench: Bench, specs: list[dict[str, object]], demand: Demand, **tune: object):
    try:
        return planning(bench, profile(*specs, **tune), WITH_NPU, demand=demand, again=True)
    except CandidateError:
        return None


@ONE_BUNDLE
@given(times_ms=TIMES, shuffled=st.permutations(SPECS), demand=DEMANDS)
def test_the_order_of_candidates_never_decides(planning, clock, times_ms, shuffled, demand):
    """Two profiles that list the same in another order must not run another model."""
    plan = outcome_of(planning, Bench(clock, times_ms), SPECS, demand, budget_s=10000)
    other = outcome_of(planning, Bench(clock, times_ms), shuffled, demand, budget_s=10000)

    assert (plan and (plan.chosen, plan.ranked)) == (other and (other.chosen, other.ranked))


@ONE_BUNDLE
@given(
    times_ms=TIMES, budget_s=st.floats(1, 60), takes_s=st.floats(0.1, 20), compiles_s=st.floats(0, 500), demand=DEMANDS
)
def test_the_budget_is_kept_and_the_reference_measured(
    planning, clock, times_ms, budget_s, takes_s, compiles_s, demand
):
    """Planning must end: the trial under way may finish, and it goes on only while nothing passed."""
    compiling = dict.fromkeys(["npu int8", "npu fp32", "gpu fp32"], compiles_s)
    bench = Bench(clock, times_ms, takes_s, compiling)
    began_s = clock.now_s

    plan = outcome_of(planning, bench, SPECS, demand, budget_s=budget_s)

    counted_s = clock.now_s - began_s - compiles_s * len(set(bench.asked) & set(compiling))
    needed_s = 0.0 if plan is None else takes_s
    assert counted_s <= budget_s + needed_s + 1e-6
    assert bench.asked[0] == "fp32×1"
    if plan is not None and times_ms["fp32×1"] != [None]:
        assert next(each for each in plan.outcomes if name_of(each.candidate) == "fp32×1").measurement


def test_real_trials_choose_the_variant_that_is_right(make_tiny_bundle, tiny_classifier, tmp_path):
    """The whole way: a small int8 variant that answers wrongly, and a larger fp32 one that does not."""
    models: dict[str, Callable[..., bytes]] = {
        "fp32": tiny_classifier(pooling_rounds=4),
        "int8": tiny_classifier(gain=-1.0),
    }
    bundle = open_bundle(make_tiny_bundle(models))

    used = profile({**CPU_SPEC, "threads": [1]})
    planner = Planner(FACTS, used, PlanStore(tmp_path), SystemClock(), prepared=tmp_path / "prepared")

    plan = planner.measure(bundle, Demand())

    assert plan.chosen.variant == "fp32"
    wrong = "agrees with the golden answers by 0.000; at least 0.900 is required"
    assert {each.candidate.variant: each.refusal for each in plan.outcomes} == {"fp32": None, "int8": wrong}
    chosen = next(each.measurement for each in plan.outcomes if each.candidate == plan.chosen)
    assert chosen.runs > 20
    assert chosen.compile_ms > 0  # the first trial optimised the graph, the later ones and the worker read it
    assert list((tmp_path / "prepared" / plan.key).iterdir())


def test_bundle_with_a_plan_waits_for_nobody_s_trial(make_tiny_bundle, tiny_classifier, tmp_path, clock):
    """The way back, and the start of the device, once took as long as the trial of another model's release."""
    folder = make_tiny_bundle({"fp32": tiny_classifier(), "int8": tiny_classifier(0.9)})
    store = PlanStore(tmp_path / "plans")
    (tmp_path / "plans").mkdir()
    planner = Planner(FACTS, profile(), store, clock, run=Bench(clock, apart()))
    plan = planner.measure(open_bundle(folder), Demand())
    preparer = Preparer(None, store, clock)
    preparer._known = FACTS, profile()
    with preparer._measuring:
        prepared = preparer.prepare(Wanted("m", str(folder)), threading.Event(), lambda note: None)
    assert (prepared.plan, prepared.was_stored) == (plan, True)
