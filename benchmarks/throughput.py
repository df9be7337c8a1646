"""How many frames a second, how much CPU a frame, how much memory: ours against two loops written by hand.

Same model file (UltraFace, repaired), same video, one thread, spinning off; each in a process of its own, in turns. Ours is
the real worker process with tracking and rules, its events thrown away; the two loops written by hand have neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import median
from typing import Any

from benchmarks.parts import Parts
from benchmarks.processes import run_module
from benchmarks.table import Figure, Goal, Line, Missing
from benchmarks.worker import WorkerRun, camera_job, run_worker

ROBOFLOW = "HOLDFAST_ROBOFLOW_PYTHON"
ROUNDS, QUICK_ROUNDS = 7, 3


def lines(parts: Parts) -> Iterator[Line]:
    """Measure in rounds: ideal, ours, naive, and Roboflow where it is installed."""
    model = parts.ultraface.model_path("fp32")
    job = camera_job(parts.ultraface, source=str(parts.video), pace="fast")
    ours: list[WorkerRun] = []
    ideal, naive, roboflow = [], [], []
    peer_python = os.environ.get(ROBOFLOW)
    for number in range(QUICK_ROUNDS if parts.is_quick else ROUNDS):
        parts.say(f"throughput, round {number + 1}")
        ideal.append(run_module("benchmarks.ideal", "three_threads", parts.video, model, 1))
        ours.append(run_worker(job))
        naive.append(run_module("benchmarks.ideal", "naive", parts.video, model, 1))
        if peer_python:
            roboflow.append(run_module("benchmarks.roboflow_peer", parts.video, model, 1, python=peer_python))
    yield from _against_ideal(ours, ideal, naive)
    if roboflow:
        yield from _against_roboflow(ours, roboflow)
    else:
        yield Missing("pipeline vs Roboflow", f"not installed; name its Python in {ROBOFLOW}")


def _against_ideal(ours: list[WorkerRun], ideal: list[dict[str, Any]], naive: list[dict[str, Any]]) -> Iterator[Line]:
    frames = {run.frames for run in ours} | {int(run["frames"]) for run in (*ideal, *naive)}
    note = f"the same {median(frames):.0f} frames in each" if len(frames) == 1 else f"frames differ: {sorted(frames)}"
    yield Figure(
        "pipeline throughput", "fps", [run.fps for run in ours], Goal("ratio", "≥", 0.95),
        [run["fps"] for run in ideal], "three-thread ideal", note,
    )  # fmt: skip
    yield Figure(
        "CPU per frame", "ms", [run.cpu_ms_per_frame for run in ours], Goal("ratio", "≤", 1.10),
        [run["cpu_ms_per_frame"] for run in naive], "naive loop",
    )  # fmt: skip
    yield Figure(
        "CPU per frame, vs ideal", "ms", [run.cpu_ms_per_frame for run in ours], None,
        [run["cpu_ms_per_frame"] for run in ideal], "three-thread ideal",
    )  # fmt: skip
    yield Figure(
        "worker memory", "MiB", [run.peak_rss_mb for run in ours], Goal("difference", "≤", 30, "MiB"),
        [run["rss_mb"] for run in ideal], "three-thread ideal", "peak resident memory while running at full speed",
    )  # fmt: skip


def _against_roboflow(ours: list[WorkerRun], roboflow: list[dict[str, Any]]) -> Iterator[Line]:
    yield Figure(
        "throughput vs Roboflow", "fps", [run.fps for run in ours], Goal("ratio", "≥", 1.0),
        [run["fps"] for run in roboflow], "InferencePipeline", "≥ 1.15 is the aim",
    )  # fmt: skip
    yield Figure(
        "memory vs Roboflow", "MiB", [run.peak_rss_mb for run in ours], Goal("ratio", "≤", 0.2),
        [run["rss_mb"] for run in roboflow], "InferencePipeline",
    )  # fmt: skip
