"""The `onnx` package, which only the builder needs: imported when first used, with a clear text where it is missing."""

from __future__ import annotations

import importlib
from graphlib import CycleError, TopologicalSorter
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


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs that a node carries (If, Loop, Scan)."""
    return [each.g for each in node.attribute if each.HasField("g")] + [
        body for each in node.attribute for body in each.graphs
    ]


def reads(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node and its bodies read."""
    names = set(node.input)
    for body in bodies(node):
        names |= {value.name for value in body.output}
        for inner in body.node:
            names |= reads(inner)
    return names


def sort_nodes(graph: onnx.GraphProto) -> int:
    """Put each node behind those whose outputs it reads, in bodies too; return how many graphs were out of order.

    Some tools, such as ONNX Runtime's float16 converter, append what they insert. A graph with a cycle stays as it is.
    """
    count = sum(sort_nodes(body) for node in graph.node for body in bodies(node))
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = {
        index: sorted({maker[name] for name in reads(node) if name in maker} - {index})
        for index, node in enumerate(graph.node)
    }
    if all(needed[-1] < index for index, needed in needs.items() if needed):
        return count
    try:
        nodes = [graph.node[index] for index in TopologicalSorter(needs).static_order()]
    except CycleError:
        return count
    del graph.node[:]
    graph.node.extend(nodes)
    return count + 1


def sort_initializers(graph: onnx.GraphProto) -> None:
    """Put the weights in the order of their names: tools write them in the order of a hash table."""
    values = sorted(graph.initializer, key=lambda each: each.name)
    del graph.initializer[:]
    graph.initializer.extend(values)
