"""Tiny ONNX models with one fault each, on the tiny classifier's input `image` (1×3×32×32) and output `classes` (1×3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
SHAPE = [1, 3, 32, 32]


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    outputs: dict[str, list[int]],
    shape: Sequence[int] = SHAPE,
) -> bytes:
    """Return a model's bytes; `constants` become initializers."""
    graph = helper.make_graph(
        list(nodes),
        "faulty",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return bytes(made.SerializeToString())


def mean_colours(last: str) -> list[onnx.NodeProto]:
    """Nodes from `image` to the softmax of the mean colours (1×3), as `last`."""
    return [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["row"], "flatten"),
        helper.make_node("Softmax", ["row"], [last], "softmax", axis=1),
    ]


def nan_in_the_dark() -> bytes:
    """Right answers, but NaN for a picture that is all black: log(max - 1) of a negative number."""
    nodes = [
        *mean_colours("answer"),
        helper.make_node("ReduceMax", ["image"], ["brightest"], "brightest", keepdims=0),
        helper.make_node("Sub", ["brightest", "one"], ["above"], "above"),
        helper.make_node("Log", ["above"], ["logarithm"], "logarithm"),
        helper.make_node("Mul", ["logarithm", "zero"], ["nothing"], "nothing"),
        helper.make_node("Add", ["answer", "nothing"], ["classes"], "classes"),
    ]
    return model(nodes, {"one": np.float32(1), "zero": np.float32(0)}, {"classes": [1, 3]})


def always_nan() -> bytes:
    """NaN, whatever comes."""
    nodes = [*mean_colours("answer"), helper.make_node("Mul", ["answer", "nan"], ["classes"], "classes")]
    return model(nodes, {"nan": np.float32("nan")}, {"classes": [1, 3]})


def four_classes() -> bytes:
    """Another shape than the manifest says."""
    nodes = [*mean_colours("answer"), helper.make_node("Concat", ["answer", "more"], ["classes"], "more_", axis=1)]
    return model(nodes, {"more": np.zeros((1, 1), np.float32)}, {"classes": [1, 4]})


def hungry(gigabytes: int) -> bytes:
    """Takes so much memory in each run. Its size depends on the picture, so that nobody folds it away."""
    nodes = [
        *mean_colours("answer"),
        helper.make_node("Shape", ["image"], ["sizes"], "sizes"),
        helper.make_node("Gather", ["sizes", "first"], ["batch"], "batch"),
        helper.make_node("Mul", ["batch", "count"], ["many"], "many"),
        helper.make_node("ConstantOfShape", ["many"], ["huge"], "huge"),
        helper.make_node("ReduceSum", ["huge"], ["nothing"], "nothing", keepdims=0),
        helper.make_node("Add", ["answer", "nothing"], ["classes"], "classes"),
    ]
    constants = {"first": np.array([0], np.int64), "count": np.array([gigabytes << 28], np.int64)}
    return model(nodes, constants, {"classes": [1, 3]})


def endless() -> bytes:
    """Never answers: a loop that nothing ends."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"], "still"),
            helper.make_node("Identity", ["inside"], ["outside"], "same"),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("inside", TensorProto.FLOAT, [1, 3]),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("outside", TensorProto.FLOAT, [1, 3]),
        ],
    )
    nodes = [*mean_colours("answer"), helper.make_node("Loop", ["", "yes", "answer"], ["classes"], "loop", body=body)]
    return model(nodes, {"yes": np.bool_(True)}, {"classes": [1, 3]})


def no_decoder_fits() -> bytes:
    """An output of five dimensions, which no decoder reads."""
    nodes = [helper.make_node("Unsqueeze", ["image", "axis"], ["field"], "field")]
    return model(nodes, {"axis": np.array([0], np.int64)}, {"field": [1, 1, 3, 32, 32]})


def two_decoders_fit() -> bytes:
    """1×3549×8 of a 416×416 picture: a YOLOX with 3 classes, or a YOLOv8 with 4."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], "mean", keepdims=0),
        helper.make_node("Add", ["grid", "mean"], ["output"], "answer"),
    ]
    return model(nodes, {"grid": np.zeros((1, 3549, 8), np.float32)}, {"output": [1, 3549, 8]}, [1, 3, 416, 416])
