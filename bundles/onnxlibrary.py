"""The `onnx` package, which only the builder needs: imported when first used, with a clear text where it is missing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agent.errors import OperatorError

if TYPE_CHECKING:
    import onnx

CONTRIB = "com.microsoft"
"""The operators that ONNX Runtime has beside ONNX's own."""


def require_onnx() -> None:
    """Make sure that the `build` extra is installed; every command that builds calls this first.

    Raises:
        OperatorError: onnx is not installed.
    """
    try:
        importlib.import_module("onnx")
    except ImportError as error:
        raise OperatorError(
            f"building a bundle needs the package onnx: {error}", hint="run: pip install onnx"
        ) from error


def initializer_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the graph's weights, dense and sparse."""
    return {each.name for each in graph.initializer} | {each.values.name for each in graph.sparse_initializer}


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the graph's inputs without the weights that old exporters list among them."""
    weights = initializer_names(graph)
    return [each for each in graph.input if each.name not in weights]


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return each dimension's size, or its symbolic name; an unknown one without a name is the empty string."""
    shape = value.type.tensor_type.shape
    return [each.dim_value if each.HasField("dim_value") else each.dim_param for each in shape.dim]


def import_contrib(model: onnx.ModelProto) -> None:
    """Declare ONNX Runtime's own operators, where the model does not yet."""
    from onnx import helper

    if all(each.domain != CONTRIB for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def sort_initializers(graph: onnx.GraphProto) -> None:
    """Put the weights in the order of their names: tools write them in the order of a hash table."""
    values = sorted(graph.initializer, key=lambda each: each.name)
    del graph.initializer[:]
    graph.initializer.extend(values)
