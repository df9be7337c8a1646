"""Ours, as it runs on a device: the real worker process with a real job, spoken to as core speaks to it.

Events are counted and thrown away. The rate is taken between two heartbeats, by the arrival of each and the number of
samples in it; CPU time and memory are the process's own, from `ready` to the last sample.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.bundle.reader import Bundle
from agent.childprocess import Child, Message
from agent.device.planning.plan import Candidate
from agent.pipeline.messages import Job, PipelineBeat, PipelineJob
from agent.pipeline.settings import CameraSettings
from agent.pipeline.workers import ARENAS, ROLE
from benchmarks.processes import cpu_s, peak_rss_mb

NAME = "camera"
CPU = "CPUExecutionProvider"


@dataclass(slots=True)
class WorkerRun:
    """What one run of the worker showed."""

    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    events: int = 0
    beats: list[tuple[float, PipelineBeat, int]] = field(default_factory=list)
    """Arrival in seconds, the camera's part, the process's resident bytes."""

    @property
    def last(self) -> PipelineBeat:
        """The newest heartbeat."""
        return self.beats[-1][1]

    @property
    def frames(self) -> int:
        """Frames that went through to the end."""
        return self.last["samples"]

    @property
    def cpu_ms_per_frame(self) -> float:
        """CPU time of the whole process for one frame."""
        return self.cpu_s * 1000 / self.frames

    @property
    def fps(self) -> float:
        """Frames a second between the first heartbeat with frames and the last while the source was open."""
        busy = [(at, beat["samples"]) for at, beat, _ in self.beats if beat["samples"] and beat["source"] == "open"]
        (began, first), (ended, last) = busy[0], busy[-1]
        return (last - first) / (ended - began)


def camera_job(
    bundle: Bundle, variant: str = "fp32", *, threads: int = 1, beat_s: float = 0.5, **camera: object
) -> Job:
    """Return the job of one camera, as core would write it."""
    settings = CameraSettings.model_validate(camera).model_dump(mode="json")
    candidate = Candidate(CPU, "cpu", variant, threads)
    return Job("model", str(bundle.folder), candidate, (PipelineJob(NAME, "camera", settings),), beat_s)


def run_worker(job: Job, is_done: Callable[[PipelineBeat], bool] | None = None, *, limit_s: float = 900) -> WorkerRun:
    """Run a worker until its source has ended or `is_done` says so, and take it down.

    Raises:
        RuntimeError: the worker failed or was not done within `limit_s`.
    """
    inbox: queue.SimpleQueue[tuple[float, Message | int]] = queue.SimpleQueue()
    child = Child(
        ROLE,
        on_message=lambda message: inbox.put((time.monotonic(), message)),
        on_exit=lambda status: inbox.put((time.monotonic(), status)),
        environment=None if ARENAS in os.environ else {ARENAS: "2"},
    )
    try:
        child.send(job.to_message())
        return _follow(child, _until(inbox, limit_s), is_done or (lambda _: False))
    finally:
        child.stop(2)


def _follow(
    child: Child, messages: Iterable[tuple[float, Message | int]], is_done: Callable[[PipelineBeat], bool]
) -> WorkerRun:
    run = WorkerRun()
    began_cpu_s = 0.0
    for at, message in messages:
        if isinstance(message, int) or message["is"] == "failed":
            raise RuntimeError(f"the worker ended: {message}; {child.last_words}")
        if message["is"] == "ready":
            began_cpu_s = cpu_s(child.pid)
        elif message["is"] == "event":
            run.events += 1
        elif message["is"] == "beat":
            beat: PipelineBeat = message["pipelines"][NAME]
            run.beats.append((at, beat, message["rss_bytes"]))
            if beat["source"] == "finished" or is_done(beat):
                break
    run.cpu_s, run.peak_rss_mb = cpu_s(child.pid) - began_cpu_s, peak_rss_mb(child.pid)
    return run


def _until(
    inbox: queue.SimpleQueue[tuple[float, Message | int]], limit_s: float
) -> Iterable[tuple[float, Message | int]]:
    deadline_s = time.monotonic() + limit_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        yield inbox.get(timeout=left_s)
    raise RuntimeError(f"the worker was not done within {limit_s:.0f} s")
