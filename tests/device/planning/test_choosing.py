"""What wins, why, and what is said where it is not what was asked for: the rules on constructed measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle.manifest import Manifest
from agent.device.facts import Cpu, EpDevice, Facts
from agent.device.planning.choosing import choose, spinning, still_holds
from agent.device.planning.plan import Candidate, Cause, Demand, Measurement, Outcome
from agent.device.profiles.profile import Profile
from agent.errors import CandidateError

NPU, GPU = Candidate("AExecutionProvider", "npu", "int8", 1), Candidate("BExecutionProvider", "gpu", "fp32", 1)
FACTS = Facts(
    os="linux",
    os_version="6",
    architecture="x86_64",
    board="",
    cpu=Cpu("AMD", "EPYC", frozenset(), physical_cores=4, logical_cores=8),
    memory_bytes=8 << 30,
    runtime_version="1.31.1",
    ep_devices=(
        EpDevice("CPUExecutionProvider", "cpu"), EpDevice(NPU.provider, "npu"), EpDevice(GPU.provider, "gpu"),
    ),
)  # fmt: skip
ON_CPU = {"provider": "CPUExecutionProvider", "variants": ["int8", "fp32"]}
ON_NPU = {"provider": NPU.provider, "device_type": "npu", "variants": ["int8"]}
ON_GPU = {"provider": GPU.provider, "device_type": "gpu", "variants": ["fp32"]}


def profile(*specs: dict[str, object], **tune: object) -> Profile:
    return Profile.model_validate({"name": "p", "description": "d", "candidates": specs or [ON_CPU], "tune": tune})


ALL = profile(ON_NPU, ON_GPU, ON_CPU)


def manifest() -> Manifest:
    model = {"model": {"sha256": "0" * 64, "size_bytes": 1}, "opset": 17, "inputs": [], "outputs": []}
    return Manifest.model_validate(
        {
            "name": "m",
            "version": "1",
            "input": {"kind": "image", "width": 8, "height": 8},
            "decoder": {"model_type": "classify"},
            "variants": [{"name": name, **model} for name in ("fp32", "int8")],
        }
    )


def candidate(name: str = "fp32", threads: int = 1) -> Candidate:
    return Candidate("CPUExecutionProvider", "cpu", name, threads)


def measured(time_ms: float = 2.0, **changes: object) -> Measurement:
    numbers = Measurement(
        runs=200, mean_ms=time_ms, p50_ms=time_ms, p95_ms=time_ms, p99_ms=time_ms, load_ms=5.0, cpu_ms_per_run=time_ms,
        peak_rss_bytes=100 << 20, nodes={}, golden_agreement=1.0,
    )  # fmt: skip
    return replace(numbers, **changes)


def passed(of: Candidate, time_ms: float, dropped_in: int | None = None, **changes: object) -> Outcome:
    return Outcome(of, measured(time_ms, **changes), dropped_in=dropped_in)


def refused(of: Candidate, cause: Cause, text: str = "it did not work") -> Outcome:
    return Outcome(of, refusal=text, cause=cause)


def plan(*outcomes: Outcome, of: Profile | None = None, demand: Demand | None = None, is_interim: bool = False):
    return choose(
        FACTS, of or profile(), manifest(), digest="d" * 64, outcomes=outcomes, made_at="2026-01-01T00:00:00Z",
        demand=demand, is_interim=is_interim,
    )  # fmt: skip


def test_lowest_p99_wins():
    """Not the lowest mean: the slowest frames are what people notice."""
    made = plan(passed(candidate(threads=1), 3.0), passed(candidate(threads=2), 2.0))

    assert made.chosen == candidate(threads=2)
    assert made.reason == "CPU fp32 ×2 has the lowest p99, 2.00 ms; next is CPU fp32 ×1 with 3.00 ms."


@pytest.mark.parametrize(
    ("ranges", "variant", "said"),
    [
        pytest.param(((3.0, 9.0), (4.0, 12.0)), "int8", "lowest median, 2.00 ms", id="a disturbed device"),
        pytest.param(((4.0, 4.4), (40.0, 60.0)), "fp32", "lowest p99, 4.20 ms", id="a long tail"),
    ],
)
def test_median_decides_where_p99_is_chance(ranges, variant, said):
    """Another process took the core for some milliseconds, now in this trial and now in that one."""
    p99_ms = [4.2, 5.0] if variant == "int8" else [4.2, 50.0]
    made = plan(
        passed(candidate("fp32"), 2.5, p99_ms=p99_ms[0], p99_range_ms=ranges[0]),
        passed(candidate("int8"), 2.0, p99_ms=p99_ms[1], p99_range_ms=ranges[1]),
    )

    assert made.chosen.variant == variant
    assert said in made.reason
    assert ("overlap from trial to trial" in made.reason) == (variant == "int8")


def test_within_five_percent_the_least_cpu_wins():
    """With spinning off, two threads often tie with one and cost more."""
    made = plan(
        passed(candidate(threads=2), 2.0, cpu_ms_per_run=3.9),
        passed(candidate(threads=1), 2.09, cpu_ms_per_run=2.0),
        passed(candidate(threads=4), 2.2, cpu_ms_per_run=0.1),
    )

    assert made.chosen == candidate(threads=1)
    assert made.reason == (
        "CPU fp32 ×1 takes 2.00 ms of CPU a run where CPU fp32 ×2 takes 3.90, at an equal p99 (2.09 ms and 2.00 ms)."
    )


def test_models_of_microseconds_are_told_apart_in_words():
    """`0.01 where the other takes 0.01` is no reason."""
    made = plan(
        passed(candidate(), 0.0063, cpu_ms_per_run=0.0071), passed(candidate(threads=2), 0.0061, cpu_ms_per_run=0.0072)
    )
    assert made.reason == "CPU fp32 ×1 takes fewer threads than CPU fp32 ×2, at an equal p99 (0.006 ms and 0.006 ms)."


def test_model_of_microseconds_gets_no_second_core():
    """A hundredth of a millisecond is noise, whatever its share."""
    made = plan(
        passed(candidate(threads=2), 0.01, cpu_ms_per_run=0.02), passed(candidate(threads=1), 0.03, cpu_ms_per_run=0.01)
    )

    assert made.chosen == candidate(threads=1)


def test_accuracy_comes_before_speed():
    """A fast wrong answer is worth nothing."""
    made = plan(passed(candidate("int8"), 0.5, golden_agreement=0.6), passed(candidate("fp32"), 9.0))

    assert made.chosen == candidate("fp32")
    assert made.outcomes[0].refusal == "agrees with the golden answers by 0.600; at least 0.900 is required"


def test_what_was_measured_to_the_end_is_chosen_and_the_rest_follows_by_medians():
    """Twenty lucky runs do not beat two hundred; but when the choice fails, the next best by what is known takes over."""
    made = plan(
        passed(candidate("int8", 1), 2.0),
        passed(candidate("int8", 2), 1.0, dropped_in=1, runs=20),
        passed(candidate("fp32", 1), 9.0),
        passed(candidate("fp32", 2), 4.0, dropped_in=2, runs=60),
    )

    assert made.ranked == (candidate("int8", 1), candidate("int8", 2), candidate("fp32", 2), candidate("fp32", 1))
    assert made.reason.startswith("CPU int8 ×1 has the lowest p99, 2.00 ms")


def test_the_next_best_is_named_though_only_the_cpu_was_measured_to_the_end():
    """The CPU always is; a second GPU at twice the first one's time is dropped early, and it is what would take over."""
    gpus = [Candidate("DmlExecutionProvider", "gpu", "fp32", 1, device=name) for name in ("RTX 3060", "UHD 770")]
    made = plan(passed(candidate(), 30.0), passed(gpus[0], 6.0), passed(gpus[1], 12.0, dropped_in=1, runs=20))

    assert made.reason == (
        "Dml gpu fp32 on RTX 3060 has the lowest p99, 6.00 ms; next is Dml gpu fp32 on UHD 770 with median 12.00 ms. "
        "Best median by provider: Dml gpu 6.00 ms, CPU 30.00 ms."
    )


