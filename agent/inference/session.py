"""A loaded model, whichever runtime runs it: what the model and the worker know of a session.

Takes a model's path and a candidate of the plan; opens the candidate's runtime in this process and times the loading. Where
sessions are made, options chosen and errors translated is `agent.device.runtimes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from agent.clock import Clock, SystemClock
from agent.device.planning.plan import Candidate
from agent.device.runtimes.catalogue import open_runtime
from agent.device.runtimes.runtime import Opening, RuntimeSession


class Session:
    """A session on one candidate. `run` may be called from several threads at once."""

    def __init__(self, session: RuntimeSession, candidate: Candidate, model_path: Path, load_ms: float) -> None:
        self.candidate = candidate
        self.model_path = model_path
        self.load_ms = load_ms
        """How long loading and optimising took, in milliseconds; with preparing, where that was not done before."""
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.metadata = session.metadata
        """What the exporter wrote into the file (`metadata_props`)."""
        self.assignment = session.assignment
        """Where the graph went, from the runtime's own record."""
        self.was_prepared = session.was_prepared
        """It was loaded from what an earlier opening had prepared."""
        self._session = session

    @property
    def nodes(self) -> Mapping[str, int]:
        """Graph nodes by the provider that runs them; empty where the runtime does not tell."""
        return self.assignment.nodes

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once.

        Raises:
            CandidateError: the inputs are refused, or the provider failed.
        """
        return self._session.run(inputs)

    def end_trace(self) -> Path | None:
        """End tracing and return the trace's file (Chrome's JSON format); None for a session without one."""
        return self._session.end_trace()


def open_session(
    model_path: Path,
    candidate: Candidate,
    clock: Clock | None = None,
    *,
    prepared: Path | None = None,
    trace: Path | None = None,
) -> Session:
    """Load a model for one candidate.

    Args:
        model_path: The ONNX file.
        candidate: Says which runtime, provider and options.
        clock: For the time that loading takes.
        prepared: This candidate's own folder for what is compiled or optimised; None: nothing is kept.
        trace: Where a Chrome trace is written, a path without suffix; None: none.

    Raises:
        BundleError: the file is missing, empty, truncated or no ONNX model.
        OperatorError: the runtime is not installed.
        CandidateError: the provider is not available here, or cannot run this model with these options.
        OtherRuntimeError: another process must open it: this one holds another ONNX Runtime.
    """
    clock = clock or SystemClock()
    runtime = open_runtime(candidate.runtime)
    started_s = clock.monotonic()
    session = runtime.open(Opening(model_path, candidate, prepared, trace))
    return Session(session, candidate, model_path, (clock.monotonic() - started_s) * 1000.0)
