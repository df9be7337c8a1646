"""Which event goes to the broker when, and when it counts as delivered: a state machine without threads or clocks.

Takes what happened and the time; gives `Publish`, `Delete` and conditions. Reads ahead no more than its window, so
a long queue costs no memory. The rules:

1. *Order per pipeline.* Each pipeline is a lane; its events go out in the order of their numbers.
2. *One first.* After each connect and each denial a lane sends only its oldest event, until that one is answered:
   by the broker (`broker`), or by the consumer (`consumer`). Then the window opens. So a topic that the broker
   denies costs one message a try and never shuffles the queue, and a broker that lost its queue, or a consumer that
   is not there yet, is not flooded with what would have to come again.
3. *Delivered* is `broker`: a PUBACK with a reason code below 0x80, 0x10 ("no matching subscribers") included, for
   that is the broker's word too; `consumer`: the number came back on the ack topic.
4. A *denied* publish (0x80 and above) stays. Its lane waits, longer each time; the other lanes go on.
5. A lane whose consumer has acknowledged nothing for `consumer_timeout_s` goes back to its oldest event and to rule
   2, and waits twice as long each time (up to six times).
6. An event keeps its place in the window until it is gone from the disk, so that a crash repeats no more than a
   window.

What can still be out of order: a broker that denies one event and accepts the next ones of the same topic, which were
already on their way. What can come twice: what was in flight when a connection or this program ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent.backoff import Backoff
from agent.clock import Random
from agent.health.conditions import ClearCondition, SetCondition
from agent.outbox.actions import Delete, Publish
from agent.outbox.envelope import mark_replayed
from agent.outbox.reasons import denial_advice
from agent.outbox.store import Stored

Step = Publish | Delete | SetCondition | ClearCondition
NO_SUBSCRIBERS = 0x10
DENIED = 0x80
LONGEST_PATIENCE = 6
_DENIALS_INVISIBLE = SetCondition(
    "denials-invisible",
    "info",
    "The broker speaks MQTT 3.1.1, which acknowledges even what the broker's ACL throws away: a denied event cannot be "
    "seen here. Use a broker with MQTT 5, or `outbox.delivery: consumer`.",
)


def _nobody_listens(pipeline: str) -> SetCondition:
    text = (
        f"No consumer acknowledges events of {pipeline}. Start it, or check that it writes each `seq` to the ack topic."
    )
    return SetCondition(f"consumer-silent/{pipeline}", "warning", text)


class Backlog(Protocol):
    """The events on disk, as delivery sees them."""

    def pipelines(self) -> Sequence[str]:
        """Return the pipelines that have events."""
        ...

    def oldest(self, pipeline: str, after: int, limit: int) -> Sequence[Stored]:
        """Return up to `limit` events with a number above `after`, in order."""
        ...


@dataclass(slots=True)
class _Lane:
    pipeline: str
    backoff: Backoff
    cursor: int = 0
    """Events up to here are sent, or gone."""
    may_have_more: bool = True
    is_open: bool = False
    in_flight: dict[int, float] = field(default_factory=dict)
    """Number → when it was sent; in order."""
    settled: set[int] = field(default_factory=set)
    """Delivered, and not yet gone from the disk."""
    highest_sent: int = 0
    retry_at: float | None = None
    progress_at: float = 0.0
    silences: int = 0

    def room(self) -> float:
        return float("inf") if self.is_open else 1 - len(self.in_flight)

    def restart(self) -> None:
        """Begin again at the oldest event, with one."""
        self.in_flight.clear()
        self.cursor, self.may_have_more, self.is_open = 0, True, False


class Delivery:
    """See the module's text. `now` is monotonic seconds.

    Args:
        backlog: The events on disk.
        mode: `broker` or `consumer`.
        random: Jitter of waiting lanes.
        consumer_timeout_s: `consumer` only.
        window: At most so many events sent and not yet gone.
        last_recorded: The highest number on disk at the start.
    """

    def __init__(
        self,
        backlog: Backlog,
        mode: Literal["broker", "consumer"],
        random: Random,
        *,
        consumer_timeout_s: float = 10.0,
        window: int = 200,
        last_recorded: int = 0,
    ) -> None:
        self._backlog = backlog
        self._mode = mode
        self._random = random
        self._timeout_s = consumer_timeout_s
        self._window = window
        self._session: int | None = None
        self._receive_maximum = window
        self._last_recorded = last_recorded
        self._replayed_up_to = last_recorded
        self._lanes: dict[str, _Lane] = {}
        self._lane_of: dict[int, _Lane] = {}
        self._unanswered = 0
        """Publishes without a PUBACK on this connection."""

    # -- what happened ------------------------------------------------------------------------------------------

    def connected(self, now: float, *, session: int, receive_maximum: int, sees_denials: bool) -> list[Step]:
        """Begin to send, one event of each pipeline."""
        self._session, self._receive_maximum = session, receive_maximum
        for lane in self._lanes.values():
            lane.retry_at = None
            lane.backoff.reset()
        steps: list[Step] = [ClearCondition("denials-invisible") if sees_denials else _DENIALS_INVISIBLE]
        self._unanswered = 0
        return steps + self.restart(now)

    def disconnected(self) -> list[Step]:
        """Whatever was in flight will be sent again."""
        self._forget_flights()
        self._session = None
        return []

    def restart(self, now: float) -> list[Step]:
        """Begin again on the same connection: what was in flight is uncertain."""
        if self._session is None:
            return []
        self._forget_flights()
        self._replayed_up_to = self._last_recorded
        for pipeline in self._backlog.pipelines():
            self._lane(pipeline)
        return self._fill(now)

    def recorded(self, stored: Iterable[Stored], now: float) -> list[Step]:
        """These events are on disk now."""
        for event in stored:
            self._lane(event.pipeline).may_have_more = True
            self._last_recorded = max(self._last_recorded, event.seq)
        return self._fill(now)

    def acknowledged(self, seq: int, reason_code: int, session: int, now: float) -> list[Step]:
        """Take the broker's answer to one publish; answers from an earlier connection are ignored."""
        if session != self._session:
            return []
        self._unanswered -= 1
        lane = self._lane_of.get(seq)
        if lane is None:
            return self._fill(now)
        is_denied = reason_code >= DENIED
        steps = self._deny(lane, seq, reason_code, now) if is_denied else self._accept(lane, seq, reason_code)
        return steps + self._fill(now)

    def consumer_acknowledged(self, seqs: Iterable[int], now: float) -> list[Step]:
        """The consumer has these events. Unknown numbers are ignored, and everything in `broker` mode."""
        if self._mode != "consumer":
            return []
        known = tuple(seq for seq in seqs if 0 < seq <= self._last_recorded)
        steps: list[Step] = [Delete(known)] if known else []
        for seq in known:
            if lane := self._lane_of.get(seq):
                self._settle(lane, seq)
                lane.progress_at = now
                if lane.silences:
                    lane.silences = 0
                    steps.append(ClearCondition(f"consumer-silent/{lane.pipeline}"))
        return steps + self._fill(now)

    def deleted(self, seqs: Iterable[int], now: float) -> list[Step]:
        """These events are gone from the disk: their places in the window are free."""
        for seq in seqs:
            if lane := self._lane_of.pop(seq, None):
                lane.settled.discard(seq)
                lane.in_flight.pop(seq, None)
        return self._fill(now)

    def tick(self, now: float) -> list[Step]:
        """Send again what is due."""
        steps: list[Step] = []
        for lane in self._lanes.values():
            if lane.retry_at is not None and lane.retry_at <= now:
                lane.retry_at = None
            if (deadline := self._deadline(lane)) is not None and deadline <= now:
                steps += self._give_up_waiting(lane)
        return steps + self._fill(now)

    # -- what can be asked --------------------------------------------------------------------------------------

    @property
    def next_wakeup(self) -> float | None:
        """When `tick` has something to do, or None."""
        if self._session is None:
            return None
        times = [lane.retry_at for lane in self._lanes.values() if lane.retry_at is not None]
        times += [time for lane in self._lanes.values() if (time := self._deadline(lane)) is not None]
        return min(times, default=None)

    def is_outstanding(self, seq: int) -> bool:
        """Whether the event was sent on this connection and is not gone yet: the quota must leave it alone."""
        return seq in self._lane_of

    @property
    def outstanding(self) -> int:
        """How many events were sent and are not gone yet."""
        return len(self._lane_of)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to send on."""
        return self._session is not None

    # -- inside -------------------------------------------------------------------------------------------------

    def _lane(self, pipeline: str) -> _Lane:
        if pipeline not in self._lanes:
            self._lanes[pipeline] = _Lane(pipeline, Backoff(self._random))
        return self._lanes[pipeline]

    def _forget_flights(self) -> None:
        for lane in self._lanes.values():
            for seq in lane.in_flight:
                del self._lane_of[seq]
            lane.restart()

    def _accept(self, lane: _Lane, seq: int, reason_code: int) -> list[Step]:
        steps: list[Step] = []
        if lane.backoff.attempts and lane.retry_at is None:
            lane.backoff.reset()
            steps.append(ClearCondition(f"publish-denied/{lane.pipeline}"))
        if self._mode == "broker":
            steps.append(Delete((seq,)))
            self._settle(lane, seq)
        elif reason_code == NO_SUBSCRIBERS:
            steps.append(_nobody_listens(lane.pipeline))
            lane.silences = max(lane.silences, 1)
        return steps

    @staticmethod
    def _settle(lane: _Lane, seq: int) -> None:
        lane.in_flight.pop(seq, None)
        lane.settled.add(seq)
        lane.is_open = lane.retry_at is None

    def _deny(self, lane: _Lane, seq: int, reason_code: int, now: float) -> list[Step]:
        if lane.in_flight.pop(seq, None) is None:
            return []  # settled meanwhile by the consumer
        del self._lane_of[seq]
        lane.is_open, lane.cursor, lane.may_have_more = False, 0, True
        if lane.retry_at is not None:
            return []  # one of several that were in flight together
        delay_s = lane.backoff.next_delay_s()
        lane.retry_at = now + delay_s
        text = f"The broker denies events of {lane.pipeline}: {denial_advice(reason_code)} Nothing is lost: they wait."
        return [SetCondition(f"publish-denied/{lane.pipeline}", "error", text)]

    def _deadline(self, lane: _Lane) -> float | None:
        if self._mode != "consumer" or self._session is None or not lane.in_flight:
            return None
        patience = min(1 << min(lane.silences, 3), LONGEST_PATIENCE)
        return max(next(iter(lane.in_flight.values())), lane.progress_at) + self._timeout_s * patience

    def _give_up_waiting(self, lane: _Lane) -> list[Step]:
        for seq in lane.in_flight:
            del self._lane_of[seq]
        lane.restart()
        lane.silences += 1
        return [_nobody_listens(lane.pipeline)]

    def _fill(self, now: float) -> list[Step]:
        """Send as much as the window and the broker's receive maximum allow, in turns between the lanes."""
        steps: list[Step] = []
        lanes = [lane for lane in self._lanes.values() if lane.may_have_more and lane.retry_at is None]
        while self._session is not None and lanes and (room := self._room()) > 0:
            share = max(1, room // len(lanes))
            for lane in list(lanes):
                limit = int(min(share, self._room(), lane.room()))
                if limit <= 0 or not self._send(lane, limit, now, steps):
                    lanes.remove(lane)
        return steps

    def _room(self) -> int:
        return min(self._window - len(self._lane_of), self._receive_maximum - self._unanswered)

    def _send(self, lane: _Lane, limit: int, now: float, steps: list[Step]) -> bool:
        """Send up to `limit` more events of the lane; return whether it may have more."""
        assert self._session is not None
        batch = self._backlog.oldest(lane.pipeline, lane.cursor, limit)
        for event in batch:
            lane.cursor = event.seq
            if event.seq not in lane.in_flight and event.seq not in lane.settled:
                steps.append(self._publish(lane, event, now))
        lane.may_have_more = bool(batch)
        return lane.may_have_more

    def _publish(self, lane: _Lane, event: Stored, now: float) -> Publish:
        assert self._session is not None
        is_replayed = event.seq <= max(self._replayed_up_to, lane.highest_sent)
        payload = mark_replayed(event.payload) if is_replayed else event.payload
        lane.highest_sent = max(lane.highest_sent, event.seq)
        lane.in_flight[event.seq] = now
        self._lane_of[event.seq] = lane
        self._unanswered += 1
        return Publish(event.seq, event.pipeline, payload, self._session)