def test_why_int8_is_not_chosen_is_said():
    """Most people expect the smaller model to be the faster one; on depthwise networks it is not."""
    made = plan(passed(candidate("int8"), 2.2), passed(candidate("fp32"), 2.0))

    assert made.reason.endswith("int8 does not pay here: its best median is 2.20 ms, that of fp32 2.00.")


def test_throughput_takes_the_most_runs_a_second():
    """Four cameras on one session: one run may take longer when more of them are done."""
    made = plan(
        passed(candidate(threads=1), 3.0, runs_per_s=600.0),
        passed(candidate(threads=2), 2.0, runs_per_s=500.0),
        demand=Demand(objective="throughput", streams=4),
    )

    assert made.chosen == candidate(threads=1)
    assert made.reason == "CPU fp32 ×1 has the highest throughput, 600.0 runs/s; next is CPU fp32 ×2 with 500.0 runs/s."


def test_power_compares_energy_only_where_all_have_it():
    """Millijoules of one beside milliseconds of another would compare nothing."""
    one, other = passed(candidate(threads=1), 3.0), passed(candidate(threads=2), 2.0, energy_mj_per_run=900.0)
    demand = Demand(objective="power")

    made = plan(one, other, demand=demand)
    assert made.chosen == candidate(threads=2)
    assert "CPU time stands for energy" in made.reason

    made = plan(passed(candidate(threads=1), 3.0, energy_mj_per_run=10.0), other, demand=demand)
    assert made.chosen == candidate(threads=1)
    assert made.reason.startswith("CPU fp32 ×1 has the lowest energy, 10.00 mJ a run; next is CPU fp32 ×2 with 900.00")


