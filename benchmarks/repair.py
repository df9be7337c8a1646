"""What the builder's repair alone is worth: UltraFace as shipped against the same model as built, run in turns.

With one thread the caller's thread does all the work, so its CPU time is the run's time without what other processes took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.ideal import Array, open_model, prepare
from benchmarks.parts import ULTRAFACE, Parts
from benchmarks.table import Figure, Goal, Line

Run = Callable[[Array], list[Array]]

ROUNDS, RUNS = 9, 60
SAMPLES = 20


def lines(parts: Parts) -> Iterator[Line]:
    """Time both files on frames of the video, one thread, and compare every output."""
    parts.say("repair")
    shipped = open_model(str(parts.shipped(ULTRAFACE)), 1)
    built = open_model(str(parts.ultraface.model_path("fp32")), 1)
    inputs = [prepare(frame) for frame in _frames(parts.video)]
    rounds = [_median_ms(shipped, built, inputs) for _ in range(ROUNDS)]
    shipped_ms, built_ms = [a for a, _ in rounds], [b for _, b in rounds]
    yield Figure(
        "repaired UltraFace, speed", "runs/s", [1000 / ms for ms in built_ms], Goal("ratio", "≥", 2.5),
        [1000 / ms for ms in shipped_ms], "as shipped",
        f"{ROUNDS} rounds of {RUNS} runs each, in turns run by run; "
        f"median {median(built_ms):.2f} ms against {median(shipped_ms):.2f} ms",
    )  # fmt: skip
    largest = max(
        float(np.abs(a - b).max()) for each in inputs for a, b in zip(shipped(each), built(each), strict=True)
    )
    yield Figure(
        "repaired UltraFace, difference", "", [largest], Goal("value", "≤", 1e-5), (), "",
        f"the largest of all outputs over {len(inputs)} frames",
    )  # fmt: skip


def _median_ms(shipped: Run, built: Run, inputs: list[Array]) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(RUNS):
        for run, own in zip((shipped, built), times, strict=True):
            run(inputs[number % len(inputs)])  # the other one's weights are in the caches: this brings ours back
            began = time.thread_time()
            run(inputs[number % len(inputs)])
            own.append(time.thread_time() - began)
    return median(times[0]) * 1000, median(times[1]) * 1000


def _frames(video: Path) -> Iterator[NDArray[np.uint8]]:
    capture = cv2.VideoCapture(str(video))
    step = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // SAMPLES
    for number in range(step * SAMPLES):
        ok, frame = capture.read()
        if ok and number % step == 0:
            yield frame  # type: ignore[misc]
