"""Core's side of the workers: owns the child processes and carries out what their supervisors decide.

Takes jobs, gives events (in the order of each pipeline), conditions, the newest beats, the outcome of swaps, and word of a
provider that failed or a worker that died. The job that ran is kept until the one in its place has shown that it loads:
whatever goes wrong, the old one runs; unless it is the old one's provider that failed (`degrade`). The children's
reader threads only post notes through the callable that core gives; everything else happens in core's thread, in `deal_with`
and `tick`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Self, cast

from agent.childprocess import Child, Message
from agent.clock import Clock, Random
from agent.errors import HoldfastError
from agent.health.conditions import ClearCondition, Conditions, SetCondition
from agent.pipeline.jobs import stall_times
from agent.pipeline.messages import (
    Beat,
    Failed,
    Job,
    PipelineBeat,
    ProviderFailed,
    Ready,
    SessionFacts,
    SwapFailed,
    Swapped,
    payload_message,
    swap_message,
    where_it_runs,
)
from agent.pipeline.supervision import Action, Kill, Leave, Limits, Start, State, Supervisor, WakeAt
from agent.pipeline.watch import Watch
from agent.update.notes import Health

log = logging.getLogger(__name__)

ROLE = "worker"
ARENAS = "MALLOC_ARENA_MAX"
"""glibc gives each thread a heap of its own, which keeps what frames left there: two heaps save 4 MB a worker."""


@dataclass(frozen=True, slots=True)
class WorkerNote:
    """What a reader thread hands to core's thread: a message, or the exit with its status."""

    worker: str
    generation: int
    message: Message | None
    status: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as people see it."""

    model: str
    job: Job
    state: State
    pid: int | None
    restarts: int
    ready: Ready | None
    beat: Beat | None
    last_failure: str
    last_words: str


EventHandler = Callable[[str, Mapping[str, Any], float, Mapping[str, str]], None]
"""Takes the pipeline's name, the event as `Event.to_message` gave it, its latency in ms, and the bundle that it is from
(`messages.MadeBy`): around a swap there are events of both."""
SwapHandler = Callable[[str, str | None], None]
"""Takes the model's name and None, or why the swap failed; then the job that ran before runs again, if there was one."""
TroubleHandler = Callable[[str, Job, str], None]
"""Takes the model's name, the job whose provider failed or whose worker died, and how. Called when nothing else is on its way in:
`degrade` may be the answer. Without one, a dead worker starts again after a delay, and a failed provider is waited for."""
Purpose = Literal["release", "candidate", "degrade"]
"""Of a swap. `release`: another bundle, or other settings. `candidate`: the same bundle on another candidate; what was counted
of the bundle stays. `degrade`: the same, away from a provider that failed, so there is nothing to go back to."""


@dataclass(frozen=True, slots=True)
class _Swap:
    """A job on its way in."""

    number: int
    job: Job
    is_in_place: bool
    """The running worker loads it; else a new worker is being started with it."""
    old: Job | None
    """What to go back to."""
    purpose: Purpose = "release"
    has_strayed: bool = False
    """The running worker had already changed over to a job that this one replaced: `old` does not run any more."""


@dataclass(slots=True, eq=False)
class _Worker:
    job: Job
    supervisor: Supervisor
    child: Child | None = None
    generation: int = 0
    wake_s: float | None = None
    ready: Ready | None = None
    beat: Beat | None = None
    swap: _Swap | None = None
    number: int = 0
    """Of the swap that brought the present process's job; 0: it was started with it."""
    provider_failure: str | None = None
    """The present job's provider failed, and no other job has taken its place yet."""
    early_failure: ProviderFailed | None = None
    """Of a swap whose answer is still on its way: a device may fail with the first sample."""
    kill_s: float | None = None
    """It was asked to go for good; a process that is still there at this time is killed."""
    watch: Watch = field(default_factory=Watch)
    next_ids: dict[str, int] = field(default_factory=dict)


