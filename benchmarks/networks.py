"""Networks of dense convolutions with random weights: what a graph costs does not depend on what it has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

CLASSES = 1000
_RESNET_STAGES = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))
"""ResNet-50: blocks, inner channels, outer channels (He et al. 2015, table 1)."""
_FIRES = ((16, 64), (16, 64), (), (32, 128), (32, 128), (), (48, 192), (48, 192), (64, 256), (64, 256))
"""SqueezeNet 1.1: channels squeezed to, and those of each half of the expansion; () is a pooling (Iandola et al. 2016)."""
_SPREAD = 30.0
"""Random features hardly differ from class to class; times this, the softmax is as sure as that of a trained network."""


def resnet50(seed: int, side: int) -> bytes:
    """Return a ResNet-50 of 102 MB for pictures of side × side pixels, as ONNX."""
    network = _Network(seed)
    last = network.then("Relu", network.conv("image", "stem", 3, 64, 7, stride=2))
    last = network.then("MaxPool", last, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (blocks, middle, outer) in enumerate(_RESNET_STAGES):
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            last = network.block(last, f"s{stage}b{number}", channels, middle, outer, stride=stride)
            channels = outer
    last = network.conv(network.then("GlobalAveragePool", last), "classifier", channels, CLASSES, 1)
    # The variance doubles with each block's addition; a softmax of thousands is one-hot, but finite.
    return network.finished(last, "resnet50", side)


def squeezenet(seed: int, side: int) -> bytes:
    """Return a SqueezeNet 1.1 of 5 MB for pictures of side × side pixels, as ONNX."""
    network = _Network(seed)
    pooling: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}
    last = network.then("Relu", network.conv("image", "stem", 3, 64, 3, stride=2))
    last = network.then("MaxPool", last, **pooling)
    channels = 64
    for number, fire in enumerate(_FIRES):
        if not fire:
            last = network.then("MaxPool", last, **pooling)
            continue
        squeezed, half = fire
        last = network.fire(last, f"fire{number}", channels, squeezed, half)
        channels = 2 * half
    last = network.conv(last, "classifier", channels, CLASSES, 1, gain=_SPREAD)
    return network.finished(network.then("GlobalAveragePool", last), "squeezenet", side)


class _Network:
    """Convolutions with random weights, chained. Batch norms are folded, as a builder would have done."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._random = np.random.default_rng(seed)

    def conv(
        self, source: str, name: str, inner: int, outer: int, kernel: int, *, stride: int = 1, gain: float = 1.0
    ) -> str:
        """Add a convolution; its weights keep the variance as it is (He et al. 2015b), times `gain`."""
        from onnx import helper, numpy_helper

        scale = gain * (2.0 / (inner * kernel * kernel)) ** 0.5
        weight = self._random.standard_normal((outer, inner, kernel, kernel), np.float32) * np.float32(scale)
        self.weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
        pads = [kernel // 2] * 4
        self.nodes.append(
            helper.make_node("Conv", [source, f"{name}.weight"], [name], name, strides=[stride, stride], pads=pads)
        )
        return name

    def then(self, kind: str, *sources: str, **attributes: Any) -> str:  # noqa: ANN401  they are ONNX's
        """Add any other node."""
        from onnx import helper

        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(sources), [name], name, **attributes))
        return name

    def block(self, source: str, name: str, inner: int, middle: int, outer: int, *, stride: int) -> str:
        """Add a bottleneck block: 1×1, 3×3, 1×1, and the way round."""
        last = self.then("Relu", self.conv(source, f"{name}.a", inner, middle, 1))
        last = self.then("Relu", self.conv(last, f"{name}.b", middle, middle, 3, stride=stride))
        last = self.conv(last, f"{name}.c", middle, outer, 1)
        if inner != outer:
            source = self.conv(source, f"{name}.d", inner, outer, 1, stride=stride)
        return self.then("Relu", self.then("Add", last, source))

    def fire(self, source: str, name: str, inner: int, squeezed: int, half: int) -> str:
        """Add a fire module: squeezed by 1×1, expanded by 1×1 and 3×3 side by side."""
        last = self.then("Relu", self.conv(source, f"{name}.squeeze", inner, squeezed, 1))
        halves = [
            self.then("Relu", self.conv(last, f"{name}.expand{kernel}", squeezed, half, kernel)) for kernel in (1, 3)
        ]
        return self.then("Concat", *halves, axis=1)

    def finished(self, last: str, name: str, side: int) -> bytes:
        """Return the model: `image` in, `classes` out."""
        from onnx import TensorProto, helper

        self.then("Softmax", self.then("Flatten", last), axis=1)
        self.nodes[-1].output[0] = "classes"
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])],
            [helper.make_tensor_value_info("classes", TensorProto.FLOAT, [1, CLASSES])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())
