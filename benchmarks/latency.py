"""What the pipeline adds to a frame's own work when frames come at a camera's pace: hand-overs, tracking, rules, emit.

The file plays at its own 10 frames a second, so a frame is captured when it is due. Frame age counts from there to the
end of emit. The peer is the naive loop at the same pace: prepare, infer and decode outputs of the same frames, from the
moment they are due; the pixels are there by then in both.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.parts import Parts
from benchmarks.processes import run_module
from benchmarks.table import Figure, Goal, Line
from benchmarks.worker import WorkerRun, camera_job, run_worker

FPS = 10
ROUNDS = 3
SECONDS, QUICK_SECONDS = 30, 15
STAGES = ("capture", "preprocess", "infer", "decode", "track", "rules", "emit")


def lines(parts: Parts) -> Iterator[Line]:
    """Run both at a camera's pace, in turns, and compare ages."""
    rounds, seconds = (1, QUICK_SECONDS) if parts.is_quick else (ROUNDS, SECONDS)
    frames = FPS * seconds
    model = parts.ultraface.model_path("fp32")
    job = camera_job(parts.ultraface, source=str(parts.video), pace="own")
    naive_ms: list[float] = []
    runs: list[WorkerRun] = []
    for number in range(rounds):
        parts.say(f"latency, round {number + 1}: {frames} frames at {FPS} a second")
        naive = run_module("benchmarks.ideal", "naive", parts.video, model, 1, FPS, frames)
        naive_ms.append(naive["p50_ms"])
        runs.append(run_worker(job, lambda beat: beat["samples"] >= frames))
    ages = [run.last["stages"]["age"] for run in runs]
    yield Figure(
        "added latency, p50", "ms", [age["p50_ms"] for age in ages], Goal("difference", "≤", 1.0, "ms"),
        naive_ms, "naive loop, same pace", f"{frames} frames a round; ours is frame age at emit",
    )  # fmt: skip
    yield Figure(
        f"frame age at {FPS} fps, p99", "ms", [age["p99_ms"] for age in ages], Goal("ratio", "≤", 1.2),
        [sum(run.last["stages"][stage]["p99_ms"] for stage in STAGES) for run in runs], "sum of our stages' p99",
        _note(runs[-1]),
    )  # fmt: skip


def _note(run: WorkerRun) -> str:
    stages = run.last["stages"]
    times = ", ".join(f"{stage} {stages[stage]['p50_ms']:.2f} and {stages[stage]['p99_ms']:.2f}" for stage in STAGES)
    return f"p50 and p99 in ms, last round: {times}; dropped: {run.last['dropped'] or 'none'}"
