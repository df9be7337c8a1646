"""The outbox as core uses it: record, deliver, forget. A state machine without threads; `now` is monotonic seconds.

Composes the store, the quota and the delivery. Events that arrive within `commit_ms` share one transaction, and so
do the deletions of what was delivered. What cannot be kept is counted, in the same transaction that drops it, and
reported to the consumer as an event of its own (`dev.holdfast.loss`) until that report was delivered.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.clock import Random
from agent.errors import StateError
from agent.health.conditions import ClearCondition, SetCondition
from agent.outbox import quota
from agent.outbox.actions import Action, Delete
from agent.outbox.damage import DamagedDatabaseError, Recovery
from agent.outbox.delivery import Delivery, Step
from agent.outbox.envelope import Envelope, ModelInfo
from agent.outbox.losses import LossBook
from agent.outbox.settings import OutboxSettings
from agent.outbox.store import EventStore, Stored, WriteRefusedError

COMMIT_AT = 100
"""So many new events are committed without waiting for `commit_ms`."""
HELD_IN_MEMORY = 2000
"""So many events wait in memory while the disk refuses them; what is beyond is lost, and counted."""
REFUSED_RETRY_S = 1.0
SHRINK_AFTER_S = 1.0
"""Idle time before the file is made smaller."""
SHRINK_EVERY_S = 0.05
FREE_ON_FULL_DISK_BYTES = 1 << 20
DISK_CONDITION = "disk-refuses"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """Counters since this process started, and what is in the queue now."""

    recorded: int
    delivered: int
    queued: int
    queued_bytes: int
    in_flight: int
    lost: Mapping[str, int]
    """By cause, since the database was made: `drop_oldest thin_out drop_newest too_large disk_full damaged invalid`."""


class Outbox:
    """Composes store, quota and delivery. Every method returns what core is to do next, in order.

    Usage in core's loop:
        wait for a message, at most until `outbox.next_wakeup`;
        hand it to `record / connected / disconnected / acknowledged / consumer_acknowledged`;
        then, or when the time has come, `tick(now)`; carry out every action returned.
    """

    def __init__(
        self,
        store: EventStore,
        settings: OutboxSettings,
        envelope: Envelope,
        random: Random,
        *,
        window: int = 200,
    ) -> None:
        self._store = store
        self._settings = settings
        self._envelope = envelope
        self._quota_bytes = int(settings.max_mb * (1 << 20))
        self._flush_at = max(1, window // 2)
        self._losses = LossBook(store.losses())
        self._delivery = Delivery(
            store,
            settings.delivery,
            random,
            consumer_timeout_s=settings.consumer_timeout_s,
            window=window,
            last_recorded=store.highest_seq,
        )
        self._pending: list[Stored] = []
        self._doomed: set[int] = set()
        self._commit_at: float | None = None
        self._shrink_at: float | None = None
        self._restart_at: float | None = None
        self._is_refused = False
        self._recorded = 0
        self._delivered = 0

    # -- what happened ------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Say what the store found at its opening (a damaged database, losses of former runs)."""
        self._shrink_at = now + SHRINK_AFTER_S
        actions: list[Action] = [_rebuilt(self._store.recovery)] if self._store.recovery else []
        return actions + self._losses.condition(self._settings)

    def record(self, message: Mapping[str, Any], model: ModelInfo | None, now: float) -> list[Action]:
        """Take one event of a worker (`Event.to_message()`). It is durable after `commit_ms` at the latest.

        A message that is no event is logged and counted under `invalid`.
        """
        pipeline = str(message.get("pipeline") or "unknown")
        try:
            seq = self._store.sequence.take()
        except StateError as error:
            self._losses.add(pipeline, "disk_full", 1, 0, 0)
            return [_disk_refuses(error), *self._commit_within(now)]
        try:
            payload = self._envelope.seal(message, seq, model)
        except (ValueError, TypeError) as error:
            log.warning("event refused: %s: %r", error, message)
            self._losses.add(pipeline, "invalid", 1, seq, seq)
            return self._commit_within(now)
        self._pending.append(Stored(seq, pipeline, payload))
        if len(self._pending) >= (HELD_IN_MEMORY if self._is_refused else COMMIT_AT):
            return self._commit(now)
        return self._commit_within(now)

    def connected(self, now: float, *, session: int, receive_maximum: int, sees_denials: bool) -> list[Action]:
        """The link is up (values of `agent.mqtt.messages.Connected`)."""
        return self._deliver(
            lambda: self._delivery.connected(
                now, session=session, receive_maximum=receive_maximum, sees_denials=sees_denials
            ),
            now,
        )

    def disconnected(self, now: float) -> list[Action]:
        """The link is down: whatever was in flight will be sent again."""
        return self._deliver(self._delivery.disconnected, now)

    def acknowledged(self, seq: int, reason_code: int, session: int, now: float) -> list[Action]:
        """The broker's answer to one publish."""
        return self._deliver(lambda: self._delivery.acknowledged(seq, reason_code, session, now), now)

    def consumer_acknowledged(self, payload: bytes, now: float) -> list[Action]:
        """A message on the ack topic: a number, a list of numbers, or `{"seq": …}` with either; else ignored."""
        seqs = read_acknowledgement(payload)
        return self._deliver(lambda: self._delivery.consumer_acknowledged(seqs, now), now) if seqs else []

    def tick(self, now: float) -> list[Action]:
        """Do what is due: commit, send again, shrink the file."""
        actions: list[Action] = []
        if self._commit_at is not None and self._commit_at <= now:
            actions += self._commit(now)
        if self._restart_at is not None and self._restart_at <= now:
            self._restart_at = None
            actions += self._deliver(lambda: self._delivery.restart(now), now)
        actions += self._deliver(lambda: self._delivery.tick(now), now)
        if self._shrink_at is not None and self._shrink_at <= now:
            self._shrink(now)
        return actions

    @property
    def next_wakeup(self) -> float | None:
        """When `tick` has something to do by itself, in monotonic seconds; None: not before the next message."""
        times = (self._commit_at, self._shrink_at, self._restart_at, self._delivery.next_wakeup)
        return min((time for time in times if time is not None), default=None)

    def stats(self) -> OutboxStats:
        """Return the counters."""
        return OutboxStats(
            recorded=self._recorded,
            delivered=self._delivered + len(self._doomed),
            queued=len(self._store) + len(self._pending) - len(self._doomed),
            queued_bytes=self._store.size_bytes,
            in_flight=self._delivery.outstanding,
            lost=self._losses.by_cause(),
        )

    def close(self, now: float) -> None:
        """Commit what is pending and close the store."""
        self._commit(now)
        if self._pending:
            log.error("%d events could not be written and are lost: the disk refuses", len(self._pending))
        self._store.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _deliver(self, step: Callable[[], list[Step]], now: float) -> list[Action]:
        """Run one step of the delivery and sort its outcome: deletions are ours, the rest is core's."""
        try:
            steps = step()
        except DamagedDatabaseError as error:
            return self._rebuild(error, now)
        except StateError as error:
            # What the step had begun is unknown to core: everything in flight is sent again, after a moment.
            self._restart_at = now + REFUSED_RETRY_S
            return [_disk_refuses(error)]
        actions: list[Action] = []
        for outcome in steps:
            if isinstance(outcome, Delete):
                self._doomed.update(outcome.seqs)
            else:
                actions.append(outcome)
        if len(self._doomed) >= self._flush_at and not self._is_refused:
            return actions + self._commit(now)
        return actions + self._commit_within(now)

    def _commit_within(self, now: float) -> list[Action]:
        """See to it that what is pending is committed in time."""
        has_news = self._losses.has_unsaved or (self._delivery.is_connected and self._losses.unreported())
        if self._commit_at is None and (self._pending or self._doomed or has_news):
            wait_s = REFUSED_RETRY_S if self._is_refused else self._settings.commit_ms / 1000
            if wait_s <= 0:
                return self._commit(now)
            self._commit_at = now + wait_s
        return []

    def _commit(self, now: float) -> list[Action]:
        """Write new events, deletions and losses in one transaction, and let the delivery know."""
        self._commit_at = None
        try:
            try:
                return self._write(now)
            except WriteRefusedError:
                self._store.reuse_log()
                return self._write(now)
        except DamagedDatabaseError as error:
            return self._rebuild(error, now)
        except WriteRefusedError as error:
            return self._refused(error, now)

    def _write(self, now: float, *, free_bytes: int = 0) -> list[Action]:
        """Commit once.

        `free_bytes`: make so much room beyond what the quota asks for.

        Raises:
            WriteRefusedError: nothing changed, neither on disk nor here.
        """
        book = self._losses.copy()
        if self._doomed and self._excess() + free_bytes > 0:
            self._store.delete(self._doomed)  # known to be delivered: nothing may be dropped in its stead
        batch, dropped = self._make_room(book, free_bytes)
        for seq in filter(book.is_report, self._doomed):
            book.report_delivered(seq)
        reports = self._reports(book) if self._delivery.is_connected else []
        self._store.write(append=[*batch, *reports], delete=self._doomed.union(dropped), losses=book.unsaved())
        book.saved()
        has_changed = (
            book.by_cause() != self._losses.by_cause() or bool(reports) or book.open_count != self._losses.open_count
        )
        self._losses = book
        gone, self._doomed, self._pending = self._doomed, set(), []
        self._recorded += len(batch)
        self._delivered += len(gone)
        self._shrink_at = now + SHRINK_AFTER_S if self._shrink_at is None else self._shrink_at
        actions = book.condition(self._settings) if has_changed else []
        if self._is_refused:
            self._is_refused = False
            actions.append(ClearCondition(DISK_CONDITION))
        actions += self._deliver(lambda: self._delivery.deleted(gone, now), now)
        return actions + self._deliver(lambda: self._delivery.recorded([*batch, *reports], now), now)

    def _excess(self) -> int:
        incoming = sum(quota.entry_size(stored.pipeline, stored.payload) for stored in self._pending)
        return self._store.size_bytes + incoming - self._quota_bytes

    def _make_room(self, book: LossBook, free_bytes: int) -> tuple[list[Stored], set[int]]:
        """Return which of the pending events are kept, and which numbers on disk have to go; count the losses."""
        excess = self._excess() + free_bytes
        if excess <= 0:
            return self._pending, set()
        incoming = [
            quota.Entry(stored.seq, stored.pipeline, quota.entry_size(stored.pipeline, stored.payload))
            for stored in self._pending
        ]
        too_large = [entry for entry in incoming if entry.size > self._quota_bytes]
        excess -= sum(entry.size for entry in too_large)
        incoming = [entry for entry in incoming if entry.size <= self._quota_bytes]
        policy = self._settings.when_full
        if policy == "drop_newest":
            room = sum(entry.size for entry in incoming) - excess
            refused, dropped = quota.drop_newest(incoming, room), []
        else:
            dropped = self._drop_queued(excess)
            refused = quota.drop_oldest(incoming, excess - sum(entry.size for entry in dropped))
        _count(book, too_large, "too_large")
        _count(book, [*dropped, *refused], policy)
        lost = {entry.seq for entry in (*too_large, *refused)}
        return [stored for stored in self._pending if stored.seq not in lost], {entry.seq for entry in dropped}

    def _drop_queued(self, excess: int) -> list[quota.Entry]:
        """Choose events on disk that free `excess` bytes; what is in flight and reports of losses are left alone."""
        dropped: list[quota.Entry] = []
        if self._settings.when_full == "thin_out" and excess > 0:
            dropped = quota.thin_out(self._droppable(len(self._store) // 2))
            excess -= sum(entry.size for entry in dropped)
        gone = {entry.seq for entry in dropped}
        rest = (entry for entry in self._droppable(len(self._store)) if entry.seq not in gone)
        return dropped + quota.drop_oldest(rest, excess)

    def _droppable(self, limit: int) -> Iterator[quota.Entry]:
        for entry in self._store.entries(limit):
            if not (
                self._delivery.is_outstanding(entry.seq)
                or entry.seq in self._doomed
                or self._losses.is_report(entry.seq)
            ):
                yield entry

    def _reports(self, book: LossBook) -> list[Stored]:
        """Seal one report for each loss that the consumer was not told of."""
        reports = []
        for loss in book.unreported():
            try:
                seq = self._store.sequence.take()
            except StateError:
                break
            reports.append(Stored(seq, loss.pipeline, self._envelope.seal_loss(book.begin_report(loss, seq), seq)))
        return reports

    def _refused(self, error: WriteRefusedError, now: float) -> list[Action]:
        """Keep what the disk refused in memory for a while; beyond that make room by policy, and only then lose."""
        self._is_refused = True
        actions: list[Action] = [_disk_refuses(error)]
        if len(self._pending) >= HELD_IN_MEMORY:
            try:
                return self._write(now, free_bytes=FREE_ON_FULL_DISK_BYTES)
            except WriteRefusedError:
                self._lose_pending()
                actions += self._losses.condition(self._settings)
        return actions + self._commit_within(now)

    def _lose_pending(self) -> None:
        """Give up a quarter of what is held in memory: the newest or the oldest, as the policy says."""
        count = HELD_IN_MEMORY // 4
        keeps_old = self._settings.when_full == "drop_newest"
        lost = self._pending[-count:] if keeps_old else self._pending[:count]
        self._pending = self._pending[:-count] if keeps_old else self._pending[count:]
        _count(self._losses, [quota.Entry(stored.seq, stored.pipeline, 0) for stored in lost], "disk_full")

    def _rebuild(self, error: DamagedDatabaseError, now: float) -> list[Action]:
        """Set the damaged database aside while running; what cannot be read from it is lost, counted and said.

        An event that was delivered and not yet deleted counts as lost too: which ones those were is lost as well.
        """
        log.error("%s", error)
        before = self._store.waiting()
        recovery = self._store.rebuild(error.message)
        after = self._store.waiting()
        for pipeline, count in before.items():
            if count > after.get(pipeline, 0):
                self._losses.add(pipeline, "damaged", count - after.get(pipeline, 0), 0, 0)
        self._losses.save_all()
        actions: list[Action] = [_rebuilt(recovery)]
        actions += self._deliver(lambda: self._delivery.restart(now), now)
        return actions + self._commit_within(now)

    def _shrink(self, now: float) -> None:
        self._shrink_at = None
        try:
            if self._store.has_slack and self._store.shrink_step():
                self._shrink_at = now + SHRINK_EVERY_S
        except StateError as error:
            log.warning("the database cannot be made smaller now: %s", error)


def read_acknowledgement(payload: bytes) -> list[int]:
    """Return the numbers in a message on the ack topic: `7`, `[7, 8]`, `{"seq": 7}`, `{"seq": [7, 8]}`; else none."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        log.warning("an acknowledgement that is no JSON: %r", payload[:80])
        return []
    if isinstance(content, dict):
        content = content.get("seq")
    numbers = content if isinstance(content, list) else [content]
    if not all(type(number) is int for number in numbers):
        log.warning("an acknowledgement without numbers: %r", payload[:80])
        return []
    return numbers


def _count(book: LossBook, entries: Iterable[quota.Entry], cause: str) -> None:
    for entry in entries:
        book.add(entry.pipeline, cause, 1, entry.seq, entry.seq)


def _disk_refuses(error: StateError) -> SetCondition:
    return SetCondition(
        DISK_CONDITION, "error", f"{error.message}. New events are held in memory. {error.hint or ''}".strip()
    )


def _rebuilt(recovery: Recovery) -> SetCondition:
    where = f" The damaged file is kept as {recovery.set_aside}." if recovery.set_aside else ""
    text = (
        f"The database was begun anew: {recovery.reason}. {recovery.salvaged} waiting events were saved; others "
        f"that were waiting are lost.{where} Check the disk if this happens again."
    )
    return SetCondition("database-rebuilt", "warning", text)
