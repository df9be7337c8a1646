"""The only place that makes an ONNX Runtime session: one model file, one candidate, no silent fallback.

Takes an opening and which devices or provider to use; gives an `OrtSession` that several threads may run at once, with
what ONNX Runtime recorded about where each node went. A model is loaded from its path, never from bytes, because from bytes
the interpreter is held for the whole parse. Refuses options that the provider would ignore, and a session of which the
provider runs nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from agent.bundle.manifest import TensorSpec
from agent.device.planning.plan import Candidate
from agent.device.runtimes import providerlibrary
from agent.device.runtimes.prepared import AS_IT_IS, Variation, open_or_make
from agent.device.runtimes.providers import OWN_THREADS, options_for, provider_of, unknown_options
from agent.device.runtimes.runtime import Assignment, Opening
from agent.errors import BundleError, CandidateError

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

_one_at_a_time: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""By provider: one lock for all sessions of this process, since they share the device's queue."""

RECORD_NODES = "session.record_ep_graph_assignment_info"

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


class OrtSession:
    """An ONNX Runtime session on one provider. `run` may be called from several threads at once."""

    def __init__(
        self, session: onnxruntime.InferenceSession, candidate: Candidate, model_path: Path, *, is_tracing: bool
    ) -> None:
        self.inputs = tuple(_spec(argument) for argument in session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in session.get_outputs())
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.assignment = _assignment(session)
        self.was_prepared = False
        self._session = session
        self._candidate = candidate
        self._model_path = model_path
        self._output_names = [output.name for output in self.outputs]
        self._is_tracing = is_tracing
        row = provider_of(candidate.provider, candidate.runtime)
        self._turn = _one_at_a_time[row.name] if row.runs_one_at_a_time else contextlib.nullcontext()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            with self._turn:
                results = self._session.run(self._output_names, inputs)
        except ORT_ERRORS as error:
            raise CandidateError(
                f"{self._candidate.label} failed while running: {one_line(error)}",
                where=str(self._model_path),
                hint="the next candidate of the plan is tried; `holdfast plan show` tells which runs now",
            ) from error
        return dict(zip(self._output_names, results, strict=True))

    def end_trace(self) -> Path | None:
        if not self._is_tracing:
            return None
        self._is_tracing = False
        return Path(self._session.end_profiling())


def open_session(opening: Opening, devices: Sequence[Any] = ()) -> OrtSession:
    """Make a session, from what an earlier one has prepared where that is whole.

    Args:
        opening: Of which model, how, and what is kept.
        devices: ONNX Runtime's objects for the devices to run on; empty for a built-in provider that lists none.

    Raises:
        BundleError: the file is missing, empty, truncated or no ONNX model.
        CandidateError: the provider cannot run this model with these options.
    """
    _check_file(opening.model_path)
    _check_options(opening.candidate)
    make = partial(_make, opening, devices)
    if opening.prepared is None:
        return make(AS_IT_IS)
    return open_or_make(opening.prepared, opening.candidate, make, model=opening.model_path.name)


def _make(opening: Opening, devices: Sequence[Any], variation: Variation) -> OrtSession:
    candidate = opening.candidate
    path = variation.model_path or opening.model_path
    options = _session_options(candidate, variation)
    if opening.trace is not None and not variation.is_draft:
        options.enable_profiling = True
        options.profile_file_prefix = str(opening.trace)
    arguments = _choose_provider(candidate, devices, variation, options)
    try:
        session = onnxruntime.InferenceSession(str(path), options, enable_fallback=0, **arguments)
        made = OrtSession(session, candidate, path, is_tracing=options.enable_profiling)
    except ORT_ERRORS as error:
        translated = _translated(error, path, candidate)
        if arguments and isinstance(translated, CandidateError):  # TensorRT only says that something is missing
            _check_library(candidate, path)
        raise translated from error
    _check_provider(session.get_providers(), made.assignment, candidate, path)
    return made


