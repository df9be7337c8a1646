"""The variants that are made in one way only, and which nodes of a model stay in float in all of them.

Takes the repaired fp32 model and the recipe's word on how; gives a model, and what is to be said about it. Static INT8
has a search of its own (`bundles.search`). Whether a variant is good enough is `bundles.judging`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.bundle.manifest import VariantName
from agent.errors import BundleError
from bundles import fusion, precision, quantize
from bundles.recipe import Quantize, RecipeFolder

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A variant's model."""

    model: onnx.ModelProto
    note: str
    """What a person should know of it; may be empty."""
    most_deviation: float | None = None
    """How far its raw outputs may be from fp32's, as a relative root mean square; None: the metric alone decides."""


def make(
    name: VariantName,
    model: onnx.ModelProto,
    settings: Quantize,
    kept: frozenset[str],
    samples: Sequence[quantize.Feeds],
) -> Made:
    """Make fp32-fused, fp16, int8-dynamic or int4.

    Args:
        name: Which of them.
        model: The repaired fp32 model.
        settings: The recipe's.
        kept: Nodes that stay in float32.
        samples: Input tensors of a few samples, which show what float16 cannot hold.

    Raises:
        CandidateError: it would change nothing, or a tool of ONNX Runtime refuses the model.
    """
    if name == "fp32-fused":
        fused = fusion.fuse(model)
        counts = ", ".join(f"{count} {kind}" for kind, count in fused.gained.items())
        return Made(fused.model, f"fused: {counts}", fusion.MOST_DEVIATION)
    if name == "fp16":
        large = precision.overflowing(model, samples)
        note = f"{len(large)} nodes stay in float32, where values pass what float16 holds" if large else ""
        return Made(precision.fp16(model, kept | large), note, precision.MOST_FP16_DEVIATION)
    if name == "int4":
        return Made(precision.int4(model, settings.int4, kept), "")
    return Made(quantize.dynamic_int8(model, kept), "")


def excluded(recipe: RecipeFolder, model: onnx.ModelProto) -> frozenset[str]:
    """Return the nodes that `quantize.exclude` names.

    Raises:
        BundleError: a name or pattern fits no node.
    """
    names = [node.name for node in model.graph.node]
    found: set[str] = set()
    for pattern in recipe.recipe.quantize.exclude:
        here = {name for name in names if name == pattern or re.fullmatch(pattern, name)}
        if not here:
            raise BundleError(
                f"`quantize.exclude` names `{pattern}`, and the model has no such node",
                where=str(recipe.model),
                hint=f"its first are {', '.join(names[:6])}; those without a name are called by kind and number",
            )
        found |= here
    return frozenset(found)
