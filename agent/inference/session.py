"""The only place that makes an ONNX Runtime session: one model file, one candidate, no silent fallback.

Takes a model's path and a candidate of the plan; gives a `Session` that several threads may run at once, with what
ONNX Runtime recorded about where each node went. A model is loaded from its path, never from bytes, because from
bytes the interpreter is held for the whole parse. Refuses to run anywhere but on the candidate's provider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from agent.bundle.manifest import TensorSpec
from agent.clock import Clock, SystemClock
from agent.device.plan import Candidate
from agent.errors import BundleError, CandidateError

CPU_PROVIDER = "CPUExecutionProvider"

ORT_ERRORS: tuple[type[Exception], ...] = (
    *(
        value
        for value in vars(onnxruntime_pybind11_state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
    RuntimeError,
    ValueError,
)
"""ONNX Runtime's exceptions have no common base, and which there are changes from version to version."""

_BAD_FILE_ERRORS = ("InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel")

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}


class Session:
    """An ONNX Runtime session on one provider. `run` may be called from several threads at once."""

    def __init__(
        self, session: onnxruntime.InferenceSession, candidate: Candidate, model_path: Path, load_ms: float
    ) -> None:
        self.candidate = candidate
        self.model_path = model_path
        self.load_ms = load_ms
        """How long loading and optimising took, in milliseconds."""
        self.inputs = tuple(_spec(argument) for argument in session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in session.get_outputs())
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        """What the exporter wrote into the file (`metadata_props`)."""
        self.nodes = _assigned_nodes(session)
        """Graph nodes by the provider that runs them; empty where the runtime does not tell."""
        self._session = session
        self._output_names = [output.name for output in self.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once.

        Raises:
            CandidateError: ONNX Runtime refused the inputs, or the provider failed.
        """
        try:
            results = self._session.run(self._output_names, inputs)
        except ORT_ERRORS as error:
            raise CandidateError(
                f"{self.candidate.label} failed while running: {_first_line(error)}",
                where=str(self.model_path),
                hint="the next candidate of the plan is tried; `holdfast plan show` tells which runs now",
            ) from error
        return dict(zip(self._output_names, results, strict=True))


def open_session(model_path: Path, candidate: Candidate, clock: Clock | None = None) -> Session:
    """Load a model for one candidate.

    Raises:
        BundleError: the file is missing, empty, truncated or no ONNX model.
        CandidateError: the provider is not available here, or cannot run this model with these options.
    """
    clock = clock or SystemClock()
    _check_file(model_path)
    options = _session_options(candidate)
    providers = _choose_provider(candidate, options)
    started_s = clock.monotonic()
    try:
        session = onnxruntime.InferenceSession(str(model_path), options, enable_fallback=0, **providers)
        return Session(session, candidate, model_path, (clock.monotonic() - started_s) * 1000.0)
    except ORT_ERRORS as error:
        raise _translated(error, model_path, candidate) from error


def _session_options(candidate: Candidate) -> onnxruntime.SessionOptions:
    """Return options for one shared, sequential session; the candidate's own entries win over the defaults."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = candidate.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: warnings about old exports come by the hundred
    entries = {
        # Spinning threads take 4 to 16 times the CPU of a paced camera's work, for under a millisecond.
        "session.intra_op.allow_spinning": "0",
        "session.record_ep_graph_assignment_info": "1",
    }
    if candidate.provider != CPU_PROVIDER:
        entries["session.disable_cpu_ep_fallback"] = "1"
    try:
        for key, value in (entries | dict(candidate.session_options)).items():
            options.add_session_config_entry(key, value)
    except ORT_ERRORS as error:
        raise CandidateError(f"session options of {candidate.label} are refused: {_first_line(error)}") from error
    return options


def _choose_provider(candidate: Candidate, options: onnxruntime.SessionOptions) -> dict[str, Any]:
    """Return the arguments that select a provider of this build, or put a plugin's devices into `options`."""
    built_in = onnxruntime.get_available_providers()
    if candidate.provider in built_in:
        return {"providers": [(candidate.provider, dict(candidate.options))]}
    devices = _ep_devices()
    of_provider = [device for device in devices if device.ep_name == candidate.provider]
    matching = [device for device in of_provider if _device_type(device) == candidate.device_type]
    if not matching:
        raise _unavailable(candidate, built_in, devices, of_provider)
    try:
        # One device: a plugin takes several only to split one graph over them, which no profile asks for.
        options.add_provider_for_devices(matching[:1], dict(candidate.options))
    except ORT_ERRORS as error:
        raise CandidateError(f"{candidate.label} cannot be used: {_first_line(error)}") from error
    return {}


def _ep_devices() -> list[Any]:
    if not hasattr(onnxruntime, "get_ep_devices"):
        return []
    return list(onnxruntime.get_ep_devices())


def _device_type(device: onnxruntime.OrtEpDevice) -> str:
    return str(device.device.type.name).lower()


def _unavailable(
    candidate: Candidate, built_in: list[str], devices: list[Any], of_provider: list[Any]
) -> CandidateError:
    if of_provider:
        types = ", ".join(sorted({_device_type(device) for device in of_provider}))
        return CandidateError(
            f"{candidate.provider} offers no {candidate.device_type} device here; it offers: {types}",
            hint="correct device_type in the profile, or install the driver of that device",
        )
    names = sorted({*built_in, *(str(device.ep_name) for device in devices)})
    return CandidateError(
        f"{candidate.provider} is not available in this runtime; available: {', '.join(names)}",
        hint="install the extra that brings this provider, or take it out of the profile",
    )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise BundleError("the model file is missing", where=str(path), hint="build or fetch the bundle again")
    if path.stat().st_size == 0:
        raise BundleError("the model file is empty", where=str(path), hint="build or fetch the bundle again")


def _translated(error: Exception, path: Path, candidate: Candidate) -> BundleError | CandidateError:
    text = _first_line(error)
    if type(error).__name__ in _BAD_FILE_ERRORS or "No graph was found" in text:
        return BundleError(
            f"this is not a whole, valid ONNX model: {text}",
            where=str(path),
            hint="export the model again, or fetch the bundle again",
        )
    return CandidateError(
        f"{candidate.label} cannot load this model: {text}",
        where=str(path),
        hint="the next candidate of the plan is tried; a model that no candidate loads needs another export",
    )


def _spec(argument: onnxruntime.NodeArg) -> TensorSpec:
    """Describe an input or output; a symbolic or unknown dimension is -1."""
    shape = tuple(dimension if isinstance(dimension, int) else -1 for dimension in argument.shape or ())
    return TensorSpec(name=argument.name, dtype=_DTYPES.get(argument.type, argument.type), shape=shape)


def _assigned_nodes(session: onnxruntime.InferenceSession) -> dict[str, int]:
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    counts: Counter[str] = Counter()
    for subgraph in session.get_provider_graph_assignment_info():
        counts[subgraph.ep_name] += len(subgraph.get_nodes())
    return dict(counts)


def _first_line(error: Exception) -> str:
    """Return ONNX Runtime's message on one line; it adds indices on further lines."""
    return " ".join(str(error).split())
