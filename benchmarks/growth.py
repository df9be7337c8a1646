"""Whether a worker's memory grows: 200,000 frames through a real worker with a model so small that it takes minutes.

A short video of 64×48 pixels plays over and over as fast as it goes (it is opened anew each time), a tiny classifier
answers, a rule makes an event whenever the likeliest class changes. What a worker takes in its first tenth (caches, arenas,
rings that fill) counts as its size; the growth is from there to the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from agent.bundle.reader import Bundle, open_bundle
from benchmarks.parts import Parts
from benchmarks.table import Figure, Goal, Line
from benchmarks.worker import camera_job, run_worker

FRAMES, QUICK_FRAMES = 200_000, 40_000
FRAMES_IN_FILE = 20_000
WARM_SHARE = 0.1
BEATS = 5
"""Heartbeats whose median is the memory at one moment."""


def lines(parts: Parts) -> Iterator[Line]:
    """Run the worker and compare its memory early and late."""
    frames = QUICK_FRAMES if parts.is_quick else FRAMES
    parts.say(f"memory over {frames} frames")
    job = camera_job(
        _bundle(parts.folder / "tiny"),
        source=str(_video(parts.folder / "tiny.avi")),
        pace="fast",
        repeat=True,
        rules={"colour": {"when": "class"}},
    )
    run = run_worker(job, lambda beat: beat["samples"] >= frames)
    warm = [size for _, beat, size in run.beats if beat["samples"] >= frames * WARM_SHARE]
    began, ended = median(warm[:BEATS]) / 2**20, median(warm[-BEATS:]) / 2**20
    yield Figure(
        f"worker growth, {run.frames:,} frames", "%", [(ended / began - 1) * 100], Goal("value", "≤", 1, "%"), (), "",
        f"{began:.2f} MiB after {frames * WARM_SHARE:,.0f} frames, {ended:.2f} MiB at the end; {run.events} events, "
        f"{run.fps:,.0f} frames/s" + (f"; --quick: the promise is about {FRAMES:,} frames" if parts.is_quick else ""),
    )  # fmt: skip


def _video(path: Path) -> Path:
    """Write a video whose colour changes now and then."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    colours = [(30, 30, 220), (30, 220, 30), (220, 30, 30)]
    noise = np.random.default_rng(1)
    for number in range(FRAMES_IN_FILE):
        picture = np.full((48, 64, 3), colours[number // 100 % 3], np.uint8)
        writer.write(picture + noise.integers(0, 20, picture.shape, dtype=np.uint8))
    writer.release()
    return path


def _bundle(folder: Path) -> Bundle:
    """Write the built bundle of a classifier that says which colour is strongest."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 0.05, "weights")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"], "pool"),
        helper.make_node("Flatten", ["mean"], ["row"], "flatten"),
        helper.make_node("MatMul", ["row", "weights"], ["logits"], "matmul"),
        helper.make_node("Softmax", ["logits"], ["classes"], "softmax", axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])
    classes = helper.make_tensor_value_info("classes", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "colours", [image], [classes], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = bytes(model.SerializeToString())
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / digest).write_bytes(content)
    variant = {
        "name": "fp32", "opset": 17, "model": {"sha256": digest, "size_bytes": len(content)},
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 32, 32]}],
        "outputs": [{"name": "classes", "dtype": "float32", "shape": [1, 3]}],
    }  # fmt: skip
    manifest = {
        "name": "colours", "version": "1", "variants": [variant],
        "input": {"kind": "image", "width": 32, "height": 32, "reverse_input_channels": True},
        "decoder": {"model_type": "classify", "labels": ["red", "green", "blue"], "confidence_threshold": 0.3},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(folder)