def test_spinning_never_wins_a_tie():
    """It burns its cores while nothing happens, which back-to-back runs do not show."""
    one = candidate(threads=2)
    made = plan(passed(one, 2.0, cpu_ms_per_run=4.0), passed(spinning(one), 1.95, cpu_ms_per_run=3.0))

    assert made.chosen == one
    assert plan(passed(one, 2.0), passed(spinning(one), 1.0)).chosen == spinning(one)


def test_requested_in_auto_is_the_first_accelerator_that_is_here():
    """What an operator who bought the device expects."""
    made = plan(passed(NPU, 1.0), passed(candidate(), 2.0), of=ALL)

    assert (made.requested, made.fallback) == (f"{NPU.provider} npu", None)
    assert plan(passed(candidate(), 2.0)).requested == "cpu"


@pytest.mark.parametrize("cause", ["unusable", "failed", "memory", "wrong", "misplaced"])
def test_an_accelerator_that_is_broken_is_a_fallback(cause):
    """Never silently missing: the CPU serves, and somebody is told."""
    made = plan(refused(NPU, cause), passed(candidate(), 2.0), of=ALL)

    assert made.chosen == candidate()
    assert made.fallback == "A npu int8: it did not work"


@pytest.mark.parametrize("cause", ["absent", "lacking", "limit", "untried"])
def test_an_accelerator_that_merely_does_not_suit_is_no_fallback(cause):
    """A condition that is always there would teach people to ignore conditions."""
    assert plan(refused(NPU, cause), passed(candidate(), 2.0), of=ALL).fallback is None


def test_an_accelerator_that_is_merely_slower_is_no_fallback():
    """Both worked, and the better one runs."""
    made = plan(passed(GPU, 9.0), passed(candidate(), 2.0), of=ALL)

    assert made.outcomes[0].cause == "slow"
    assert made.fallback is None


def test_one_variant_that_works_means_the_accelerator_works():
    """int8 crashes it, fp16 runs but is slower: nobody has to repair anything."""
    made = plan(refused(NPU, "failed"), passed(replace(NPU, variant="fp32"), 9.0), passed(candidate(), 2.0), of=ALL)

    assert made.fallback is None


