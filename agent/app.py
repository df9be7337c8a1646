"""Core: composes every service, and is the only module that knows them all.

One thread takes messages from one queue: from the broker link, from workers, from the preparing thread. It hands each
to the state machine that decides (outbox, supervision, conditions) and carries out the answer. Nothing else touches
SQLite. Core imports neither ONNX Runtime nor OpenCV: what they do happens in child processes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from agent.clock import Clock, Random, SystemClock, SystemRandom
from agent.device.planning.plan import Candidate, Outcome
from agent.device.planning.planstore import PlanStore
from agent.device.survey.absence import Absence
from agent.device.survey.tried import Tried
from agent.health.conditions import ClearCondition, Conditions, SetCondition
from agent.identity import device_identity
from agent.mqtt.link import Link
from agent.mqtt.messages import Connected, ConnectFailed, Disconnected, LinkMessage, MessageArrived, PublishAcknowledged
from agent.mqtt.topics import Topics, topic_matches
from agent.outbox.actions import Action, Publish
from agent.outbox.envelope import CONTENT_TYPE, Envelope, ModelInfo
from agent.outbox.outbox import Outbox
from agent.outbox.store import EventStore
from agent.paths import StatePaths, hold_state, open_state
from agent.pipeline.demands import asked_by_model
from agent.pipeline.jobs import pipelines_by_model, sensor_topics
from agent.pipeline.workers import WorkerNote, Workers
from agent.preparation import (
    BundleOpened,
    FactsKnown,
    PreparationFailed,
    PreparationNote,
    Prepared,
    Preparer,
    TrialProgress,
    TriedAgain,
)
from agent.reporting import Reporter
from agent.running import Running
from agent.settings import Settings
from agent.status import LinkStatus, Status
from agent.trial.measuring import Loaded
from agent.update.notes import WorkNote
from agent.updating import Updating
from agent.wishes import Wishes

log = logging.getLogger(__name__)

WORKERS_GRACE_S = 0.8
"""With the link's farewell (1 s at most), core is gone within 2 s of SIGTERM."""
LAST_WORDS_S = 0.3
PREPARATION_GRACE_S = 0.2
"""It sees the word to stop every 50 ms, and kills its child."""
STATUS_PERIOD_S = 1.0
NOTES_A_TURN = 256
"""Then what is due by time gets its turn, however many notes still wait."""
NOTES_AHEAD = 4096
"""Worker messages that may wait for core: then the workers wait, so that a slow disk does not fill the memory."""
ARRIVALS_AHEAD = 64
"""Messages of the broker that may wait for core, of up to 1 MiB each: then the broker waits, whatever it wants to send."""
STUCK_S = 5.0
"""Where core takes nothing for so long, what arrives is dropped rather than the connection."""

Note: TypeAlias = LinkMessage | WorkerNote | PreparationNote | WorkNote | None
"""What comes through the queue; None asks to stop."""


