"""UltraFace: scores [1, N, 2] (background, face) and boxes [1, N, 4], corners as shares of the input.

Source: Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB, `detect_imgs_onnx.py`. The one label is class 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.bundle.manifest import Decoder, ImageInput, TensorSpec
from agent.inference.answers import Detections
from agent.inference.decoders.grid import takes_pictures
from agent.inference.decoders.outputs import Outputs, agrees, listing, refuse, take
from agent.inference.decoders.selection import Selection, no_objects, select_boxes
from agent.inference.placement import Placement


def misfit(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], labels_count: int | None) -> str | None:
    """Return why these outputs are not UltraFace's, or None. `labels_count` None: not known."""
    if not takes_pictures(inputs):
        return f"expected one picture input [1, 3, H, W], found {listing(inputs)}"
    if _names(outputs) is None:
        return f"expected scores [1, N, 2] and boxes [1, N, 4], found {listing(outputs)}"
    if labels_count not in (None, 1):
        return f"expected one label (the face; the background has none), found {labels_count}"
    return None


class UltraFaceDecoder:
    """Decodes UltraFace's outputs. Holds only constants; threads may share it.

    Raises:
        BundleError: the outputs are not UltraFace's.
    """

    def __init__(
        self, decoder: Decoder, image: ImageInput, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        refuse("ultraface", misfit(inputs, outputs, len(decoder.labels) or None))
        names = _names(outputs)
        assert names is not None
        self._scores, self._boxes = names
        self._size = np.array((image.width, image.height) * 2, np.float32)

    def decode(self, outputs: Outputs, selection: Selection, placement: Placement) -> Detections:
        """Return the faces in one frame.

        Raises:
            CandidateError: the outputs have another shape, hold NaN, or are out of range.
        """
        both = take(outputs, self._scores, (1, -1, 2))
        boxes = take(outputs, self._boxes, (1, both.shape[1], 4))[0]
        scores = both[0, :, 1]
        index = (scores >= selection.min_score).nonzero()[0]
        if not len(index):
            return no_objects()
        faces = np.zeros(len(index), np.int64)
        return select_boxes(boxes[index] * self._size, scores[index], faces, selection, placement)


def _names(outputs: Sequence[TensorSpec]) -> tuple[str, str] | None:
    """Return the names of the scores and the boxes."""
    scores = [spec for spec in outputs if len(spec.shape) == 3 and spec.shape[2] == 2]
    boxes = [spec for spec in outputs if len(spec.shape) == 3 and spec.shape[2] == 4]
    if len(outputs) != 2 or len(scores) != 1 or len(boxes) != 1:
        return None
    if not agrees(scores[0].shape[:2], boxes[0].shape[:2]) or scores[0].shape[0] not in (1, -1):
        return None
    return scores[0].name, boxes[0].name
