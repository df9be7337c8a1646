"""What a probe saw of this device: a value, with a stable fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

BUILT_IN = "built-in"
"""The runtime whose providers come inside the installed ONNX Runtime wheel."""


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
    """What would use it, such as `OpenVINOExecutionProvider`, and is worth a hint where it is not installed."""


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
    """Everything known of the device. Made by `agent.device.probe`, recorded or constructed in tests."""

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
        """A digest of what decides speed. Cameras, temperatures and findings come and go and are left out.

        Memory counts in whole GiB: what a kernel keeps for itself changes a little from one boot to the next.
        """
        deciding = {
            key: value
            for key, value in asdict(self).items()
            if key not in ("cameras", "thermal_zones", "findings", "runtime_version", "os_version")
        }
        for device in deciding["ep_devices"]:
            device["unusable"] = device["unusable"] is not None  # a driver's words may hold addresses and times
        deciding["memory_bytes"] = round(self.memory_bytes / 2**30)
        text = json.dumps(deciding, sort_keys=True, default=sorted)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the facts and the fingerprint as JSON-ready values."""
        return {
            **json.loads(json.dumps(asdict(self), default=sorted)),
            "fingerprint": self.fingerprint,
        }
