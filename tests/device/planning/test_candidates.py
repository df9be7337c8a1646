"""What is tried on a device: devices, runtimes, options, variants and threads, each once; what is refused before a trial."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.bundle.manifest import Manifest
from agent.device.facts import Accelerator, Cpu, EpDevice, Facts
from agent.device.planning.candidates import NO_CPU_FALLBACK, candidates, is_requested, reference, resolve_threads
from agent.device.planning.plan import Candidate, Demand, labels
from agent.device.profiles.profile import Profile

OPENVINO = "OpenVINOExecutionProvider"
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
NPU = {"provider": OPENVINO, "device_type": "npu", "variants": ["fp32"]}


def profile(*specs: dict[str, object]) -> Profile:
    return Profile.model_validate({"name": "p", "description": "d", "candidates": specs or [CPU]})


def variant(name: str) -> dict[str, object]:
    blob = {"sha256": "0" * 64, "size_bytes": 1}
    return {"name": name, "model": blob, "opset": 17, "inputs": [], "outputs": []}


def manifest(*names: str, **changes: object) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "m",
            "version": "1",
            "input": {"kind": "image", "width": 8, "height": 8},
            "decoder": {"model_type": "classify"},
            "variants": [variant(name) for name in names or ("fp32", "int8")],
            **changes,
        }
    )


def with_devices(*devices: EpDevice, **changes: object) -> Facts:
    return replace(FACTS, ep_devices=(*FACTS.ep_devices, *devices), **changes)


def test_candidates_are_variants_by_threads_in_the_profiles_order():
    """The order is the profile's knowledge; it decides what a spent budget leaves out."""
    found, refused = candidates(FACTS, profile(), manifest())

    assert [(each.variant, each.threads) for each in found] == [("int8", 2), ("int8", 4), ("fp32", 2), ("fp32", 4)]
    assert [(each.candidate.variant, each.refusal, each.cause) for each in refused] == [
        ("int8-dynamic", "the bundle has no int8-dynamic variant", "lacking")
    ]


def test_half_and_physical_that_are_the_same_are_tried_once():
    """On one core every word for threads means one."""
    one_core = replace(FACTS, cpu=replace(FACTS.cpu, physical_cores=1))

    found, _ = candidates(one_core, profile(), manifest())

    assert [(each.variant, each.threads) for each in found] == [("int8", 1), ("fp32", 1)]


@pytest.mark.parametrize(
    ("threads", "cores", "expected"),
    [("half", 1, 1), ("half", 3, 1), ("half", 8, 4), ("physical", 3, 3), (1, 8, 1), (16, 4, 4)],
)
def test_threads(threads, cores, expected):
    """More threads than cores hurts, and fewer than one cannot run."""
    assert resolve_threads(threads, cores) == expected


def test_threads_stay_within_the_models_share_of_the_cores():
    """Two models that each take all cores only wait for each other."""
    found, _ = candidates(FACTS, profile(), manifest("fp32"), demand=Demand(cores=2))

    assert [each.threads for each in found] == [1, 2]
    assert [each.threads for each in candidates(FACTS, profile(), manifest("fp32"), demand=Demand(cores=64))[0]] == [
        2,
        4,
    ]


def test_where_another_processor_computes_the_threads_are_not_varied():
    """Each candidate costs a compilation; the host's threads decide little there."""
    found, _ = candidates(with_devices(EpDevice(OPENVINO, "npu")), profile(NPU, CPU), manifest("fp32"))

    assert [each.threads for each in found if each.device_type == "npu"] == [2]


def test_each_runtime_that_offers_a_provider_is_tried():
    """The plugin's OpenVINO and that of another wheel are two pieces of software with two speeds."""
    facts = with_devices(
        EpDevice(OPENVINO, "npu", runtime="plugin:a"), EpDevice(OPENVINO, "npu", runtime="folder:/b"),
        EpDevice(OPENVINO, "npu", name="a second one", runtime="plugin:a"),
    )  # fmt: skip

    found, refused = candidates(facts, profile(NPU, CPU), manifest("fp32"))

    assert [each.runtime for each in found if each.device_type == "npu"] == ["plugin:a", "folder:/b"]
    assert {each.cause for each in refused} == {"lacking"}


GPU = {"provider": "DmlExecutionProvider", "device_type": "gpu", "variants": ["fp16", "fp32"]}
RTX, UHD = (EpDevice("DmlExecutionProvider", "gpu", name=name) for name in ("RTX 3060", "UHD 770"))
AT_1, AT_3 = (replace(RTX, metadata=(("pci_bus_id", f"0000:0{bus}:00.0"),)) for bus in (1, 3))


