"""Repairs that cost no accuracy, each of them reported.

Takes a model as read by `bundles.modelfile`, gives one that computes the same and that every provider can optimise:
weights taken off the graph's inputs (listed there they may be overridden at run time, which blocks folding and cost a
real face detector a factor of three), nodes sorted and named, dimensions fixed, constants folded, unused parts removed,
shapes inferred, and the whole checked by `onnx.checker`. Weights that are NaN are refused. Folding uses ONNX's reference
operators, not a runtime's optimiser: the result holds standard operators only, suits every kind of hardware, and is the same
bytes each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import BundleError
from bundles.modelfile import MAX_IR_VERSION, ModelFile, check_tensor_sizes, tensors
from bundles.onnxlibrary import bodies, dimensions, initializer_names, reads, real_inputs, sort_nodes

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

MAX_FOLDED_BYTES = 1_000_000
"""A larger constant would cost more to ship than it saves at loading."""

_MIN_IR_VERSION = 4
"""The first in which weights need not be inputs."""

_NEVER_FOLDED = frozenset({
    # By chance, or with a body of its own.
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
    "If", "Loop", "Scan",
    # Folding these would undo a quantization that somebody made on purpose.
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
})  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Repaired:
    """The repaired model and one sentence for each thing that was done to it."""

    model: onnx.ModelProto
    repairs: tuple[str, ...]


def repair(
    source: ModelFile, sizes: Mapping[str, int] | None = None, open_dimensions: Collection[str] = ()
) -> Repaired:
    """Repair a copy of the model; `source` keeps what it has.

    Args:
        source: The model as shipped.
        sizes: Values for symbolic dimensions, by the dimension's name or as `input.index` (`images.2`).
        open_dimensions: Dimensions that stay open, spelled the same way; they come before `sizes`.

    Raises:
        BundleError: a dimension other than the batch may vary and is not given, shape inference or the checker
            refuses the model, or a tensor is too large.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    done: list[str] = []
    _set_ir_version(model, done)
    _take_weights_off_inputs(model.graph, done)
    if sort_nodes(model.graph):
        done.append("nodes put in the order in which they run")
    _name_nodes(model.graph, done)
    _fix_dimensions(source, model.graph, dict(sizes or {}), frozenset(open_dimensions), done)
    try:
        _infer_shapes(source, model)
    except BundleError as error:
        raise _explained(error, done) from error
    if not source.is_external:
        _fold_all(source, model, done)
    _remove_unused(model.graph, done)
    check(source, model)
    return Repaired(model, tuple(done))


def check(source: ModelFile, model: onnx.ModelProto) -> None:
    """Run the full checker, and look at the weights, and at all sizes again now that shapes are known.

    Raises:
        BundleError: with the checker's words.
    """
    import onnx

    check_tensor_sizes(source.path, model)
    if source.is_external:
        return  # the checker opens data files by path; sizes and places were checked when the model was read
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise _refused(source, "the checker refuses the model", error) from error
    _check_weights(source.path, model)


def _check_weights(path: Path, model: onnx.ModelProto) -> None:
    """Refuse NaN in weights: a Relu or a MaxPool behind it hides it, and the answers are wrong without a sign."""
    from onnx import TensorProto, numpy_helper

    for tensor in tensors(model):
        if tensor.data_type not in {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}:
            continue
        if count := int(np.isnan(values := numpy_helper.to_array(tensor)).sum()):
            raise BundleError(
                f"{count} of the {values.size} values of weight `{tensor.name}` are NaN",
                where=str(path),
                hint="the training diverged, or the file is damaged: export an earlier checkpoint",
            )


def _refused(source: ModelFile, what: str, error: Exception) -> BundleError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return BundleError(
        f"{what}: {first}",
        where=str(source.path),
        hint="export the model again with a current exporter, opset 13 to 17",
    )


def _explained(error: BundleError, done: list[str]) -> BundleError:
    """Add which sizes the shapes were inferred with: that the first axis is the batch is only usual."""
    if fixed := next((line for line in done if line.startswith("dimensions fixed")), None):
        hint = f"{fixed}: is one of them wrong? give it under `dimensions`, or with --dimension; else export the model again"
        return BundleError(error.message, where=error.where, hint=hint)
    return error