def test_a_worse_accelerator_than_expected_is_a_fallback_a_better_one_is_not():
    """The profile's order says which was expected."""
    assert plan(refused(NPU, "failed"), passed(GPU, 1.0), of=ALL).fallback == "A npu int8: it did not work"
    assert plan(passed(NPU, 1.0), refused(GPU, "failed"), of=ALL).fallback is None


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ((refused(NPU, "failed"),), "A npu int8: it did not work"),
        (
            (refused(replace(NPU, variant="fp32"), "lacking", "no fp32"), refused(NPU, "failed")),
            "A npu int8: it did not work",
        ),
        ((refused(NPU, "absent", "no npu device here"),), "A npu int8: no npu device here"),
        ((), "the profile lists nothing of it"),
    ],
    ids=["broken", "a fault says more", "absent", "unlisted"],
)
def test_what_was_asked_for_and_is_not_met_is_a_fallback_whatever_the_cause(outcomes, why):
    """The operator named it, so even its absence is worth a word."""
    made = plan(*outcomes, passed(candidate(), 2.0), of=ALL, demand=Demand(run_on="npu"))

    assert (made.requested, made.chosen) == ("npu", candidate())
    assert made.fallback == f"`run_on: npu` was asked for, but {why}"


def test_what_was_asked_for_and_is_installed_in_vain_has_the_drivers_words():
    """`onnxruntime-gpu` in a container that sees no GPU: the profile lists no GPU then, and that would say nothing."""
    cuda = EpDevice("CUDAExecutionProvider", "gpu", unusable="no CUDA-capable device")
    facts = replace(FACTS, ep_devices=(EpDevice("CPUExecutionProvider", "cpu"), cuda))
    made = choose(
        facts, profile(), manifest(), digest="d" * 64, outcomes=[passed(candidate(), 2.0)], made_at="2026-01-01T00:00:00Z",
        demand=Demand(run_on="gpu"),
    )  # fmt: skip

    assert made.fallback is not None
    assert "no such device is here for CUDAExecutionProvider (no CUDA-capable device)" in made.fallback


def test_what_was_asked_for_stands_first_and_the_others_behind_it():
    """When it fails at run time, something has to take over."""
    made = plan(passed(GPU, 5.0), passed(NPU, 6.0), passed(candidate(), 2.0), of=ALL, demand=Demand(run_on="npu"))

    assert made.ranked == (NPU, candidate(), GPU)
    assert made.fallback is None
    assert made.reason == (
        "`run_on: npu` was asked for; there, A npu int8 is the only candidate that passed, p99 6.00 ms."
        " Best median by provider: CPU 2.00 ms, B gpu 5.00 ms, A npu 6.00 ms."
    )


def test_an_interim_choice_says_what_is_still_being_measured():
    """A pipeline that requires the NPU must not start on the CPU in the meantime."""
    made = plan(passed(candidate(), 2.0), of=ALL, demand=Demand(run_on="npu"), is_interim=True)

    assert (made.is_interim, made.fallback) == (
        True, "`run_on: npu` was asked for and is still being compiled and measured",
    )  # fmt: skip
    assert plan(passed(candidate(), 2.0), of=ALL, is_interim=True).fallback is None


def test_as_listed_takes_the_first_that_passed():
    """An operator's order, where measuring is not wanted."""
    made = plan(
        refused(candidate("int8"), "failed"), passed(candidate("fp32", 2), 9.0), passed(candidate("fp32", 1), 1.0),
        of=profile(mode="as-listed"),
    )  # fmt: skip

    assert made.chosen == candidate("fp32", 2)
    assert "first in the profile's order" in made.reason


def test_nothing_left_lists_every_refusal():
    """Whoever reads this has to decide what to change."""
    with pytest.raises(CandidateError) as caught:
        plan(refused(candidate("int8"), "failed", "crashed"), passed(candidate("fp32"), 1.0, peak_rss_bytes=1 << 40))

    assert "CPU int8 ×1: crashed" in str(caught.value)
    assert "CPU fp32 ×1: needed" in str(caught.value)


