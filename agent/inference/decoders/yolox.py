"""YOLOX, raw outputs: one tensor [1, N, 5 + classes], a row for each cell of strides 8, 16, 32.

A row is (x, y, w, h, object, class 0, class 1, …). `x, y` are offsets in cells, `w, h` logarithms:
centre = (xy + cell) × stride, size = exp(wh) × stride; score = object × best class (both after their sigmoid).
Source: YOLOX (Ge et al. 2021, arXiv:2107.08430), §2 and its ONNX demo. Exports that were already decoded
(`--decode_in_inference`) look the same and are *not* for this decoder: the golden samples of a bundle tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.inference.answers import Detections
from agent.inference.decoders.grid import STRIDES, cells_count, picture_size, takes_pictures
from agent.inference.decoders.outputs import Outputs, listing, refuse, take, text
from agent.inference.decoders.selection import Selection, no_objects, select_boxes
from agent.inference.placement import Placement


def misfit(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], labels_count: int | None) -> str | None:
    """Return why these outputs are not YOLOX's, or None. `labels_count` None: not known."""
    if not takes_pictures(inputs):
        return f"expected one picture input [1, 3, H, W], found {listing(inputs)}"
    if len(outputs) != 1 or len(outputs[0].shape) != 3 or outputs[0].shape[0] not in (1, -1):
        return f"expected one output [1, N, 5 + classes], found {listing(outputs)}"
    _, rows, columns = outputs[0].shape
    size = picture_size(inputs)
    if size is not None and rows not in (-1, cells_count(*size)):
        return f"expected {cells_count(*size)} rows for an input of {size[0]}×{size[1]}, found {text(outputs[0].shape)}"
    if columns != -1 and columns < 6:
        return f"expected at least 6 columns, found {text(outputs[0].shape)}"
    if labels_count is not None and columns not in (-1, 5 + labels_count):
        return f"expected {5 + labels_count} columns for {labels_count} labels, found {text(outputs[0].shape)}"
    return None


class YoloxDecoder:
    """Decodes YOLOX's raw output. Holds only constants; threads may share it.

    Raises:
        BundleError: the outputs are not YOLOX's.
    """

    def __init__(
        self, decoder: Decoder, image: ImageInput, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        refuse("yolox", misfit(inputs, outputs, len(decoder.labels) or None))
        self._name = outputs[0].name
        cells, strides = _grid(image.width, image.height)
        self._cells = cells
        self._strides = strides
        self._shape = (1, len(cells), 5 + len(decoder.labels) if decoder.labels else -1)

    def decode(self, outputs: Outputs, selection: Selection, placement: Placement) -> Detections:
        """Return the objects in one frame.

        Raises:
            CandidateError: the outputs have another shape, hold NaN, or are out of range.
        """
        rows = take(outputs, self._name, self._shape)[0]
        # A class score is at most 1, so a cell whose object score is too low cannot count: most cells end here.
        likely = (rows[:, 4] >= selection.min_score).nonzero()[0]
        if not len(likely):
            return no_objects()
        found = rows[likely]
        classes = found[:, 5:].argmax(axis=1)
        scores = found[:, 4] * found[np.arange(len(found)), 5 + classes]
        counts = scores >= selection.min_score
        boxes = _boxes(found[counts, :4], self._cells[likely[counts]], self._strides[likely[counts]])
        return select_boxes(boxes, scores[counts], classes[counts].astype(np.int64), selection, placement)


def _boxes(xywh: NDArray[np.float32], cells: NDArray[np.float32], strides: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return xyxy in input pixels for raw rows (n, 4)."""
    centres = (xywh[:, :2] + cells) * strides
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which the selection refuses
        halves = np.exp(xywh[:, 2:]) * strides * np.float32(0.5)
    return np.concatenate((centres - halves, centres + halves), axis=1)


def _grid(width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cells (N, 2) as x, y and strides (N, 1), stride by stride, row by row."""
    cells, strides = [], []
    for stride in STRIDES:
        x, y = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        cells.append(np.stack((x.ravel(), y.ravel()), axis=1))
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)