def _set_ir_version(model: onnx.ModelProto, done: list[str]) -> None:
    wanted = min(max(model.ir_version, _MIN_IR_VERSION), MAX_IR_VERSION)
    if wanted != model.ir_version:
        done.append(f"IR version {model.ir_version} set to {wanted}")
        model.ir_version = wanted


def _take_weights_off_inputs(graph: onnx.GraphProto, done: list[str]) -> None:
    kept = real_inputs(graph)
    if removed := len(graph.input) - len(kept):
        del graph.input[:]
        graph.input.extend(kept)
        done.append(f"{removed} weights taken off the graph's inputs")


def _name_nodes(graph: onnx.GraphProto, done: list[str]) -> None:
    """Give every node a name of its own: some runtimes refuse two nodes of one name after an optimiser pass."""
    reserved = {node.name for node in graph.node}
    taken: set[str] = set()
    renamed = 0
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            name = f"{node.op_type}_{index}"
            while name in taken or name in reserved:
                name += "_"
            node.name = name
            renamed += 1
        taken.add(node.name)
    if renamed:
        done.append(f"{renamed} nodes without a name of their own were named")


def _fix_dimensions(
    source: ModelFile, graph: onnx.GraphProto, sizes: dict[str, int], left_open: frozenset[str], done: list[str]
) -> None:
    fixed: dict[str, int] = {}
    found: set[str] = set()
    missing: list[str] = []
    for value in graph.input:
        for index, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value") and dimension.dim_value > 0:
                continue
            symbol, place = dimension.dim_param, f"{value.name}.{index}"
            size = sizes.get(place, sizes.get(symbol, 1 if index == 0 else 0))
            if {place, symbol} & left_open:
                found |= {place, symbol} & left_open
            elif size:
                fixed[symbol or place] = size
                dimension.dim_value = size
            else:
                missing.append(f"{place} (`{symbol}`)" if symbol else place)
    if unknown := sorted(left_open - found):
        raise BundleError(
            f"`dimensions` bounds {', '.join(unknown)}, and no input has such an open dimension",
            where=str(source.path),
            hint="name a symbolic dimension of an input, or a place such as `images.2`",
        )
    if missing:
        example = missing[0].split(" ", maxsplit=1)[0]
        raise BundleError(
            f"these dimensions of the inputs may have any size: {', '.join(missing)}",
            where=str(source.path),
            hint=f"give them in bundle.yaml, such as `dimensions: {{{example}: 640}}`, or with --dimension",
        )
    if fixed:
        _forget_shapes(graph, fixed)
        done.append("dimensions fixed: " + ", ".join(f"{name} = {size}" for name, size in sorted(fixed.items())))


def _forget_shapes(graph: onnx.GraphProto, fixed: Mapping[str, int]) -> None:
    """Drop what was inferred for the dimensions as they were; it is inferred again. Known sizes of outputs stay."""
    del graph.value_info[:]
    for value in graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in fixed:
                dimension.dim_value = fixed[dimension.dim_param]
            elif dimension.dim_param:
                dimension.Clear()


def _infer_shapes(source: ModelFile, model: onnx.ModelProto) -> None:
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise _refused(source, "the shapes of the graph do not fit together", error) from error
    model.graph.CopyFrom(inferred.graph)
    known = sorted(model.graph.value_info, key=lambda value: value.name)
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    check_tensor_sizes(source.path, model)


def _fold_all(source: ModelFile, model: onnx.ModelProto, done: list[str]) -> None:
    """Fold until nothing is left to fold: a folded shape makes further shapes known. Each pass removes a node."""
    before = len(model.graph.node)
    count = 0
    while folded := _fold(model):
        count += folded
        _infer_shapes(source, model)
    if count:
        done.append(f"{count} of {before} nodes folded into constants")


