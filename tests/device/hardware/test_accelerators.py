"""What the operating system lists: which of it computes, by whom it could be used, and what to install."""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from agent.device.facts import Accelerator, EpDevice
from agent.device.hardware.accelerators import accelerators, from_macos
from agent.device.hardware.gathering import gather
from agent.device.hardware.support import support_of
from agent.device.hardware.windowsaccelerators import from_windows

REPOSITORY = Path(__file__).resolve().parents[3]
CPU = EpDevice("CPUExecutionProvider", "cpu")


def brief(found: tuple[Accelerator, ...]) -> list[tuple[str, str, str, str, str]]:
    return [(each.kind, each.name, each.driver, each.driver_version, each.provider) for each in found]


CASES = [
    pytest.param(
        "intel-core-ultra",
        [
            ("gpu", "Intel GPU [8086:7d55]", "xe", "source 2F0C9B6E4E7A1D3356E8F01", "OpenVINOExecutionProvider"),
            (
                "npu",
                "Intel NPU (Meteor Lake) [8086:7d1d]",
                "intel_vpu",
                "1.0. source 8C1D0A57B2F7C0E1D9A3B44",
                "OpenVINOExecutionProvider",
            ),
        ],
        id="intel laptop",
    ),
    pytest.param(
        "nvidia-desktop",
        [
            ("gpu", "Intel GPU [8086:4692]", "", "", "OpenVINOExecutionProvider"),
            ("gpu", "NVIDIA GeForce RTX 3060 [10de:2504]", "nvidia", "550.120", "CUDAExecutionProvider"),
        ],
        id="nvidia desktop",
    ),
    pytest.param(
        "ryzen-ai",
        [
            ("gpu", "AMD GPU [1002:150e]", "amdgpu", "source B5A3F7D2C97E4A3F1D0C5E2", "MIGraphXExecutionProvider"),
            (
                "npu",
                "AMD XDNA NPU (Strix, Krackan) [1022:17f0]",
                "amdxdna",
                "Linux 6.14.0-33-generic",
                "VitisAIExecutionProvider",
            ),
        ],
        id="amd ryzen ai",
    ),
    pytest.param(
        "jetson-orin-nano",
        [("gpu", "NVIDIA Jetson ga10b GPU", "gk20a", "L4T R36.4.3", "CUDAExecutionProvider")],
        id="jetson",
    ),
    pytest.param(
        "rk3588",
        [("npu", "Rockchip rk3588 NPU", "RKNPU", "Linux 6.1.84-1-rk2312", "RknpuExecutionProvider")],
        id="rockchip",
    ),
    pytest.param(
        "qualcomm-rb3gen2",
        [
            ("gpu", "Qualcomm Adreno 643.0", "adreno", "Linux 6.12.23", "QNNExecutionProvider"),
            ("npu", "Qualcomm sc7280 Hexagon NPU", "qcom_q6v5_pas", "Linux 6.12.23", "QNNExecutionProvider"),
        ],
        id="qualcomm, mainline",
    ),
    pytest.param(
        "qualcomm-rb5",
        [("npu", "Qualcomm sm8250 Hexagon NPU", "fastrpc", "", "QNNExecutionProvider")],
        id="qualcomm, vendor's kernel",
    ),
    pytest.param("virtual-machine", [], id="virtual machine"),
    pytest.param("epyc-zen4", [], id="a recorded virtual machine"),
    pytest.param("raspberry-pi-5", [], id="a Pi's VideoCore computes nothing"),
]


@pytest.mark.parametrize(("name", "expected"), CASES)
def test_accelerators(device_tree, name, expected):
    """What is listed here is missed when it is gone; what only shows a picture must not be."""
    assert brief(accelerators(device_tree(name), "linux")) == expected


def test_every_accelerator_comes_with_advice(device_facts):
    """Nobody should have to search the web for what makes an NPU work."""
    facts = [
        device_facts(name) for name in ("intel-core-ultra", "nvidia-desktop", "ryzen-ai", "rk3588", "qualcomm-rb5")
    ]

    for accelerator in (each for one in facts for each in one.unused_accelerators):
        assert accelerator.hint
    (gpu, _) = facts[0].unused_accelerators
    assert "pip install onnxruntime-ep-openvino" in gpu.hint
    (without_driver, _) = facts[1].unused_accelerators
    assert without_driver.hint.startswith("the kernel has bound no driver to it")


