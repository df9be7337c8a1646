"""The plan's rules on constructed measurements: what is tried, what is turned down and why, what wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.bundle.manifest import Manifest
from agent.device.facts import Cpu, EpDevice, Facts
from agent.device.plan import Candidate, Measurement, Outcome
from agent.device.planning import candidates, choose, required_agreement, resolve_threads, still_holds
from agent.device.profile import Profile
from agent.errors import CandidateError

MIB = 2**20
FACTS = Facts(
    os="linux",
    os_version="6",
    architecture="x86_64",
    board="",
    cpu=Cpu("AMD", "EPYC", frozenset({"avx2"}), physical_cores=4, logical_cores=8),
    memory_bytes=8 << 30,
    runtime_version="1.31.1",
    ep_devices=(EpDevice("CPUExecutionProvider", "cpu"),),
)
CPU = {"provider": "CPUExecutionProvider", "variants": ["int8", "fp32", "int8-dynamic"]}
PROFILE = Profile.model_validate({"name": "p", "description": "d", "candidates": [CPU], "limits": {"memory_mb": 256}})


def variant(name: str, gate: float | None = None) -> dict[str, object]:
    accuracy = None if gate is None else {"metric": "f1", "value": 1, "drop": 0, "gate": gate}
    blob = {"sha256": "0" * 64, "size_bytes": 1}
    return {"name": name, "model": blob, "opset": 17, "inputs": [], "outputs": [], "accuracy": accuracy}


def manifest(*variants: dict[str, object], **changes: object) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "m",
            "version": "1",
            "input": {"kind": "image", "width": 8, "height": 8},
            "decoder": {"model_type": "classify"},
            "variants": list(variants) or [variant("fp32"), variant("int8", 0.01)],
            **changes,
        }
    )


def candidate(name: str = "fp32", threads: int = 1) -> Candidate:
    return Candidate("CPUExecutionProvider", "cpu", name, threads)


def measured(p99_ms: float = 2.0, **changes: object) -> Measurement:
    numbers = Measurement(
        runs=200, mean_ms=p99_ms, p50_ms=p99_ms, p95_ms=p99_ms, p99_ms=p99_ms, load_ms=5.0, cpu_ms_per_run=p99_ms,
        peak_rss_bytes=100 * MIB, nodes={"CPUExecutionProvider": 10}, golden_agreement=1.0,
    )  # fmt: skip
    return replace(numbers, **changes)


def plan(*outcomes: Outcome, profile: Profile = PROFILE, of: Manifest | None = None):
    return choose(FACTS, profile, of or manifest(), digest="d" * 64, outcomes=outcomes, made_at="2026-01-01T00:00:00Z")


def refusal(
    of: Manifest | None = None, profile: Profile = PROFILE, name: str = "fp32", **numbers: object
) -> str | None:
    """Return why a candidate with these numbers is turned down beside one that is good."""
    outcome = Outcome(candidate(name, 4), measured(**numbers))
    spare = Outcome(candidate("fp32", 1), measured(0.001))
    return plan(spare, outcome, of=of, profile=profile).outcomes[1].refusal


def test_candidates_are_variants_by_threads_in_the_profiles_order():
    """The order is the profile's knowledge; it decides what a spent budget leaves out."""
    found, refused = candidates(FACTS, PROFILE, manifest())

    assert [(each.variant, each.threads) for each in found] == [("int8", 2), ("int8", 4), ("fp32", 2), ("fp32", 4)]
    assert [(each.candidate.variant, each.refusal) for each in refused] == [
        ("int8-dynamic", "the bundle has no int8-dynamic variant")
    ]


def test_half_and_physical_that_are_the_same_are_tried_once():
    """On one core every word for threads means one."""
    one_core = replace(FACTS, cpu=replace(FACTS.cpu, physical_cores=1))

    found, _ = candidates(one_core, PROFILE, manifest())

    assert [(each.variant, each.threads) for each in found] == [("int8", 1), ("fp32", 1)]


