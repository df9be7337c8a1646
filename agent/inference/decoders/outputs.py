"""Reading a model's outputs safely: by name, with the shape that the decoder needs, and without NaN.

A model that gives NaN or infinity is broken on this provider (overflowed fp16, a bad driver). Comparing NaN with a
threshold gives False, so it would look like "nothing seen"; it is refused here instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import TensorSpec
from agent.errors import BundleError, CandidateError

Outputs = Mapping[str, NDArray[Any]]
"""A model's outputs by name, as `Session.run` gives them."""


def take(outputs: Outputs, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an output as float32.

    Args:
        outputs: What the model gave.
        name: Which output.
        shape: What its shape must be; -1 stands for any size.

    Raises:
        CandidateError: it is missing, has another shape, or holds NaN or infinity.
    """
    found = outputs.get(name)
    if found is None:
        raise CandidateError(f"expected an output named {name!r}, found {', '.join(map(repr, outputs)) or 'none'}")
    if found.shape != shape and not agrees(found.shape, shape):
        raise CandidateError(f"output {name!r}: expected shape {text(shape)}, found {text(found.shape)}")
    return finite(found, name)


def finite(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return values as float32.

    Raises:
        CandidateError: there is NaN or infinity among them.
    """
    if not np.isfinite(values).all():
        found = "NaN" if np.isnan(values).any() else "infinity"
        raise CandidateError(
            f"output {name!r} holds {found} ({np.count_nonzero(~np.isfinite(values))} of {values.size} values)",
            hint="this provider or variant miscalculates this model here; the next candidate of the plan is tried",
        )
    return values.astype(np.float32, copy=False)


def agrees(found: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether two shapes can be the same; -1 on either side stands for any size."""
    return len(found) == len(expected) and all(a == b or -1 in (a, b) for a, b in zip(found, expected, strict=True))


def text(shape: Sequence[int]) -> str:
    """Return a shape as people write it: `[1, 84, 8400]`, with ? for any size."""
    return "[" + ", ".join("?" if size == -1 else str(size) for size in shape) + "]"


def listing(specs: Sequence[TensorSpec]) -> str:
    """Return names and shapes of inputs or outputs for a message."""
    return ", ".join(f"{spec.name} {spec.dtype} {text(spec.shape)}" for spec in specs) or "none"


def refuse(model_type: str, reason: str | None) -> None:
    """Raise when a decoder's `misfit` found a reason.

    Raises:
        BundleError: with the reason.
    """
    if reason is not None:
        raise BundleError(
            f"decoder {model_type} does not fit this model: {reason}",
            hint="correct model_type or labels in bundle.yaml, or export the model again",
        )
