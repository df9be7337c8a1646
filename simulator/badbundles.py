"""Bundles that are built correctly and misbehave: what a signature cannot protect from. And good ones to compare with.

Each holds a small classifier of how bright a 64×64 picture is (`dark` or `bright`), its golden samples and answers, and one
fault. The models are plain ONNX; nothing is injected from outside, so a fault strikes whoever runs them. `when` says on what:

    always   on every picture: the trial must refuse it
    live     on pictures above some brightness. The golden samples and a warm-up's zeros are darker, so that the trial finds
             nothing and only probation can; pictures of a scene:// camera are brighter
    some     as `live`, but on about one picture in eight

Needs the package onnx (extra `build`). Two calls with the same arguments write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.bundle.reader import BLOBS, MANIFEST

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Fault = Literal[
    "none",
    "crash at load",  # functions that call functions 20,000 deep: ONNX Runtime runs out of stack, SIGSEGV
    "crash",  # the least integer divided by -1: SIGFPE (on x86; elsewhere it answers)
    "hang",  # a loop of 2^62 rounds
    "nan",
    "wrong shape",  # four classes where the file and the manifest say two
    "other shape",  # the file says four classes, the manifest two
    "slow",  # about four times the bundle's own gate, MAX_P99_MS
    "memory",  # `memory_bytes` in one tensor
    "wrong answers",  # golden answers that the model does not give
    "missing blob",  # the manifest names a model that is not there
]
When = Literal["always", "live", "some"]

NOT_BY_PICTURE: tuple[Fault, ...] = ("none", "crash at load", "other shape", "wrong answers", "missing blob")
"""Faults of the bundle, not of one run: `when` says nothing about them."""
LABELS = ("dark", "bright")
SIDE_PX = 64
GOLDEN_GREYS = (0, 10, 20)
LIVE_BRIGHTNESS = 0.125
"""Of 0..1; golden samples stay below 0.1."""
MAX_P99_MS = 25.0
SLOW_ROUNDS = 80_000
"""About 100 ms where the gate is 25."""
_FUNCTIONS = 20_000
_DOMAIN = "bad"

Nodes = list[onnx.NodeProto]


def make_bundle(
    folder: Path,
    fault: Fault = "none",
    when: When = "always",
    *,
    name: str = "lamp",
    version: str = "1",
    sharpness: float = 8.0,
    ballast_bytes: int = 0,
    ballast_seed: int = 1,
    memory_bytes: int = 6 << 30,
) -> Path:
    """Write a built bundle into `folder` (made where it is missing) and return it.

    Args:
        folder: Where it goes.
        fault: What is wrong with it.
        when: On which pictures.
        name: Of the bundle.
        version: Of the bundle.
        sharpness: Another value makes another good model with other scores.
        ballast_bytes: Weights that nothing comes of, for a download of a certain size. They do not compress.
        ballast_seed: Another one makes other weights, which no difference to an older version makes smaller.
        memory_bytes: What `memory` takes at once, on disk nothing. Keep it below the machine's where no fence stands before it.

    Raises:
        ValueError: this fault does not depend on the picture.
    """
    if when != "always" and fault in NOT_BY_PICTURE:
        raise ValueError(f"{fault!r} does not depend on the picture")
    (folder / BLOBS).mkdir(parents=True, exist_ok=True)
    model = _blob(
        folder, _model(fault, when, sharpness, (ballast_bytes, ballast_seed), memory_bytes).SerializeToString()
    )
    if fault == "missing blob":
        (folder / BLOBS / str(model["sha256"])).unlink()
    shape = [1, len(LABELS)]
    variant = {
        "name": "fp32",
        "model": model,
        "opset": 17,
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, SIDE_PX, SIDE_PX]}],
        "outputs": [{"name": "classes", "dtype": "float32", "shape": shape}],
    }
    manifest = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "input": {"kind": "image", "width": SIDE_PX, "height": SIDE_PX, "scale_values": [255.0, 255.0, 255.0]},
        "decoder": {"model_type": "classify", "labels": list(LABELS), "confidence_threshold": 0.5},
        "variants": [variant],
        "golden": [_golden(folder, grey, sharpness, is_wrong=fault == "wrong answers") for grey in GOLDEN_GREYS],
        "max_p99_ms": MAX_P99_MS,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
    return folder


def expected_scores(brightness: float, sharpness: float = 8.0) -> NDArray[np.float32]:
    """Return what a good model says of a picture of that mean brightness (0 to 1): (dark, bright)."""
    bright = 1 / (1 + np.exp(-sharpness * (brightness - 0.5)))
    return np.array([1 - bright, bright], np.float32)


def _golden(folder: Path, grey: int, sharpness: float, *, is_wrong: bool) -> dict[str, object]:
    encoded, picture = cv2.imencode(".png", np.full((SIDE_PX, SIDE_PX, 3), grey, np.uint8))
    assert encoded
    scores = expected_scores(grey / 255, sharpness)
    answer = {"kind": "classes", "scores": [round(float(scores[0]), 6)], "class_ids": [1 if is_wrong else 0]}
    expected = json.dumps(answer, sort_keys=True, separators=(",", ":")).encode()
    return {"input": _blob(folder, picture.tobytes()), "expected": _blob(folder, expected)}


def _blob(folder: Path, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (folder / BLOBS / digest).write_bytes(content)
    return {"sha256": digest, "size_bytes": len(content)}


# -- the model: brightness, then whether this picture is one on which the fault strikes, then the fault -----------------


class _Graph:
    """Nodes and weights that are being put together."""

    def __init__(self) -> None:
        self.nodes: Nodes = []
        self.weights: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:  # noqa: ANN401  each operator has its own
        """Add a node and return the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant and return its name."""
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def choose(self, name: str, strikes: NDArray[np.generic], else_: NDArray[np.generic]) -> str:
        """Return the one value on pictures where the fault strikes, else the other."""
        return self.add(
            "Where", ["strikes", self.weight(f"{name}.bad", strikes), self.weight(f"{name}.good", else_)], name
        )


def _model(fault: Fault, when: When, sharpness: float, ballast: tuple[int, int], memory_bytes: int) -> onnx.ModelProto:
    graph = _Graph()
    graph.add("ReduceMean", ["image"], "mean", axes=[0, 1, 2, 3], keepdims=0)
    _add_strikes(graph, when)
    slope = graph.weight("slope", np.array([[-sharpness / 2, sharpness / 2]], np.float32))
    offset = graph.weight("offset", np.array([[sharpness / 4, -sharpness / 4]], np.float32))
    graph.add("Add", [graph.add("Mul", ["mean", slope], "scaled"), offset], "logits")
    last = graph.add("Softmax", [_with_ballast(graph, *ballast)], "scores", axis=1)
    graph.add("Identity", [_with_fault(graph, fault, last, memory_bytes)], "classes")
    classes = 4 if fault == "other shape" else len(LABELS)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "lamp",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE_PX, SIDE_PX])],
            [helper.make_tensor_value_info("classes", TensorProto.FLOAT, [1, classes])],
            graph.weights,
        ),
        functions=graph.functions,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)],
        ir_version=8,
        producer_name="holdfast-simulator",
    )


def _add_strikes(graph: _Graph, when: When) -> None:
    """Add the boolean `strikes`. Even `always` is computed, so that nothing can be folded away when the model is loaded."""
    limit = graph.weight("limit", np.array(-1.0 if when == "always" else LIVE_BRIGHTNESS, np.float32))
    is_bright = graph.add("Greater", ["mean", limit], "is_bright")
    if when != "some":
        graph.add("Identity", [is_bright], "strikes")
        return
    many = graph.add("Mul", ["mean", graph.weight("many", np.array(10_007.0, np.float32))], "many_means")
    part = graph.add("Sub", [many, graph.add("Floor", [many], "whole")], "part")
    is_drawn = graph.add("Less", [part, graph.weight("share", np.array(0.125, np.float32))], "is_drawn")
    graph.add("And", [is_bright, is_drawn], "strikes")


def _with_ballast(graph: _Graph, count: int, seed: int) -> str:
    if not count:
        return "logits"
    ballast = graph.weight("ballast", np.random.default_rng(seed).integers(0, 256, count, np.uint8))
    first = graph.weight("first", np.array(0, np.int64))
    one = graph.add("Gather", [ballast, first], "one_byte")
    nothing = graph.add(
        "Mul",
        [graph.add("Cast", [one], "one_float", to=TensorProto.FLOAT), graph.weight("zero", np.array(0, np.float32))],
        "nothing",
    )
    return graph.add("Add", ["logits", nothing], "logits_with_ballast")


def _with_fault(graph: _Graph, fault: Fault, last: str, memory_bytes: int) -> str:
    """Return the name of the scores after the fault had its chance."""
    match fault:
        case "crash at load":
            return _call_deeply(graph, last)
        case "crash":
            least = graph.choose("dividend", np.array(-(2**31), np.int32), np.array(0, np.int32))
            quotient = graph.add(
                "Div", [least, graph.choose("divisor", np.array(-1, np.int32), np.array(1, np.int32))], "div"
            )
            return _plus(graph, last, graph.add("Cast", [quotient], "bad", to=TensorProto.FLOAT))
        case "hang":
            return _loop(graph, last, 2**62)
        case "slow":
            return _loop(graph, last, SLOW_ROUNDS)
        case "nan":
            return _plus(graph, last, graph.choose("bad", np.array(np.nan, np.float32), np.array(0, np.float32)))
        case "wrong shape":
            return graph.add("Tile", [last, graph.choose("repeats", np.array([1, 2]), np.array([1, 1]))], "bad")
        case "other shape":
            return graph.add("Concat", [last, last], "bad", axis=1)
        case "memory":
            return _plus(graph, last, _take_memory(graph, memory_bytes))
        case _:
            return last


def _plus(graph: _Graph, last: str, what: str) -> str:
    return graph.add("Add", [last, what], "spoilt")


def _take_memory(graph: _Graph, count: int) -> str:
    """Fill a tensor of so many bytes and bring nothing of it back."""
    size = graph.choose("size", np.array([count // 4]), np.array([1]))
    filled = graph.add(
        "Expand", [graph.add("Mul", ["mean", graph.weight("none", np.array(0, np.float32))], "zero_of"), size], "filled"
    )
    return graph.add("ReduceMax", [filled], "bad", keepdims=0)


def _loop(graph: _Graph, last: str, rounds: int) -> str:
    """Go round and round with the scores, which stay as they are."""
    scores = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on_in"], ["go_on_out"]),
            helper.make_node("Abs", ["scores_in"], ["scores_out"]),
        ],
        "round",
        [
            scores("number", TensorProto.INT64, []),
            scores("go_on_in", TensorProto.BOOL, []),
            scores("scores_in", TensorProto.FLOAT, [1, 2]),
        ],
        [scores("go_on_out", TensorProto.BOOL, []), scores("scores_out", TensorProto.FLOAT, [1, 2])],
    )
    count = graph.choose("rounds", np.array(rounds), np.array(0))
    return graph.add("Loop", [count, graph.weight("go_on", np.array(True)), last], "looped", body=body)


def _call_deeply(graph: _Graph, last: str) -> str:
    """Call the first of many functions, each of which calls the next: inlining them exhausts the stack."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)]
    for number in range(_FUNCTIONS):
        is_last = number == _FUNCTIONS - 1
        node = (
            helper.make_node("Identity", ["x"], ["y"])
            if is_last
            else helper.make_node(f"F{number + 1}", ["x"], ["y"], domain=_DOMAIN)
        )
        graph.functions.append(helper.make_function(_DOMAIN, f"F{number}", ["x"], ["y"], [node], opsets))
    return graph.add("F0", [last], "deep", domain=_DOMAIN)


def decompression_bomb(size_bytes: int) -> bytes:
    """Return a Zstandard frame that unpacks to `size_bytes` zeros and does not say how many: about 1 byte for 30,000.

    For a release whose transfer document offers it as the form of a small blob.
    """
    compressor = zstd.ZstdCompressor()
    zeros = bytes(1 << 20)
    parts = [compressor.compress(zeros[: size_bytes - start]) for start in range(0, size_bytes, len(zeros))]
    return b"".join([*parts, compressor.flush()])