def _session_options(candidate: Candidate, variation: Variation) -> onnxruntime.SessionOptions:
    """Return options for one shared, sequential session; the candidate's own entries win over the defaults."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if variation.is_optimized else levels.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A provider with threads of its own gets those of the candidate; ONNX Runtime's would wait beside them.
    options.intra_op_num_threads = 1 if candidate.provider in OWN_THREADS else candidate.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: warnings about old exports come by the hundred
    if variation.optimized_path is not None:
        options.optimized_model_filepath = str(variation.optimized_path)
    entries = {
        # Threads that spin for the next piece of work take 4 to 16 times the CPU of a paced camera's work and gain under
        # a millisecond (docs/benchmarks.md); a profile may have a candidate that lets them, and the plan measures it.
        "session.intra_op.allow_spinning": "0",
        RECORD_NODES: "1",
    }
    try:
        for key, value in (entries | dict(candidate.session_options) | dict(variation.session_options)).items():
            options.add_session_config_entry(key, value)
    except ORT_ERRORS as error:
        raise CandidateError(f"session options of {candidate.label} are refused: {one_line(error)}") from error
    return options


def _choose_provider(
    candidate: Candidate, devices: Sequence[Any], variation: Variation, options: onnxruntime.SessionOptions
) -> dict[str, Any]:
    """Return the arguments that select a provider by its name, or put its devices into `options`."""
    provider_options = options_for(candidate) | dict(variation.provider_options)
    if not devices:
        return {"providers": [(candidate.provider, provider_options), *_assistants(candidate)]}
    try:
        options.add_provider_for_devices(list(devices), provider_options)
    except ORT_ERRORS as error:
        raise CandidateError(f"{candidate.label} cannot be used: {one_line(error)}") from error
    return {}


def _assistants(candidate: Candidate) -> list[tuple[str, dict[str, str]]]:
    """Return the providers that take what the candidate's leaves; none where it must run everything."""
    if dict(candidate.session_options).get("session.disable_cpu_ep_fallback") == "1":
        return []
    available = onnxruntime.get_available_providers()
    helpers = provider_of(candidate.provider, candidate.runtime).assisted_by
    return [(helper, {}) for helper in helpers if helper in available]


def _check_options(candidate: Candidate) -> None:
    """Refuse options that the provider would pass over in silence: a typing error must not look like a measurement."""
    if unknown := unknown_options(candidate):
        row = provider_of(candidate.provider, candidate.runtime)
        raise CandidateError(
            f"{candidate.provider} has no option {', '.join(unknown)}, and would ignore it",
            hint=f"it has: {', '.join(sorted(row.known_options or ())) or 'none'} ({row.document})",
        )


def _check_provider(providers: Sequence[str], assignment: Assignment, candidate: Candidate, path: Path) -> None:
    """Refuse a session that the CPU runs in the provider's place: ONNX Runtime says that on stderr only."""
    taken = sum(assignment.nodes.values())
    if candidate.provider not in providers or (taken and not assignment.nodes.get(candidate.provider)):
        if candidate.provider not in providers:
            _check_library(candidate, path)
        raise CandidateError(
            f"{candidate.label} runs none of this model: ONNX Runtime gave it all to {', '.join(assignment.nodes) or 'the CPU'}",
            where=str(path),
            hint="it lacks the model's operators, which is no fault of this device, or its driver is missing: the log has "
            "its own words at level debug",
        )


def _check_library(candidate: Candidate, path: Path) -> None:
    """Say which library a provider lacks, where that is why it is not there."""
    if missing := providerlibrary.why_it_does_not_load(candidate.provider):
        raise CandidateError(
            f"{candidate.label} cannot be used, its library does not load: {missing}",
            where=str(path),
            hint="install what it needs (docs/devices.md), or take the provider out of the profile",
        )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise BundleError("the model file is missing", where=str(path), hint="build or fetch the bundle again")
    if path.stat().st_size == 0:
        raise BundleError("the model file is empty", where=str(path), hint="build or fetch the bundle again")


def _translated(error: Exception, path: Path, candidate: Candidate) -> BundleError | CandidateError:
    text = one_line(error).replace(f"Load model from {path} failed:", "")  # the path stands before the message
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


def _assignment(session: onnxruntime.InferenceSession) -> Assignment:
    """Read the runtime's record of which provider took which nodes; empty where there is none: before ONNX Runtime 1.24."""
    recorded = session.get_session_options().get_session_config_entry(RECORD_NODES) == "1"
    if not recorded or not hasattr(session, "get_provider_graph_assignment_info"):
        return Assignment()
    parts: defaultdict[str, list[int]] = defaultdict(list)
    operators: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for subgraph in session.get_provider_graph_assignment_info():
        nodes = subgraph.get_nodes()
        parts[subgraph.ep_name].append(len(nodes))
        operators[subgraph.ep_name].update(node.op_type for node in nodes)
    return Assignment(
        nodes={provider: sum(sizes) for provider, sizes in parts.items()},
        partitions={
            provider: 1 if len(parts) == 1 else len(sizes)
            for provider, sizes in parts.items()
            if len(parts) == 1 or len(sizes) == 1 or max(sizes) > 1
        },
        operators={provider: dict(counts) for provider, counts in operators.items()},
    )


def one_line(error: Exception) -> str:
    """Return ONNX Runtime's message on one line; it adds indices on further lines."""
    return " ".join(str(error).split())
