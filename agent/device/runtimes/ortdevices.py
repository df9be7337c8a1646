"""The devices that the ONNX Runtime of this process lists, as values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnxruntime

from agent.device.facts import EpDevice
from agent.device.planning.plan import Candidate
from agent.device.runtimes.providers import NO_PROVIDERS, known_devices
from agent.errors import CandidateError
from agent.log import brief

_NOT_THE_DEVICES = frozenset({"version", "library_path", "Description", "LUID", "DxgiAdapterNumber"})
"""Metadata that is shown elsewhere, or changes without the device: a path of the installation, Windows' numbers of one boot."""


_of_plugins: set[str] = set()
"""Providers that plugins added to ONNX Runtime's list of this process."""


def built_in_providers() -> list[str]:
    """Return the names of the providers inside the wheel; ONNX Runtime's own list has those of registered plugins too."""
    return [name for name in onnxruntime.get_available_providers() if name not in _of_plugins]


@contextlib.contextmanager
def registering() -> Iterator[None]:
    """Note which providers a plugin adds."""
    before = set(onnxruntime.get_available_providers())
    yield
    _of_plugins.update(set(onnxruntime.get_available_providers()) - before)


def ep_devices() -> list[Any]:
    """Return ONNX Runtime's own objects; empty before 1.23, which has no such list."""
    if not hasattr(onnxruntime, "get_ep_devices"):
        return []
    return list(onnxruntime.get_ep_devices())


def describe(device: onnxruntime.OrtEpDevice, *, runtime: str, library_version: str) -> EpDevice:
    """Return one device as a value. The providers' own version is no driver's, and is left to `library_version`."""
    metadata = {**device.device.metadata, **device.ep_metadata}
    return EpDevice(
        provider=str(device.ep_name),
        device_type=device_type(device),
        vendor=str(device.device.vendor),
        name=_name(device, metadata),
        driver_version=str(metadata.get("driver_version", "")),
        metadata=tuple(
            sorted((str(key), str(value)) for key, value in metadata.items() if key not in _NOT_THE_DEVICES)
        ),
        runtime=runtime,
        library_version=library_version,
    )


def _name(device: onnxruntime.OrtEpDevice, metadata: Mapping[str, str]) -> str:
    """Return what Windows or OpenVINO calls it, else its PCI number as in the operating system's list: Linux tells no name."""
    name = str(metadata.get("Description") or metadata.get("FULL_DEVICE_NAME") or "")
    if name or device_type(device) == "cpu":
        return brief(name)
    return f"[{device.device.vendor_id:04x}:{device.device.device_id:04x}]"


def device_type(device: onnxruntime.OrtEpDevice) -> str:
    """Return `cpu`, `gpu` or `npu`."""
    return str(device.device.type.name).lower()


def in_order(devices: Iterable[EpDevice]) -> tuple[EpDevice, ...]:
    """Return them sorted: the order must not move a fingerprint."""
    return tuple(
        sorted(devices, key=lambda each: (each.provider, each.device_type, each.vendor, each.name, each.metadata))
    )


def matching(devices: Sequence[Any], candidate: Candidate) -> list[Any]:
    """Return the device for a candidate: of several that it may mean the strongest, which ONNX Runtime's order does not tell.

    One: a plugin takes several only to split one graph, which no profile asks for. One that is gone is not answered with
    another of its kind.
    """
    meant = [device for device in _alike(devices, candidate) if _called(device).is_called(candidate.device)]
    return sorted(meant, key=_weakness)[:1]


def _alike(devices: Sequence[Any], candidate: Candidate) -> list[Any]:
    return [
        device
        for device in devices
        if device.ep_name == candidate.provider and device_type(device) == candidate.device_type
    ]


def _called(device: onnxruntime.OrtEpDevice) -> EpDevice:
    return describe(device, runtime="", library_version="")


def _weakness(device: onnxruntime.OrtEpDevice) -> tuple[bool, int, bool, str]:
    """Order a card of its own before a processor's graphics, as ONNX Runtime's policies do, then as Windows or the bus does.

    ONNX Runtime keeps what it discovers in an unordered set (device_discovery.cc). There it says which GPU is discrete (on
    Linux of NVIDIA's only) and which place it has in DXGI_GPU_PREFERENCE_HIGH_PERFORMANCE. Intel's graphics inside a
    processor are device 2 of PCI bus 0, where no card can be.
    """
    told = device.device.metadata
    place, address = told.get("DxgiHighPerformanceIndex", ""), told.get("pci_bus_id", "")
    is_inside = address.partition(":")[2].startswith("00:")
    return told.get("Discrete") != "1", int(place) if place.isdecimal() else 0, is_inside, address


def unavailable(candidate: Candidate, devices: Sequence[Any], available: Sequence[str] = ()) -> CandidateError:
    """Say what there is in place of what a candidate asks for."""
    if candidate.device:
        here = ", ".join(_called(device).name_and_address for device in _alike(devices, candidate)) or "nothing"
        return CandidateError(
            f"{candidate.provider} offers no {candidate.device_type} {candidate.device} here; it offers: {here}",
            hint="plug it in again, or mend its driver",
        )
    types = {device_type(device) for device in devices if device.ep_name == candidate.provider}
    if candidate.provider in available:
        types |= set(known_devices(candidate.provider))
    if types:
        return CandidateError(
            f"{candidate.provider} offers no {candidate.device_type} device here; it offers: {', '.join(sorted(types))}",
            hint="correct device_type in the profile, or install the driver of that device",
        )
    names = sorted({*available, *(str(device.ep_name) for device in devices)} - NO_PROVIDERS)
    return CandidateError(
        f"{candidate.provider} is not available in this runtime; available: {', '.join(names)}",
        hint="install the extra that brings this provider, or take it out of the profile",
    )
