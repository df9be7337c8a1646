"""Variants that need no ranges of activations: fp16, and INT4 weights.

Takes the repaired fp32 model; gives one with float16 inside and float32 at its inputs and outputs, or one whose MatMul
weights have four bits (`MatMulNBits`, an operator of ONNX Runtime on CPU, CUDA, WebGPU and DirectML). Refuses what
would change nothing. The same model gives the same bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import CandidateError
from bundles import evaluate
from bundles.onnxlibrary import CONTRIB, import_contrib, reads, sort_initializers, sort_nodes
from bundles.quantize import Feeds
from bundles.recipe import Int4

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

MOST_FP16_DEVIATION = 0.05
"""Relative root mean square. float16 keeps three digits a step: healthy models were measured at 0.02 to 1.6 % (YOLOX-Nano, of
pixels that are not normalised); overflow and cancellation cost half of an output and more. The task's metric counts too."""

_LARGEST = float(np.finfo(np.float16).max)
_KEPT_IN_FLOAT32 = ("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL2", "CumSum", "Exp", "Softplus")
"""Beside ONNX Runtime's own list, which holds what has no float16 kernel. Sums over a picture, powers and exponentials
pass 65504 in healthy models; ONNX Runtime's Softmax and normalisations sum in float32 by themselves."""
_LEAST_INT4_WEIGHTS = 16
"""Rows below which a block of weights has more scale than weight."""


def fp16(model: onnx.ModelProto, left_in_float: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model in float16, but for what float16 cannot hold; inputs and outputs stay float32.

    Raises:
        CandidateError: it has no float32 weights, or ONNX Runtime's converter refuses it.
    """
    from onnx import TensorProto
    from onnxruntime.transformers import float16

    if not any(each.data_type == TensorProto.FLOAT for each in model.graph.initializer):
        raise CandidateError("fp16 covers float32 weights, and the model has none")
    try:
        made: onnx.ModelProto = float16.convert_float_to_float16(
            copy.deepcopy(model),
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_KEPT_IN_FLOAT32],
            node_block_list=sorted({*left_in_float, *_too_large(model)}),
        )
    except Exception as error:
        raise CandidateError(f"fp16 failed: {str(error) or type(error).__name__}") from error
    _skip_float16_between_float32(made.graph)
    _drop_repeated_casts(made.graph)
    sort_nodes(made.graph)  # the casts stand at the end, a runtime may refuse that
    return made


def overflowing(model: onnx.ModelProto, samples: Sequence[Feeds]) -> frozenset[str]:
    """Return the nodes that read or give values, on these samples, beyond half of what float16 can hold.

    No run of the float16 model on a CPU shows this: ONNX Runtime computes there in float32 and drops the casts between.
    Half: other samples will give somewhat larger values.
    """
    exposed = evaluate.exposed(model)
    large = {
        value.name
        for sample in samples
        for value, array in zip(exposed.graph.output, evaluate.outputs(exposed, [sample])[0], strict=True)
        if isinstance(array, np.ndarray)
        and array.dtype == np.float32
        and np.abs(array, dtype=np.float64).max(initial=0) > _LARGEST / 2
    }
    large |= {
        name for sample in samples for name, array in sample.items() if np.abs(array).max(initial=0) > _LARGEST / 2
    }
    return frozenset(node.name for node in model.graph.node if large & {*node.input, *node.output})


def int4(model: onnx.ModelProto, settings: Int4 | None = None, left_in_float: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with the constant, two-dimensional weights of its MatMul nodes in blocks of four bits.

    The layout is MatMulNBits' (ONNX Runtime, docs/ContribOperators.md): for weights of (K, N), a scale for each of N
    columns and each block of K; two weights in a byte, the first in its low half; without zero points zero is 8.

    Raises:
        CandidateError: no MatMul has such weights.
    """
    from onnx import helper, numpy_helper

    settings = settings or Int4()
    made = copy.deepcopy(model)
    weights = {each.name: each for each in made.graph.initializer}
    count = 0
    for node in made.graph.node:
        if node.op_type != "MatMul" or node.domain or node.name in left_in_float:
            continue
        tensor = weights.get(node.input[1])
        if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] < _LEAST_INT4_WEIGHTS:
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        packed, scales, zeros = _blocks(values, settings)
        arrays: list[NDArray[Any]] = [packed, scales, *([zeros] if zeros is not None else [])]
        names = [f"{tensor.name}.{part}" for part, _ in zip(("int4", "scales", "zeros"), arrays, strict=False)]
        for name, array in zip(names, arrays, strict=True):
            if name not in weights:
                weights[name] = numpy_helper.from_array(array, name)
                made.graph.initializer.append(weights[name])
        rows, columns = values.shape
        quantized = helper.make_node(
            "MatMulNBits", [node.input[0], *names], list(node.output), node.name, domain=CONTRIB,
            K=rows, N=columns, bits=4, block_size=settings.block_size,
        )  # fmt: skip
        node.CopyFrom(quantized)
        count += 1
    if not count:
        raise CandidateError(
            "INT4 covers MatMul with constant weights of two dimensions, and the model has none; Conv and Gemm keep "
            "their bits"
        )
    _drop_unused(made)
    import_contrib(made)
    return made


