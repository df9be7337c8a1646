"""Which layers INT8 hurts, and the smallest set to leave in float."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import numpy as np
import onnx
import pytest

from agent.clock import SystemClock
from agent.errors import CandidateError
from bundles import evaluate
from bundles.quantize import StaticQuantizer
from bundles.sensitivity import TAIL, Layer, TimeLimit, layers, noise_db, rank, smallest_set


class StuckClock:
    """Each look at it is a minute later."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        self._now_s += 60
        return self._now_s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        raise NotImplementedError


@pytest.fixture
def fragile(make_fragile) -> onnx.ModelProto:
    return make_fragile()


def samples(count: int = 4) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    return [{"x": generator.random((1, 3, 16, 16), dtype=np.float32)} for _ in range(count)]


def limit(limit_s: float = 600) -> TimeLimit:
    return TimeLimit(SystemClock(), limit_s)


def test_layers_are_nodes_with_weights_and_what_follows_them(fragile):
    """An activation left in eight bits would quantize the output of the layer that was to stay in float."""
    found = layers(fragile)
    assert [(layer.name, layer.nodes, layer.weights_after) for layer in found] == [
        ("before", ("before", "before/relu"), 2),
        ("fragile", ("fragile", "fragile/relu"), 1),
        ("after", ("after",), 0),
        (TAIL, ("after/relu", "mean", "flatten", "softmax"), 0),
    ]
    assert [layer.name for layer in layers(fragile, frozenset(["fragile", "fragile/relu"]))] == [
        "before",
        "after",
        TAIL,
    ]


def test_the_layer_that_eight_bits_hurt_comes_first(fragile):
    """Made so that what its other channels say vanishes in the steps of one that is a thousand times larger."""
    quantizer = StaticQuantizer(fragile, samples())
    ranked = rank(quantizer, layers(quantizer.model), samples(), evaluate.outputs, limit())
    assert {ranked[0].name, ranked[1].name} == {"before", "fragile"}
    again = rank(quantizer, layers(quantizer.model), samples(), evaluate.outputs, limit())
    assert ranked == again


def test_ranking_ends_at_the_time_limit(fragile):
    """A model of a thousand layers must not hold a build server for a day."""
    quantizer = StaticQuantizer(fragile, samples())
    with pytest.raises(CandidateError, match=r"took longer than 100 s; raise `quantize.search_s`"):
        rank(quantizer, layers(quantizer.model), samples(), evaluate.outputs, TimeLimit(StuckClock(), 100))


def test_noise_of_small_columns_counts_beside_large_ones():
    """Boxes of hundreds of pixels share a tensor with scores below one: lost scores must show."""
    right = np.zeros((1, 50, 5), np.float32)
    right[..., :4], right[..., 4] = 300, 0.5
    noisy = right.copy()
    noisy[..., 4] = 0
    assert noise_db([[right]], [[noisy]]) > -10
    assert noise_db([[right]], [[right]]) == pytest.approx(-120)
    assert noise_db([[right]], [[right * np.float32(np.nan)]]) == 0


def ranking(count: int) -> list[Layer]:
    """The last two are the head."""
    return [Layer(f"l{number}", (f"n{number}",), max(0, count - 2 - number)) for number in range(count)]


@pytest.mark.parametrize("needed", [{0}, {3}, {0, 5}, {1, 2, 3}, {0, 9}, set(range(10))], ids=str)
def test_smallest_set_is_what_is_needed(needed: set[int]):
    """By halves to the last layer that is needed, and then without those before it that are not."""
    ranked = ranking(20)
    tried: list[int] = []

    def passes(left: frozenset[Layer]) -> bool:
        tried.append(len(left))
        return {ranked[number] for number in needed} <= left

    assert smallest_set(ranked, passes) == {ranked[number] for number in needed}
    assert len(tried) <= 1 + 4 + 8


def test_a_whole_head_may_stay_in_float_where_the_ranking_does_not_see_it():
    """What a fixed rule could do must not be lost: detection heads that do not survive eight bits."""
    ranked = ranking(20)
    assert smallest_set(ranked, lambda left: {ranked[18], ranked[19]} <= left) == {ranked[18], ranked[19]}


def test_nothing_is_found_where_nothing_passes_and_no_model_is_all_float():
    """It ends after two tries, and never with an INT8 model that has no INT8 in it."""
    seen: list[int] = []
    assert smallest_set(ranking(20), lambda left: seen.append(len(left)) or len(left) == 20) is None
    assert seen == [10, 2]
    assert smallest_set(ranking(1), lambda _left: True) is None
