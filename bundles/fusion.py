"""The variant `fp32-fused`: transformer blocks as single operators of ONNX Runtime.

Takes the repaired fp32 model; gives one in which attention, LayerNorm, GELU and their sums are fused by ONNX Runtime's
own transformer tools, beyond what a session does when it loads, and how many of each. Refuses a graph that is no
transformer, and one in which nothing was fused. The fused operators are ONNX Runtime's (domain com.microsoft): other
providers than CPU, CUDA and DirectML may lack them, which the trial on a device finds.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.errors import CandidateError
from bundles.onnxlibrary import dimensions, import_contrib, initializer_names, sort_initializers

if TYPE_CHECKING:
    import onnx

FUSED = (
    "Attention", "MultiHeadAttention", "LayerNormalization", "SkipLayerNormalization", "Gelu", "FastGelu", "BiasGelu",
)  # fmt: skip
"""What is counted; each is one operator in place of three to thirty."""


MOST_DEVIATION = 1e-4
"""It computes the same in another order, so its outputs differ by no more than this (relative root mean square)."""


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """The fused model, and how many operators of each kind it gained."""

    model: onnx.ModelProto
    gained: dict[str, int]


def fuse(model: onnx.ModelProto) -> Fused:
    """Fuse the transformer blocks of a model.

    Raises:
        CandidateError: it is no transformer, nothing was fused, or ONNX Runtime's tools fail on it.
    """
    kind = family(model)
    if kind is None:
        raise CandidateError("fusion covers transformers, and no product of the model's passes a Softmax into another")
    before = Counter(node.op_type for node in model.graph.node)
    try:
        made = _fuse(copy.deepcopy(model), kind)
    except Exception as error:
        raise CandidateError(f"fusion failed: {str(error) or type(error).__name__}") from error
    after = Counter(node.op_type for node in made.graph.node)
    gained = {name: after[name] - before[name] for name in FUSED if after[name] > before[name]}
    if not gained:
        raise CandidateError(f"nothing was fused, though the graph looks like a transformer ({kind})")
    return Fused(made, gained)


def family(model: onnx.ModelProto) -> str | None:
    """Return what ONNX Runtime's tools call this kind of graph: `vit` (patches of a picture), `bert`, or None.

    Attention is a MatMul of two computed tensors, a Softmax, and a MatMul of that with another computed tensor.
    """
    weights = initializer_names(model.graph)
    maker = {name: node for node in model.graph.node for name in node.output}
    is_transformer = any(
        node.op_type == "MatMul"
        and not weights & set(node.input)
        and (weighing := maker.get(node.input[0])) is not None
        and weighing.op_type == "Softmax"
        for node in model.graph.node
    )
    if not is_transformer:
        return None
    return "vit" if any(node.op_type == "Conv" for node in model.graph.node) else "bert"


def _fuse(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.onnx_model_bert import BertOnnxModel

    class Fuser(BertOnnxModel):  # type: ignore[misc, unused-ignore]
        """With the shapes that the repair inferred; ONNX Runtime's way to infer them needs sympy."""

        def infer_runtime_shape(self, dynamic_axis_mapping: Any = None, update: bool = False) -> _Shapes:  # noqa: ARG002, ANN401, FBT001, FBT002
            return shapes

    shapes = _Shapes(model)
    fuser = Fuser(model)
    fuser.optimize(FusionOptions(kind))
    fuser.topological_sort(is_deterministic=True)
    made: onnx.ModelProto = fuser.model
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    import_contrib(made)
    sort_initializers(made.graph)
    return made


class _Shapes:
    """The shapes of a model's tensors, by the interface of ONNX Runtime's `SymbolicShapeInferenceHelper`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.known_vi_ = {each.name: each for each in (*graph.input, *graph.value_info, *graph.output)}

    def get_edge_shape(self, edge: str) -> list[int | str] | None:
        """Return a tensor's shape; None where it is not known."""
        known = self.known_vi_.get(edge)
        return None if known is None else dimensions(known)

    def compare_shape(self, edge: str, other: str) -> bool:
        """Return whether two tensors have the same known shape."""
        return self.get_edge_shape(edge) is not None and self.get_edge_shape(edge) == self.get_edge_shape(other)
