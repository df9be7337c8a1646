"""What a decoder makes of a model's outputs: objects in a picture, classes, or scores of a signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Objects in one frame, sorted by score, highest first.

    `xyxy_px` is float32 (n, 4): left, top, right, bottom in pixels of the *frame*, clipped to it.
    `scores` is float32 (n,), from 0 to 1. `class_ids` is int64 (n,), an index into the bundle's labels.
    """

    xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """The likeliest classes of one sample, best first. `scores` float32 (k,), `class_ids` int64 (k,)."""

    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Score:
    """One number about one window: an anomaly score or a forecast, in the model's own unit."""

    value: float


Answer = Detections | Classes | Score
