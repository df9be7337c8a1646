"""One pipeline: capture → prepare → infer → decode → track → rules → emit, for frames and windows alike.

Takes a way to open the source, the model, the judge and where events go; gives counters, stage times and states when
asked. It knows neither pictures nor signals. Three threads, joined by two hand-overs:

    live source       capture ──latest wins──▶ compute: prepare, infer ──queue──▶ finish: decode, track, rules, emit
    everything counts capture, prepare ──queue──▶ compute: infer ──queue──▶ finish: decode, track, rules, emit

A live source is drained whatever the model does: the newest sample wins, and each one that is left out is counted by
its cause. At full speed nothing is left out. A source that fails is opened again with growing delay; a model that
gives no valid answer many times in a row ends the pipeline. What a sample is worked on with is one value, read once
per sample: it may be replaced between two of them, from any thread, and no sample meets parts of two bundles.

Where the model's provider fails and others could take over (`Active.has_fallbacks`), the sample at hand is kept: the loop says
so once, waits until `active` is replaced, and begins the same sample again with that. A recording loses nothing by it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeAlias

from agent.backoff import Backoff
from agent.clock import Clock, Random
from agent.errors import CandidateError, HoldfastError, OperatorError, SourceError
from agent.events.event import Event
from agent.log import mask_url
from agent.pipeline.active import Active, SampleT, Tensors
from agent.pipeline.handover import Handover, Latest, Queue
from agent.pipeline.messages import SourceState
from agent.pipeline.stages import Ring, Stage, Tally
from agent.sources.sample import Source

log = logging.getLogger(__name__)

QUEUE_CAPACITY = 2
"""One sample being worked on and one waiting keep a stage busy; more would only add age."""
INVALID_LIMIT = 25
"""So many invalid answers in a row are no accident: about a second of a camera."""
PROVIDER_WAIT_S = 90.0
"""How long another session is waited for when the provider failed: a start's limit (60 s), and time for the one after it."""
PROVIDER_LOOK_S = 0.005
STABLE_S = 10.0
"""A source that delivered for this long was well: its next failure is a first one again."""


OpenSource: TypeAlias = Callable[[threading.Event, int], Source[SampleT]]
"""Opens the source anew. Takes the event that ends its waiting, and the id of its first sample."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the operator says about one pipeline, as far as the loop is concerned."""

    fps: float | None = None
    """At most so many samples a second of a live source go to the model."""
    reconnect_first_s: float = 1.0
    reconnect_limit_s: float = 30.0
    first_sample_id: int = 0


@dataclass(slots=True, eq=False)
class _Work(Generic[SampleT]):
    """One sample on its way. `active` is the one that began it; `began_s` is where its age counts from."""

    sample: SampleT
    active: Active[SampleT]
    began_s: float
    payload: Tensors = None
    """Inputs, then outputs."""


