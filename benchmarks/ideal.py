"""The ceiling: a camera pipeline written by hand for one model, with nothing that a product needs.

`naive` reads, prepares, infers and decodes in one loop; `three_threads` is decode+prepare | infer | decode outputs,
with queues of two. Runs as a process of its own, so that memory and CPU are its alone, and prints one JSON line. The
rate is that from the first finished frame to the last, `work` is prepare, infer and decode outputs of one frame (naive).

    python -m benchmarks.ideal naive|three_threads VIDEO MODEL THREADS [FPS [FRAMES]]
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.processes import peak_rss_mb

Array = NDArray[np.float32]
SIZE = (320, 240)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast frames come, and how many."""

    fps: float = 0.0
    """0: as fast as it goes."""
    frames: int = sys.maxsize


def prepare(frame: NDArray[np.uint8]) -> Array:
    """UltraFace's input from a BGR frame."""
    return cv2.dnn.blobFromImage(frame, 1 / 128, SIZE, (127, 127, 127), swapRB=True)  # type: ignore[return-value]


def open_model(path: str, threads: int) -> Callable[[Array], list[Array]]:
    """A session as a careful engineer sets it up: all optimisations, no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # an old export gives a warning for each of its weights
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda tensor: session.run(None, {name: tensor})


def decode(outputs: list[Array], size: tuple[int, int]) -> int:
    """Boxes over the threshold, in pixels of the frame, after non-maximum suppression; returns how many."""
    scores = outputs[0][0, :, 1]
    keep = scores >= 0.7
    boxes = outputs[1][0][keep] * np.array([*size, *size], np.float32)
    if not len(boxes):
        return 0
    boxes[:, 2:] -= boxes[:, :2]
    return len(cv2.dnn.NMSBoxes(boxes.tolist(), scores[keep].tolist(), 0.7, 0.3))


def frames(video: str, pace: Pace) -> Iterator[tuple[float, Any]]:
    """Frames with the moment at which each was asked for."""
    capture = cv2.VideoCapture(video)
    start = time.perf_counter()
    index = 0
    while index < pace.frames:
        asked = time.perf_counter()
        ok, frame = capture.read()
        if not ok:
            return
        if pace.fps and (wait := start + index / pace.fps - time.perf_counter()) > 0:
            time.sleep(wait)  # a camera's frame is there when it is due, whatever made it
        yield asked, frame
        index += 1


Spans = list[tuple[float, float]]
"""For each frame: when it was asked for (naive: had been read), and when its boxes were there."""


def naive(video: str, infer: Callable[[Array], list[Array]], pace: Pace) -> Spans:
    """One loop."""
    spans = []
    for _, frame in frames(video, pace):
        read = time.perf_counter()
        decode(infer(prepare(frame)), (frame.shape[1], frame.shape[0]))
        spans.append((read, time.perf_counter()))
    return spans


def three_threads(video: str, infer: Callable[[Array], list[Array]], pace: Pace) -> Spans:
    """Decode and prepare | infer | decode outputs."""
    prepared: queue.Queue[Any] = queue.Queue(2)
    inferred: queue.Queue[Any] = queue.Queue(2)

    def read() -> None:
        for asked, frame in frames(video, pace):
            prepared.put((asked, prepare(frame), (frame.shape[1], frame.shape[0])))
        prepared.put(None)

    def run() -> None:
        while (item := prepared.get()) is not None:
            inferred.put((item[0], infer(item[1]), item[2]))
        inferred.put(None)

    threads = [threading.Thread(target=read), threading.Thread(target=run)]
    for thread in threads:
        thread.start()
    spans = []
    while (item := inferred.get()) is not None:
        decode(item[1], item[2])
        spans.append((item[0], time.perf_counter()))
    return spans


def main() -> None:
    """Run one of the two and print its figures."""
    mode, video, model, threads = sys.argv[1:5]
    pace = Pace(*(convert(text) for convert, text in zip((float, int), sys.argv[5:7], strict=False)))
    infer = open_model(model, int(threads))
    infer(np.zeros((1, 3, SIZE[1], SIZE[0]), np.float32))
    cpu = time.process_time()
    spans = {"naive": naive, "three_threads": three_threads}[mode](video, infer, pace)
    cpu = time.process_time() - cpu
    p50, p99 = np.percentile([done - asked for asked, done in spans], [50, 99]) * 1000
    figures = {
        "frames": len(spans),
        "fps": (len(spans) - 1) / (spans[-1][1] - spans[0][1]),
        "cpu_ms_per_frame": cpu / len(spans) * 1000,
        "p50_ms": p50,
        "p99_ms": p99,
        "rss_mb": peak_rss_mb("self"),
    }
    print(json.dumps({name: round(float(value), 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
