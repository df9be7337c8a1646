"""A static INT8 variant within its gate: all layers in INT8, or as few as possible left in float.

Takes a quantizer and a judge; gives the best attempt, which layers it leaves in float, and every attempt made on the
way with its loss and its size: the trade-off that the build report shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.bundle.manifest import Accuracy
from agent.errors import CandidateError
from bundles import evaluate
from bundles.judging import Attempt
from bundles.quantize import Feeds, StaticQuantizer
from bundles.sensitivity import Layer, TimeLimit, layers, rank, smallest_set

Judged = Callable[[frozenset[str]], Attempt]
"""Quantizes all but the named nodes, and judges the result."""


@dataclass(frozen=True, slots=True)
class Try:
    """One set of layers left in float, and what came of it."""

    float_layers: tuple[str, ...]
    accuracy: Accuracy | None
    size_bytes: int
    failure: str | None
    """None: within the gate."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the search ended with. `attempt.failure` says why nothing passed."""

    attempt: Attempt
    float_layers: tuple[str, ...]
    layer_count: int
    tries: tuple[Try, ...]
    was_cut_short: bool
    """The time limit struck; another machine may find a smaller set."""

    @property
    def text(self) -> str:
        """What is left in float, for people; empty where nothing is."""
        if not self.float_layers:
            return ""
        names = ", ".join(self.float_layers[:6]) + (", …" if len(self.float_layers) > 6 else "")
        cut = "; `quantize.search_s` cut the search short: another machine may find fewer" if self.was_cut_short else ""
        return f" with {len(self.float_layers)} of {self.layer_count} layers left in float: {names}{cut}"


def search(
    quantizer: StaticQuantizer,
    samples: Sequence[Feeds],
    judged: Judged,
    limit: TimeLimit,
    say: Callable[[str], None] = lambda _: None,
) -> Found:
    """Find the smallest set of layers to leave in float with which the variant passes.

    `say` is told when the long part begins.

    Raises:
        CandidateError: the time was up before anything passed, or the quantizer fails.
    """
    found = layers(quantizer.model, quantizer.excluded)
    position = {layer: number for number, layer in enumerate(found)}
    tries: list[tuple[Try, Attempt]] = []

    def passes(left: frozenset[Layer]) -> bool:
        limit.check(f"finding which layers to leave in float ({len(tries)} sets tried)")
        names = tuple(layer.name for layer in sorted(left, key=position.__getitem__))
        attempt = judged(frozenset(node for layer in left for node in layer.nodes))
        tries.append((Try(names, attempt.accuracy, attempt.size_bytes, attempt.failure), attempt))
        return attempt.failure is None

    was_cut_short = False
    try:
        if not passes(frozenset()):
            say(f"it misses its gate: measuring which of its {len(found)} layers lose most")
            smallest_set(rank(quantizer, found, samples, evaluate.outputs, limit), passes)
    except CandidateError:
        was_cut_short = any(attempt.failure is None for _, attempt in tries)
        if not was_cut_short:
            raise
    best, attempt = min(tries, key=_worth)
    return Found(attempt, best.float_layers, len(found), tuple(each for each, _ in tries), was_cut_short)


def _worth(pair: tuple[Try, Attempt]) -> tuple[bool, float, float]:
    """What passes comes before what does not; then few layers in float, or else the least loss."""
    tried, attempt = pair
    drop = tried.accuracy.drop if tried.accuracy else float("inf")
    if attempt.failure is None:
        return False, len(tried.float_layers), drop
    return True, drop, len(tried.float_layers)
