"""What a trace tells about why a model is slower than it could be, each with a cure in one line. Pure.

Every rule is about time that a cure could win back, and speaks from `WORTHWHILE` on; the exceptions give their reason.
Names of operators are ONNX's and those of ONNX Runtime's own domain (docs/ContribOperators.md, and for the NCHWc layout
core/optimizer/nchwc_transformer.cc of its sources).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from agent.device.planning.plan import Candidate
from agent.trial.trace import Trace

WORTHWHILE = 0.10
"""Curing it wholly would win this share of a run at most. Less than twice the 5 % within which the plan counts candidates as
equally fast could not be told from noise."""
FEWEST_QUANTIZERS = 8
"""Those at the graph's own inputs and outputs cannot go."""
FEWEST_COPIES = 3
"""One island in a graph costs a copy in and a copy out; more says that the graph goes to and fro."""
FEWEST_NODES = 20
"""A graph of less is done in microseconds, and has nothing to simplify."""
IDLE = 0.30
PROFILER_MS = 0.005
"""What the profiler itself takes between two nodes: 4 to 6 µs, measured as traced less untraced on five models."""

_COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost", "Memcpy"})
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "ConvTranspose"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ATTENTION = frozenset({"Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention"})
_ELEMENTWISE = frozenset(
    {"Add", "Cast", "Clip", "Div", "Erf", "Exp", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where"}
)


@dataclass(frozen=True, slots=True)
class Symptom:
    """Something in the trace that costs time."""

    text: str
    """What was seen, with its numbers."""
    cure: str
    """An imperative sentence."""


def symptoms(trace: Trace, candidate: Candidate) -> tuple[Symptom, ...]:
    """Return what the trace shows, the rules in the order of this module's table."""
    seen = _Seen(trace, candidate)
    return tuple(found for rule in _RULES if (found := rule(seen)) is not None)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A trace with the sums that the rules ask for."""

    trace: Trace
    candidate: Candidate

    @property
    def provider(self) -> str:
        return self.candidate.provider

    def fusing(self, otherwise: str) -> str:
        """Return the cure for what was not fused: the variant, unless this is it."""
        return otherwise if self.candidate.variant == "fp32-fused" else f"build the variant fp32-fused, or {otherwise}"

    def nodes(self, operators: Collection[str]) -> int:
        return sum(each.nodes for each in self.trace.operators if each.operator in operators)

    def share(self, operators: Collection[str]) -> float:
        return sum(each.share for each in self.trace.operators if each.operator in operators)

    @property
    def all_nodes(self) -> int:
        return len(self.trace.nodes)


def _fallback(seen: _Seen) -> Symptom | None:
    """Any node elsewhere is said, whatever it costs: it is not what was asked for."""
    elsewhere = [each for each in seen.trace.operators if each.provider != seen.provider]
    if not elsewhere:
        return None
    count, share = sum(each.nodes for each in elsewhere), sum(each.share for each in elsewhere)
    which = ", ".join(f"{each.operator} ×{each.nodes}" for each in elsewhere[:4])
    places = ", ".join(sorted({_short(each.provider) for each in elsewhere}))
    return Symptom(
        f"{count} of {seen.all_nodes} nodes, {share:.0%} of the time, ran on {places} instead of "
        f"{_short(seen.provider)}: {which}",
        "export with an opset or operators that this provider takes, or leave those at the graph's end out of it",
    )


def _copies(seen: _Seen) -> Symptom | None:
    count, share = seen.nodes(_COPIES), seen.share(_COPIES)
    if count < FEWEST_COPIES and share < WORTHWHILE:
        return None
    return Symptom(
        f"{count} copies between host and device inside the graph take {share:.0%} of the time",
        "make the graph run in one piece: move the operators that fell back to its beginning or end",
    )


def _layout(seen: _Seen) -> Symptom | None:
    """Around convolutions; those of attention are its own, and cured with it."""
    is_around = seen.nodes(_LAYOUT) <= 2 * seen.nodes(_CONVOLUTIONS)
    if (share := seen.share(_LAYOUT)) < WORTHWHILE or not is_around:
        return None
    return Symptom(
        f"{seen.nodes(_LAYOUT)} nodes that only reorder memory take {share:.0%} of the time",
        "export in NCHW, without a Transpose around each convolution, so that the layout is fixed once",
    )


def _batch_norm(seen: _Seen) -> Symptom | None:
    """A BatchNormalization after a convolution costs nothing where its numbers are constants."""
    names = {"BatchNormalization"}
    if not (seen.share(names) >= WORTHWHILE or seen.nodes(names) >= seen.nodes({"Conv", "FusedConv"}) / 2 > 0):
        return None
    return Symptom(
        f"{seen.nodes(names)} BatchNormalization nodes were not folded into their convolutions",
        "build the bundle with `holdfast bundle build`, which makes weights constants",
    )


def _layer_norm(seen: _Seen) -> Symptom | None:
    """LayerNormalization spelled out is ReduceMean, Sub, Pow or Mul, ReduceMean, Add, Sqrt, Div, Mul, Add."""
    parts = {"ReduceMean", "Sub", "Pow", "Add", "Sqrt", "Div", "Mul"}
    count = min(seen.nodes({"ReduceMean"}) // 2, seen.nodes({"Sqrt"}))
    if not count or seen.share(parts) < WORTHWHILE:
        return None
    return Symptom(
        f"{count} LayerNormalization patterns were not fused; their parts take up to {seen.share(parts):.0%} of the time",
        seen.fusing("export with opset 17, where LayerNormalization is one operator"),
    )


def _gelu(seen: _Seen) -> Symptom | None:
    """GELU spelled out is Div, Erf, Add, Mul, Mul; nothing else in common use has an Erf."""
    parts = {"Erf", "Div", "Add", "Mul"}
    if not seen.nodes({"Erf"}) or seen.share(parts) < WORTHWHILE:
        return None
    return Symptom(
        f"{seen.nodes({'Erf'})} GELU patterns were not fused; their parts take up to {seen.share(parts):.0%} of the time",
        seen.fusing("export with opset 20, where Gelu is one operator"),
    )


def _attention(seen: _Seen) -> Symptom | None:
    """Attention spelled out has two MatMuls around each Softmax, and transposes heads before and after."""
    parts = {"MatMul", "FusedMatMul", "Softmax", "Transpose", "Reshape"}
    softmaxes = seen.nodes({"Softmax"})
    is_attention = softmaxes >= 2 and seen.nodes({"MatMul", "FusedMatMul"}) >= 2 * softmaxes
    if not is_attention or seen.nodes(_ATTENTION) or seen.share({"Softmax", "Transpose", "Reshape"}) < WORTHWHILE:
        return None
    return Symptom(
        f"{softmaxes} attention patterns were not fused; their parts take {seen.share(parts):.0%} of the time",
        seen.fusing("export with opset 23, where Attention is one operator"),
    )


def _quantizers(seen: _Seen) -> Symptom | None:
    """In a graph that is quantized throughout, these melt into the operators between them."""
    if (share := seen.share(_QUANTIZERS)) < WORTHWHILE or seen.nodes(_QUANTIZERS) < FEWEST_QUANTIZERS:
        return None
    return Symptom(
        f"{seen.nodes(_QUANTIZERS)} nodes that only quantize or dequantize take {share:.0%} of the time",
        "let the builder leave the layers around them in float, or quantize these too; fp32 may well be faster",
    )


def _elementwise(seen: _Seen) -> Symptom | None:
    """Half of the nodes, or a model has a few activations like every other."""
    count, share = seen.nodes(_ELEMENTWISE), seen.share(_ELEMENTWISE)
    if seen.all_nodes < FEWEST_NODES or count < seen.all_nodes / 2 or share < 2 * WORTHWHILE:
        return None
    return Symptom(
        f"{count} of {seen.all_nodes} nodes are small elementwise operators and take {share:.0%} of the time",
        seen.fusing("simplify the export: constants folded, activations as single operators"),
    )


def _idle(seen: _Seen) -> Symptom | None:
    run_ms = seen.trace.run_ms - PROFILER_MS * seen.all_nodes
    share = 1 - seen.trace.nodes_ms / run_ms if run_ms > 0 else 0.0
    if share < IDLE or seen.all_nodes < FEWEST_NODES:
        return None
    return Symptom(
        f"{share:.0%} of a run passed between nodes: {seen.all_nodes} nodes of "
        f"{1000 * seen.trace.nodes_ms / seen.all_nodes:.0f} µs each are too small for what starting one costs",
        "take fewer threads" if seen.candidate.threads > 1 else "export with fewer and larger operators",
    )


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


_RULES: tuple[Callable[[_Seen], Symptom | None], ...] = (
    _fallback,
    _copies,
    _layout,
    _batch_norm,
    _layer_norm,
    _gelu,
    _attention,
    _quantizers,
    _elementwise,
    _idle,
)