def _blocks(
    values: NDArray[np.float32], settings: Int4
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """Quantize weights of (K, N): four-bit pairs (N, blocks, block_size / 2), scales (N * blocks), packed zero points."""
    size = settings.block_size
    rows, columns = values.shape
    count = -(-rows // size)
    padded = np.zeros((columns, count * size), np.float32)
    padded[:, :rows] = values.T
    blocks = padded.reshape(columns, count, size)
    if settings.symmetric:
        # The value of largest magnitude becomes -8, the one end that has no counterpart.
        peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)[..., 0]
        scales, zeros = peak / -8, np.full((columns, count), 8.0, np.float32)
    else:
        low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
        scales = (high - low) / 15
        zeros = np.clip(np.round(-low / np.where(scales == 0, 1, scales)), 0, 15)
    steps = np.where(scales == 0, 1, scales)
    quantized = np.clip(np.round(blocks / steps[..., None] + zeros[..., None]), 0, 15).astype(np.uint8)
    return (
        _pairs(quantized),
        scales.astype(np.float32).reshape(-1),
        None if settings.symmetric else _pairs(zeros.astype(np.uint8)).reshape(-1),
    )


def _pairs(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack values below 16 two to a byte along the last axis, the first in the low half."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(values[..., 0::2] | values[..., 1::2] << 4, np.uint8)


def _too_large(model: onnx.ModelProto) -> set[str]:
    """Return the nodes that read constants which float16 cannot hold: in it they would be cut to 65504."""
    from onnx import TensorProto, numpy_helper

    large = {
        each.name
        for each in model.graph.initializer
        if each.data_type == TensorProto.FLOAT and np.abs(numpy_helper.to_array(each)).max(initial=0) > _LARGEST
    }
    return {node.name for node in model.graph.node if large & set(node.input)}


def _skip_float16_between_float32(graph: onnx.GraphProto) -> None:
    """Join two nodes that were kept in float32: the converter casts between them to float16 and back."""
    from onnx import TensorProto

    def target(node: onnx.NodeProto) -> int:
        return next((each.i for each in node.attribute if each.name == "to"), 0) if node.op_type == "Cast" else 0

    down = {node.output[0]: node.input[0] for node in graph.node if target(node) == TensorProto.FLOAT16}
    outputs = {each.name for each in graph.output}
    shortcut = {
        node.output[0]: down[node.input[0]]
        for node in graph.node
        if target(node) == TensorProto.FLOAT and node.input[0] in down and node.output[0] not in outputs
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = shortcut.get(name, name)
    for kind in (TensorProto.FLOAT, TensorProto.FLOAT16):
        used = {name for node in graph.node for name in reads(node)} | outputs
        kept = [node for node in graph.node if target(node) != kind or node.output[0] in used]
        del graph.node[:]
        graph.node.extend(kept)


def _drop_repeated_casts(graph: onnx.GraphProto) -> None:
    """Keep one of equal casts: the converter makes one for each node that reads a tensor, all of one name."""
    casts: set[str] = set()
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Cast" or node.output[0] not in casts:
            kept.append(node)
        casts |= {node.output[0]} if node.op_type == "Cast" else set()
    del graph.node[:]
    graph.node.extend(kept)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in reads(node)} | {each.name for each in model.graph.output}
    kept = [each for each in model.graph.initializer if each.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    sort_initializers(model.graph)
