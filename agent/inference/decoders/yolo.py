"""Ultralytics YOLOv8 and YOLO11, detection: one tensor [1, 4 + classes, N], or the same transposed.

A column is (centre x, centre y, width, height, class 0, class 1, …) in pixels of the input, class scores after their
sigmoid; there is no object score. Source: Ultralytics documentation, "Export" and "ONNX" (task detect, no end2end).
YOLOv5 and v7 (anchors, an object score) and v10 (no suppression) look alike and are other families.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.inference.answers import Detections
from agent.inference.decoders.grid import takes_pictures
from agent.inference.decoders.outputs import Outputs, listing, refuse, take, text
from agent.inference.decoders.selection import Selection, no_objects, select_boxes
from agent.inference.placement import Placement


def misfit(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], labels_count: int | None) -> str | None:
    """Return why these outputs are not YOLOv8's or 11's, or None. `labels_count` None: not known."""
    if not takes_pictures(inputs):
        return f"expected one picture input [1, 3, H, W], found {listing(inputs)}"
    if len(outputs) != 1 or len(outputs[0].shape) != 3 or outputs[0].shape[0] not in (1, -1):
        return f"expected one output [1, 4 + classes, N] or [1, N, 4 + classes], found {listing(outputs)}"
    if _classes_axis(outputs[0].shape, labels_count) is None:
        wanted = "4 + classes" if labels_count is None else str(4 + labels_count)
        return f"expected [1, {wanted}, N] or [1, N, {wanted}], found {text(outputs[0].shape)}"
    return None


def is_transposed(shape: Sequence[int], labels_count: int | None) -> bool:
    """Whether an output of that shape is [1, N, 4 + classes]."""
    return _classes_axis(shape, labels_count) == 2


class YoloDecoder:
    """Decodes YOLOv8's and 11's output in either layout. Holds only constants; threads may share it.

    Raises:
        BundleError: the outputs are not YOLOv8's or 11's.
    """

    def __init__(
        self,
        decoder: Decoder,
        image: ImageInput,  # noqa: ARG002 - every decoder of pictures is made alike
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        labels_count = len(decoder.labels) or None
        refuse("yolo", misfit(inputs, outputs, labels_count))
        self._name = outputs[0].name
        self._is_transposed = is_transposed(outputs[0].shape, labels_count)
        columns = 4 + labels_count if labels_count else -1
        self._shape = (1, -1, columns) if self._is_transposed else (1, columns, -1)

    def decode(self, outputs: Outputs, selection: Selection, placement: Placement) -> Detections:
        """Return the objects in one frame.

        Raises:
            CandidateError: the outputs have another shape, hold NaN, or are out of range.
        """
        tensor = take(outputs, self._name, self._shape)[0]
        rows = tensor.T if self._is_transposed else tensor
        best = rows[4:].max(axis=0)
        index = (best >= selection.min_score).nonzero()[0]
        if not len(index):
            return no_objects()
        classes = rows[4:, index].argmax(axis=0).astype(np.int64)
        return select_boxes(_corners(rows[:4, index]), best[index], classes, selection, placement)


def _corners(cxcywh: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return xyxy (n, 4) for (4, n) of centres and sizes."""
    halves = cxcywh[2:] * np.float32(0.5)
    return np.concatenate((cxcywh[:2] - halves, cxcywh[:2] + halves)).T


def _classes_axis(shape: Sequence[int], labels_count: int | None) -> int | None:
    """Return which axis, 1 or 2, holds 4 + classes; without labels the shorter one, for boxes are many."""
    if labels_count is not None:
        return next((axis for axis in (1, 2) if shape[axis] == 4 + labels_count), None)
    _, second, third = shape
    if second == third:
        return None
    axis = 1 if third == -1 or (second != -1 and second < third) else 2
    return axis if shape[axis] >= 5 else None
