"""What a probe saw of this device: a value, with a stable fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

BUILT_IN = "built-in"
"""The runtime whose providers come inside the installed ONNX Runtime wheel."""

VENDOR_OF_PROVIDER = {
    "CUDAExecutionProvider": "NVIDIA", "TensorrtExecutionProvider": "NVIDIA", "NvTensorRTRTXExecutionProvider": "NVIDIA",
    "OpenVINOExecutionProvider": "Intel", "MIGraphXExecutionProvider": "AMD", "ROCMExecutionProvider": "AMD",
    "VitisAIExecutionProvider": "AMD", "QNNExecutionProvider": "Qualcomm", "CoreMLExecutionProvider": "Apple",
    "RknpuExecutionProvider": "Rockchip",
}  # fmt: skip
"""Whose hardware a provider drives. Those that are not here (DirectML, WebGPU, NNAPI) drive anybody's."""

_CHANGES_WITH_A_START = frozenset(
    {
        "luid", "card_idx", "pci_bus_id", "dxgiadapternumber", "dxgihighperformanceindex",
        "device_luid", "device_pci_info", "gpu_memory_statistics", "npu_device_alloc_mem_size",
    }
)  # fmt: skip
"""Metadata that ONNX Runtime's device discovery and OpenVINO (the second line) give and that holds for this start only: Windows
hands out a new LUID with each start of the driver, Linux numbers cards in the order in which their drivers came."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor. `features` are names of `agent.device.hardware.features`, such as avx2, avx512_vnni, dotprod or i8mm."""

    vendor: str
    model: str
    features: frozenset[str]
    physical_cores: int
    logical_cores: int
    quota_cores: float | None = None
    """What a cgroup or job limit allows this process, in cores; None where there is no limit."""
    allowed_cores: int | None = None
    """Physical cores that this process's affinity leaves it; None where it may use all."""


