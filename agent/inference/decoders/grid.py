"""How many cells an anchor-free detector has: one for each 8×8, 16×16 and 32×32 pixels of its input."""

from __future__ import annotations

from collections.abc import Sequence

from agent.bundle.manifest import TensorSpec

STRIDES = (8, 16, 32)
"""Pixels between cells, in the order of the output's rows (YOLOX `demo_postprocess`, Ultralytics v8/11)."""


def cells_count(width: int, height: int) -> int:
    """Return the number of cells over all strides, such as 3549 for 416×416 and 8400 for 640×640."""
    return sum((width // stride) * (height // stride) for stride in STRIDES)


def picture_size(inputs: Sequence[TensorSpec]) -> tuple[int, int] | None:
    """Return width and height of a model's one picture input, or None where they vary or there is no such input."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        return None
    _, second, third, fourth = inputs[0].shape
    if second == 3:
        height, width = third, fourth
    elif fourth == 3:
        height, width = second, third
    else:
        return None
    return (width, height) if width > 0 and height > 0 else None


def takes_pictures(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a model has one input that can be a picture: four dimensions, three channels, first or last."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        return False
    return inputs[0].shape[1] in (3, -1) or inputs[0].shape[3] in (3, -1)
