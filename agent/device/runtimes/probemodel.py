"""The tiny model that every device is tried with: what goes in, and what must come out.

One 3×3 convolution and a Relu over a picture of 3×8×8: what any accelerator computes, if it computes at all. All numbers are
small multiples of 1/64, which half precision and bfloat16 hold exactly. The four output channels are the first channel as it
is, its negative (which Relu makes zero), the sum of the three channels plus a half, and each pixel's right neighbour less its
left one. `probe.onnx` beside this file is that model, `probe-int8.onnx` the same with quantized weights and activations, for an
NPU that computes in nothing else; a test makes them again and compares the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "input", "output"
TOLERANCE = 0.02
"""Of the largest expected value: bfloat16 keeps 8 bits, and sums of three may lose one more."""


def kernel() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the convolution's weights, (4, 3, 3, 3), and its biases, (4,)."""
    weights = np.zeros((4, 3, 3, 3), np.float32)
    weights[0, 0, 1, 1] = 1
    weights[1, 0, 1, 1] = -1
    weights[2, :, 1, 1] = 1
    weights[3, 0, 1, 2], weights[3, 0, 1, 0] = 1, -1
    return weights, np.array([0, 0, 0.5, 0], np.float32)


def given() -> NDArray[np.float32]:
    """Return the input, (1, 3, 8, 8): a ramp from 1/64 to 1, one more in each further channel."""
    ramp = np.arange(1, 65, dtype=np.float32).reshape(8, 8) / np.float32(64)
    return np.stack([ramp, ramp + 1, ramp + 2])[np.newaxis]


def expected() -> NDArray[np.float32]:
    """Return the output, (1, 4, 6, 6), without computing a convolution: there is no padding, so the rim is lost."""
    inner = given()[0, :, 1:-1, 1:-1]
    still, neighbours = np.zeros_like(inner[0]), np.full_like(inner[0], 2 / 64)
    return np.stack([inner[0], still, inner.sum(axis=0) + 0.5, neighbours])[np.newaxis]


def difference(output: NDArray[Any]) -> str | None:
    """Return in words how an output is wrong; None where it is right."""
    right = expected()
    if output.shape != right.shape:
        return f"it answered with the shape {output.shape} instead of {right.shape}"
    far = float(np.max(np.abs(output.astype(np.float32) - right)))
    allowed = TOLERANCE * float(right.max())
    if far <= allowed:  # NaN is not
        return None
    return f"it computes wrongly: off by {far:g} where {allowed:.2g} is allowed, in one convolution"
