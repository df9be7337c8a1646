"""What a runtime is to the rest of Holdfast: devices, and sessions on them. Values and protocols, nothing native.

Implemented by `builtin` (the providers inside the installed ONNX Runtime wheel), `plugin` (a provider's library that is
registered at run time), `folder` (another ONNX Runtime wheel in a folder of its own), and the simulator's virtual accelerators.
`catalogue` finds them and opens one by its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from agent.bundle.manifest import TensorSpec
from agent.device.facts import EpDevice
from agent.device.planning.plan import Candidate


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a session's graph went, from the runtime's own record. All empty where the runtime does not tell."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    """Graph nodes by provider."""
    partitions: Mapping[str, int] = field(default_factory=dict)
    """Connected parts by provider, where the runtime tells: a provider that has all nodes has one part, one that compiles
    has those that it compiled. One that takes nodes one by one, as the plain CPU provider does, is left out of a mixed graph."""
    operators: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By provider: how many nodes of each operator type."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a session is to be made of."""

    model_path: Path
    candidate: Candidate
    prepared: Path | None = None
    """A folder of this candidate's own for what the runtime compiles or optimises: read where it is whole, made where it is
    missing or damaged. None: nothing is kept."""
    trace: Path | None = None
    """Where a Chrome trace is written (a path without suffix); None: none is made, and the session is faster."""


class RuntimeSession(Protocol):
    """A loaded model. `run` may be called from several threads at once."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    """What the exporter wrote into the file (`metadata_props`)."""
    assignment: Assignment
    was_prepared: bool
    """It was loaded from what an earlier opening had prepared."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once; outputs by name.

        Raises:
            CandidateError: the inputs are refused, or the provider failed.
        """
        ...

    def end_trace(self) -> Path | None:
        """End tracing and return the trace's file (Chrome's JSON format); None for a session without one."""
        ...


class Runtime(Protocol):
    """One source of execution providers, opened in this process."""

    version: str
    """ONNX Runtime's version for the built-in one and those in folders, the library's for a plugin."""

    def devices(self) -> tuple[EpDevice, ...]:
        """Return each device that it offers, in a stable order; `unusable` is left None: the probe tries them."""
        ...

    def open(self, opening: Opening) -> RuntimeSession:
        """Make a session for the candidate, with no silent fallback to another provider than ONNX Runtime records.

        Raises:
            BundleError: the file is missing, empty, truncated or no ONNX model.
            CandidateError: the provider is not here, or cannot run this model with these options.
        """
        ...
