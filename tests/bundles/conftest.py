"""Small models of each family, made on the spot, so that every oddity can be put into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeModel = Callable[..., onnx.ModelProto]


def weights(name: str, *shape: int) -> onnx.TensorProto:
    """The same numbers each time, of both signs, not all alike."""
    values = np.sin(np.arange(np.prod(shape), dtype=np.float32) * 1.7).reshape(shape) * 0.3
    return numpy_helper.from_array(values.astype(np.float32), name)


def detector(rows: int = 8, columns: int = 85, side: int = 32, batch: int | str = 1) -> onnx.ModelProto:
    """One convolution that gives (1, cells, columns): a YOLOX where the number of cells is 21 for a side of 32."""
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["maps"], kernel_shape=[rows, rows], strides=[rows, rows]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("Reshape", ["positive", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "m"], ["output"]),
    ]
    cells = (side // rows) ** 2
    total = sum((side // stride) ** 2 for stride in (8, 16, 32))
    initializers = [
        weights("w", 4, 3, rows, rows),
        weights("b", 4),
        numpy_helper.from_array(np.array([1, 1, 4 * cells], np.int64), "shape"),
        weights("m", 4 * cells, total * columns),
    ]
    nodes[-1].output[0] = "long"
    nodes.append(helper.make_node("Reshape", ["long", "last"], ["output"]))
    initializers.append(numpy_helper.from_array(np.array([1, total, columns], np.int64), "last"))
    return model(nodes, initializers, [batch, 3, side, side], [1, total, columns], "images", "output")


def classifier(classes: int = 4, side: int = 16, softmax: bool = True, dynamic: bool = False) -> onnx.ModelProto:
    """Convolution, mean over the picture, a dense layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["maps"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g", "c"], ["logits"]),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["y"]),
    ]
    initializers = [weights("w", 8, 3, 3, 3), weights("b", 8), weights("g", 8, classes), weights("c", classes)]
    size: int | str = "size" if dynamic else side
    return model(
        nodes, initializers, ["N" if dynamic else 1, 3, size, size], ["N" if dynamic else 1, classes], "x", "y"
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    input_shape: Sequence[int | str],
    output_shape: Sequence[int | str] | None,
    input_name: str,
    output_name: str,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, output_shape)],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def transformer(kind: str = "bert", length: int = 16, width: int = 32, heads: int = 4) -> onnx.ModelProto:
    """Two blocks of attention as PyTorch exports them, with a LayerNorm each: of windows (bert) or of patches (vit)."""
    nodes, initializers = [], []

    def add(op: str, inputs: Sequence[str], **attributes: object) -> str:
        output = f"{op.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [output], f"/{output}", **attributes))
        return output

    def constant(values: object, dtype: type = np.float32) -> str:
        initializers.append(numpy_helper.from_array(np.array(values, dtype), f"c{len(initializers)}"))
        return initializers[-1].name

    def dense(x: str, rows: int, columns: int) -> str:
        initializers.extend(
            [weights(f"w{len(initializers)}", rows, columns), weights(f"b{len(initializers)}", columns)]
        )
        return add("Add", [initializers[-1].name, add("MatMul", [x, initializers[-2].name])])

    def norm(x: str) -> str:
        return add("LayerNormalization", [x, constant(np.ones(width)), constant(np.zeros(width))], axis=-1)

    def split(x: str) -> str:
        return add("Reshape", [x, constant([0, 0, heads, width // heads], np.int64)])

    def attention(x: str) -> str:
        query, key, value = (split(dense(x, width, width)) for _ in range(3))
        query, value = (add("Transpose", [each], perm=[0, 2, 1, 3]) for each in (query, value))
        scores = add("MatMul", [query, add("Transpose", [key], perm=[0, 2, 3, 1])])
        scaled = add("Div", [scores, constant((width / heads) ** 0.5)])
        mixed = add("Transpose", [add("MatMul", [add("Softmax", [scaled], axis=-1), value])], perm=[0, 2, 1, 3])
        return dense(add("Reshape", [mixed, constant([0, 0, width], np.int64)]), width, width)

    def gelu(x: str) -> str:
        erf = add("Erf", [add("Div", [x, constant(2**0.5)])])
        return add("Mul", [add("Mul", [x, add("Add", [erf, constant(1.0)])]), constant(0.5)])

    if kind == "vit":
        initializers.append(weights("patches", width, 3, 8, 8))
        maps = add("Conv", ["x", "patches"], kernel_shape=[8, 8], strides=[8, 8])
        x = add("Transpose", [add("Reshape", [maps, constant([0, width, length], np.int64)])], perm=[0, 2, 1])
    else:
        x = dense("x", 4, width)
    x = norm(x)
    for _ in range(2):
        x = norm(add("Add", [attention(x), x]))
        x = norm(add("Add", [dense(gelu(dense(x, width, 2 * width)), 2 * width, width), x]))
    mean = add("ReduceMean", [x], axes=[1], keepdims=0)
    initializers.append(weights("head", width, 1 if kind == "bert" else 4))
    logits = add("MatMul", [mean, "head"])
    nodes.append(helper.make_node("Sigmoid" if kind == "bert" else "Softmax", [logits], ["y"], "/last"))
    shape = [1, length, 4] if kind == "bert" else [1, 3, 32, 32]
    return model(nodes, initializers, shape, [1, 1 if kind == "bert" else 4], "x", "y")


def fragile(has_third: bool = True) -> onnx.ModelProto:
    """Which of red, green and blue is strongest (classes 1 to 3), by three convolutions of 1 by 1.

    Between the first two a channel of no use is a thousand times larger than the three that count. With one scale for the
    tensor these vanish: both convolutions must stay in float, and the third, where there is one, need not.
    """
    before = np.concatenate([np.full((1, 3), 1000), np.eye(3)])
    layers = {"before": before, "fragile": np.diag([0.0001, 1, 1, 1]), "after": np.eye(4)}
    nodes, initializers, last = [], [], "x"
    for name, matrix in layers.items() if has_third else list(layers.items())[:2]:
        initializers.append(numpy_helper.from_array(matrix.astype(np.float32)[:, :, None, None], f"{name}.weight"))
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}.maps"], name))
        nodes.append(helper.make_node("Relu", [f"{name}.maps"], [f"{name}.out"], f"{name}/relu"))
        last = f"{name}.out"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["m"], "mean"),
        helper.make_node("Flatten", ["m"], ["logits"], "flatten"),
        helper.make_node("Softmax", ["logits"], ["y"], "softmax"),
    ]
    return model(nodes, initializers, [1, 3, 16, 16], [1, 4], "x", "y")


@pytest.fixture
def make_fragile() -> MakeModel:
    return fragile


@pytest.fixture
def make_transformer() -> MakeModel:
    return transformer


@pytest.fixture
def make_detector() -> MakeModel:
    return detector


@pytest.fixture
def make_classifier() -> MakeModel:
    return classifier


@pytest.fixture
def make_model() -> MakeModel:
    return model


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a model and return its path."""

    def write(made: onnx.ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        onnx.save_model(made, path)
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures that differ."""
    import cv2

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(8):
        rows, columns = np.mgrid[0:40, 0:60]
        pixels = np.stack([rows * (index + 1) * 3, columns * 4 + index * 20, (rows * columns) // (index + 1)], axis=-1)
        cv2.imwrite(str(folder / f"{index}.png"), (pixels % 256).astype(np.uint8))
    return folder


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Six plain pictures: red, green and blue, each bright and dark."""
    import cv2

    folder = tmp_path / "colours"
    folder.mkdir()
    for index in range(6):
        pixels = np.full((20, 20, 3), 20, np.uint8)
        pixels[..., index % 3] = 250 - index * 20
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
    return folder
