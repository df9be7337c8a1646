"""What the pipeline adds to a frame's own work when frames come at a camera's pace: hand-overs, tracking, rules, emit.

The file plays at its own 10 frames a second, so a frame is captured when it is due. Frame age counts from there to the
end of emit. The peer is the naive loop at the same pace: prepare, infer and decode outputs of the same frames, from the
moment the pixels are there. Both run at the same time: what disturbs one disturbs the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from benchmarks.parts import Parts
from benchmarks.processes import run_module
from benchmarks.table import Figure, Goal, Line
from benchmarks.worker import camera_job, run_worker

FPS = 10
SECONDS, QUICK_SECONDS = 60, 20
STAGES = ("capture", "preprocess", "infer", "decode", "track", "rules", "emit")


def lines(parts: Parts) -> Iterator[Line]:
    """Run both at a camera's pace and compare ages."""
    frames = FPS * (QUICK_SECONDS if parts.is_quick else SECONDS)
    parts.say(f"latency, {frames} frames at {FPS} a second")
    model = parts.ultraface.model_path("fp32")
    job = camera_job(parts.ultraface, source=str(parts.video), pace="own")
    naive: dict[str, Any] = {}
    peer = threading.Thread(
        target=lambda: naive.update(run_module("benchmarks.ideal", "naive", parts.video, model, 1, FPS, frames))
    )
    peer.start()
    run = run_worker(job, lambda beat: beat["samples"] >= frames)
    peer.join()
    stages = run.last["stages"]
    age = stages["age"]
    yield Figure(
        "added latency, p50", "ms", [age["p50_ms"]], Goal("difference", "≤", 1.0, "ms"),
        [naive["p50_ms"]], "naive loop, same pace", f"{frames} frames at {FPS} a second; ours is frame age at emit",
    )  # fmt: skip
    yield Figure(
        "frame age at 10 fps, p99", "ms", [age["p99_ms"]], Goal("ratio", "≤", 1.2),
        [sum(stages[stage]["p99_ms"] for stage in STAGES)], "sum of our stages' p99",
        "p99 in ms: " + ", ".join(f"{stage} {stages[stage]['p99_ms']:.2f}" for stage in STAGES)
        + f"; dropped {run.last['dropped'] or 'none'}",
    )  # fmt: skip
