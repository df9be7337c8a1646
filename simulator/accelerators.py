"""Virtual accelerators: a runtime whose devices a hardware file declares, with their speed and all that is wrong with them.

Takes the path of a hardware file (`simulator.hardware`), as the id `virtual:<file>` of `device: {runtimes: […]}` names it;
gives a `Runtime` that the probe, the trials and the worker open like any other. What a model answers is real: the plain CPU
provider computes it inside, and then the run is drawn out to what the file declares, spoilt, or made to fail. So a declared
time must be above the real one. Nothing here says anything about how fast a real accelerator is.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from agent import atomicfile
from agent.clock import Clock, SystemClock
from agent.device.facts import BUILT_IN, EpDevice
from agent.device.planning.plan import Candidate
from agent.device.runtimes.catalogue import open_runtime as open_any_runtime
from agent.device.runtimes.runtime import Assignment, Opening, Runtime, RuntimeSession
from agent.errors import CandidateError
from agent.usage import cpu_seconds
from simulator.hardware import (
    SMALL_NODES,
    Accelerator,
    Hardware,
    VirtualCpu,
    hardware_file,
    load_hardware,
    marker,
    trouble_of,
    unplug,
)

CPU = "CPUExecutionProvider"
REPLACES = ("replaces", BUILT_IN)
"""Metadata of a device that stands in for the built-in runtime's of its provider and type: the probe leaves that out."""
COMPILED = "virtual-compiled.bin"
"""What compiling leaves in the prepared folder."""
NO_FALLBACK = ("session.disable_cpu_ep_fallback", "1")
_A_DAY_S = 86_400.0


def open_runtime(location: str) -> Runtime:
    """Open the runtime that a hardware file declares, and register its accelerators, which may kill this process or hang.

    Args:
        location: A hardware file's path, or the name of one that ships.

    Raises:
        ConfigurationError: the file cannot be read or is none; every problem has its line.
    """
    path = hardware_file(location)
    runtime = VirtualRuntime(path, load_hardware(path), SystemClock())
    runtime.register()
    return runtime


class VirtualRuntime:
    """The devices of one hardware file.

    Args:
        path: The file, for the devices' ids and their marker files.
        hardware: What it says.
        clock: For waiting.
    """

    def __init__(self, path: Path, hardware: Hardware, clock: Clock) -> None:
        self.version = hardware.version
        self._path = path
        self._hardware = hardware
        self._clock = clock

    def register(self) -> None:
        """Do what loading a vendor's library does, where it goes wrong."""
        for each in self._hardware.accelerators:
            if each.crash_on_register:
                _crash(f"{each.name}: the driver crashed while it was registered")
            if each.hang_on_register:
                _hang(self._clock)

    def devices(self) -> tuple[EpDevice, ...]:
        """Return what is plugged in, the processor first."""
        plugged = [
            self._ep_device(each)
            for each in self._hardware.accelerators
            if trouble_of(marker(self._path, each.name)) != "unplugged"
        ]
        return (*([self._cpu_device()] if self._hardware.cpu else []), *plugged)

    def open(self, opening: Opening) -> VirtualSession:
        """Make a session on a declared device.

        Raises:
            BundleError: the file is missing, empty, truncated or no ONNX model.
            CandidateError: no such device, or what the file declares to go wrong.
        """
        candidate = opening.candidate
        if self._hardware.cpu and (candidate.provider, candidate.device_type) == (CPU, "cpu"):
            plain = _open_plain(opening, prepared=opening.prepared)
            device = self._hardware.cpu
            fate = _Fate(self._path, "cpu", device)
            return VirtualSession(plain, device, candidate.variant, fate, self._clock, assignment=plain.assignment)
        accelerator = self._accelerator(candidate)
        plain = _open_plain(opening, prepared=None)
        assignment = place(plain.assignment, accelerator)
        _require_enough_taken(assignment, candidate)
        return VirtualSession(
            plain,
            accelerator,
            candidate.variant,
            _Fate(self._path, accelerator.name, accelerator),
            self._clock,
            assignment=assignment,
            seed=self._hardware.seed,
            was_prepared=self._compile(accelerator, opening, assignment),
        )

    def _accelerator(self, candidate: Candidate) -> Accelerator:
        wanted = (candidate.provider, candidate.device_type)
        alike = [each for each in self._hardware.accelerators if (each.provider, each.device_type) == wanted]
        found = next((each for each in alike if self._ep_device(each).is_called(candidate.device)), None)
        if found is None or trouble_of(marker(self._path, found.name)) == "unplugged":
            here = ", ".join(f"{each.provider} ({each.device_type}) {each.name}" for each in self.devices())
            wanted_words = f"{candidate.device_type} {candidate.device or 'device'} of {candidate.provider}"
            raise CandidateError(
                f"no {wanted_words} here; this runtime offers {here or 'nothing'}",
                where=str(self._path),
                hint="plug it in, or take it out of the profile",
            )
        if found.absent_driver is not None:
            raise CandidateError(f"{candidate.label} cannot be used: {found.absent_driver}", where=str(self._path))
        return found

    def _compile(self, device: Accelerator, opening: Opening, assignment: Assignment) -> bool:
        """Return whether it was compiled before, for this model and this driver; if not, compile it now."""
        if _is_spared(device, assignment):
            return False
        compiled = hashlib.sha256(opening.model_path.read_bytes() + device.driver_version.encode()).digest()
        kept = opening.prepared / COMPILED if opening.prepared else None
        if kept and kept.is_file() and kept.read_bytes() == compiled:
            return True
        if device.crash_on_compile:
            _crash(f"{device.name}: the compiler crashed")
        if device.hang_on_compile:
            _hang(self._clock)
        if device.fails_on_compile is not None:
            raise CandidateError(
                f"{opening.candidate.label} cannot load this model: {device.fails_on_compile}",
                where=str(opening.model_path),
                hint="the next candidate of the plan is tried",
            )
        self._clock.wait(threading.Event(), device.compile_s)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomicfile.write(kept, compiled)
        return False

    def _cpu_device(self) -> EpDevice:
        return EpDevice(
            CPU, "cpu", vendor="Holdfast", name="virtual processor", metadata=(REPLACES,), runtime=self._id,
            library_version=self.version,
        )  # fmt: skip

    def _ep_device(self, accelerator: Accelerator) -> EpDevice:
        return EpDevice(
            accelerator.provider,
            accelerator.device_type,
            accelerator.vendor,
            accelerator.name,
            accelerator.driver_version,
            runtime=self._id,
            library_version=self.version,
        )

    @property
    def _id(self) -> str:
        return f"virtual:{self._path}"