def test_packages_that_are_advised_are_those_of_the_extras():
    """Advice that pip refuses is worse than none, and so are two that differ."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    kinds = itertools.product(
        ["Intel", "NVIDIA", "NVIDIA Jetson", "AMD", "Apple", "Qualcomm", "Rockchip"], ["gpu", "npu"]
    )
    advised = {name for kind in kinds for name in re.findall(r"install (onnxruntime-[a-z-]+)", support_of(*kind).hint)}
    extras = " ".join(itertools.chain.from_iterable(project["optional-dependencies"].values()))

    plugins = {"onnxruntime-ep-openvino", "onnxruntime-qnn"}
    assert advised == {*plugins, "onnxruntime-gpu"}
    assert all(f"{name}>=" in extras for name in plugins), "onnxruntime-gpu goes into a folder of its own"


def test_a_jetson_whose_gpu_is_on_pci_is_advised_as_a_jetson(device_tree):
    """Jetson Thor has the desktop's driver and PCI number, and PyPI's wheel has no kernel for it."""
    root = device_tree("jetson-orin-nano")
    device = root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "uevent").write_text("DRIVER=nvidia\nPCI_CLASS=30000\nPCI_ID=10DE:2B00\nPCI_SLOT_NAME=0000:01:00.0\n")

    hints = {each.hint for each in accelerators(root, "linux") if each.vendor == "NVIDIA"}
    assert hints == {support_of("NVIDIA Jetson", "gpu").hint}


def test_a_hailo_hat_is_listed_though_no_provider_uses_it(device_tree):
    """It calls itself a co-processor on PCI, a class that says nothing; its number tells."""
    root = device_tree("raspberry-pi-5")
    device = root / "sys/bus/pci/devices/0001:01:00.0"
    device.mkdir(parents=True)
    (device / "uevent").write_text("DRIVER=hailo\nPCI_CLASS=B4000\nPCI_ID=1E60:2864\nPCI_SLOT_NAME=0001:01:00.0\n")

    (hailo,) = accelerators(root, "linux")

    assert (hailo.name, hailo.provider) == ("Hailo-8 [1e60:2864]", "")
    assert "no provider" in hailo.hint


def test_a_new_npu_is_known_by_its_driver(device_tree):
    """A chip that is younger than our table is listed by the kernel under /sys/class/accel."""
    root = device_tree("ryzen-ai")
    for path in ("sys/bus/pci/devices/0000:c6:00.1/uevent", "sys/class/accel/accel0/device/uevent"):
        (root / path).write_text((root / path).read_text().replace("17F0", "1FFF"))

    assert [each.name for each in accelerators(root, "linux")] == ["AMD GPU [1002:150e]", "AMD NPU [1022:1fff]"]


def test_three_cores_of_one_npu_are_one(device_tree):
    """Mainline's device tree has a node for each core of the RK3588's NPU."""
    root = device_tree("rk3588")
    (root / "sys/bus/platform/devices/fdab0000.npu/uevent").unlink()
    for number in range(3):
        folder = root / f"sys/bus/platform/devices/fda{number}0000.npu"
        folder.mkdir()
        (folder / "uevent").write_text("DRIVER=rocket\nOF_COMPATIBLE_0=rockchip,rk3588-rknn-core\n")

    assert [each.name for each in accelerators(root, "linux")] == ["Rockchip rk3588 NPU"]


@pytest.mark.parametrize(
    "content", [b"", b"PCI_ID=zz:1\nPCI_CLASS=x", b"PCI_CLASS=30000", b"\xff\xfe=\n====", b"PCI_ID=:"]
)
def test_garbage_on_the_bus_costs_only_itself(device_tree, content):
    """No two kernels agree; the other devices are wanted."""
    root = device_tree("nvidia-desktop")
    (root / "sys/bus/pci/devices/0000:00:02.0/uevent").write_bytes(content)

    assert [each.vendor for each in gather(root, system="linux").accelerators] == ["NVIDIA"]


def test_nothing_readable_is_no_accelerator(tmp_path):
    """A hardened container hides the bus."""
    assert accelerators(tmp_path, "linux") == accelerators(tmp_path, "android") == ()


def test_apple_silicon_has_a_gpu_and_a_neural_engine():
    """Every Apple chip does, and a virtual machine on one does not."""
    assert [each.name for each in from_macos("Apple M2")] == ["Apple M2 GPU", "Apple M2 Neural Engine"]
    assert {each.provider for each in from_macos("Apple M2")} == {"CoreMLExecutionProvider"}
    assert from_macos("Apple M2 (Virtual)") == from_macos("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz") == []


def test_windows_lists_drivers_of_vendors_that_compute():
    """Constructed registry values; Hyper-V's and a remote desktop's adapters only show a picture."""
    entries = [
        ("gpu", {"DriverDesc": "NVIDIA GeForce RTX 4070", "DriverVersion": "32.0.15.6094",
                 "MatchingDeviceId": "PCI\\VEN_10DE&DEV_2786", "InfPath": "oem12.inf"}),
        ("gpu", {"DriverDesc": "Microsoft Hyper-V Video", "MatchingDeviceId": "VMBUS\\{da0a7802-e377-4aac-8e77}"}),
        ("gpu", {"DriverDesc": "Microsoft Basic Display Adapter", "MatchingDeviceId": "PCI\\CC_0300"}),
        ("npu", {"DriverDesc": "Intel(R) AI Boost", "MatchingDeviceId": "pci\\ven_8086&dev_7d1d"}),
        ("npu", {"DriverDesc": "Snapdragon(R) X Elite - Hexagon(TM) NPU", "MatchingDeviceId": "ACPI\\VEN_QCOM&DEV_0D0A"}),
        ("npu", {}),
    ]  # fmt: skip

    found = from_windows(iter(entries))

    assert [(each.kind, each.vendor, each.name, each.provider) for each in found] == [
        ("gpu", "NVIDIA", "NVIDIA GeForce RTX 4070", "CUDAExecutionProvider"),
        ("npu", "Intel", "Intel(R) AI Boost", "OpenVINOExecutionProvider"),
        ("npu", "Qualcomm", "Snapdragon(R) X Elite - Hexagon(TM) NPU", "QNNExecutionProvider"),
    ]
    assert found[0].driver_version == "32.0.15.6094"


def test_who_uses_an_accelerator():
    """A provider serves its vendor's devices of its type; DirectML and WebGPU serve everybody's."""
    gpu = Accelerator("gpu", "Intel", "x")
    assert gpu.is_served_by(EpDevice("OpenVINOExecutionProvider", "gpu"))
    assert gpu.is_served_by(EpDevice("DmlExecutionProvider", "gpu"))
    assert not gpu.is_served_by(EpDevice("OpenVINOExecutionProvider", "npu"))
    assert not gpu.is_served_by(EpDevice("CUDAExecutionProvider", "gpu"))


@pytest.fixture
def served(device_facts):
    """An Intel laptop whose NPU a plugin offers, by metadata such as Windows gives."""
    npu = EpDevice(
        "OpenVINOExecutionProvider", "npu", "Intel", driver_version="1",
        metadata=(("DEVICE_LUID", "1"), ("LUID", "1"), ("arch", "3720"))
    )  # fmt: skip
    gpu = EpDevice("OpenVINOExecutionProvider", "gpu", "Intel", metadata=(("card_idx", "0"),))
    return replace(device_facts("intel-core-ultra"), ep_devices=(CPU, gpu, npu))


@pytest.mark.parametrize("name", ["ep_devices", "accelerators"])
def test_fingerprint_does_not_hang_on_an_order(served, name):
    """Drivers are loaded at the same time, and list their devices in any order."""
    assert replace(served, **{name: tuple(reversed(getattr(served, name)))}).fingerprint == served.fingerprint


def test_fingerprint_does_not_move_by_numbers_of_one_start(served):
    """Windows gives out a new LUID at each start, and Linux counts cards as they come: nothing is to be measured again."""
    moved = tuple(
        replace(each, metadata=tuple((key, value if key == "arch" else "7") for key, value in each.metadata))
        for each in served.ep_devices
    )
    assert moved != served.ep_devices
    assert replace(served, ep_devices=moved).fingerprint == served.fingerprint


def test_fingerprint_does_not_move_by_words_of_a_driver(served):
    """What a driver says when it fails holds addresses; that it fails counts."""
    first, second = (
        replace(served, ep_devices=(*served.ep_devices[:2], replace(served.ep_devices[2], unusable=words)))
        for words in ("at 0x7f12", "at 0x55aa")
    )

    assert first.fingerprint == second.fingerprint != served.fingerprint
    assert first.hardware_fingerprint == served.hardware_fingerprint


def test_fingerprint_moves_with_a_new_driver(served):
    """Of the provider, of its library, or of the kernel: each may change what is fastest."""
    new = [
        replace(served, ep_devices=(*served.ep_devices[:2], replace(served.ep_devices[2], driver_version="2"))),
        replace(served, ep_devices=(*served.ep_devices[:2], replace(served.ep_devices[2], library_version="2"))),
        replace(served, accelerators=(served.accelerators[0], replace(served.accelerators[1], driver_version="2"))),
        replace(served, ep_devices=served.ep_devices[:2]),
    ]

    assert len({served.fingerprint, *(each.fingerprint for each in new)}) == 5


def test_fingerprint_does_not_move_by_a_driver_that_nothing_uses(device_facts):
    """A kernel's update brings a new driver for a GPU that no provider uses: the CPU is as fast as before."""
    facts = device_facts("nvidia-desktop")
    other = tuple(replace(each, driver_version="1", hint="") for each in facts.accelerators)

    assert replace(facts, accelerators=other).fingerprint == facts.fingerprint