@dataclass(frozen=True, slots=True)
class EpDevice:
    """One device that an ONNX Runtime execution provider offers."""

    provider: str
    """As ONNX Runtime spells it, such as `CPUExecutionProvider`."""
    device_type: str
    """`cpu`, `gpu` or `npu`."""
    vendor: str = ""
    name: str = ""
    driver_version: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    runtime: str = BUILT_IN
    """Which runtime brings the provider: see `agent.device.runtimes.catalogue`."""
    library_version: str = ""
    """Of the plugin or of the other ONNX Runtime that brings it; empty for the one that Holdfast is installed with."""
    unusable: str | None = None
    """Why no session could be made on it, in the driver's own words; None where a session was made and run."""

    @property
    def is_plain_cpu(self) -> bool:
        """Whether it is ONNX Runtime's own CPU provider, which is always there and accelerates nothing."""
        return self.provider == "CPUExecutionProvider"

    @property
    def kind(self) -> tuple[str, str, str]:
        """What several devices may have in common: runtime, provider and type."""
        return self.runtime, self.provider, self.device_type

    @property
    def name_and_address(self) -> str:
        """Its name with its place on the PCI bus, where ONNX Runtime tells that (Linux): two equal cards differ in it."""
        return f"{self.name} {dict(self.metadata).get('pci_bus_id', '')}".strip()

    def is_called(self, key: str) -> bool:
        """Whether a candidate with this key (`Facts.key_of`) may mean it; one without a key means any of its kind."""
        return key in ("", self.name, self.name_and_address)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU or NPU that the operating system lists, whether or not any provider here can use it."""

    kind: str
    """`gpu` or `npu`."""
    vendor: str
    name: str
    driver: str = ""
    """The kernel's driver that is bound to it, such as `intel_vpu`, `amdgpu` or `nvidia`; empty where none is."""
    driver_version: str = ""
    provider: str = ""
    """What would use it, such as `OpenVINOExecutionProvider`; empty where nothing in ONNX Runtime does."""
    hint: str = ""
    """What to install, or to do, where no provider uses it."""

    def is_served_by(self, device: EpDevice) -> bool:
        """Whether a provider's device is this one, as far as its kind and its vendor tell."""
        return device.device_type == self.kind and VENDOR_OF_PROVIDER.get(device.provider, self.vendor) == self.vendor


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera that the operating system lists."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class ThermalZone:
    """A temperature sensor and what it read at the probe."""

    name: str
    celsius: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a probe could not do, with its text: a driver that crashed, a file that could not be read."""

    probe: str
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything known of the device. Made by `agent.device.survey.probe`, recorded or constructed in tests."""

    os: str
    """`linux`, `windows`, `macos`, `android`."""
    os_version: str
    architecture: str
    """`x86_64`, `aarch64`, …"""
    board: str
    """The device-tree model or DMI product, such as `Raspberry Pi 5 Model B Rev 1.0`; empty where unknown."""
    cpu: Cpu
    memory_bytes: int
    memory_limit_bytes: int | None = None
    """A cgroup's limit, where there is one."""
    runtime_version: str = ""
    """ONNX Runtime's version."""
    ep_devices: tuple[EpDevice, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()
    cameras: tuple[Camera, ...] = ()
    thermal_zones: tuple[ThermalZone, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """A digest of what decides speed, the same at every start of the same device with the same drivers.

        Cameras, temperatures and findings come and go and are left out, and so are the order in which drivers list their
        devices, numbers that are given out anew at each start, and an accelerator of the operating system's list that no
        provider uses. Memory counts in whole GiB: what a kernel keeps for itself changes a little from one boot to the next.
        """
        return self._digest(is_usability_told=True)

    @property
    def hardware_fingerprint(self) -> str:
        """The fingerprint without whether each device can be used: what is known before any is tried."""
        return self._digest(is_usability_told=False)

    def _digest(self, *, is_usability_told: bool) -> str:
        left_out = ("cameras", "thermal_zones", "findings", "runtime_version", "os_version")
        deciding = {key: value for key, value in asdict(self).items() if key not in left_out}
        deciding["memory_bytes"] = round(self.memory_bytes / 2**30)
        deciding["ep_devices"] = sorted(
            _stable(device, is_usability_told=is_usability_told) for device in self.ep_devices
        )
        deciding["accelerators"] = sorted(
            [each.kind, each.vendor, each.name, each.driver, each.driver_version]
            for each in self.accelerators
            if any(each.is_served_by(device) for device in self.ep_devices)
        )
        text = json.dumps(deciding, sort_keys=True, default=sorted)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def key_of(self, device: EpDevice) -> str:
        """Return what a candidate calls a device by; empty where its runtime offers one of its kind only, or one without a name.

        The name, and with it the address where others bear the same name. It never depends on the order of the list, nor on who
        else is still there when it is looked for. Equal cards without an address have one key, and the first of them is used.
        """
        alike = [each for each in self.ep_devices if each.kind == device.kind]
        names = Counter(each.name for each in alike)
        keys = {each.name if names[each.name] == 1 else each.name_and_address for each in alike}
        if len(keys) == 1 or "" in keys:
            return ""
        return device.name if names[device.name] == 1 else device.name_and_address

    @property
    def unused_accelerators(self) -> tuple[Accelerator, ...]:
        """Those that the operating system lists and no provider offers, each with a hint what to install."""
        return tuple(
            each for each in self.accelerators if not any(each.is_served_by(device) for device in self.ep_devices)
        )

    @property
    def runtime_findings(self) -> tuple[Finding, ...]:
        """Those about a runtime beside the built-in one: why what was installed or named brings nothing."""
        return tuple(each for each in self.findings if ":" in each.probe)

    @property
    def devices_here(self) -> tuple[EpDevice, ...]:
        """Those of `ep_devices` that are here, whether or not they can be used.

        A provider of the older kind tells no devices, so that all it could drive are tried: a GPU or an NPU that it cannot use
        and that nobody else has seen either is not here, and nothing is missing.
        """
        return tuple(each for each in self.ep_devices if each.unusable is None or self._is_really_there(each))

    @property
    def in_vain(self) -> tuple[EpDevice, ...]:
        """What providers of the older kind could drive of which nothing is here, such as CUDA's on a machine without a GPU."""
        here = {each.provider for each in self.devices_here}
        return tuple(each for each in self.ep_devices if each.provider not in here)

    @property
    def unusable_devices(self) -> tuple[EpDevice, ...]:
        """Those on which nothing runs though they should: it is said why."""
        return tuple(each for each in self.devices_here if each.unusable is not None)

    def _is_really_there(self, device: EpDevice) -> bool:
        was_listed = bool(device.vendor or device.name or device.metadata)
        return was_listed or device.device_type == "cpu" or any(each.is_served_by(device) for each in self.accelerators)

    def to_json(self) -> dict[str, Any]:
        """Return the facts and the fingerprint as JSON-ready values."""
        return {
            **json.loads(json.dumps(asdict(self), default=sorted)),
            "fingerprint": self.fingerprint,
        }


def _stable(device: EpDevice, *, is_usability_told: bool) -> str:
    """Return what counts of a device as text. A driver's words hold addresses and times: only whether it works counts."""
    values = asdict(device)
    values["unusable"] = is_usability_told and device.unusable is not None
    values["metadata"] = sorted(pair for pair in device.metadata if pair[0].lower() not in _CHANGES_WITH_A_START)
    return json.dumps(values, sort_keys=True)
