"""Anomaly: the one output is one number about one window, higher is more unusual."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import TensorSpec
from agent.errors import CandidateError
from agent.inference.answers import Score
from agent.inference.decoders.outputs import listing


def misfit(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    labels_count: int | None,  # noqa: ARG001 - an anomaly has no classes
) -> str | None:
    """Return why these outputs are not one score, or None."""
    if len(inputs) != 1:
        return f"expected one input, found {listing(inputs)}"
    if len(outputs) != 1 or not _is_single(outputs[0]):
        return f"expected one float output of one value, found {listing(outputs)}"
    return None


def decode_anomaly(outputs: Mapping[str, NDArray[Any]]) -> Score:
    """Return the anomaly score: the single floating-point number of the single output, shape (), (1,), (1, 1) ….

    Higher is more unusual, in the model's own unit; the bundle's `anomaly_threshold` has the same one.

    Raises:
        CandidateError: several outputs, another shape, no real number type, or a score that is NaN or infinite:
            this provider or variant computes something else than the bundle promises.
    """
    if len(outputs) != 1:
        raise _refused(f"{len(outputs)} outputs ({', '.join(outputs)}), expected one anomaly score")
    ((name, tensor),) = outputs.items()
    if not isinstance(tensor, np.ndarray) or not np.issubdtype(tensor.dtype, np.floating):
        kind = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise _refused(f"output {name!r} holds {kind}, expected floating-point numbers")
    if tensor.size != 1:
        raise _refused(f"output {name!r} has shape {tensor.shape}, expected one number: (1, 1)")
    value = float(tensor.reshape(-1)[0])
    if not math.isfinite(value):
        raise _refused(f"the anomaly score in {name!r} is {value}, expected a finite number")
    return Score(value)


def _is_single(spec: TensorSpec) -> bool:
    """Whether an output holds one number: [], [1] or [1, 1], where the first may vary."""
    return (
        len(spec.shape) <= 2
        and spec.dtype.startswith("float")
        and all(size == 1 or (size == -1 and axis == 0) for axis, size in enumerate(spec.shape))
    )


def _refused(message: str) -> CandidateError:
    return CandidateError(message, hint="try another variant or provider: `holdfast plan measure`")