@pytest.mark.parametrize(
    ("threads", "cores", "expected"),
    [("half", 1, 1), ("half", 3, 1), ("half", 8, 4), ("physical", 3, 3), (1, 8, 1), (16, 4, 4)],
)
def test_threads(threads, cores, expected):
    """More threads than cores hurts, and fewer than one cannot run."""
    assert resolve_threads(threads, cores) == expected


def test_why_a_variant_is_missing_comes_from_the_builder():
    """`int8 lost 4 % of the objects` is the answer to why the small model does not run."""
    of = manifest(variant("fp32"), refused=[{"name": "int8", "reason": "f1 dropped by 0.04, the gate is 0.01"}])

    _, refused = candidates(FACTS, PROFILE, of)

    assert refused[0].refusal == "the builder left int8 out: f1 dropped by 0.04, the gate is 0.01"


def test_variant_that_was_not_fetched_is_refused_before_any_trial():
    """A release brings only what this device could use when it came; a new profile may name more."""
    found, refused = candidates(FACTS, PROFILE, manifest(), {"fp32"})

    assert {each.variant for each in found} == {"fp32"}
    assert refused[0].refusal == "int8 is not on this device: its files were not fetched"


@pytest.mark.parametrize("shape", [(1, 3, -1, -1), (1, 3, 8, 8)])
def test_an_open_shape_is_not_offered_to_a_compiler_of_fixed_ones(shape):
    """Qualcomm's takes minutes to say so."""
    qnn = {"provider": "QNNExecutionProvider", "device_type": "npu", "variants": ["int8-qnn"]}
    profile = Profile.model_validate({"name": "p", "description": "d", "candidates": [qnn]})
    here = replace(FACTS, ep_devices=(*FACTS.ep_devices, EpDevice("QNNExecutionProvider", "npu")))
    inputs = [{"name": "x", "dtype": "float32", "shape": shape}]

    found, refused = candidates(here, profile, manifest({**variant("int8-qnn"), "inputs": inputs}))

    if -1 in shape:
        assert found == []
        assert refused[0].refusal == (
            "QNNExecutionProvider compiles for fixed shapes, and the inputs of int8-qnn may vary"
        )
    else:
        assert found and refused == []


def test_a_provider_that_is_not_here_is_refused_before_any_trial():
    """Nothing falls back in silence: the plan says what was asked for and what there is."""
    gpu = {"provider": "CUDAExecutionProvider", "device_type": "gpu", "variants": ["fp32"]}
    profile = Profile.model_validate({"name": "p", "description": "d", "candidates": [gpu, CPU]})

    found, refused = candidates(FACTS, profile, manifest())

    assert {each.provider for each in found} == {"CPUExecutionProvider"}
    assert refused[0].refusal == (
        "no gpu device of CUDAExecutionProvider here; this device offers CPUExecutionProvider (cpu)"
    )


def test_lowest_p99_wins():
    """Not the lowest mean: the slowest frames are what people notice."""
    made = plan(Outcome(candidate(threads=1), measured(3.0)), Outcome(candidate(threads=2), measured(2.0)))

    assert made.chosen == candidate(threads=2)
    assert made.reason == "CPU fp32 ×2 has the lowest p99, 2.00 ms; next is CPU fp32 ×1 with 3.00 ms."


def test_within_five_percent_the_least_cpu_wins():
    """With spinning off, two threads often tie with one and cost more."""
    made = plan(
        Outcome(candidate(threads=2), measured(2.0, cpu_ms_per_run=3.9)),
        Outcome(candidate(threads=1), measured(2.09, cpu_ms_per_run=2.0)),
        Outcome(candidate(threads=4), measured(2.2, cpu_ms_per_run=0.1)),
    )

    assert made.chosen == candidate(threads=1)
    assert "at an equal p99" in made.reason