def test_a_stored_plan_is_void_when_the_profile_changed():
    """The key covers hardware, bundle, runtime and demand, not what an operator edits."""
    made = plan(passed(candidate(), 2.0))

    assert still_holds(made, profile(), [candidate()])
    assert not still_holds(made, profile().model_copy(update={"name": "q"}), [candidate()])
    assert not still_holds(made, profile(), [candidate(threads=2)])
    spins = spinning(candidate())
    assert still_holds(replace(made, chosen=spins, ranked=(spins, candidate())), profile(), [candidate()])


@pytest.mark.parametrize(
    "changes",
    [
        {"ranked": (candidate(), replace(NPU, runtime="plugin:/tmp/evil.so"))},
        {"ranked": (candidate(), replace(NPU, runtime="folder:/tmp/evil"))},
        {"ranked": (candidate(), replace(candidate(), options=(("backend_path", "/tmp/evil.so"),)))},
        {"ranked": (candidate("../../evil"),)},
        {"ranked": (spinning(candidate()),)},
        {"is_interim": True},
        {"demand": Demand(run_on="npu"), "fallback": None},
    ],
    ids=["plugin", "folder", "options", "variant", "choice not ranked", "interim", "pretends to be what was asked for"],
)
def test_a_stored_plan_cannot_bring_what_this_device_would_not_try_by_itself(changes):
    """What takes over at a failure is loaded as well: a file in the state folder must not name a library to load."""
    made = plan(passed(candidate(), 2.0))

    assert not still_holds(replace(made, **changes), profile(), [candidate(), NPU])


OUTCOMES = st.lists(
    st.builds(
        passed,
        st.builds(candidate, st.sampled_from(["fp32", "int8"]), st.integers(1, 3)) | st.sampled_from([NPU, GPU]),
        st.sampled_from([1.0, 1.02, 1.04, 1.06, 2.0, 50.0]),
        st.sampled_from([None, None, 1]),
        cpu_ms_per_run=st.sampled_from([1.0, 1.03, 1.1, 2.0]),
        energy_mj_per_run=st.sampled_from([None, 5.0, 6.0]),
        golden_agreement=st.sampled_from([1.0, 1.0, 0.5]),
    ),
    min_size=1, max_size=7, unique_by=lambda each: each.candidate,
)  # fmt: skip
DEMANDS = st.builds(
    Demand, st.sampled_from(["latency", "throughput", "power"]), run_on=st.sampled_from(["auto", "npu", "cpu"])
)


@given(outcomes=OUTCOMES, demand=DEMANDS, chance=st.randoms(use_true_random=False))
def test_the_order_in_which_candidates_were_measured_decides_nothing(outcomes, demand, chance):
    """The same device must not run another model after a profile was sorted."""
    shuffled = list(outcomes)
    chance.shuffle(shuffled)

    def choice(of: list[Outcome]) -> object:
        try:
            made = plan(*of, of=ALL, demand=demand)
        except CandidateError:
            return None
        return made.ranked, made.fallback, made.reason, {each.candidate: each.refusal for each in made.outcomes}

    assert choice(outcomes) == choice(shuffled)


@given(outcomes=OUTCOMES, demand=DEMANDS)
def test_the_choice_is_never_a_refused_one_nor_needlessly_another_than_asked_for(outcomes, demand):
    """Whatever the numbers."""
    try:
        made = plan(*outcomes, of=ALL, demand=demand)
    except CandidateError:
        return
    by_candidate = {each.candidate: each for each in made.outcomes}
    assert all(by_candidate[each].refusal is None for each in made.ranked)
    assert {each.candidate for each in made.outcomes if each.refusal is None} == set(made.ranked)
    asked = [each for each in made.ranked if demand.run_on in ("auto", each.device_type)]
    assert (made.chosen in asked) == bool(asked)
    assert asked or made.fallback