class _Fate:
    """What becomes of a session's runs, by their number and by what the device's marker file says."""

    def __init__(self, hardware_file: Path, name: str, device: VirtualCpu | Accelerator) -> None:
        self._hardware_file = hardware_file
        self._name = name
        self._marker = marker(hardware_file, name)
        self._device = device

    def meet(self, number: int, clock: Clock) -> bool:
        """Let the run with this number fail, crash or hang where it is due; return whether it is slow.

        Raises:
            CandidateError: the device is gone.
        """
        device = self._device
        trouble = trouble_of(self._marker)
        if isinstance(device, Accelerator):
            if device.dies_after is not None and number >= device.dies_after:
                unplug(self._hardware_file, self._name)
                trouble = "unplugged"
            if device.crashes_after is not None and number >= device.crashes_after:
                trouble = "crashes"
            if device.hangs_after is not None and number >= device.hangs_after:
                trouble = "hangs"
        match trouble:
            case "unplugged":
                raise CandidateError(
                    f"{self._name} failed while running: the device does not answer any more",
                    where=str(self._hardware_file),
                    hint="plug it in again; the next candidate of the plan takes over",
                )
            case "crashes":
                _crash(f"{self._name}: the driver crashed")
            case "hangs":
                _hang(clock)
        return trouble == "slow" or (device.slows_after is not None and number >= device.slows_after)