def test_model_of_microseconds_gets_no_second_core():
    """A hundredth of a millisecond is noise, whatever its share."""
    made = plan(
        Outcome(candidate(threads=2), measured(0.01, cpu_ms_per_run=0.02)),
        Outcome(candidate(threads=1), measured(0.03, cpu_ms_per_run=0.01)),
    )

    assert made.chosen == candidate(threads=1)


def test_accuracy_comes_before_speed():
    """A fast wrong answer is worth nothing."""
    made = plan(
        Outcome(candidate("int8"), measured(0.5, golden_agreement=0.6)),
        Outcome(candidate("fp32"), measured(9.0, golden_agreement=1.0)),
    )

    assert made.chosen == candidate("fp32")
    assert made.outcomes[0].refusal == "agrees with the golden answers by 0.600; at least 0.900 is required"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param({"p99_ms": 40.0}, "p99 is 40.00 ms; the limit is 33 ms", id="latency"),
        pytest.param({"peak_rss_bytes": 300 * MIB}, "needed 300 MiB; the limit is 256 MiB", id="memory"),
        pytest.param(
            {"nodes": {"CPUExecutionProvider": 4, "Other": 6}}, "only 40% of the graph's nodes", id="placement"
        ),
        pytest.param({"golden_agreement": 0.98}, "at least 0.990", id="fp32"),
        pytest.param({"golden_agreement": float("nan")}, "golden answers", id="nan"),
    ],
)
def test_gates(changes, text):
    """Each gate turns down with its number and its limit."""
    assert text in refusal(of=manifest(max_p99_ms=33), **changes)


def test_no_golden_samples_is_no_reason_to_refuse():
    """A bundle made of a bare model file has none, and its report says so."""
    assert refusal(golden_agreement=None) is None
    assert refusal(nodes={}) is None


def test_tighter_of_the_two_latency_gates_holds():
    """The bundle's gate is for every device, the profile's for this kind."""
    profile = PROFILE.model_copy(update={"limits": PROFILE.limits.model_copy(update={"p99_ms": 10.0})})

    assert "the limit is 10 ms" in refusal(of=manifest(max_p99_ms=33), profile=profile, p99_ms=20.0)
    assert "the limit is 5 ms" in refusal(of=manifest(max_p99_ms=5), profile=profile, p99_ms=20.0)


def test_a_bundle_that_allows_a_larger_loss_is_held_to_its_own_word():
    """The gate in the manifest is signed by whoever built the bundle."""
    of = manifest(variant("fp32"), variant("int8", 0.2))

    assert required_agreement(of, "int8") == pytest.approx(0.8)
    assert required_agreement(of, "fp32") == 0.99


def test_as_listed_takes_the_first_that_passed():
    """An operator's order, where measuring is not wanted."""
    profile = PROFILE.model_copy(update={"tune": PROFILE.tune.model_copy(update={"mode": "as-listed"})})
    made = plan(
        Outcome(candidate("int8"), refusal="crashed"),
        Outcome(candidate("fp32", 2), measured(9.0)),
        Outcome(candidate("fp32", 1), measured(1.0)),
        profile=profile,
    )

    assert made.chosen == candidate("fp32", 2)
    assert "first in the profile's order" in made.reason


def test_nothing_left_lists_every_refusal():
    """Whoever reads this has to decide what to change."""
    with pytest.raises(CandidateError) as caught:
        plan(
            Outcome(candidate("int8"), refusal="crashed"), Outcome(candidate("fp32"), measured(peak_rss_bytes=1 << 40))
        )

    assert "CPU int8 ×1: crashed" in str(caught.value)
    assert "CPU fp32 ×1: needed" in str(caught.value)


def test_a_stored_plan_is_void_when_the_profile_changed():
    """The key covers hardware, bundle and runtime, not what an operator edits."""
    made = plan(Outcome(candidate(), measured()))

    assert still_holds(made, PROFILE, [candidate()])
    assert not still_holds(made, PROFILE.model_copy(update={"name": "q"}), [candidate()])
    assert not still_holds(made, PROFILE, [candidate(threads=2)])
