"""A provider that is registered at run time: a library by its path, or the package that brings it.

https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html. Registering loads the library into this process,
and what crashes there takes the process along: that is why the probe does this in a child for each.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import onnxruntime

from agent.device.facts import EpDevice
from agent.device.runtimes import ortdevices
from agent.device.runtimes.ortsession import ORT_ERRORS, one_line, open_session
from agent.device.runtimes.providers import registration_name
from agent.device.runtimes.runtime import Opening, RuntimeSession
from agent.errors import CandidateError


class PluginRuntime:
    """A registered provider library. Its devices are those that came with the registration."""

    def __init__(self, library: Path, *, name: str, runtime_id: str, version: str = "") -> None:
        """Register `library` under `name`.

        Raises:
            CandidateError: it is no library, none of a provider, or made for another ONNX Runtime; with the loader's words.
        """
        before = {str(device.ep_name) for device in ortdevices.ep_devices()}
        _register(name, library)
        self._library = str(library)
        self._others = before
        self._id = runtime_id
        self.version = version or next((str(each.ep_metadata.get("version", "")) for each in self._own()), "")

    def devices(self) -> tuple[EpDevice, ...]:
        """Return what it offers here; empty where it found no device that it can drive."""
        return ortdevices.in_order(
            ortdevices.describe(device, runtime=self._id, library_version=self.version) for device in self._own()
        )

    def open(self, opening: Opening) -> RuntimeSession:
        devices = self._own()
        matching = ortdevices.matching(devices, opening.candidate)
        if not matching:
            raise ortdevices.unavailable(opening.candidate, devices)
        return open_session(opening, matching)

    def _own(self) -> list[Any]:
        """Return the devices of this library. Before 1.24 ONNX Runtime does not say whose they are: then what is new."""
        return [
            device
            for device in ortdevices.ep_devices()
            if device.ep_metadata.get("library_path", self._library) == self._library
            and ("library_path" in device.ep_metadata or device.ep_name not in self._others)
        ]


def open_plugin(location: str, runtime_id: str) -> PluginRuntime:
    """Register the library that a path or the name of an installed package stands for.

    Raises:
        CandidateError: it cannot be registered, or the package is none that brings a provider.
    """
    if not location.isidentifier():
        library = Path(location).absolute()
        return PluginRuntime(library, name=registration_name(library.stem), runtime_id=runtime_id)
    try:
        module = importlib.import_module(location)
        library = Path(module.get_library_path())
        names = list(module.get_ep_names()) if hasattr(module, "get_ep_names") else []
    except Exception as error:
        raise CandidateError(
            f"the package {location} does not bring its library: {type(error).__name__}: {error}",
            hint=f"install {location.replace('_', '-')} again",
        ) from error
    name = names[0] if names else registration_name(library.stem)
    return PluginRuntime(library, name=name, runtime_id=runtime_id, version=_package_version(location))


def _register(name: str, library: Path) -> None:
    try:
        with ortdevices.registering():
            onnxruntime.register_execution_provider_library(name, str(library))
    except AttributeError as error:
        raise CandidateError(
            f"ONNX Runtime {onnxruntime.__version__} takes no plugins", where=str(library), hint="install 1.24 or newer"
        ) from error
    except ORT_ERRORS as error:
        raise CandidateError(
            f"the provider's library cannot be registered: {one_line(error)}",
            where=str(library),
            hint="install the provider's version for this system and this ONNX Runtime",
        ) from error


def _package_version(module: str) -> str:
    for distribution in packages_distributions().get(module, ()):
        try:
            return version(distribution)
        except PackageNotFoundError:  # damaged metadata
            continue
    return ""
