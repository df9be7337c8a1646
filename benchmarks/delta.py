"""Bytes on the wire for pairs of files that releases bring, as a share of the new file: the shortest form against zstd -19.

Each figure is the file that travels, made as `holdfast release` makes it and unpacked as a device does it (which checks
its digest). Weights are perturbed from a fixed seed, so the pairs are the same everywhere.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
import psutil
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.clock import SystemClock
from agent.update.documents import CHUNK_BYTES
from agent.update.fetching.unpacking import unpack
from benchmarks.parts import YOLOX, Parts
from benchmarks.processes import peak_rss_mb
from benchmarks.table import Figure, Goal, Line
from bundles.onnxlibrary import dimensions
from bundles.quantize import StaticQuantizer
from bundles.release.forms import make_forms

LAST_LAYER = Goal("value", "≤", 8, "%")
ALL_FLOATS = Goal("value", "≤", 65, "%")
INT8_RETUNED = Goal("value", "≤", 25, "%")
NO_WORSE = Goal("ratio", "≤", 1)
RESNET_BLOCKS = 10
"""Of 512 × 512 × 3 × 3 weights, 94 MB together: what ResNet-50 has in front of its last layer."""

Change = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A file that a device holds, and the one that a release brings."""

    name: str
    old: bytes
    new: bytes
    goal: Goal


def lines(parts: Parts) -> Iterator[Line]:
    """Make, weigh and unpack each pair's forms."""
    for number, pair in enumerate(_pairs(parts)):
        folder = parts.folder / f"delta-{number}"
        folder.mkdir()
        yield _measure(pair, folder)


def _pairs(parts: Parts) -> Iterator[Pair]:
    for name, path in (("UltraFace", parts.ultraface.model_path("fp32")), ("YOLOX-Nano", parts.shipped(YOLOX))):
        model = onnx.load_model(path)
        fp32, int8 = bytes(model.SerializeToString()), _quantized(model)
        yield Pair(f"{name}, unchanged", fp32, fp32, Goal("value", "≤", 0, "%"))
        yield Pair(f"{name}, last conv changed", fp32, _moved(fp32, 0.01, is_last_only=True), LAST_LAYER)
        yield Pair(f"{name}, all fp32 ±1 %", fp32, _moved(fp32, 0.01), ALL_FLOATS)
        yield Pair(f"{name}, all fp32 ±0.01 %", fp32, _moved(fp32, 0.0001), ALL_FLOATS)
        yield Pair(f"{name}, fp32 → int8 QDQ", fp32, int8, NO_WORSE)
        yield Pair(f"{name}, int8 lightly retuned", int8, _retuned(int8), INT8_RETUNED)
    resnet = _resnet_like(RESNET_BLOCKS // 5 if parts.is_quick else RESNET_BLOCKS)
    size = f"{len(resnet) / 1e6:.0f} MB"
    yield Pair(f"ResNet-like {size}, last FC changed", resnet, _moved(resnet, 0.01, is_last_only=True), LAST_LAYER)


def _measure(pair: Pair, folder: Path) -> Figure:
    old, new = _put(folder, pair.old), _put(folder, pair.new)
    began_s = time.perf_counter()
    forms = make_forms(new, new.name, [old], folder, CHUNK_BYTES)
    made_s = time.perf_counter() - began_s
    whole = next(form for form in forms if form.base is None)
    name, shares = f"wire, {pair.name}", [100 * form.size_bytes / len(pair.new) for form in (forms[0], whole)]
    if old == new:
        return Figure(name, "%", [0.0], pair.goal, [shares[1]], "zstd -19", "the same digest: nothing is fetched")
    began_s = time.perf_counter()
    with _PeakOfChildren() as peak:
        base = old if forms[0].base else None
        unpack(
            forms[0], folder / forms[0].sha256, base, folder / "unpacked", new.name, len(pair.new),
            clock=SystemClock(), stop=threading.Event(),
        )  # fmt: skip
    unpacked_s = time.perf_counter() - began_s
    return Figure(
        name, "%", [shares[0]], pair.goal, [shares[1]], "zstd -19",
        f"{forms[0].kind}; all forms made in {made_s:.1f} s, this one unpacked in {unpacked_s:.2f} s "
        f"by a child that starts for it and takes {peak.mib:.0f} MiB",
    )  # fmt: skip


def _put(folder: Path, content: bytes) -> Path:
    path = folder / hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    return path


def _quantized(model: onnx.ModelProto) -> bytes:
    """Return the INT8 variant. It is calibrated on noise: that changes activations' ranges, not the weights' bytes."""
    rng = np.random.default_rng(1)
    shapes = {each.name: [int(size) for size in dimensions(each)] for each in model.graph.input}
    samples = [{name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(2)]
    return bytes(StaticQuantizer(model, samples).quantize().SerializeToString())


def _moved(content: bytes, relative: float, *, is_last_only: bool = False) -> bytes:
    """Return the model with its float matrices (or the last one that a node uses) moved by a normal share of each."""
    model, rng = onnx.load_from_string(content), np.random.default_rng(1)
    matrices = {w.name: w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and len(w.dims) >= 2}
    used = [name for node in model.graph.node for name in node.input if name in matrices]
    for name in used[-1:] if is_last_only else matrices:
        value = numpy_helper.to_array(matrices[name])
        moved = (value * (1 + relative * rng.standard_normal(value.shape))).astype(np.float32)
        matrices[name].CopyFrom(numpy_helper.from_array(moved, name))
    return bytes(model.SerializeToString())


def _retuned(content: bytes) -> bytes:
    """Return the model with a fifth of its INT8 weights moved by one or two steps."""
    model, rng = onnx.load_from_string(content), np.random.default_rng(1)
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.INT8 and len(weight.dims) >= 2:
            value = numpy_helper.to_array(weight).astype(np.int16)
            step = np.where(rng.random(value.shape) < 0.2, rng.choice([-2, -1, 1, 2], value.shape), 0)
            weight.CopyFrom(numpy_helper.from_array(np.clip(value + step, -128, 127).astype(np.int8), weight.name))
    return bytes(model.SerializeToString())


def _resnet_like(blocks: int) -> bytes:
    """Return a chain of convolutions with random weights and a last layer that is 8 % of all, as in ResNet-50."""
    rng = np.random.default_rng(0)
    weights = {f"conv{number}": (512, 512, 3, 3) for number in range(blocks)} | {"fc": (2048, 100 * blocks)}
    nodes = [
        helper.make_node("MatMul" if name == "fc" else "Conv", [f"to_{name}", name], [f"of_{name}"]) for name in weights
    ]
    initializers = [
        numpy_helper.from_array(0.02 * rng.standard_normal(shape, np.float32), name) for name, shape in weights.items()
    ]
    graph = helper.make_graph(nodes, "resnet-like", [], [], initializers)
    return bytes(helper.make_model(graph).SerializeToString())


class _PeakOfChildren:
    """Watches this process's only child: one that is gone tells nothing any more."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="peak", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.005):
            for child in psutil.Process().children():
                try:
                    self.mib = peak_rss_mb(child.pid)  # the last look counts: until exec it is still the parent's
                except (OSError, psutil.Error, IndexError):
                    continue  # it is ending: a zombie has no memory to tell of
