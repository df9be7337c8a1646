"""The worker process: one bundle in one session, and a loop for each pipeline that shares it.

Takes a `job` from core, gives `ready`, events and heartbeats, and `failed` with a reason before it gives up. It leaves
when its input ends, within a second, whatever a camera driver is doing. It holds nothing that may not be lost: an event
is core's as soon as it is sent. Imports stay few and late: each worker pays for them in memory.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agent import log as logs
from agent.childprocess import Message, ParentLink, open_parent_link
from agent.clock import Clock, Random, SystemClock, SystemRandom
from agent.errors import CandidateError, HoldfastError, OperatorError
from agent.events.event import Event
from agent.pipeline.active import Active
from agent.pipeline.assembly import (
    Loaded,
    load,
    loop_settings,
    make_active,
    make_judge,
    make_terms,
    pipeline_settings,
)
from agent.pipeline.jobs import check_kind
from agent.pipeline.loop import PipelineLoop
from agent.pipeline.messages import Job, PipelineBeat, PipelineJob, explain, payload_bytes
from agent.pipeline.settings import CameraSettings, SensorSettings
from agent.pipeline.switch import Pipeline, Switch
from agent.sources.sample import Frame, Sample, Source

if TYPE_CHECKING:
    from agent.bundle.manifest import Manifest
    from agent.sources.mqtt_topic import Inbox

log = logging.getLogger(__name__)

LEAVE_S = 0.8
"""How long threads get to end by themselves. Core kills after 1.5 s, and the whole agent promises 2 s."""
LAST_BEAT_S = 0.1
INBOX_CAPACITY = 1000
"""Payloads waiting for a sensor's pipeline; more than that means that it does not keep up, and the newest is lost."""


def main() -> None:
    """Run the worker until its input ends, or until it fails."""
    faulthandler.enable()  # a native crash leaves a stack in the last words
    # A service manager signals every process of the group. When this one leaves is core's word, by closing our input.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = open_parent_link()
    logs.configure()
    link.forward_warnings("agent.device")
    Worker(link, SystemClock(), SystemRandom()).run()