def _fold(model: onnx.ModelProto) -> int:
    """Compute once what depends on weights and fixed shapes only, and put the result in as a weight; count nodes."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    shapes = {
        value.name: dimensions(value)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    kept: list[onnx.NodeProto] = []
    folded: dict[str, NDArray[np.generic]] = {}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        is_still = node.op_type == "Constant" and node.output[0] in outputs
        values = None if is_still else _evaluate(model, node, constants, shapes)
        if values is None:
            kept.append(node)
            continue
        for name, array in values.items():
            constants[name] = numpy_helper.from_array(array, name)
            folded[name] = array
    if not folded:
        return 0
    count = len(graph.node) - len(kept)
    kept = [*_still_nodes(graph, folded), *kept]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in reads(node)}
    graph.initializer.extend(constants[name] for name in folded if name in used and name not in outputs)
    return count


def _still_nodes(graph: onnx.GraphProto, folded: Mapping[str, NDArray[np.generic]]) -> list[onnx.NodeProto]:
    """A graph's output must come from a node: a folded one becomes a Constant."""
    from onnx import helper, numpy_helper

    return [
        helper.make_node(
            "Constant",
            [],
            [value.name],
            name=f"Constant_{value.name}",
            value=numpy_helper.from_array(folded[value.name]),
        )
        for value in graph.output
        if value.name in folded
    ]


def _evaluate(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, list[int | str]],
) -> dict[str, NDArray[np.generic]] | None:
    """Return the node's outputs where they never change and are small; None where they may, or are not."""
    if node.domain not in {"", "ai.onnx"} or node.op_type in _NEVER_FOLDED:
        return None
    if node.op_type == "Shape" and not node.attribute:
        shape = shapes.get(node.input[0])
        if shape and all(isinstance(size, int) for size in shape):
            return {node.output[0]: np.array(shape, np.int64)}
    inputs = [name for name in node.input if name]
    if any(name not in constants for name in inputs) or bodies(node):
        return None
    if sum(constants[name].ByteSize() for name in inputs) > 4 * MAX_FOLDED_BYTES:
        return None
    if any(_bytes_of(shapes.get(name)) > MAX_FOLDED_BYTES for name in node.output):
        return None
    return _run_reference(model, node, {name: constants[name] for name in inputs})


def _bytes_of(shape: list[int | str] | None) -> int:
    """Eight bytes an element; an unknown shape counts as too large, a scalar as one element."""
    if shape is None or any(isinstance(size, str) for size in shape):
        return MAX_FOLDED_BYTES + 1
    return int(np.prod([int(size) for size in shape], dtype=np.int64)) * 8


def _run_reference(
    model: onnx.ModelProto, node: onnx.NodeProto, inputs: Mapping[str, onnx.TensorProto]
) -> dict[str, NDArray[np.generic]] | None:
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.output if name]
    feeds = {name: numpy_helper.to_array(tensor) for name, tensor in inputs.items()}
    try:
        graph = helper.make_graph(
            [node],
            "one node",
            [helper.make_tensor_value_info(name, inputs[name].data_type, None) for name in inputs],
            [helper.make_empty_tensor_value_info(name) for name in names],
        )
        single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        results = ReferenceEvaluator(single).run(None, feeds)
    except Exception:  # noqa: BLE001 - the reference operators raise anything; what they cannot do stays a node
        return None
    arrays = [np.asarray(result) for result in results]
    if any(array.dtype == object or array.nbytes > MAX_FOLDED_BYTES for array in arrays):
        return None
    return dict(zip(names, arrays, strict=True))


def _remove_unused(graph: onnx.GraphProto, done: list[str]) -> None:
    """Remove nodes and weights that no output depends on."""
    wanted = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= reads(node)
    nodes, weights = len(graph.node) - len(kept), len(initializer_names(graph) - wanted)
    if nodes or weights:
        done.append(f"{nodes} nodes and {weights} weights that nothing uses removed")
    kept.reverse()
    kept_weights = sorted((each for each in graph.initializer if each.name in wanted), key=lambda each: each.name)
    names = wanted | {name for node in kept for name in node.output}
    known = [value for value in graph.value_info if value.name in names]
    for field, values in ((graph.node, kept), (graph.initializer, kept_weights), (graph.value_info, known)):
        del field[:]
        field.extend(values)