class PipelineLoop(Generic[SampleT]):
    """One running pipeline, a context manager.

    Args:
        name: The pipeline's name in the operator's file.
        open_source: See OpenSource. Called again after each failure.
        active: What samples are worked on with; may be replaced at any time through the attribute `active`.
        emit: Takes each event with its latency in ms and the `made_by` of its bundle, from the finishing thread. It may
            block: the source then loses samples, no event.
        on_failure: Called once when the pipeline gives up, from the thread that failed.
        on_provider_failure: Called once for each `active` whose provider failed and that has fallbacks; whoever hears it
            replaces `active`. From the computing thread, which waits.
    """

    def __init__(
        self,
        name: str,
        *,
        open_source: OpenSource[SampleT],
        active: Active[SampleT],
        emit: Callable[[Event, float, Mapping[str, str]], None],
        on_failure: Callable[[BaseException], None],
        on_provider_failure: Callable[[Active[SampleT], CandidateError], None] = lambda *_: None,
        clock: Clock,
        random: Random,
        settings: LoopSettings | None = None,
    ) -> None:
        self.name = name
        self.active = active
        self._failed: Active[SampleT] | None = None
        """The one whose provider failed; samples that were begun with it are begun anew."""
        self._infer_began_s: float | None = None
        self.settings = settings or LoopSettings()
        self.captured = self.samples = self.events = 0
        self.source_state: SourceState = "opening"
        self.source_text = ""
        self.invalid_text = ""
        self.next_sample_id = self.settings.first_sample_id
        self.last_sample: SampleT | None = None
        self.longest_gap_s = 0.0
        """The longest time between the ends of two samples; whoever wants to know of a stretch sets it to 0 before."""
        self._open_source = open_source
        self._emit = emit
        self._on_failure = on_failure
        self._on_provider_failure = on_provider_failure
        self._clock = clock
        self._backoff = Backoff(random, self.settings.reconnect_first_s, self.settings.reconnect_limit_s)
        # The keys are there from the start: a reader may iterate while a thread counts.
        self._dropped_here: Counter[str] = Counter(latest=0, rate=0, invalid=0)
        self._dropped_by_old_sources: Counter[str] = Counter()
        self._source: Source[SampleT] | None = None
        self._stop = threading.Event()
        self._ended_s: float | None = None
        self._next_due_s = float("-inf")
        self._failure_lock = threading.Lock()
        self._has_failed = False
        self._hand_overs: tuple[Handover[_Work[SampleT]], ...] = ()
        self._threads: list[threading.Thread] = []

    # -- life: called from the owner's thread ------------------------------------------------------------------------

    def start(self) -> None:
        """Begin. The threads for computing start once it is known whether the source is live."""
        self._spawn("capture", self._capture)

    def stop(self) -> None:
        """End soon: what is on its way is dropped, nothing more is captured. Does not wait."""
        self._stop.set()
        if (source := self._source) is not None:
            source.close()
        for hand_over in self._hand_overs:
            hand_over.abort()

    def join(self, timeout_s: float) -> bool:
        """Wait until every thread is done; return whether they are. A read that blocks in a driver may outlast it."""
        deadline_s = self._clock.monotonic() + timeout_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline_s - self._clock.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join(2.0)

    @property
    def dropped(self) -> Counter[str]:
        """Samples left out, by cause, those that the sources left out themselves included."""
        return self._dropped_here + self._dropped_by_old_sources + _dropped_by(self._source)

    @property
    def has_failed_provider(self) -> bool:
        """Whether the provider of `active` failed, and no other session has taken its place yet."""
        return self._failed is self.active

    @property
    def inferring_s(self) -> float:
        """How long the inference under way has been running; 0 where none is."""
        began_s = self._infer_began_s
        return 0.0 if began_s is None else self._clock.monotonic() - began_s

    @property
    def rings(self) -> Mapping[Stage, Ring]:
        """The stages' times with the present bundle."""
        return self.active.tally.rings

    # -- capture thread ----------------------------------------------------------------------------------------------

    def _capture(self) -> None:
        deliver: Callable[[Source[SampleT]], bool] | None = None
        while not self._stop.is_set():
            source = self._open()
            if source is None:
                continue
            deliver = deliver or self._start_computing(is_live=source.is_live)
            if self._drain(source, deliver):
                break
        for hand_over in self._hand_overs[:1]:
            hand_over.close()

    def _open(self) -> Source[SampleT] | None:
        """Open the source; after a failure say why, wait, and return None."""
        if self.source_state != "down":
            self.source_state = "opening"
        try:
            source = self._open_source(self._stop, self.next_sample_id)
        except SourceError as error:
            self._be_down(error, self._backoff.next_delay_s())
            return None
        except OperatorError as error:
            # Only a person can mend it, and a wrong password tried often locks the account: retry as slowly as allowed.
            self._be_down(error, self.settings.reconnect_limit_s)
            return None
        self._source = source
        if self._stop.is_set():  # stopped while it was opening: `stop` saw no source to close
            source.close()
            return None
        self.source_text = ""
        self.source_state = "open"
        return source

    def _drain(self, source: Source[SampleT], deliver: Callable[[Source[SampleT]], bool]) -> bool:
        """Deliver until the source ends. Return True for its regular end, False where it is to be opened again."""
        opened_s = self._clock.monotonic()
        try:
            while deliver(source):
                pass
        except SourceError as error:
            if self._clock.monotonic() - opened_s >= STABLE_S:
                self._backoff.reset()
            self._close(source)
            self._be_down(error, self._backoff.next_delay_s())
            return False
        except OperatorError as error:
            self.source_text = _one_line(error)
            log.warning("%s: %s", self.name, self.source_text)
        self._close(source)
        return True

    def _close(self, source: Source[SampleT]) -> None:
        self._source = None
        self._dropped_by_old_sources += _dropped_by(source)
        source.close()

    def _be_down(self, error: HoldfastError, delay_s: float) -> None:
        if self._stop.is_set():
            return
        self.source_text = _one_line(error)
        self.source_state = "down"
        log.warning("%s: %s; trying again in %.1f s", self.name, self.source_text, delay_s)
        self._clock.wait(self._stop, delay_s)

    def _start_computing(self, *, is_live: bool) -> Callable[[Source[SampleT]], bool]:
        """Start the two other threads in the shape that the source wants. Return how a sample is delivered to them."""
        first: Handover[_Work[SampleT]] = Latest() if is_live else Queue(QUEUE_CAPACITY)
        second: Handover[_Work[SampleT]] = Queue(QUEUE_CAPACITY)
        self._hand_overs = (first, second)
        if self._stop.is_set():
            self.stop()
        compute = self._prepare_and_infer if is_live else self._infer
        self._spawn("compute", lambda: self._compute(first, second, compute))
        self._spawn("finish", lambda: self._finish(second))
        if is_live:
            return lambda source: self._deliver_live(source, first)
        return lambda source: self._deliver_every(source, first)

    def _deliver_live(self, source: Source[SampleT], out: Handover[_Work[SampleT]]) -> bool:
        sample = source.read()
        if sample is None:
            return False
        began_s = sample.captured_monotonic_s
        work = _Work(sample, self.active, began_s)
        self._count_captured(work, self._clock.monotonic() - began_s)
        if self._is_too_early(began_s):
            self._dropped_here["rate"] += 1
        elif not out.put(work):
            self._dropped_here["latest"] += 1
        return True

    def _deliver_every(self, source: Source[SampleT], out: Handover[_Work[SampleT]]) -> bool:
        started_s = self._clock.monotonic()
        sample = source.read()
        if sample is None:
            return False
        read_s = self._clock.monotonic()
        # A recording has a time of its own: its samples are as old as their reading. A topic's came while we waited.
        captured_s = sample.captured_monotonic_s
        began_s = captured_s if started_s <= captured_s <= read_s else started_s
        work = _Work(sample, self.active, began_s)
        self._count_captured(work, read_s - began_s)
        return self._attempt(work, self._prepare) is None or out.put(work)

    def _count_captured(self, work: _Work[SampleT], capture_s: float) -> None:
        work.active.tally.rings["capture"].add(capture_s)
        self.captured += 1
        self.next_sample_id = work.sample.id + 1
        self.last_sample = work.sample

    def _is_too_early(self, captured_s: float) -> bool:
        """Whether this sample is one too many for `fps`.

        Up to one period is saved up: a sample that comes a little early passes, a late one keeps the place of the next,
        and the mean rate is what was asked for.
        """
        if self.settings.fps is None:
            return False
        period_s = 1.0 / self.settings.fps
        if captured_s < self._next_due_s:
            return True
        self._next_due_s = max(self._next_due_s, captured_s - period_s) + period_s
        return False

    # -- compute thread ----------------------------------------------------------------------------------------------

    def _compute(
        self,
        incoming: Handover[_Work[SampleT]],
        outgoing: Handover[_Work[SampleT]],
        step: Callable[[_Work[SampleT]], None],
    ) -> None:
        while (work := incoming.get()) is not None:
            if self._attempt(work, step) is not None and not outgoing.put(work):
                break
        outgoing.close()

    def _prepare(self, work: _Work[SampleT]) -> None:
        started_s = self._clock.monotonic()
        work.payload = work.active.model.prepare(work.sample)
        work.active.tally.rings["preprocess"].add(self._clock.monotonic() - started_s)

    def _infer(self, work: _Work[SampleT]) -> None:
        """Run the model; where its provider fails and another session comes in its place, run that one, on the same sample."""
        while True:
            try:
                if work.active is not self._failed:
                    self._infer_once(work)
                    return
            except CandidateError as error:
                if not work.active.has_fallbacks:
                    raise
                self._failed = work.active
                self._wait_for_another(work.active, error)
            work.active = self.active
            self._prepare(work)

    def _infer_once(self, work: _Work[SampleT]) -> None:
        self._infer_began_s = started_s = self._clock.monotonic()
        try:
            work.payload = work.active.model.infer(work.payload)
        finally:
            self._infer_began_s = None
        work.active.tally.rings["infer"].add(self._clock.monotonic() - started_s)

    def _wait_for_another(self, failed: Active[SampleT], error: CandidateError) -> None:
        """Wait until `active` is another one. Raises `error` where that does not happen, or the pipeline is stopped."""
        if self.active is failed:
            log.warning("%s: %s; the sample is kept for another session", self.name, _one_line(error))
            self._on_provider_failure(failed, error)
        deadline_s = self._clock.monotonic() + PROVIDER_WAIT_S
        while self.active is failed:
            if self._clock.wait(self._stop, PROVIDER_LOOK_S):
                raise error
            if self._clock.monotonic() >= deadline_s:
                self._fail(error)
                raise error

    def _prepare_and_infer(self, work: _Work[SampleT]) -> None:
        self._prepare(work)
        self._infer(work)

    # -- finishing thread --------------------------------------------------------------------------------------------

    def _finish(self, incoming: Handover[_Work[SampleT]]) -> None:
        judging = self.active
        while (work := incoming.get()) is not None:
            if self._attempt(work, self._decode) is None:
                continue
            work.active.tally.invalid_in_a_row = 0
            self.invalid_text = ""
            if work.active.judge is not judging.judge:
                self._end_all(judging)
            judging = work.active
            self._judge_and_emit(work)
            work.active.tally.samples += 1
            self.samples += 1
        if self._has_failed:
            return
        self._end_all(judging)
        if not self._stop.is_set():
            self.source_state = "finished"

    def _end_all(self, judging: Active[SampleT]) -> None:
        for event in judging.judge.finish():
            self._emit_one(event, 0.0, judging)

    def _decode(self, work: _Work[SampleT]) -> None:
        started_s = self._clock.monotonic()
        active = work.active
        work.payload = active.model.decode(
            work.payload, work.sample, min_score=active.min_score, class_ids=active.class_ids
        )
        active.tally.rings["decode"].add(self._clock.monotonic() - started_s)

    def _judge_and_emit(self, work: _Work[SampleT]) -> None:
        clock, rings, judge = self._clock, work.active.tally.rings, work.active.judge
        started_s = clock.monotonic()
        observation = judge.track(work.payload, work.sample)
        tracked_s = clock.monotonic()
        events = judge.judge(observation)
        judged_s = clock.monotonic()
        for event in events:
            self._emit_one(event, (clock.monotonic() - work.began_s) * 1000, work.active)
        emitted_s = clock.monotonic()
        rings["track"].add(tracked_s - started_s)
        rings["rules"].add(judged_s - tracked_s)
        rings["emit"].add(emitted_s - judged_s)
        rings["age"].add(emitted_s - work.began_s)
        if self._ended_s is not None:
            self.longest_gap_s = max(self.longest_gap_s, emitted_s - self._ended_s)
        self._ended_s = emitted_s

    def _emit_one(self, event: Event, latency_ms: float, active: Active[SampleT]) -> None:
        self._emit(event, latency_ms, active.made_by)
        self.events += 1

    # -- all threads -------------------------------------------------------------------------------------------------

    def _attempt(self, work: _Work[SampleT], step: Callable[[_Work[SampleT]], None]) -> _Work[SampleT] | None:
        """Take one step of the model; a sample that it cannot take is counted, and many in a row end the pipeline."""
        try:
            step(work)
        except Exception as error:  # noqa: BLE001  the model's native code raises what it likes
            self._count_invalid(error, work.active.tally)
            return None
        return work

    def _count_invalid(self, error: Exception, tally: Tally) -> None:
        if self._stop.is_set():  # what was on its way is dropped then, and is nobody's fault
            return
        with self._failure_lock:  # the only cause that several threads count
            self._dropped_here["invalid"] += 1
            tally.invalid += 1
            tally.invalid_in_a_row += 1
        self.invalid_text = _one_line(error)
        if tally.invalid_in_a_row >= INVALID_LIMIT:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._failure_lock:
            if self._has_failed or self._stop.is_set():
                return
            self._has_failed = True
        self.stop()
        self._on_failure(error)

    def _spawn(self, role: str, body: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run, args=(body,), name=f"{self.name}-{role}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:  # the top of a thread: the pipeline ends, and says why
            log.exception("%s: a thread of the pipeline ended", self.name)
            self._fail(error)


def _dropped_by(source: Source[Any] | None) -> Counter[str]:
    dropped: Counter[str] = Counter()
    with contextlib.suppress(RuntimeError):  # a counter that grew a key just now; the next beat has it
        dropped.update(getattr(source, "dropped", {}))
    return dropped


def _one_line(error: BaseException) -> str:
    if isinstance(error, HoldfastError):
        return mask_url(" ".join(str(error).split()))
    return mask_url(f"{type(error).__name__}: {' '.join(str(error).split())}")
