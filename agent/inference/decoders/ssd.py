"""SSD with its own suppression inside, in two forms.

TensorFlow: boxes [1, N, 4] (top, left, bottom, right as shares of the input), classes [1, N], scores [1, N] and
perhaps the number of boxes that count. Source: TensorFlow Object Detection API, exported graphs.
OpenVINO: one tensor [1, 1, N, 7] of (picture, class, score, left, top, right, bottom), shares of the input; a
picture number below 0 ends the list. Source: OpenVINO operation DetectionOutput-8.

A class id is an index into the labels as the model counts. A model that counts from 1 has a first label that
stands for the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.errors import CandidateError
from agent.inference.answers import Detections
from agent.inference.decoders.grid import takes_pictures
from agent.inference.decoders.outputs import Outputs, finite, listing, refuse, take
from agent.inference.decoders.selection import Selection, select_boxes
from agent.inference.placement import Placement


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which output is what. For OpenVINO's one tensor only `rows` is set."""

    rows: str | None = None
    boxes: str = ""
    classes: str = ""
    scores: str = ""
    count: str | None = None


def misfit(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    labels_count: int | None,  # noqa: ARG001 - the outputs do not tell how many classes there are
) -> str | None:
    """Return why these outputs are not an SSD's, or None."""
    if not takes_pictures(inputs):
        return f"expected one picture input [1, H, W, 3] or [1, 3, H, W], found {listing(inputs)}"
    if _layout(outputs) is None:
        return (
            "expected boxes [1, N, 4] with classes and scores [1, N] named so (and perhaps a count), or one output "
            f"[1, 1, N, 7], found {listing(outputs)}"
        )
    return None


class SsdDecoder:
    """Decodes an SSD's outputs. Holds only constants; threads may share it.

    Raises:
        BundleError: the outputs are not an SSD's.
    """

    def __init__(
        self, decoder: Decoder, image: ImageInput, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        refuse("ssd", misfit(inputs, outputs, len(decoder.labels) or None))
        layout = _layout(outputs)
        assert layout is not None
        self._layout = layout
        self._size = np.array((image.width, image.height) * 2, np.float32)

    def decode(self, outputs: Outputs, selection: Selection, placement: Placement) -> Detections:
        """Return the objects in one frame.

        Raises:
            CandidateError: the outputs have another shape, hold NaN, or are out of range.
        """
        if self._layout.rows is not None:
            boxes, classes, scores = _detection_output(take(outputs, self._layout.rows, (1, 1, -1, 7))[0, 0])
        else:
            boxes, classes, scores = _tensorflow(outputs, self._layout)
        index = np.flatnonzero(scores >= selection.min_score)
        ids = np.rint(classes[index]).astype(np.int64)
        return select_boxes(boxes[index] * self._size, scores[index], ids, selection, placement)


_Parts = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def _detection_output(rows: NDArray[np.float32]) -> _Parts:
    """Return boxes xyxy, classes and scores up to the row that ends the list."""
    ends = np.flatnonzero(rows[:, 0] < 0)
    rows = rows[: ends[0]] if len(ends) else rows
    return rows[:, 3:7], rows[:, 1], rows[:, 2]


def _tensorflow(outputs: Outputs, layout: _Layout) -> _Parts:
    boxes = take(outputs, layout.boxes, (1, -1, 4))[0]
    classes = take(outputs, layout.classes, (1, len(boxes)))[0]
    scores = take(outputs, layout.scores, (1, len(boxes)))[0]
    count = len(boxes)
    if layout.count is not None:
        count = _count(outputs, layout.count, len(boxes))
    return boxes[:count, [1, 0, 3, 2]], classes[:count], scores[:count]


def _count(outputs: Outputs, name: str, most: int) -> int:
    values = finite(outputs[name], name).reshape(-1) if name in outputs else np.empty(0, np.float32)
    if len(values) != 1 or not 0 <= values[0] <= most:
        found = values.tolist() if name in outputs else "no such output"
        raise CandidateError(f"output {name!r}: expected one count from 0 to {most}, found {found}")
    return int(values[0])


def _layout(outputs: Sequence[TensorSpec]) -> _Layout | None:
    """Tell the outputs apart: by shape, and two of equal shape by name, never by order."""
    if len(outputs) == 1:
        shape = outputs[0].shape
        is_rows = len(shape) == 4 and shape[3] == 7 and shape[1] in (1, -1) and shape[0] in (1, -1)
        return _Layout(rows=outputs[0].name) if is_rows else None
    boxes = [spec.name for spec in outputs if len(spec.shape) == 3 and spec.shape[2] == 4]
    flat = [spec.name for spec in outputs if len(spec.shape) == 2]
    classes = [name for name in flat if "class" in name.lower() or "label" in name.lower()]
    scores = [name for name in flat if "score" in name.lower() or "conf" in name.lower()]
    counts = [spec.name for spec in outputs if spec.shape in ((), (1,), (-1,))]
    if len(boxes) != 1 or len(classes) != 1 or len(scores) != 1 or classes == scores or len(counts) > 1:
        return None
    if len(outputs) != 3 + len(counts):
        return None
    return _Layout(None, boxes[0], classes[0], scores[0], counts[0] if counts else None)