class Core:
    """The agent's main process, from settings to the last farewell. `run` blocks; any thread may `stop` it.

    Args:
        settings: The operator's file.
        paths: The state folder, which this process holds alone.
        exit_when_finished: Stop by itself when every source has ended and every event has left.
        farewell_s: After `stop`, how long events may still take to leave. A service has no time for that: they are kept.
    """

    def __init__(
        self,
        settings: Settings,
        paths: StatePaths,
        clock: Clock,
        random: Random,
        *,
        exit_when_finished: bool = False,
        farewell_s: float = 0.0,
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._clock = clock
        self._exit_when_finished = exit_when_finished
        self._farewell_s = farewell_s
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._room = threading.Semaphore(NOTES_AHEAD)
        self._room_for_arrivals = threading.Semaphore(ARRIVALS_AHEAD)
        self._device_id = device_identity(settings.device.name, paths, random)
        self._conditions = Conditions(clock)
        self._outbox = Outbox(
            EventStore.open(paths, clock), settings.outbox, Envelope(self._device_id, clock, random), random
        )
        self._pipelines = pipelines_by_model(settings.cameras, settings.sensors, list(settings.models))
        self._workers = Workers(
            post=self._post_worker_note,
            on_event=self._record,
            on_swap=lambda model, error: self._running.swap_ended(model, error),  # noqa: PLW0108  it is made below
            on_trouble=lambda model, job, reason: self._running.trouble(model, job, reason),  # noqa: PLW0108
            conditions=self._conditions,
            clock=clock,
            random=random,
        )
        self._absence = Absence(paths.accelerators)
        preparer = Preparer(
            settings.device.profile,
            PlanStore(paths.plans),
            clock,
            prepared=paths.prepared,
            runtimes=settings.device.runtimes,
            profiles=settings.device.profiles,
            tried=Tried(paths.tried),
            asked=asked_by_model(settings.models, self._pipelines),
        )
        self._topics = Topics(settings.mqtt.topic_prefix if settings.mqtt else "holdfast", self._device_id)
        self._sensor_topics = sensor_topics(settings.sensors)
        self._link = self._make_link(random)
        self._pipeline_models = {
            pipeline.name: model for model, pipelines in self._pipelines.items() for pipeline in pipelines
        }
        self._next_status_s = 0.0
        self._reporter = Reporter(
            self._device_id,
            bundles={name: settings.models[name].bundle or "" for name in self._pipelines},
            pipelines=self._pipeline_models,
            conditions=self._conditions,
            clock=clock,
            topics=self._topics,
            link=self._link,
        )
        self._wishes = Wishes(preparer, clock=clock, random=random, post=self._notes.put)
        self._running = Running(
            settings,
            paths,
            self._pipelines,
            wishes=self._wishes,
            workers=self._workers,
            reporter=self._reporter,
            conditions=self._conditions,
            clock=clock,
            random=random,
        )
        self._updating = self._running.updating = Updating.of(
            settings,
            paths,
            self._topics,
            pipelines=self._pipelines,
            preparer=preparer,
            conditions=self._conditions,
            clock=clock,
            random=random,
            post=self._notes.put,
            switch=self._running.switch,
        )

    @property
    def status(self) -> Status:
        """The newest status, a finished value."""
        return self._reporter.status

    def run(self) -> None:
        """Start everything, work until `stop` is called, and leave nothing behind."""
        try:
            self._start()
            while self._work():
                pass
        finally:
            self._finish()

    def stop(self) -> None:
        """Ask `run` to return. Safe in signal handlers and from any thread."""
        self._notes.put(None)

    # -- order of life -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._carry_out(self._outbox.start(self._clock.monotonic()))
        if self._link:
            self._link.start()
        if self._updating:
            self._updating.start()
        self._running.start()

    def _work(self) -> bool:
        """Wait for something to happen, deal with all of it, do what is due. Return whether to go on."""
        wakeups = [self._outbox.next_wakeup, self._workers.tick(), self._next_status_s]
        wakeups.append(self._running.tick(self._clock.monotonic()))
        if self._updating:
            wakeups.append(self._updating.tick())
        next_s = min(wakeup for wakeup in wakeups if wakeup is not None)
        with contextlib.suppress(queue.Empty):
            note = self._notes.get(timeout=max(0.0, next_s - self._clock.monotonic()))
            for _ in range(NOTES_A_TURN):
                if note is None:
                    return False
                self._deal_with(note)
                note = self._notes.get_nowait()
            self._deal_with(note)
        self._do_what_is_due()
        return not (self._exit_when_finished and self._is_finished())

    def _do_what_is_due(self) -> None:
        now_s = self._clock.monotonic()
        self._carry_out(self._outbox.tick(now_s))
        if now_s >= self._next_status_s:
            self._next_status_s = now_s + STATUS_PERIOD_S
            self._reporter.refresh(self._workers, self._outbox.stats())
            self._running.look()
            if self._updating:
                self._updating.look(self._workers, self._link)

    def _finish(self) -> None:
        """Workers first, so that what they still say is recorded; then the outbox; the farewell to the broker last."""
        self._wishes.stop()
        if self._updating:
            self._updating.stop()
        self._workers.stop(WORKERS_GRACE_S)
        self._wishes.join(PREPARATION_GRACE_S)
        self._take_last_words()
        self._bid_farewell()
        self._reporter.refresh(self._workers, self._outbox.stats())
        self._outbox.close(self._clock.monotonic())
        if self._link:
            self._link.stop()

    def _take_last_words(self) -> None:
        """Record what the workers said to their end, and what the broker acknowledged meanwhile.

        A killed worker's pipe is drained in a moment, or never. Nothing new is begun.
        """
        until_s = self._clock.monotonic() + LAST_WORDS_S
        while not (self._workers.have_ended and self._notes.empty()) and self._clock.monotonic() < until_s:
            try:
                note = self._notes.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(note, WorkerNote | LinkMessage):
                self._deal_with(note)

    def _bid_farewell(self) -> None:
        """Go on delivering for `farewell_s`, or until nothing waits."""
        until_s = self._clock.monotonic() + self._farewell_s
        while self._outbox.stats().queued and self._clock.monotonic() < until_s:
            self._carry_out(self._outbox.tick(self._clock.monotonic()))
            try:
                self._deal_with(self._notes.get(timeout=0.05))
            except queue.Empty:
                continue

    def _is_finished(self) -> bool:
        """Whether every source has ended and nothing waits for a broker that there is one of."""
        if self._workers.models != set(self._pipelines) or not self._workers.are_finished:
            return False
        if not self._running.are_settled:
            return False
        return self._link is None or self._outbox.stats().queued == 0

    # -- messages ----------------------------------------------------------------------------------------------------

    def _post_worker_note(self, note: WorkerNote) -> None:
        self._room.acquire()
        self._notes.put(note)

    def _post_link_message(self, message: LinkMessage) -> None:
        if isinstance(message, MessageArrived) and not self._room_for_arrivals.acquire(timeout=STUCK_S):
            log.warning("a message on %s is dropped: %d others wait", message.topic, ARRIVALS_AHEAD)
            return
        self._notes.put(message)

    def _deal_with(self, note: Note) -> None:
        now_s = self._clock.monotonic()
        match note:
            case WorkerNote():
                self._room.release()
                self._workers.deal_with(note)
            case PublishAcknowledged(session, token, reason_code):
                self._carry_out(self._outbox.acknowledged(token, reason_code, session, now_s))
            case MessageArrived(topic, payload):
                self._room_for_arrivals.release()
                self._take_message(topic, payload, now_s)
            case Connected(session, protocol, receive_maximum):
                self._reporter.set_link(LinkStatus("connected", protocol))
                self._conditions.clear("broker-unreachable")
                self._carry_out(
                    self._outbox.connected(
                        now_s, session=session, receive_maximum=receive_maximum, sees_denials=note.sees_denials
                    )
                )
            case Disconnected(_, reason):
                self._reporter.set_link(LinkStatus("connecting", text=reason))
                self._conditions.set("broker-unreachable", "warning", f"the broker is gone: {reason}; events are kept")
                self._carry_out(self._outbox.disconnected(now_s))
            case ConnectFailed(_, reason):
                self._reporter.set_link(LinkStatus("connecting", text=reason))
                self._conditions.set("broker-unreachable", "warning", f"{reason}; events are kept")
            case FactsKnown(facts):
                self._reporter.set_facts(facts)
                for finding in facts.findings:
                    self._conditions.set(f"probe/{finding.probe}", "info", finding.text)
                for action in self._absence.look(facts):
                    self._conditions.apply(action)
            case BundleOpened(wanted, bundle):
                self._reporter.update_model(
                    wanted.model, bundle=wanted.bundle, version=bundle.manifest.version, digest=bundle.digest
                )
            case TrialProgress(model, Candidate() as candidate):
                self._reporter.update_model(model, trying=candidate, is_loading=True)
            case TrialProgress(model, Loaded()):
                self._reporter.update_model(model, is_loading=False)
            case TrialProgress(model, Outcome() as outcome):
                self._reporter.add_outcome(model, outcome)
            case Prepared() | PreparationFailed() | TriedAgain():
                self._running.deal_with(note)
            case _ if self._updating and isinstance(note, WorkNote):
                self._updating.deal_with(note)

    def _take_message(self, topic: str, payload: bytes, now_s: float) -> None:
        if topic == self._topics.ack:
            self._carry_out(self._outbox.consumer_acknowledged(payload, now_s))
        if topic == self._topics.release_hint and self._updating:
            self._updating.hint(payload)
        for pipeline, pattern in self._sensor_topics.items():
            if topic_matches(pattern, topic):
                self._workers.send_payload(pipeline, self._clock.now(), payload)

    def _record(
        self, _pipeline: str, message: Mapping[str, Any], latency_ms: float, made_by: Mapping[str, str]
    ) -> None:
        """One event of a worker: durable within `commit_ms`, delivered or counted from then on."""
        event = {**message, "latency_ms": latency_ms}
        self._carry_out(self._outbox.record(event, ModelInfo(**made_by), self._clock.monotonic()))

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Publish(seq, pipeline, payload, session):
                    if self._link:
                        topic = self._topics.events(pipeline)
                        self._link.publish(
                            topic,
                            payload,
                            qos=1,
                            token=seq,
                            session=session,
                            content_type=CONTENT_TYPE,
                        )
                case SetCondition() | ClearCondition():
                    self._conditions.apply(action)

    def _make_link(self, random: Random) -> Link | None:
        if self._settings.mqtt is None:
            self._conditions.set("no-broker", "info", "no `mqtt:` section: events are kept on this device only")
            return None
        hints = [self._topics.release_hint] if self._settings.update else []
        subscriptions = [self._topics.ack, *hints, *dict.fromkeys(self._sensor_topics.values())]
        return Link(
            self._settings.mqtt,
            self._topics,
            post=self._post_link_message,
            clock=self._clock,
            random=random,
            subscriptions=subscriptions,
        )


def run(settings: Settings, *, exit_when_finished: bool = False) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        StateError: the state folder cannot be used, or another agent holds it.
    """
    clock, random = SystemClock(), SystemRandom()
    paths = open_state(settings.state_dir)
    with hold_state(paths):
        core = Core(settings, paths, clock, random, exit_when_finished=exit_when_finished)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: core.stop())
        core.run()
