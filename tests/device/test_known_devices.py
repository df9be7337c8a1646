"""Every device that is known here, recorded or constructed: which profiles it gets, and what is tried on it first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import resources
from agent.bundle.manifest import Manifest, VariantName
from agent.device.planning.candidates import candidates
from agent.device.profiles.selection import load_profiles, select
from agent.device.runtimes.providers import unknown_options

HERE = Path(__file__).parent
FACTS_FILES = sorted(path.stem for path in (HERE / "facts").glob("*.json"))
TEXT_FILES = sorted(path.stem for path in (HERE / "devices").glob("*.txt"))

EXPECTED = {
    "epyc-zen4": ("x86-64-avx512-vnni", "CPU int8"),
    "epyc-zen4-vm": ("x86-64-avx512-vnni", "CPU int8"),
    "epyc-zen4-vm-plugins": ("x86-64-avx512-vnni+openvino", "OpenVINO cpu int8"),
    "i5-haswell": ("x86-64-avx2", "CPU fp32-fused"),
    "atom-x86": ("x86-64-older", "CPU int8"),
    "n100": ("x86-64-avx2", "CPU fp32-fused"),
    "core-ultra-openvino": ("x86-64-avx2+openvino", "OpenVINO npu int8"),
    "core-ultra-no-driver": ("x86-64-avx2+openvino", "OpenVINO cpu int8"),
    "ryzen-zen3": ("x86-64-amd", "CPU fp32-fused"),
    "ryzen-zen3-migraphx": ("x86-64-amd+migraphx", "MIGraphX gpu fp16"),
    "ryzen-zen3-webgpu": ("x86-64-amd+any-accelerator", "WebGpu gpu fp16"),
    "windows-directml": ("x86-64-avx2+directml", "Dml gpu fp16"),
    "windows-rtx": ("x86-64-amd+tensorrt-rtx+tensorrt+cuda", "NvTensorRTRTX gpu int8-s8"),
    "windows-snapdragon-x": ("aarch64-i8mm+qnn-windows", "QNN npu int8-qnn"),
    "qualcomm-rb3gen2-qnn": ("aarch64-dotprod+qnn", "QNN npu int8-qnn"),
    "mac-m2": ("aarch64-i8mm+coreml", "CoreML npu fp16"),
    "nvidia-desktop-tensorrt": ("x86-64-avx2+tensorrt+cuda", "Tensorrt gpu int8-s8"),
    "nvidia-desktop-no-libraries": ("x86-64-avx2+tensorrt+cuda", "CPU fp32-fused"),
    "jetson-orin-nano-tensorrt": ("aarch64-dotprod+tensorrt-jetson+cuda-jetson", "Tensorrt gpu int8-s8"),
    "android-phone": ("aarch64-dotprod+nnapi+xnnpack", "Nnapi npu int8"),
    "raspberry-pi-4": ("raspberry-pi-4", "CPU int8"),
    "raspberry-pi-5": ("raspberry-pi-5", "CPU int8"),
    "rk3588": ("aarch64-dotprod", "CPU int8"),
    "rk3588-rknpu": ("aarch64-dotprod+rknpu", "Rknpu npu int8"),
    "graviton3": ("aarch64-i8mm", "CPU int8"),
    "cortex-a53": ("aarch64-plain", "CPU int8"),
    "intel-core-ultra": ("x86-64-avx2", "CPU fp32-fused"),
    "nvidia-desktop": ("x86-64-avx2", "CPU fp32-fused"),
    "ryzen-ai": ("x86-64-amd", "CPU fp32-fused"),
    "virtual-machine": ("x86-64-avx2", "CPU fp32-fused"),
    "jetson-orin-nano": ("aarch64-dotprod", "CPU int8"),
    "qualcomm-rb3gen2": ("aarch64-dotprod", "CPU int8"),
    "qualcomm-rb5": ("aarch64-dotprod", "CPU int8"),
    "riscv": ("safe-default", "CPU fp32-fused"),
}
"""The profile, and the first candidate for a bundle that has every variant."""


@pytest.fixture(scope="module")
def shipped():
    return load_profiles([resources.device_profiles()])


@pytest.fixture(scope="module")
def bundle():
    """A manifest that has every variant."""
    blob = {"sha256": "0" * 64, "size_bytes": 1}
    variants = [
        {"name": name, "model": blob, "opset": 17, "inputs": [], "outputs": []} for name in VariantName.__args__
    ]
    return Manifest.model_validate(
        {
            "name": "m",
            "version": "1",
            "input": {"kind": "image", "width": 8, "height": 8},
            "decoder": {"model_type": "classify"},
            "variants": variants,
        }
    )


def test_every_known_device_is_expected_here():
    """A file that no test reads proves nothing."""
    assert {*FACTS_FILES, *TEXT_FILES} == set(EXPECTED)


@pytest.mark.parametrize("device", EXPECTED)
def test_each_device_gets_its_profiles(shipped, known_facts, device):
    """A wrong profile costs speed on every frame, for years; a missing one leaves an accelerator idle."""
    assert select(known_facts(device), shipped).profile.name == EXPECTED[device][0]


def test_every_shipped_profile_is_selected_by_some_device(shipped):
    """A profile that nothing selects is dead weight, or a typo."""
    selected = {part for name, _ in EXPECTED.values() for part in name.split("+")}

    assert {each.name for each in shipped} == selected


@pytest.mark.parametrize("device", EXPECTED)
def test_candidates_are_what_this_device_offers_best_first(shipped, known_facts, bundle, device):
    """The first candidate is the accelerator's with its own kind of model; the plain CPU is always among them."""
    facts = known_facts(device)
    found, _ = candidates(facts, select(facts, shipped).profile, bundle)
    offered = {(each.provider, each.device_type) for each in facts.ep_devices}

    assert {(each.provider, each.device_type) for each in found} <= offered
    assert any(each.is_plain_cpu for each in found)
    first = found[0]
    place = "" if first.is_plain_cpu else f" {first.device_type}"
    assert EXPECTED[device][1] == f"{first.provider.removesuffix('ExecutionProvider')}{place} {first.variant}"


