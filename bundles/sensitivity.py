"""Which layers lose most in INT8, and the smallest set of them to leave in float.

Takes a model that can be quantized in part, and a judge that says whether a partly quantized model passes its gate;
gives layers in the order of their sensitivity, and a set to leave in float. A layer is a node with weights and the
arithmetic that follows it; what follows the last weights of all, such as the decoding of boxes, is one layer too.

The method is the partial quantization of Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
Empirical Evaluation" (2020), section 5: quantize one layer at a time, see what that alone does to the outputs, and
leave the worst in float until the metric is met. The loss is the noise power in the outputs as a share of the signal's
(SQNR), for each column of an output by itself: boxes of hundreds of pixels share a tensor with scores below one, and
would hide what becomes of these. Everything is counted, nothing timed but the limit: same input, same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.clock import Clock
from agent.errors import CandidateError
from bundles.onnxlibrary import initializer_names
from bundles.quantize import WEIGHTED, Feeds, StaticQuantizer

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

TAIL = "the arithmetic after the last weights"
STEM = "the arithmetic before the first weights"

MAX_RANKING_SAMPLES = 4
MAX_REFINING_TRIES = 8
_EQUAL_DB = 3.0
"""Layers whose noise is within this step count as equally sensitive: a factor of two of so few samples is chance."""
_LEAST_RATIO = 1e-12

Outputs = Sequence["NDArray[Any]"]
Run = Callable[["onnx.ModelProto", Sequence[Feeds]], Sequence[Outputs]]
"""Runs a model on samples' tensors; gives its outputs in the graph's order for each."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What is left in float together."""

    name: str
    """Of the node with the weights, or `TAIL` or `STEM`."""
    nodes: tuple[str, ...]
    weights_after: int
    """Nodes with weights on the longest way from here to an output; 0: nothing with weights follows."""


class TimeLimit:
    """The time that a search may take."""

    def __init__(self, clock: Clock, limit_s: float) -> None:
        self._clock, self._limit_s, self._start_s = clock, limit_s, clock.monotonic()

    def check(self, doing: str) -> None:
        """Raise when time is up.

        Raises:
            CandidateError: saying what was going on.
        """
        if self._clock.monotonic() - self._start_s > self._limit_s:
            raise CandidateError(
                f"{doing} took longer than {self._limit_s:g} s; raise `quantize.search_s`, or name layers in "
                "`quantize.exclude`"
            )


def layers(model: onnx.ModelProto, excluded: frozenset[str] = frozenset()) -> tuple[Layer, ...]:
    """Group a graph's nodes, which are sorted and have names, into layers in the order of the graph.

    A node without weights belongs to the nearest layer before it, by the longest way. Nodes in `excluded` are in none.
    """
    weights = initializer_names(model.graph)
    after = _weights_after(model.graph, weights)
    nodes: list[list[str]] = [[]]
    heads = [STEM]
    owner: dict[str, int] = {}
    tail: list[str] = []
    for node in model.graph.node:
        mine = max((owner.get(name, 0) for name in node.input), default=0)
        if _has_weights(node, weights):
            mine = len(nodes)
            nodes.append([])
            heads.append(node.name)
        elif after[node.name] == 0:
            tail += [node.name] if node.name not in excluded else []
            continue
        nodes[mine] += [node.name] if node.name not in excluded else []
        owner.update(dict.fromkeys(node.output, mine))
    found = [Layer(head, tuple(names), after[names[0]]) for head, names in zip(heads, nodes, strict=True) if names]
    return (*found, Layer(TAIL, tuple(tail), 0)) if tail else tuple(found)