class _Units:
    """A device's processors: who came first is first, or one of several fast streams would starve. A context manager."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: collections.deque[threading.Event] = collections.deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # handed over: nobody can come between
            else:
                self._free += 1


class VirtualSession:
    """A real session on the plain CPU provider, with a device's pace, placement and faults around it."""

    def __init__(
        self,
        plain: RuntimeSession,
        device: VirtualCpu | Accelerator,
        variant: str,
        fate: _Fate,
        clock: Clock,
        *,
        assignment: Assignment,
        seed: int = 0,
        was_prepared: bool | None = None,
    ) -> None:
        self.inputs, self.outputs, self.metadata = plain.inputs, plain.outputs, plain.metadata
        self.assignment = assignment
        self.was_prepared = plain.was_prepared if was_prepared is None else was_prepared
        self._plain = plain
        self._device = device
        self._run_s = device.run_ms_of(variant) / 1000
        self._fate = fate
        self._clock = clock
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._units = _Units(device.parallel)
        self._runs = 0
        memory_mb = device.memory_mb if isinstance(device, Accelerator) else 0
        self._is_right = not isinstance(device, Accelerator) or _is_spared(device, assignment)
        self._wrong_after = (device.wrong_after or 0) if isinstance(device, Accelerator) else 0
        self._memory = [b"\1" * (memory_mb << 20)]  # ones: the system gives zeros without taking memory for them

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self._lock:
            self._runs += 1
            number = self._runs
        with self._units:
            began_s, began_cpu_s = self._clock.monotonic(), cpu_seconds()
            is_slow = self._fate.meet(number, self._clock)
            outputs = self._plain.run(inputs)
            while cpu_seconds() - began_cpu_s < self._device.cpu_ms / 1000:
                pass  # the host's part: this core is what it costs
            run_s = self._run_s * (self._device.slow_factor if is_slow else 1.0)
            self._clock.wait(threading.Event(), began_s + run_s - self._clock.monotonic())
        if isinstance(self._device, Accelerator) and self._device.leaks_mb:
            self._memory.append(b"\1" * round(self._device.leaks_mb * 2**20))
        return outputs if self._is_right or number < self._wrong_after else self._spoilt(outputs)

    def end_trace(self) -> Path | None:
        """End the trace of the real computation, with the device's name at its nodes: the times are the processor's."""
        path = self._plain.end_trace()
        if path and isinstance(self._device, Accelerator):
            events = json.loads(path.read_bytes())
            for arguments in (event["args"] for event in events if event.get("args", {}).get("provider") == CPU):
                if self._device.takes(arguments.get("op_name", "")):
                    arguments["provider"] = self._device.provider
            path.write_text(
                "[\n" + ",\n".join(map(json.dumps, events)) + "\n]\n"
            )  # an event a line, as ONNX Runtime writes
        return path

    def _spoilt(self, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self._lock:  # the generator is shared
            return {
                name: self._spoilt_output(values) if np.issubdtype(values.dtype, np.floating) else values
                for name, values in outputs.items()
            }

    def _spoilt_output(self, values: NDArray[Any]) -> NDArray[Any]:
        device = self._device
        assert isinstance(device, Accelerator), "the processor computes right"
        match device.wrong_results:
            case "negated":
                return np.asarray(1 - values, values.dtype)  # of scores between 0 and 1 still scores
            case "zeros":
                return np.zeros_like(values)
            case "nan":
                return np.full_like(values, np.nan)
        if not device.error or not values.size:
            return values
        # Of each number's own size, as arithmetic with fewer bits errs: pixels of a box must not drown the scores beside them.
        return np.asarray(values * (1 + self._random.normal(0.0, device.error, values.shape)), values.dtype)


def place(plain: Assignment, device: Accelerator) -> Assignment:
    """Return where the nodes of a graph go: by operator type to the device, the others to the plain CPU provider.

    Partitions are those of a chain, in which each node that the device does not take stands between two that it does.
    """
    operators = dict(plain.operators.get(CPU, {}))
    own = {operator: count for operator, count in operators.items() if device.takes(operator)}
    rest = {operator: count for operator, count in operators.items() if operator not in own}
    taken, left = sum(own.values()), sum(rest.values())
    parts = {device.provider: (taken, min(taken, left + 1), own), CPU: (left, left, rest)}
    parts = {provider: part for provider, part in parts.items() if part[0]}
    return Assignment(
        nodes={provider: nodes for provider, (nodes, _, _) in parts.items()},
        partitions={provider: partitions for provider, (_, partitions, _) in parts.items()},
        operators={provider: of_each for provider, (_, _, of_each) in parts.items()},
    )


def _is_spared(device: Accelerator, assignment: Assignment) -> bool:
    return device.spares_small and sum(assignment.nodes.values()) <= SMALL_NODES


def _require_enough_taken(assignment: Assignment, candidate: Candidate) -> None:
    """Refuse what ONNX Runtime and our sessions on it refuse too."""
    if not assignment.nodes.get(candidate.provider):
        raise CandidateError(f"{candidate.label} runs none of this model: it all went to {CPU}")
    if NO_FALLBACK in candidate.session_options and (left := assignment.nodes.get(CPU, 0)):
        raise CandidateError(
            f"{candidate.label} cannot load this model: This session contains {left} graph nodes that are assigned to the "
            "default CPU EP, but fallback to CPU EP has been explicitly disabled by the user.",  # ONNX Runtime's words
            hint="allow the fallback, or use a model whose operators the device has",
        )


def _crash(words: str) -> NoReturn:
    """End this process as a broken driver does."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()
    os.abort()


def _hang(clock: Clock) -> NoReturn:
    never = threading.Event()
    while True:
        clock.wait(never, _A_DAY_S)


def _open_plain(opening: Opening, *, prepared: Path | None) -> RuntimeSession:
    """Open the model on the real processor with as many threads as the candidate has."""
    candidate = opening.candidate
    options = tuple(option for option in candidate.session_options if option != NO_FALLBACK)
    plain = Candidate(CPU, "cpu", candidate.variant, candidate.threads, session_options=options)
    return open_any_runtime(BUILT_IN).open(replace(opening, candidate=plain, prepared=prepared))
