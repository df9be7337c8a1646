"""The `anomaly` decoder: a model's one number about one window becomes a Score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import CandidateError
from agent.inference.answers import Score


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


def _refused(message: str) -> CandidateError:
    return CandidateError(message, hint="try another variant or provider: `holdfast plan measure`")