@pytest.mark.parametrize(
    ("devices", "keys"),
    [
        pytest.param([RTX], [""], id="one"),
        pytest.param([RTX, UHD], ["RTX 3060", "UHD 770"], id="two names"),
        pytest.param([UHD, RTX], ["UHD 770", "RTX 3060"], id="in another order"),
        pytest.param([AT_3, AT_1], ["RTX 3060 0000:03:00.0", "RTX 3060 0000:01:00.0"], id="two equal cards"),
        pytest.param([AT_3, UHD], ["RTX 3060", "UHD 770"], id="an address says nothing where the name does"),
        pytest.param([RTX, RTX], [""], id="equal cards without an address"),
        pytest.param([RTX, replace(RTX, name="")], [""], id="one without a name"),
        pytest.param([RTX, replace(UHD, runtime="folder:/b")], ["", ""], id="one of each runtime"),
    ],
)
def test_each_device_of_a_kind_is_a_candidate_by_a_name_that_stays(devices, keys):
    """The first of two GPUs may be the slower one; and a number in a list names another card after the next start."""
    facts = with_devices(*devices)

    found, _ = candidates(facts, profile(GPU, CPU), manifest("fp16"))

    assert [each.device for each in found if not each.is_plain_cpu] == keys
    for candidate in found:
        named = [each for each in facts.ep_devices if each.is_called(candidate.device)]
        assert len(named) == 1 or candidate.device == ""


def test_devices_of_a_kind_take_turns_and_a_broken_one_is_refused_alone():
    """A budget that is spent leaves out variants, not a device; and nobody measures what the driver has refused."""
    facts = with_devices(RTX, UHD, replace(UHD, name="Arc", unusable="no firmware"))

    found, refused = candidates(facts, profile(GPU, CPU), manifest("fp16", "fp32"))

    names = [label for candidate, label in labels(found).items() if not candidate.is_plain_cpu]
    assert names == [f"Dml gpu {variant} on {name}" for variant in ("fp16", "fp32") for name in ("RTX 3060", "UHD 770")]
    assert [(each.candidate.device, each.refusal) for each in refused if each.cause == "unusable"] == [
        ("Arc", "present but unusable: no firmware")
    ]
    _, refused = candidates(facts, profile(GPU, CPU), manifest("fp32"))
    assert [each.candidate.label for each in refused if each.candidate.variant == "fp16"] == [
        "Dml gpu fp16",
        "Dml gpu fp16 on Arc",
    ], "what the bundle lacks is said once"


def test_each_combination_of_options_is_a_candidate():
    """A list in the profile is a question that only measuring answers."""
    spec = {**NPU, "options": {"precision": ["f16", "f32"], "cache": "1"}, "session_options": {"x": ["0", "1"]}}

    found, _ = candidates(with_devices(EpDevice(OPENVINO, "npu")), profile(spec), manifest("fp32"))

    assert len({each for each in found if not each.is_plain_cpu}) == 4
    assert all(("cache", "1") in each.options for each in found if not each.is_plain_cpu)


def test_labels_tell_apart_what_differs_in_options_only():
    """A table with four equal names explains nothing; one with every option of each is unreadable."""
    spec = {**NPU, "options": {"precision": ["f16", "f32"], "cache": "1"}, "session_options": {"session.x": ["0", "1"]}}
    facts = with_devices(
        EpDevice(OPENVINO, "npu", runtime="plugin:openvino"), EpDevice(OPENVINO, "npu", runtime="folder:/opt/ov")
    )
    found, _ = candidates(facts, profile(spec), manifest("fp32"))

    names = labels(found)

    assert len(set(names.values())) == len(found)
    assert "OpenVINO npu fp32 precision=f16 x=0 (openvino)" in names.values()
    assert labels(found[:1]) == {found[0]: "OpenVINO npu fp32"}


def test_labels_are_distinct_even_where_short_names_collide():
    """Two options whose last words are the same, and two folders of the same name."""
    one = Candidate(
        "XExecutionProvider", "gpu", "fp32", 1, runtime="folder:/a/x", session_options=(("ep.a.mode", "1"),)
    )
    others = [
        replace(one, runtime="folder:/b/x"),
        replace(one, session_options=(("ep.b.mode", "1"),)),
        replace(one, threads=2),
    ]

    assert len(set(labels([one, *others]).values())) == 4


def test_requiring_the_accelerator_forbids_the_fallback_inside_a_graph():
    """`fallback: require` means every node; the plain CPU cannot fall back to itself."""
    facts = with_devices(EpDevice(OPENVINO, "npu"))

    found, _ = candidates(facts, profile(NPU, CPU), manifest("fp32"), demand=Demand(is_required=True))

    assert {NO_CPU_FALLBACK in each.session_options for each in found if not each.is_plain_cpu} == {True}
    assert {NO_CPU_FALLBACK in each.session_options for each in found if each.is_plain_cpu} == {False}


