"""Anomaly: one number for a window; which output it is, and what it may be, is `agent.inference.anomaly`'s to say."""

from __future__ import annotations

from collections.abc import Sequence

from agent.bundle.manifest import TensorSpec
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


def _is_single(spec: TensorSpec) -> bool:
    """Whether an output holds one number: [], [1] or [1, 1], where the first may vary."""
    return (
        len(spec.shape) <= 2
        and spec.dtype.startswith("float")
        and all(size == 1 or (size == -1 and axis == 0) for axis, size in enumerate(spec.shape))
    )