@pytest.mark.parametrize("device", FACTS_FILES)
def test_no_candidate_has_an_option_that_its_runtime_would_pass_over(shipped, known_facts, bundle, device):
    """The plugin and the classic wheel of one provider take different options: a profile is for both."""
    facts = known_facts(device)
    found, _ = candidates(facts, select(facts, shipped).profile, bundle)

    assert {each.label: unknown_options(each) for each in found if unknown_options(each)} == {}


@pytest.mark.parametrize("device", ["core-ultra-no-driver", "nvidia-desktop-no-libraries"])
def test_an_accelerator_that_cannot_be_used_is_refused_with_its_drivers_words(shipped, known_facts, bundle, device):
    """Left out of the profile, it would be missing in silence."""
    facts = known_facts(device)
    found, refused = candidates(facts, select(facts, shipped).profile, bundle)
    unusable = {(each.provider, each.device_type): each.unusable for each in facts.ep_devices if each.unusable}

    assert unusable
    assert not any((each.provider, each.device_type) in unusable for each in found)
    for place, words in unusable.items():
        reasons = [each.refusal for each in refused if (each.candidate.provider, each.candidate.device_type) == place]
        assert reasons
        assert all(words in reason for reason in reasons)


def test_the_qnn_plugin_on_x86_is_not_offered_by_itself(shipped, known_facts):
    """Its HTP runs in software there, 200 times slower than the CPU: it is for tests and for compiling."""
    selection = select(known_facts("epyc-zen4-vm-plugins"), shipped)

    assert "QNNExecutionProvider" not in {each.provider for each in selection.profile.candidates}
    verdicts = {each.profile: each.text for each in selection.verdicts}
    assert verdicts["qnn"] == "architecture is x86_64, not aarch64"


def test_an_accelerator_that_nothing_installed_drives_is_named(shipped, known_facts):
    """The commonest fault is an extra that was not installed."""
    verdicts = {each.profile: each.text for each in select(known_facts("n100"), shipped).verdicts}

    assert "Alder Lake-N [UHD Graphics] is here, but nothing that is installed drives it" in verdicts["openvino"]


@pytest.mark.parametrize("device", FACTS_FILES)
def test_each_facts_file_says_where_it_comes_from(device):
    """What was never on a machine must not look as if it had been."""
    file = json.loads((HERE / "facts" / f"{device}.json").read_text())

    assert set(file) == {"title", "origin", "sources", "facts"}
    assert file["origin"] in ("recorded", "constructed")
    assert file["sources"]