class Worker:
    """One worker, spoken to through `link`. `run` does not return: a driver that hangs must not keep the process."""

    def __init__(self, link: ParentLink, clock: Clock, random: Random) -> None:
        self._link = link
        self._clock = clock
        self._random = random
        self._stop = threading.Event()
        self._between_beats = threading.Lock()
        self._pipelines: dict[str, Pipeline] = {}
        self._switch: Switch | None = None
        self._failed_number: int | None = None
        """Of the job whose provider failed last, and was said to have."""

    def run(self) -> NoReturn:
        """Take the job, run it, and leave when the input ends."""
        messages = self._link.messages()
        try:
            job = _take_job(messages)
            self._switch = switch = self._begin(job)
        except Exception as error:  # noqa: BLE001  the top of the process: whatever it is, core is told
            self._give_up(error)
        for pipeline in self._pipelines.values():
            pipeline.loop.start()
        threading.Thread(target=self._beat, args=(job.beat_s,), name="beat", daemon=True).start()
        for message in messages:
            self._take(message, switch)
        self._leave()

    def _begin(self, job: Job) -> Switch:
        """Open the bundle, warm the session and make the loops; nothing of a camera is touched yet."""
        from agent.sources.capture import limit_opencv

        loaded = load(job, self._clock)
        manifest = loaded.bundle.manifest
        if manifest.input.kind == "image":
            # Several pipelines fill the cores by themselves; one alone may spread a resize over two.
            limit_opencv(1 if len(job.pipelines) > 1 else 2)
        for each in job.pipelines:
            self._pipelines[each.name] = self._make_pipeline(each, loaded)
        self._link.send({"is": "ready", **loaded.session_facts()})
        return Switch(
            job,
            manifest,
            self._pipelines,
            say=self._link.send,
            between_beats=self._between_beats,
            stop=self._stop,
            clock=self._clock,
        )

    def _make_pipeline(self, job: PipelineJob, loaded: Loaded) -> Pipeline:
        check_kind(job, loaded.bundle.manifest)
        settings, manifest = pipeline_settings(job), loaded.bundle.manifest
        terms = make_terms(settings, manifest)
        inbox: Inbox | None = None if isinstance(settings, CameraSettings) else queue.Queue(INBOX_CAPACITY)
        loop: PipelineLoop[Sample] = PipelineLoop(
            job.name,
            open_source=lambda stop, first_id: self._open(job, settings, manifest, inbox, stop=stop, first_id=first_id),
            active=make_active(job, settings, loaded, make_judge(job.name, terms)),
            emit=lambda event, latency_ms, made_by: self._emit(job.name, event, latency_ms, made_by),
            on_failure=lambda error: self._give_up(error, job.name),
            on_provider_failure=lambda failed, error: self._provider_failed(job.name, failed, error),
            clock=self._clock,
            random=self._random,
            settings=loop_settings(job, settings),
        )
        return Pipeline(job, loop, terms, inbox)

    def _open(
        self,
        job: PipelineJob,
        settings: CameraSettings | SensorSettings,
        manifest: Manifest,
        inbox: Inbox | None,
        *,
        stop: threading.Event,
        first_id: int,
    ) -> Source[Sample]:
        from agent.bundle.manifest import SignalInput
        from agent.sources.opening import open_source

        if isinstance(settings, CameraSettings):
            return open_source(settings, name=job.name, clock=self._clock, stop=stop, first_id=first_id)
        from agent.sources.windows import Windows

        assert isinstance(manifest.input, SignalInput), "check_kind looked at that"
        if settings.rate_hz is None:
            settings = settings.model_copy(update={"rate_hz": manifest.input.rate_hz})
        readings = open_source(settings, name=job.name, clock=self._clock, stop=stop, first_id=0, inbox=inbox)
        return Windows(readings, manifest.input, first_id=first_id)

    def _emit(self, pipeline: str, event: Event, latency_ms: float, made_by: Mapping[str, str]) -> None:
        self._link.send(
            {
                "is": "event",
                "pipeline": pipeline,
                "event": event.to_message(),
                "latency_ms": round(latency_ms, 3),
                "made_by": made_by,
            }
        )

    def _provider_failed(self, pipeline: str, failed: Active[Sample], error: CandidateError) -> None:
        """Tell core once, though every pipeline of the session meets it; not of a session that was replaced meanwhile."""
        assert self._switch is not None, "loops start after it was made"
        with self._between_beats:
            number = self._switch.number
            if self._pipelines[pipeline].loop.active is not failed or number == self._failed_number:
                return
            self._failed_number = number
        self._link.send({"is": "provider-failed", "number": number, "reason": explain(error)[0]})

    def _beat(self, beat_s: float) -> None:
        try:
            while not self._clock.wait(self._stop, self._until_next_beat_s(beat_s)):
                with self._between_beats:
                    self._send_beat()
        except Exception as error:  # noqa: BLE001  the top of a thread: without beats core would call this a hang
            self._give_up(error)

    def _until_next_beat_s(self, beat_s: float) -> float:
        """Return the time to the next beat: the moment when an inference under way would have hung is not slept through."""
        inferring_s = max((pipeline.loop.inferring_s for pipeline in self._pipelines.values()), default=0.0)
        left_s = self._switch.patience_s - inferring_s if self._switch is not None and inferring_s else beat_s
        return left_s if 0 < left_s < beat_s else beat_s

    def _send_beat(self) -> None:
        beats = {
            name: describe(pipeline.loop, overruns=pipeline.overruns) for name, pipeline in self._pipelines.items()
        }
        self._link.send({"is": "beat", "pipelines": beats, "rss_bytes": rss_bytes()})

    def _take(self, message: Message, switch: Switch) -> None:
        match message.get("is"):
            case "payload":
                self._take_payload(message)
            case "swap":
                switch.ask(message["number"], Job.from_message(message))
            case unknown:
                log.warning("core said something unknown: %r", unknown)

    def _take_payload(self, message: Message) -> None:
        pipeline = self._pipelines.get(message["pipeline"])
        if pipeline is None or pipeline.inbox is None:
            return
        try:
            pipeline.inbox.put_nowait(
                (datetime.fromisoformat(message["at"]), self._clock.monotonic(), payload_bytes(message))
            )
        except queue.Full:
            pipeline.overruns += 1

    def _leave(self) -> NoReturn:
        """End what ends by itself, then go: nobody waits for a read that blocks in a driver, or a native destructor."""
        self._stop.set()
        for pipeline in self._pipelines.values():
            pipeline.loop.stop()
        deadline_s = self._clock.monotonic() + LEAVE_S
        for pipeline in self._pipelines.values():
            pipeline.loop.join(max(0.0, deadline_s - self._clock.monotonic()))
        # The next worker goes on with the ids where this one really ended. Core may not be reading: do not wait for it.
        last_beat = threading.Thread(target=self._send_beat, name="last-beat", daemon=True)
        last_beat.start()
        last_beat.join(LAST_BEAT_S)
        _exit(0)

    def _give_up(self, error: BaseException, pipeline: str | None = None) -> NoReturn:
        reason, exit_code = explain(error)
        log.error("the worker gives up: %s", reason, exc_info=None if isinstance(error, HoldfastError) else error)
        failed: dict[str, object] = {"is": "failed", "reason": reason, "exit_code": exit_code}
        if pipeline is not None:
            failed["pipeline"] = pipeline
        self._link.send(failed)
        _exit(exit_code)


def describe(loop: PipelineLoop[Sample], *, overruns: int = 0) -> PipelineBeat:
    """Return one pipeline's part of a heartbeat."""
    dropped = {**loop.dropped, "overrun": overruns}
    tally = loop.active.tally
    beat: PipelineBeat = {
        "samples": loop.samples,
        "captured": loop.captured,
        "dropped": {cause: count for cause, count in dropped.items() if count},
        "events": loop.events,
        "bundle": {"samples": tally.samples, "invalid": tally.invalid},
        "stages": {stage: ring.summary() for stage, ring in tally.rings.items()},
        "source": loop.source_state,
        "source_text": loop.source_text,
        "next_sample_id": loop.next_sample_id,
        "inferring_s": round(loop.inferring_s, 3),
        "invalid_text": loop.invalid_text,
    }
    if isinstance(loop.last_sample, Frame):
        beat["height"], beat["width"] = loop.last_sample.pixels.shape[:2]
    return beat


def _take_job(messages: Iterator[Message]) -> Job:
    first: Mapping[str, Any] | None = next(messages, None)
    if first is None:
        _exit(0)  # core left before it said anything
    if first.get("is") != "job":
        raise OperatorError(f"expected a job, found {first.get('is')!r}: core and worker are of different versions")
    return Job.from_message(first)


def rss_bytes() -> int:
    """Return this process's resident memory. psutil takes 5 MB itself, so Linux is asked directly."""
    if sys.platform.startswith("linux"):
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.Process().memory_info().rss)


def _exit(status: int) -> NoReturn:
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    os._exit(status)
