"""The switch of a running worker to another bundle: frames lost, and how long nothing came out.

The real worker process with a camera that generates 30 frames a second, which it does whatever the worker does, is told again
and again to switch between two bundles: a ResNet-50 of 102 MB with random weights, at 64×64 pixels so that two cores can
carry 30 a second, and the parcels that ship with Holdfast. The worker says for each switch the longest time between the
ends of two consecutive frames, from the beginning of loading until the old session was freed. One frame period of that is the
camera's own; the pause is what came on top.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agent.bundle.reader import Bundle, open_bundle
from agent.childprocess import Child, Message
from agent.pipeline.messages import Job, PipelineBeat, swap_message
from agent.pipeline.workers import ARENAS, ROLE
from benchmarks.networks import resnet50
from benchmarks.parts import REPOSITORY, Parts
from benchmarks.table import Figure, Goal, Line
from benchmarks.worker import NAME, camera_job

FPS = 30
PERIOD_MS = 1000 / FPS
SWAPS, QUICK_SWAPS = 40, 10
WARM_FRAMES = 60
ANSWER_S = 120
SIDE = 64


def lines(parts: Parts) -> Iterator[Line]:
    """Switch a large model, then a small one."""
    count = QUICK_SWAPS if parts.is_quick else SWAPS
    folder = parts.folder / "switch"
    large = (_resnet(folder / "resnet-a", seed=1), _resnet(folder / "resnet-b", seed=2))
    small = (open_bundle(REPOSITORY / "bundles" / "recipes" / "parcels" / "built"), _parcels(folder / "parcels"))
    for name, pair in (("ResNet-50, 102 MB", large), ("parcels, 1 MB", small)):
        parts.say(f"switch: {count} times between two bundles ({name})")
        run = _run(tuple(_job(bundle) for bundle in pair), count)
        pauses = [max(0.0, gap - PERIOD_MS) for gap in run.gaps_ms]
        note = (
            f"{count} switches, {run.frames} frames at {FPS} fps; longest time between two results of each switch: median "
            f"{_rank(run.gaps_ms, 50):.1f}, longest {max(run.gaps_ms):.1f} ms, of which {PERIOD_MS:.1f} are the camera's; "
            f"loading {_rank(run.load_ms, 50):.0f} ms, infer p50 {run.infer_p50_ms:.1f} ms; "
            f"memory {run.rss_mb[0]:.0f} MiB after the first, {run.rss_mb[-1]:.0f} after the last"
        )
        yield Figure(
            f"switch, frames lost ({name})", "", [run.lost], Goal("value", "≤", 0), [run.lost_without], "as long without a switch"
        )  # fmt: skip
        yield Figure(
            f"switch, pause p99 ({name})", "ms", [_rank(pauses, 99)], Goal("value", "≤", round(PERIOD_MS, 1), "ms"), note=note
        )  # fmt: skip


@dataclass(slots=True)
class _Run:
    gaps_ms: list[float] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    lost: int = 0
    lost_without: int = 0
    """In a stretch of as many frames after the last switch: what the machine itself costs."""
    frames: int = 0
    infer_p50_ms: float = 0.0


class _Conversation:
    """One worker, spoken to as core speaks to it."""

    def __init__(self, job: Job) -> None:
        self._inbox: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
        self.child = Child(
            ROLE,
            on_message=self._inbox.put,
            on_exit=self._inbox.put,
            environment=None if ARENAS in os.environ else {ARENAS: "2"},
        )
        self.child.send(job.to_message())

    def next(self, kind: str) -> Message:
        """Return the next message of a kind.

        Raises:
            RuntimeError: the worker ended or failed, or said nothing of the kind in time.
        """
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            message = self._inbox.get(timeout=max(0.0, deadline_s - time.monotonic()))
            if isinstance(message, int) or message["is"] in ("failed", "swap-failed"):
                raise RuntimeError(f"the worker did not switch: {message}; {self.child.last_words}")
            if message["is"] == kind:
                return message

    def beat(self) -> tuple[PipelineBeat, int]:
        """Return the camera's next beat, and the process's resident bytes."""
        message = self.next("beat")
        return message["pipelines"][NAME], message["rss_bytes"]

    def beat_at(self, captured: int) -> PipelineBeat:
        """Return the first beat after so many frames."""
        while True:
            beat, _ = self.beat()
            if beat["captured"] >= captured:
                return beat


def _lost(beat: PipelineBeat) -> int:
    return sum(beat["dropped"].values())


def _run(jobs: tuple[Job, ...], count: int) -> _Run:
    run = _Run()
    worker = _Conversation(jobs[0])
    try:
        began = worker.beat_at(WARM_FRAMES)
        for number in range(1, count + 1):
            worker.child.send(swap_message(number, jobs[number % 2]))
            swapped = worker.next("swapped")
            run.gaps_ms.append(swapped["pause_ms"])
            run.load_ms.append(swapped["load_ms"])
            beat, rss_bytes = worker.beat()
            run.rss_mb.append(rss_bytes / 2**20)
        run.frames = beat["captured"] - began["captured"]
        run.lost = _lost(beat) - _lost(began)
        run.infer_p50_ms = beat["stages"]["infer"]["p50_ms"]
        ended = worker.beat_at(beat["captured"] + run.frames)
        run.lost_without = _lost(ended) - _lost(beat)
    finally:
        worker.child.stop(2)
    return run


def _job(bundle: Bundle) -> Job:
    return camera_job(bundle, source=f"scene://conveyor?seed=7&fps={FPS}", beat_s=0.25)


def _rank(values: list[float], percent: int) -> float:
    """Return the nearest-rank percentile."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def _parcels(folder: Path) -> Bundle:
    """Copy the shipped bundle under another version: another manifest and digest."""
    shutil.copytree(REPOSITORY / "bundles" / "recipes" / "parcels" / "built", folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "version": "bench"}))
    return open_bundle(folder)


def _resnet(folder: Path, seed: int) -> Bundle:
    content = resnet50(seed, SIDE)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / digest).write_bytes(content)
    variant = {
        "name": "fp32", "opset": 17, "model": {"sha256": digest, "size_bytes": len(content)},
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, SIDE, SIDE]}],
        "outputs": [{"name": "classes", "dtype": "float32", "shape": [1, 1000]}],
    }  # fmt: skip
    manifest = {
        "name": "resnet50", "version": str(seed), "variants": [variant],
        "input": {
            "kind": "image", "width": SIDE, "height": SIDE, "mean_values": [127, 127, 127], "scale_values": [128, 128, 128],
        },
        "decoder": {"model_type": "classify", "labels": [f"class {number}" for number in range(1000)]},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(folder)
