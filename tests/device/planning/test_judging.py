"""Which measured candidates may not run, each with its number, its limit and its cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.bundle.manifest import Manifest
from agent.device.planning.judging import judge, required_agreement, slower_than_cpu
from agent.device.planning.plan import FAULTS, Candidate, Demand, Measurement, Outcome
from agent.device.profiles.profile import Limits, Profile, compose

MIB = 2**20
CPU = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
GPU = Candidate("CUDAExecutionProvider", "gpu", "fp32", 1)
PROFILE = Profile.model_validate({"name": "p", "description": "d", "candidates": [], "limits": {"memory_mb": 256}})


def manifest(gate: float = 0.01, **changes: object) -> Manifest:
    blob = {"sha256": "0" * 64, "size_bytes": 1}
    accuracy = {"metric": "f1", "value": 1, "drop": 0, "gate": gate}
    common = {"model": blob, "opset": 17, "inputs": [], "outputs": []}
    return Manifest.model_validate(
        {
            "name": "m",
            "version": "1",
            "input": {"kind": "image", "width": 8, "height": 8},
            "decoder": {"model_type": "classify"},
            "variants": [{"name": "fp32", **common}, {"name": "int8", "accuracy": accuracy, **common}],
            **changes,
        }
    )


def measured(time_ms: float = 2.0, **changes: object) -> Measurement:
    numbers = Measurement(
        runs=200, mean_ms=time_ms, p50_ms=time_ms, p95_ms=time_ms, p99_ms=time_ms, load_ms=5.0, cpu_ms_per_run=time_ms,
        peak_rss_bytes=100 * MIB, nodes={"CPUExecutionProvider": 10}, golden_agreement=1.0,
    )  # fmt: skip
    return replace(numbers, **changes)


def limited(**limits: float) -> Profile:
    return PROFILE.model_copy(update={"limits": PROFILE.limits.model_copy(update=limits)})


def judged(of: Manifest | None = None, profile: Profile = PROFILE, candidate: Candidate = CPU, **numbers: object):
    return judge(Outcome(candidate, measured(**numbers)), profile, of or manifest())


@pytest.mark.parametrize(
    ("changes", "text", "cause"),
    [
        pytest.param({"time_ms": 40.0}, "p99 is 40.00 ms; the limit is 33 ms", "limit", id="latency"),
        pytest.param({"time_ms": 40.0, "runs": 20}, "even the median is 40.00 ms; the limit is 33 ms", "limit", id="early"),
        pytest.param({"peak_rss_bytes": 300 * MIB}, "needed 300 MiB; the limit is 256 MiB", "memory", id="memory"),
        pytest.param(
            {"nodes": {"CPUExecutionProvider": 4, "Other": 6}},
            "only 40% of the graph's nodes ran on CPUExecutionProvider: CPUExecutionProvider 4, Other 6", "misplaced",
            id="placement",
        ),
        pytest.param({"golden_agreement": 0.98}, "at least 0.990 is required", "wrong", id="fp32"),
        pytest.param({"golden_agreement": float("nan")}, "golden answers", "wrong", id="nan"),
        pytest.param({"golden_agreement": None, "cpu_agreement": 0.85}, "agree with the CPU's by 0.850", "wrong", id="raw"),
        pytest.param({"golden_agreement": None, "cpu_agreement": float("nan")}, "the CPU's by nan", "wrong", id="raw-nan"),
        pytest.param({"celsius": 91.2}, "the device was 91 °C hot after it; the limit is 90 °C", "limit", id="heat"),
    ],
)  # fmt: skip
def test_gates(changes, text, cause):
    """Each gate turns down with its number and its limit, and says what kind of refusal it is."""
    outcome = judged(manifest(max_p99_ms=33), limited(celsius=90.0), **changes)

    assert text in outcome.refusal
    assert outcome.cause == cause


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"golden_agreement": None}, id="no golden samples"),
        pytest.param({"golden_agreement": None, "cpu_agreement": 0.963}, id="bf16, the largest difference measured"),
        pytest.param({"nodes": {}}, id="a runtime that does not tell"),
        pytest.param({"celsius": None}, id="no sensor"),
        pytest.param({"p99_ms": 40.0, "runs": 20}, id="p99 of a short round is its maximum"),
    ],
)
def test_what_is_no_reason_to_refuse(changes):
    """What is not known, or known to be harmless, must not cost a candidate."""
    assert judged(manifest(max_p99_ms=33), limited(celsius=90.0), **changes).refusal is None


def test_a_refusal_of_the_trial_stands_with_its_cause():
    """A crash is a fault, however fast it was before."""
    outcome = judge(Outcome(GPU, refusal="SIGSEGV", cause="failed"), PROFILE, manifest())

    assert (outcome.refusal, outcome.cause) == ("SIGSEGV", "failed")
    assert judge(Outcome(GPU), PROFILE, manifest()).cause == "untried"


def test_tighter_of_the_two_latency_gates_holds():
    """The bundle's gate is for every device, the profile's for this kind."""
    assert "the limit is 10 ms" in judged(manifest(max_p99_ms=33), limited(p99_ms=10.0), time_ms=20.0).refusal
    assert "the limit is 5 ms" in judged(manifest(max_p99_ms=5), limited(p99_ms=10.0), time_ms=20.0).refusal


def test_a_bundle_that_allows_a_larger_loss_is_held_to_its_own_word():
    """The gate in the manifest is signed by whoever built the bundle."""
    assert required_agreement(manifest(gate=0.2), "int8") == pytest.approx(0.8)
    assert required_agreement(manifest(gate=0.2), "fp32") == required_agreement(manifest(), "fp32-fused") == 0.99
    assert required_agreement(manifest(agreement={"required": 0.95}), "fp32") == 0.95
    assert required_agreement(manifest(agreement={"iou": 0.9}), "fp32") == 0.99


def beside_the_cpu(*outcomes: Outcome, demand: Demand | None = None, **cpu: object) -> list[Outcome]:
    return slower_than_cpu([Outcome(CPU, measured(**cpu)), *outcomes], demand or Demand())[1:]


def test_slower_than_the_cpu_is_refused_with_both_numbers():
    """Whoever paid for the accelerator asks why it is not used; it is no fault of it."""
    (outcome,) = beside_the_cpu(Outcome(GPU, measured(3.0)))

    assert outcome.refusal == "worse than the CPU: p99 3.00 ms, where CPU fp32 ×1 has 2.00 ms"
    assert outcome.cause == "slow"
    assert "slow" not in FAULTS


def test_equal_to_the_cpu_is_not_slower():
    """Within the noise of a measurement the accelerator may win by the processor's time that it saves."""
    assert beside_the_cpu(Outcome(GPU, measured(2.09)))[0].refusal is None