class Workers:
    """All workers of this device, a context manager. `deal_with`, `tick`, `status` and `stop` belong to core's thread.

    Args:
        post: Hands a note to core's thread, which calls `deal_with`. Called from reader threads; may block, which
            slows the worker down.
        on_event: Takes each event, in core's thread.
        on_swap: Takes the outcome of each swap that no newer one replaced, in core's thread.
        on_trouble: See TroubleHandler; in core's thread.
        conditions: Where ills are raised.
        clock: Monotonic time for supervision.
        random: Jitter of restarts.
        limits: How long a worker may be silent.
    """

    def __init__(
        self,
        *,
        post: Callable[[WorkerNote], None],
        on_event: EventHandler,
        conditions: Conditions,
        clock: Clock,
        random: Random,
        limits: Limits | None = None,
        on_swap: SwapHandler = lambda *_: None,
        on_trouble: TroubleHandler = lambda *_: None,
    ) -> None:
        self._post = post
        self._on_swap = on_swap
        self._on_trouble = on_trouble
        self._swaps = 0
        self._on_event = on_event
        self._conditions = conditions
        self._clock = clock
        self._random = random
        self._limits = limits or Limits()
        self._workers: dict[str, _Worker] = {}

    def add(self, job: Job) -> None:
        """Start a worker for one more model."""
        worker = _Worker(job, self._supervisor(job))
        self._workers[job.model] = worker
        self._carry_out(worker, worker.supervisor.start(self._clock.monotonic()))

    def swap(self, job: Job, purpose: Purpose = "release") -> None:
        """Let a model's worker work with another job; the outcome comes through `on_swap`.

        A running worker loads it beside the old one and changes over between two samples. One that does not run, or whose bundle
        has just hung, is started with it, as is one for a model that had none. A swap under way is replaced by this one and
        has no outcome.
        """
        now_s = self._clock.monotonic()
        self._swaps += 1
        worker = self._workers.get(job.model)
        if worker is None:
            worker = _Worker(job, self._supervisor(job))
            self._workers[job.model] = worker
            worker.swap = _Swap(self._swaps, job, is_in_place=False, old=None, purpose=purpose)
            self._carry_out(worker, worker.supervisor.start(now_s))
            return
        if worker.supervisor.state == "stopped":  # by `end`
            worker.supervisor = self._supervisor(job)
        old = self._what_is_left(worker)
        # What has just hung may hang again: then there is no "between two samples".
        may_hang = worker.watch.has_stalled and worker.supervisor.is_recovering
        is_in_place = worker.supervisor.state in ("starting", "running") and worker.job is old and not may_hang
        worker.swap = _Swap(self._swaps, job, is_in_place, None if purpose == "degrade" else old, purpose)
        if not is_in_place:
            self._start_swapped(worker, worker.swap, now_s, may_hang=may_hang)
        elif worker.child is not None:
            worker.child.send(swap_message(self._swaps, job))
            self._carry_out(worker, worker.supervisor.swapping(now_s))

    def end(self, model: str) -> None:
        """End a model's worker, if it has one: there is nothing for it to run. A later `swap` starts it again.

        It is asked to leave, and killed where it does not.
        """
        if (worker := self._workers.get(model)) is None:
            return
        worker.swap, worker.wake_s, worker.provider_failure = None, None, None
        self._carry_out(worker, worker.supervisor.stop())
        if worker.child is not None:
            worker.child.close_input()
            worker.kill_s = self._clock.monotonic() + self._limits.kill_s

    def health(self, model: str) -> Health:
        """Return how a model's bundle does since it became active."""
        worker = self._workers.get(model)
        return (worker.watch if worker else Watch()).health(self._clock.monotonic())

    @property
    def models(self) -> frozenset[str]:
        """The models that have a worker, running or waiting for its next attempt."""
        return frozenset(self._workers)

    def deal_with(self, note: WorkerNote) -> None:
        """Take one note from the queue."""
        worker = self._workers[note.worker]
        is_current = note.generation == worker.generation
        if note.message is not None:
            self._take(worker, note.message, is_current=is_current)
        elif is_current:
            self._take_exit(worker, note.status)

    def tick(self) -> float | None:
        """Do what is due. Return the monotonic time of the next call, or None where nothing is coming up."""
        now_s = self._clock.monotonic()
        for worker in self._workers.values():
            if worker.wake_s is not None and now_s >= worker.wake_s:
                worker.wake_s = None
                self._carry_out(worker, worker.supervisor.tick(now_s))
            if worker.kill_s is not None and worker.child is not None and now_s >= worker.kill_s:
                log.error("worker %s is killed: it did not leave when it was asked to", worker.job.model)
                worker.child.kill()
                worker.kill_s = now_s + self._limits.kill_s
        times = ((worker.wake_s, worker.kill_s) for worker in self._workers.values())
        return min((at_s for pair in times for at_s in pair if at_s is not None), default=None)

    def send_payload(self, pipeline: str, at: datetime, payload: bytes) -> None:
        """Hand what came on a sensor's topic to the worker that wants it. Lost where that is not running, or hangs."""
        for worker in self._workers.values():
            if worker.child is not None and any(pipeline == each.name for each in worker.job.pipelines):
                worker.child.send(payload_message(pipeline, at.isoformat(), payload))

    def status(self) -> Iterator[WorkerStatus]:
        """Give every worker as it is now."""
        for model, worker in self._workers.items():
            supervisor = worker.supervisor
            pid = worker.child.pid if worker.child else None
            yield WorkerStatus(
                model, worker.job, supervisor.state, pid, supervisor.restarts, worker.ready, worker.beat,
                supervisor.last_failure, supervisor.last_words,
            )  # fmt: skip

    def beats(self) -> Iterator[tuple[str, PipelineBeat]]:
        """Give each pipeline's name and its newest beat."""
        for worker in self._workers.values():
            if worker.beat is not None:
                yield from worker.beat["pipelines"].items()

    @property
    def are_finished(self) -> bool:
        """Whether every pipeline's source has ended and all that came of it was reported."""
        expected = {pipeline.name for worker in self._workers.values() for pipeline in worker.job.pipelines}
        return expected <= {name for name, beat in self.beats() if beat["source"] == "finished"}

    @property
    def have_ended(self) -> bool:
        """Whether no child is left and everything that they said was dealt with."""
        return all(worker.child is None for worker in self._workers.values())

    def stop(self, grace_s: float = 1.5) -> None:
        """End every worker: all are asked at once, share the grace time, and are then killed.

        What they still say is posted as ever: to lose nothing, deal with notes until `have_ended`.
        """
        children = []
        for worker in self._workers.values():
            self._carry_out(worker, worker.supervisor.stop())
            worker.wake_s = worker.kill_s = None
            if worker.child is not None:
                worker.child.close_input()
                children.append(worker.child)
        deadline_s = self._clock.monotonic() + grace_s
        for child in children:
            child.stop(max(0.0, deadline_s - self._clock.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take(self, worker: _Worker, message: Message, *, is_current: bool) -> None:
        now_s = self._clock.monotonic()
        match message.get("is"):
            case "event":  # also from a worker that was replaced meanwhile: it was recorded, so it is delivered
                self._on_event(message["pipeline"], message["event"], message["latency_ms"], message["made_by"])
            case "beat" if is_current:
                worker.beat = worker.watch.beat = cast("Beat", message)
                worker.next_ids.update(
                    (name, beat["next_sample_id"]) for name, beat in worker.beat["pipelines"].items()
                )
                self._carry_out(worker, worker.supervisor.beat(worker.beat, now_s))
            case "ready" if is_current:
                self._take_session(worker, cast("Ready", message))
                self._carry_out(worker, worker.supervisor.ready(now_s))
                self._take_ready(worker, now_s)
            case "swapped" | "swap-failed" if is_current:
                self._take_answer(worker, message, now_s)
            case "provider-failed" if is_current:
                self._take_provider_failed(worker, cast("ProviderFailed", message))
            case "failed" if is_current:
                self._carry_out(worker, worker.supervisor.failing(cast("Failed", message)))
            case _:
                log.debug("worker %s: %r is not for now", worker.job.model, message.get("is"))

    def _take_exit(self, worker: _Worker, status: int) -> None:
        now_s, supervisor = self._clock.monotonic(), worker.supervisor
        last_words = worker.child.last_words if worker.child else ""
        was_started = worker.child is not None
        worker.child = worker.kill_s = None
        was_running = worker.watch.since_s is not None
        worker.watch.ended()
        self._carry_out(worker, supervisor.exited(status, last_words, now_s))
        if supervisor.state != "waiting":  # it was asked to go
            return
        log.error("worker %s: %s", worker.job.model, supervisor.last_failure)
        if worker.swap is not None:
            self._swap_died(worker, worker.swap, now_s, was_running=was_running)
        else:
            worker.watch.crashed(supervisor.last_failure, has_stalled=supervisor.has_stalled)
            if was_started and not supervisor.is_for_people:
                self._on_trouble(worker.job.model, worker.job, supervisor.last_failure)

    def _take_provider_failed(self, worker: _Worker, failed: ProviderFailed) -> None:
        """It counts as a crash of the bundle: in probation, it is the first to run here with this candidate."""
        if failed["number"] != worker.number:
            worker.early_failure = failed
            return
        log.error("worker %s: %s", worker.job.model, failed["reason"])
        worker.watch.crashed(failed["reason"], has_stalled=False)
        worker.provider_failure = failed["reason"]
        if worker.swap is None:  # else what is on its way in may mend it
            self._on_trouble(worker.job.model, worker.job, failed["reason"])

    # -- swaps -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _what_is_left(worker: _Worker) -> Job | None:
        """Return the job to go back to: never one whose provider failed."""
        if worker.swap is None:
            return worker.job
        return worker.swap.job if worker.swap.purpose == "degrade" else worker.swap.old

    def _start_swapped(self, worker: _Worker, swap: _Swap, now_s: float, *, may_hang: bool = False) -> None:
        self._take_over(worker, swap.job)
        self._carry_out(worker, worker.supervisor.replace(now_s, may_hang=may_hang))

    def _take_ready(self, worker: _Worker, now_s: float) -> None:
        if worker.swap is not None and worker.swap.is_in_place:  # it takes the swap now that it has started
            self._carry_out(worker, worker.supervisor.swapping(now_s))
        elif worker.swap is not None:
            if worker.swap.purpose == "release":
                worker.watch = Watch()
            worker.watch.since_s = now_s
            self._end_swap(worker, None)
        worker.watch.since_s = now_s

    def _take_answer(self, worker: _Worker, message: Message, now_s: float) -> None:
        """Take a worker's answer to a swap, unless another was asked for since, or the worker is on its way out."""
        swap = worker.swap
        if swap is None or worker.supervisor.state != "running":
            return
        if message["number"] != swap.number:
            worker.swap = replace(swap, has_strayed=swap.has_strayed or message["is"] == "swapped")
            return
        worker.supervisor.swapped(now_s)
        if message["is"] == "swapped":
            self._take_swapped(worker, swap, cast("Swapped", message), now_s)
        else:
            self._take_swap_failed(worker, swap, cast("SwapFailed", message), now_s)

    def _take_swapped(self, worker: _Worker, swap: _Swap, swapped: Swapped, now_s: float) -> None:
        pause = "nothing came through meanwhile"
        if swapped["pause_ms"] is not None:
            pause = f"the longest time between two samples was {swapped['pause_ms']:.1f} ms"
        log.info("worker %s works with bundle %.12s: %s", swap.job.model, swapped["bundle"], pause)
        self._take_over(worker, swap.job)
        worker.number, worker.provider_failure = swap.number, None
        self._take_session(worker, swapped)
        if swap.purpose == "release":
            worker.watch = Watch()
        else:
            worker.watch.ended()
        worker.watch.since_s = now_s
        self._end_swap(worker, None)
        early, worker.early_failure = worker.early_failure, None
        if early is not None and early["number"] == worker.number:
            self._take_provider_failed(worker, early)

    @staticmethod
    def _take_over(worker: _Worker, job: Job) -> None:
        worker.job = job
        worker.supervisor.stall_s = stall_times(job)
        worker.supervisor.patience_s = job.patience_s

    @staticmethod
    def _take_session(worker: _Worker, facts: SessionFacts) -> None:
        """Keep what the session really is, and log one line about it, for every session that there ever is."""
        worker.ready = cast("Ready", {key: facts[key] for key in Ready.__annotations__})  # type: ignore[literal-required]
        nodes = ", ".join(f"{provider} {count}" for provider, count in sorted(facts["nodes"].items())) or "not told"
        log.info(
            "model %s: asked for %s, runs %s on %s (%s); nodes: %s; partitions: %d; loaded in %.0f ms",
            worker.job.model, worker.job.candidate.label, facts["variant"], where_it_runs(facts),
            facts["runtime"], nodes, sum(facts["partitions"].values()), facts["load_ms"],
        )  # fmt: skip

    def _take_swap_failed(self, worker: _Worker, swap: _Swap, failed: SwapFailed, now_s: float) -> None:
        is_last_resort = swap.purpose == "degrade" and swap.job.candidate.is_plain_cpu
        if not (failed["needs_restart"] or is_last_resort):
            if swap.has_strayed and swap.old is not None:
                self._start_swapped(worker, replace(swap, job=swap.old), now_s)
            self._end_swap(worker, failed["reason"])
            return
        log.info("worker %s is started anew: %s", swap.job.model, failed["reason"])
        worker.swap = replace(swap, is_in_place=False)
        self._start_swapped(worker, worker.swap, now_s)

    def _swap_died(self, worker: _Worker, swap: _Swap, now_s: float, *, was_running: bool) -> None:
        """Start again at once: with the old job, unless that was what failed to start, or has a provider that failed."""
        if swap.is_in_place and (not was_running or swap.purpose == "degrade"):
            worker.swap = replace(swap, is_in_place=False)
            self._start_swapped(worker, worker.swap, now_s)
            return
        if swap.old is not None:
            self._start_swapped(worker, replace(swap, job=swap.old), now_s)
        self._end_swap(worker, worker.supervisor.last_failure)

    def _end_swap(self, worker: _Worker, error: str | None) -> None:
        swap, worker.swap = worker.swap, None
        if error is not None:
            log.error("worker %s did not take its new job: %s", worker.job.model, error)
        self._on_swap(worker.job.model, error)
        needs_help = worker.provider_failure is not None and worker.supervisor.state == "running"
        if needs_help and worker.swap is None and swap is not None and swap.purpose != "degrade":
            self._on_trouble(worker.job.model, worker.job, worker.provider_failure or "")

    def _carry_out(self, worker: _Worker, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._start_child(worker)
                case Kill(reason):
                    log.error("worker %s is killed: %s", worker.job.model, reason)
                    if worker.child is not None:
                        worker.child.kill()
                case Leave():
                    if worker.child is not None:
                        worker.child.close_input()
                case SetCondition() | ClearCondition():
                    self._conditions.apply(action)
                case WakeAt(monotonic_s):
                    worker.wake_s = monotonic_s

    def _supervisor(self, job: Job) -> Supervisor:
        return Supervisor(job.model, stall_times(job), self._random, self._limits, job.patience_s)

    def _start_child(self, worker: _Worker) -> None:
        if worker.child is not None:  # one that was to leave and still holds its camera
            worker.child.kill()
        worker.generation += 1
        worker.number = 0
        worker.ready = worker.beat = worker.kill_s = worker.provider_failure = None
        name, generation = worker.job.model, worker.generation
        try:
            worker.child = Child(
                ROLE,
                on_message=lambda message: self._post(WorkerNote(name, generation, message)),
                on_exit=lambda status: self._post(WorkerNote(name, generation, None, status)),
                environment=None if ARENAS in os.environ else {ARENAS: "2"},
            )
        except OSError as error:  # out of memory, processes or descriptors: try again later
            failed = Failed(reason=f"the worker cannot be started: {error}", exit_code=HoldfastError.exit_code)
            worker.supervisor.failing(failed)
            self._post(WorkerNote(name, generation, None, 1))
            return
        worker.child.send(worker.job.going_on_at(worker.next_ids).to_message())
