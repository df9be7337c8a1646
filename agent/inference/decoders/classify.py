"""Classification: one tensor [1, classes] or [1, classes, 1, 1].

It holds probabilities, or logits with `output_raw_scores`. The answer has the classes with `score >= min_score`,
best first, at most `topk`; it may be empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Decoder, TensorSpec
from agent.errors import CandidateError
from agent.inference.answers import Classes
from agent.inference.decoders.outputs import Outputs, listing, refuse, take, text
from agent.inference.decoders.selection import Selection, check_scores


def misfit(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    labels_count: int | None,
) -> str | None:
    """Return why these outputs are not a classifier's, or None. `labels_count` None: not known."""
    if len(inputs) != 1:
        return f"expected one input, found {listing(inputs)}"
    if len(outputs) != 1 or not _is_row(outputs[0]):
        return f"expected one output [1, classes] of floats with two classes or more, found {listing(outputs)}"
    if labels_count is not None and outputs[0].shape[1] not in (-1, labels_count):
        return f"expected {labels_count} classes, one for each label, found {text(outputs[0].shape)}"
    return None


class ClassifyDecoder:
    """Decodes a classifier's output. Holds only constants; threads may share it.

    Raises:
        BundleError: the output is not a classifier's.
    """

    def __init__(self, decoder: Decoder, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        refuse("classify", misfit(inputs, outputs, len(decoder.labels) or None))
        self._name = outputs[0].name
        self._shape = (1, len(decoder.labels) or -1, *(1 for _ in outputs[0].shape[2:]))
        self._is_raw = decoder.output_raw_scores

    def decode(self, outputs: Outputs, selection: Selection) -> Classes:
        """Return the likeliest classes.

        Raises:
            CandidateError: the output has another shape, holds NaN, or is no probability.
        """
        values = take(outputs, self._name, self._shape).reshape(-1)
        scores = softmax(values) if self._is_raw else values
        if scores.size and scores.min() < -1e-2:
            raise CandidateError(
                f"expected scores from 0 to 1, found {scores.min():.4g}",
                hint="the model gives logits: set output_raw_scores in bundle.yaml",
            )
        check_scores(scores)
        counts = scores >= selection.min_score
        if selection.class_ids is not None:
            counts &= np.isin(np.arange(len(scores)), list(selection.class_ids))
        index = np.flatnonzero(counts)
        best = index[np.argsort(-scores[index], kind="stable")[: selection.topk]]
        return Classes(np.clip(scores[best], 0, 1), best.astype(np.int64))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities for logits (n,); the largest is taken off first so that nothing overflows."""
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), dtype=np.float32)


def _is_row(spec: TensorSpec) -> bool:
    shape = spec.shape
    is_shaped = len(shape) in (2, 4) and shape[0] in (1, -1) and all(size == 1 for size in shape[2:])
    return is_shaped and spec.dtype.startswith("float") and (shape[1] == -1 or shape[1] >= 2)
