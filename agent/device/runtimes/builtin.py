"""The providers inside an ONNX Runtime wheel: the one that Holdfast is installed with, or one in a folder.

ONNX Runtime lists devices of some of its providers; for the older ones, such as the classic OpenVINO, CUDA or CoreML, the
table in `providers` says what they can drive. Whether they do on this machine, the probe tries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from agent.device.facts import BUILT_IN, EpDevice
from agent.device.planning.plan import Candidate
from agent.device.runtimes import ortdevices, providerlibrary
from agent.device.runtimes.ortsession import open_session
from agent.device.runtimes.providers import CPU_PROVIDER, NO_PROVIDERS, known_devices
from agent.device.runtimes.runtime import Opening, RuntimeSession


class BuiltInRuntime:
    """An ONNX Runtime that this process has imported."""

    def __init__(self, runtime_id: str = BUILT_IN) -> None:
        providerlibrary.load_dependencies()
        self.version = str(onnxruntime.__version__)
        self._id = runtime_id
        self._library_version = "" if runtime_id == BUILT_IN else self.version

    def devices(self) -> tuple[EpDevice, ...]:
        """Return the devices of its providers; of another wheel in a folder, those that the built-in one has not."""
        listed = [
            ortdevices.describe(device, runtime=self._id, library_version=self._library_version)
            for device in _own_devices()
        ]
        names = {device.provider for device in listed} | NO_PROVIDERS
        if self._id != BUILT_IN:  # the plain CPU provider is the built-in runtime's, once for the device
            listed = [device for device in listed if device.provider != CPU_PROVIDER]
            names |= {CPU_PROVIDER}  # before 1.23 nothing is listed
        legacy = [
            EpDevice(provider=name, device_type=kind, runtime=self._id, library_version=self._library_version)
            for name in ortdevices.built_in_providers()
            if name not in names
            for kind in known_devices(name)
        ]
        return ortdevices.in_order([*listed, *legacy])

    def open(self, opening: Opening) -> RuntimeSession:
        return open_session(opening, self._devices_for(opening.candidate))

    def _devices_for(self, candidate: Candidate) -> list[Any]:
        """Return the devices for a candidate; none where it is selected by its provider's name.

        Raises:
            CandidateError: there is no such provider or device here.
        """
        available = ortdevices.built_in_providers()
        devices = _own_devices()
        matching = ortdevices.matching(devices, candidate)
        if matching and (candidate.provider not in available or not candidate.is_plain_cpu):
            return matching
        is_known = candidate.provider in available and candidate.device_type in known_devices(candidate.provider)
        if is_known and not candidate.device:  # by its name alone the provider would take another of its devices
            return []
        raise ortdevices.unavailable(candidate, devices, available)


def _own_devices() -> list[Any]:
    """Return the listed devices without those of plugins that were registered in this process: they are no part of it.

    A wheel may bring its CUDA provider as a plugin that it registers by itself; that library lies inside the package.
    """
    package = Path(onnxruntime.__file__).parent
    return [
        device
        for device in ortdevices.ep_devices()
        if Path(device.ep_metadata.get("library_path", package)).is_relative_to(package)
    ]