def rank(
    quantizer: StaticQuantizer, found: Sequence[Layer], samples: Sequence[Feeds], run: Run, limit: TimeLimit
) -> tuple[Layer, ...]:
    """Return the layers that INT8 changes at all, the most sensitive first; among equals those nearest the outputs.

    Raises:
        CandidateError: the time is up, or the runtime refuses a model.
    """
    few = samples[:: max(1, len(samples) // MAX_RANKING_SAMPLES)][:MAX_RANKING_SAMPLES]
    expected = run(quantizer.model, few)
    noise: dict[Layer, int] = {}
    for number, layer in enumerate(found):
        limit.check(f"measuring how sensitive each of {len(found)} layers is ({number} done)")
        model = quantizer.quantize_only(layer.nodes)
        if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            noise[layer] = math.floor(noise_db(expected, run(model, few)) / _EQUAL_DB)
    return tuple(sorted(noise, key=lambda layer: (-noise[layer], layer.weights_after, layer.name != TAIL, layer.name)))


def smallest_set(ranked: Sequence[Layer], passes: Callable[[frozenset[Layer]], bool]) -> frozenset[Layer] | None:
    """Return a set of layers to leave in float with which the model passes, as small as few tries can make it.

    Called when it does not pass with all of them in INT8. The number of the most sensitive layers is found by halves;
    then each of these is tried in INT8 again, the least sensitive first. At most half of the layers stay in float, or
    a detector's whole head (the last weights and what follows): more than that is no INT8 model. None: nothing passes.
    """
    most = len(ranked) // 2
    if most and passes(frozenset(ranked[:most])):
        chosen = _refined(ranked, _halved(ranked, most, passes), passes)
        return frozenset(chosen)
    head = frozenset(layer for layer in ranked if layer.weights_after == 0)
    if 0 < len(head) < len(ranked) and head != frozenset(ranked[:most]) and passes(head):
        return frozenset(_refined(ranked, [layer for layer in ranked if layer in head], passes))
    return None


def noise_db(expected: Sequence[Outputs], found: Sequence[Outputs]) -> float:
    """Return the noise in outputs as a share of the signal, in decibels: 0 is as much noise as signal.

    Args:
        expected: For each sample the outputs as they should be.
        found: The same, with noise.
    """
    shares = [
        _noise(np.stack(right).astype(np.float64), np.stack(noisy).astype(np.float64))
        for right, noisy in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True)
    ]
    return 10 * math.log10(max(float(np.mean(shares)), _LEAST_RATIO))


def _noise(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Return the mean over an output's columns of noise power over signal power, each at most 1.

    Columns lie along the shortest axis with more than one value: classes, or the values of a box and its scores.
    """
    sizes = [size if size > 1 else math.inf for size in expected.shape[1:]]
    axis = 1 + sizes.index(min(sizes)) if any(size < math.inf for size in sizes) else 0
    others = tuple(each for each in range(expected.ndim) if each != axis)
    signal = np.square(expected).sum(axis=others)
    noise = np.square(found - expected).sum(axis=others)
    ratio = np.divide(noise, signal, out=(noise > 0).astype(np.float64), where=signal > 0)
    return float(np.mean(np.minimum(np.nan_to_num(ratio, nan=1.0), 1.0)))


def _halved(ranked: Sequence[Layer], passing: int, passes: Callable[[frozenset[Layer]], bool]) -> list[Layer]:
    """Return the shortest passing front part of the ranking; none at all does not pass, and `passing` layers do."""
    failing = 0
    while passing - failing > 1:
        middle = (failing + passing) // 2
        if passes(frozenset(ranked[:middle])):
            passing = middle
        else:
            failing = middle
    return list(ranked[:passing])


def _refined(
    ranked: Sequence[Layer], chosen: Sequence[Layer], passes: Callable[[frozenset[Layer]], bool]
) -> list[Layer]:
    """Give layers back to INT8 one by one, the least sensitive first. The last of the front part is needed."""
    kept = list(chosen)
    skipped = {chosen[-1]} if chosen == list(ranked[: len(chosen)]) else set()
    for layer in [each for each in reversed(chosen) if each not in skipped][:MAX_REFINING_TRIES]:
        without = [each for each in kept if each != layer]
        if without and passes(frozenset(without)):
            kept = without
    return kept


def _has_weights(node: onnx.NodeProto, weights: set[str]) -> bool:
    return node.op_type in WEIGHTED and bool(weights & set(node.input))


def _weights_after(graph: onnx.GraphProto, weights: set[str]) -> Mapping[str, int]:
    """Return for each node how many nodes with weights follow it on the longest way."""
    followers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            followers.setdefault(name, []).append(node)
    after: dict[str, int] = {}
    for node in reversed(graph.node):
        following = [each for name in node.output for each in followers.get(name, [])]
        after[node.name] = max((after[each.name] + _has_weights(each, weights) for each in following), default=0)
    return after