def test_a_device_that_makes_no_session_is_refused_with_its_own_text():
    """Present but unusable is a fault that somebody can repair; it must not look like absent."""
    facts = with_devices(EpDevice(OPENVINO, "npu", name="AI Boost", unusable="driver 1.2 is older than the compiler"))

    found, refused = candidates(facts, profile(NPU, CPU), manifest("fp32", "int8"))

    assert not any(each.device_type == "npu" for each in found)
    assert refused[0].refusal == "present but unusable: driver 1.2 is older than the compiler"
    assert refused[0].cause == "unusable"


def test_one_device_of_a_runtime_that_works_is_enough():
    """A broken second GPU does not take the first along."""
    facts = with_devices(EpDevice(OPENVINO, "npu", name="AI Boost", unusable="broken"), EpDevice(OPENVINO, "npu"))

    found, _ = candidates(facts, profile(NPU, CPU), manifest("fp32"))

    assert any(each.device_type == "npu" for each in found)


def test_why_a_variant_is_missing_comes_from_the_builder():
    """`int8 lost 4 % of the objects` is the answer to why the small model does not run."""
    of = manifest("fp32", refused=[{"name": "int8", "reason": "f1 dropped by 0.04, the gate is 0.01"}])

    _, refused = candidates(FACTS, profile(), of)

    assert refused[0].refusal == "the builder left int8 out: f1 dropped by 0.04, the gate is 0.01"


def test_variant_that_was_not_fetched_is_refused_before_any_trial():
    """A release brings only what this device could use when it came; a new profile may name more."""
    found, refused = candidates(FACTS, profile(), manifest(), {"fp32"})

    assert {each.variant for each in found} == {"fp32"}
    assert refused[0].refusal == "int8 is not on this device: its files were not fetched"


def test_a_provider_that_is_not_here_is_refused_before_any_trial():
    """Nothing falls back in silence: the plan says what was asked for, what there is, and what nothing drives."""
    accelerator = Accelerator("npu", "Intel", "AI Boost", provider=OPENVINO)

    found, refused = candidates(replace(FACTS, accelerators=(accelerator,)), profile(NPU, CPU), manifest())

    assert {each.provider for each in found} == {"CPUExecutionProvider"}
    assert refused[0].refusal == (
        f"no npu device of {OPENVINO} here; this device offers CPUExecutionProvider (cpu). "
        "The system lists Intel AI Boost, but nothing that is installed drives it"
    )
    assert refused[0].cause == "absent"


@pytest.mark.parametrize(
    ("variants", "expected"), [(("int8", "fp32"), "fp32"), (("int8", "int8-dynamic"), "int8")], ids=["fp32", "none"]
)
def test_the_plain_cpu_is_always_a_candidate(variants, expected):
    """It is what the others are compared with, and what is left when they fail."""
    facts = with_devices(EpDevice(OPENVINO, "npu"))

    found, _ = candidates(facts, profile({**NPU, "variants": list(variants)}), manifest(*variants))

    assert reference(found) == Candidate("CPUExecutionProvider", "cpu", expected, 2)


def test_the_reference_is_fp32_with_the_fewest_threads_whatever_the_order():
    """Two profiles with the same candidates must compare with the same one."""
    found, _ = candidates(FACTS, profile(), manifest())

    assert reference(found) == reference(reversed(found)) == Candidate("CPUExecutionProvider", "cpu", "fp32", 2)


@pytest.mark.parametrize(
    ("run_on", "expected"),
    [("auto", True), ("npu", True), (OPENVINO, True), ("cpu", False), ("QNNExecutionProvider", False)],
)
def test_what_run_on_means(run_on, expected):
    """A device type, a provider's name, or anything."""
    assert is_requested(Candidate(OPENVINO, "npu", "fp32", 1), Demand(run_on=run_on)) is expected


@pytest.mark.parametrize("shape", [(1, 3, -1, -1), (1, 3, 8, 8)])
def test_an_open_shape_is_not_offered_to_a_compiler_of_fixed_ones(shape):
    """Qualcomm's takes minutes to say so."""
    qnn = {"provider": "QNNExecutionProvider", "device_type": "npu", "variants": ["int8-qnn"]}
    inputs = [{"name": "x", "dtype": "float32", "shape": shape}]
    bundle = manifest(variants=[{**variant("int8-qnn"), "inputs": inputs}])

    found, refused = candidates(with_devices(EpDevice("QNNExecutionProvider", "npu")), profile(qnn), bundle)

    tried = [each for each in found if not each.is_plain_cpu]
    assert bool(tried) is (-1 not in shape)
    if not tried:
        assert (
            refused[0].refusal == "QNNExecutionProvider compiles for fixed shapes, and the inputs of int8-qnn may vary"
        )
