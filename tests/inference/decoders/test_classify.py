from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from agent.bundle.manifest import Decoder, TensorSpec
from agent.errors import BundleError, CandidateError
from agent.inference.decoders.classify import ClassifyDecoder
from agent.inference.decoders.selection import Selection


@pytest.fixture
def classify(spec: Callable[..., TensorSpec]) -> Callable[..., tuple[ClassifyDecoder, Selection]]:
    def make(*, is_raw: bool, shape: Sequence[int] = (1, 4), **fields: float) -> tuple[ClassifyDecoder, Selection]:
        decoder = Decoder(model_type="classify", labels=tuple("abcd"), output_raw_scores=is_raw, **fields)  # type: ignore[arg-type]
        return ClassifyDecoder(decoder, [spec("x", 1, 3, 8, 8)], [spec("y", *shape)]), Selection.of(decoder)

    return make


def test_logits_become_a_softmax_best_first(classify: Callable[..., tuple[ClassifyDecoder, Selection]]) -> None:
    decoder, selection = classify(is_raw=True, confidence_threshold=0)
    logits = [1.0, 3.0, -2.0, 2.0]
    answer = decoder.decode({"y": np.array([logits], np.float32)}, selection)
    total = sum(math.exp(value) for value in logits)
    assert answer.class_ids.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(answer.scores, [math.exp(logits[i]) / total for i in (1, 3, 0, 2)], rtol=1e-6)
    assert answer.scores.dtype == np.float32 and answer.class_ids.dtype == np.int64


def test_large_logits_do_not_overflow(classify: Callable[..., tuple[ClassifyDecoder, Selection]]) -> None:
    decoder, selection = classify(is_raw=True)
    answer = decoder.decode({"y": np.array([[1e30, -1e30, 0, 0]], np.float32)}, selection)
    assert answer.class_ids.tolist() == [0]
    assert answer.scores.tolist() == [1.0]


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1)])
def test_probabilities_are_taken_as_they_are(
    shape: tuple[int, ...], classify: Callable[..., tuple[ClassifyDecoder, Selection]]
) -> None:
    decoder, selection = classify(is_raw=False, shape=shape, confidence_threshold=0.25)
    values = np.array([0.1, 0.25, 0.05, 0.6], np.float32).reshape(shape)
    assert decoder.decode({"y": values}, selection).class_ids.tolist() == [3, 1]


def test_topk_and_chosen_classes(classify: Callable[..., tuple[ClassifyDecoder, Selection]]) -> None:
    decoder, selection = classify(is_raw=False, confidence_threshold=0, topk=2)
    values = {"y": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)}
    assert decoder.decode(values, selection).class_ids.tolist() == [3, 2]
    chosen = replace(selection, class_ids=frozenset({0, 1}))
    assert decoder.decode(values, chosen).class_ids.tolist() == [1, 0]


@pytest.mark.parametrize("values", [[5.0, 1, 0, 0], [-3.0, 0.5, 0.1, 0]])
def test_logits_taken_for_probabilities_are_refused(
    values: list[float], classify: Callable[..., tuple[ClassifyDecoder, Selection]]
) -> None:
    decoder, selection = classify(is_raw=False)
    with pytest.raises(CandidateError, match="scores from 0 to 1") as caught:
        decoder.decode({"y": np.array([values], np.float32)}, selection)
    assert "output_raw_scores" in str(caught.value)


def test_labels_that_do_not_match_the_classes_are_refused(
    classify: Callable[..., tuple[ClassifyDecoder, Selection]],
) -> None:
    with pytest.raises(BundleError, match="expected 4 classes, one for each label, found"):
        classify(is_raw=True, shape=(1, 1000))
