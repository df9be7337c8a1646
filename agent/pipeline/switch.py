"""The worker's switch to another bundle: loaded and warmed beside the running one, and put in its place between two samples.

Takes jobs, one at a time; a newer one takes the place of one that is still being loaded. Gives an answer for each that was
not replaced. Sources stay open and no sample is lost: a sample that was begun with the old bundle is ended with it. Until
the very last step, which cannot fail, nothing of the old bundle is touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.clock import Clock
from agent.errors import HoldfastError, OtherRuntimeError
from agent.pipeline.active import Active
from agent.pipeline.assembly import (
    Loaded,
    Terms,
    load,
    make_active,
    make_judge,
    make_terms,
    pipeline_settings,
    wants_other_samples,
    wants_other_sources,
)
from agent.pipeline.jobs import check_kind
from agent.pipeline.loop import PipelineLoop
from agent.pipeline.messages import Job, PipelineJob, explain
from agent.sources.sample import Sample

if TYPE_CHECKING:
    from agent.bundle.manifest import Manifest
    from agent.sources.mqtt_topic import Inbox

log = logging.getLogger(__name__)

SETTLE_S = 1.0
"""How long the first samples with the new bundle are waited for, before it is reported; a camera may be down."""
LOOK_S = 0.005
NICENESS = 10
"""On one contended core a camera of 30 fps lost half as many frames while a large model was loaded, which took twice as long."""


@dataclass(slots=True, eq=False)
class Pipeline:
    """One running pipeline of a worker. What the bundle decides (`terms`, the loop's `active`) is the switch's to replace."""

    job: PipelineJob
    loop: PipelineLoop[Sample]
    terms: Terms
    inbox: Inbox | None
    overruns: int = 0
    """Payloads that were lost because the inbox was full."""


def load_standing_back(job: Job, clock: Clock) -> Loaded:
    """Load a job in a thread that lets the running pipelines go first, as far as that harms nobody.

    A session with threads of its own would leave them behind with the niceness of the thread that made it. Changing over and
    freeing the old session hold the interpreter, which a thread that stands back must not do for long.

    Raises:
        HoldfastError: as `load`.
    """
    if not job.candidate.is_plain_cpu or job.candidate.threads != 1:
        return load(job, clock)
    with ThreadPoolExecutor(1, "load", stand_back) as pool:
        return pool.submit(load, job, clock).result()


def stand_back() -> None:
    """Lower this thread's priority. On Linux only: elsewhere niceness is the process's."""
    if sys.platform.startswith("linux"):
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


class NeedsRestartError(HoldfastError):
    """The new job wants other sources than those that are open."""


class Switch:
    """Replaces what running loops work with. `ask` returns at once, and may be called from any thread.

    Args:
        job: What runs now.
        manifest: Of the bundle that runs now.
        pipelines: The running pipelines, by name.
        say: Takes the answers, from the switch's own thread.
        between_beats: Held while every pipeline's `active` is replaced: a beat is about one bundle.
        stop: Set when the worker leaves; then nothing is waited for.
    """

    def __init__(
        self,
        job: Job,
        manifest: Manifest,
        pipelines: Mapping[str, Pipeline],
        *,
        say: Callable[[Mapping[str, object]], None],
        between_beats: threading.Lock,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self._job = job
        self._manifest = manifest
        self._pipelines = pipelines
        self._say = say
        self._between_beats = between_beats
        self._stop = stop
        self._clock = clock
        self.number = 0
        """Of the job that runs; 0 for the first. Changed together with every `active`, while `between_beats` is held."""
        self._lock = threading.Lock()
        self._asked: tuple[int, Job] | None = None
        self._is_running = False

    @property
    def patience_s(self) -> float:
        """How long one inference of the job that runs may take."""
        return self._job.patience_s

    def ask(self, number: int, job: Job) -> None:
        """Switch to a job, in a thread of its own: loading takes seconds."""
        with self._lock:
            self._asked = (number, job)
            if not self._is_running:
                self._start_next()

    def _start_next(self) -> None:
        """Start a thread for the job that was asked for, if one was. The lock is held."""
        asked, self._asked = self._asked, None
        self._is_running = asked is not None
        if asked is not None:
            threading.Thread(target=self._run, args=asked, name="switch", daemon=True).start()

    def _run(self, number: int, job: Job) -> None:
        answer = self._attempt(number, job)
        if answer is not None:
            self._say({**answer, "number": number})
        with self._lock:
            self._start_next()

    def _attempt(self, number: int, job: Job) -> Mapping[str, object] | None:
        """Switch, and return the answer; None where a newer job was asked for meanwhile."""
        try:
            return self._switch(number, job)
        except Exception as error:  # noqa: BLE001  whatever it is, core is told, and the old bundle runs on
            reason, exit_code = explain(error)
            log.warning("the switch to %s failed: %s", job.bundle, reason)
            needs_restart = isinstance(error, NeedsRestartError | OtherRuntimeError)
            return {"is": "swap-failed", "reason": reason, "exit_code": exit_code, "needs_restart": needs_restart}

    def _switch(self, number: int, job: Job) -> Mapping[str, object] | None:
        if wants_other_sources(self._job, job):
            raise NeedsRestartError("the sources' own settings changed")
        loops = [pipeline.loop for pipeline in self._pipelines.values()]
        for loop in loops:
            loop.longest_gap_s = 0.0
        loaded = load_standing_back(job, self._clock)
        manifest = loaded.bundle.manifest
        if wants_other_samples(self._manifest, manifest):
            raise NeedsRestartError("the new bundle wants windows of another kind")
        nexts = {each.name: self._make_next(each, loaded) for each in job.pipelines}
        if self._asked is not None:
            return None
        self._replace(number, job, manifest, nexts)
        gaps_s = [loop.longest_gap_s for loop in loops if loop.longest_gap_s]
        return {
            "is": "swapped",
            "bundle": loaded.bundle.digest,
            **loaded.session_facts(),
            "pause_ms": round(max(gaps_s) * 1000, 3) if gaps_s else None,
        }

    def _make_next(self, job: PipelineJob, loaded: Loaded) -> tuple[PipelineJob, Terms, Active[Sample]]:
        check_kind(job, loaded.bundle.manifest)
        pipeline, settings = self._pipelines[job.name], pipeline_settings(job)
        terms = make_terms(settings, loaded.bundle.manifest)
        same = terms == pipeline.terms
        judge = pipeline.loop.active.judge if same else make_judge(job.name, terms)
        return job, terms, make_active(job, settings, loaded, judge)

    def _replace(
        self, number: int, job: Job, manifest: Manifest, nexts: Mapping[str, tuple[PipelineJob, Terms, Active[Sample]]]
    ) -> None:
        """Put the new bundle in, and hold the old one until samples have come through the new one.

        So the old session is freed in this thread and in no loop's, and what that costs is part of the pause.
        """
        old = [pipeline.loop.active for pipeline in self._pipelines.values()]
        with self._between_beats:
            self.number, self._job, self._manifest = number, job, manifest
            for name, (pipeline_job, terms, active) in nexts.items():
                pipeline = self._pipelines[name]
                pipeline.job, pipeline.terms, pipeline.loop.active = pipeline_job, terms, active
        self._wait_for_a_sample()
        old.clear()
        self._wait_for_a_sample()

    def _wait_for_a_sample(self) -> None:
        """Wait until each open source has brought one more sample through the new bundle, or its provider has failed."""
        deadline_s = self._clock.monotonic() + SETTLE_S
        loops = [pipeline.loop for pipeline in self._pipelines.values()]
        seen = [loop.active.tally.samples for loop in loops]
        while any(
            loop.active.tally.samples == count and loop.source_state == "open" and not loop.has_failed_provider
            for loop, count in zip(loops, seen, strict=True)
        ):
            if self._clock.monotonic() >= deadline_s or self._clock.wait(self._stop, LOOK_S):
                return