def test_what_the_operator_asked_for_is_not_refused_for_being_slower():
    """The processor may be wanted for something else; the numbers are in the table."""
    assert beside_the_cpu(Outcome(GPU, measured(9.0)), demand=Demand(run_on="gpu"))[0].refusal is None


def test_slower_means_by_the_objective():
    """An accelerator with the worse p99 may have the better throughput, or take less energy."""
    throughput = Outcome(GPU, measured(3.0, runs_per_s=900.0))
    assert (
        beside_the_cpu(throughput, demand=Demand(objective="throughput", streams=4), runs_per_s=500.0)[0].refusal
        is None
    )

    hungry = Outcome(GPU, measured(1.0, energy_mj_per_run=30.0))
    assert beside_the_cpu(hungry, demand=Demand(objective="power"), energy_mj_per_run=10.0)[0].refusal == (
        "worse than the CPU: energy 30.00 mJ a run, where CPU fp32 ×1 has 10.00 mJ a run"
    )
    unknown = beside_the_cpu(Outcome(GPU, measured(3.0)), demand=Demand(objective="power"), energy_mj_per_run=10.0)
    assert "CPU time 3.00 ms a run" in unknown[0].refusal


def test_what_left_after_a_short_round_is_compared_by_medians():
    """p99 of twenty runs is their maximum; the CPU's is of two hundred."""
    early = Outcome(GPU, measured(1.9, runs=20, p99_ms=50.0), dropped_in=1)

    assert beside_the_cpu(early)[0].refusal is None


def test_without_a_cpu_that_passed_nothing_is_slower():
    """The accelerator is then all there is."""
    crashed = Outcome(CPU, refusal="crashed", cause="failed")

    assert slower_than_cpu([crashed, Outcome(GPU, measured(99.0))], Demand())[1].refusal is None


def test_each_candidate_keeps_the_limits_of_the_profile_that_brings_it():
    """CUDA's libraries alone are larger than what a small board leaves the CPU's process."""
    accelerator = PROFILE.model_copy(update={"accelerator": GPU.provider, "limits": Limits(memory_mb=4096)})
    both = compose(PROFILE, [accelerator])
    large = {"peak_rss_bytes": 300 * MIB, "nodes": {GPU.provider: 10}}

    assert judged(profile=both, candidate=GPU, **large).refusal is None
    assert judged(profile=both, peak_rss_bytes=300 * MIB).cause == "memory"
