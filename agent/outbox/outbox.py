"""The outbox as core uses it: record, deliver, forget. A state machine without threads; `now` is monotonic seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.clock import Clock, Random
from agent.outbox.actions import Action
from agent.outbox.envelope import Envelope, ModelInfo
from agent.outbox.settings import OutboxSettings
from agent.outbox.store import EventStore


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """Counters since this process started, and what is in the queue now."""

    recorded: int
    delivered: int
    queued: int
    queued_bytes: int
    in_flight: int
    lost: Mapping[str, int]
    """By cause, since the database was made: `drop_oldest thin_out drop_newest too_large disk_full invalid`."""


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
        raise NotImplementedError

    def start(self, now: float) -> list[Action]:
        """Say what the store found at its opening (a damaged database, losses of former runs)."""
        raise NotImplementedError

    def record(self, message: Mapping[str, Any], model: ModelInfo | None, now: float) -> list[Action]:
        """Take one event of a worker (`Event.to_message()`). It is durable after `commit_ms` at the latest."""
        raise NotImplementedError

    def connected(self, now: float, *, session: int, receive_maximum: int, sees_denials: bool) -> list[Action]:
        """The link is up (values of `agent.mqtt.messages.Connected`)."""
        raise NotImplementedError

    def disconnected(self, now: float) -> list[Action]:
        """The link is down: whatever was in flight will be sent again."""
        raise NotImplementedError

    def acknowledged(self, seq: int, reason_code: int, session: int, now: float) -> list[Action]:
        """The broker's answer to one publish."""
        raise NotImplementedError

    def consumer_acknowledged(self, payload: bytes, now: float) -> list[Action]:
        """A message on the ack topic: a number, a list of numbers, or `{"seq": …}` with either. Anything else is ignored and logged."""
        raise NotImplementedError

    def tick(self, now: float) -> list[Action]:
        """Do what is due: commit, send again, shrink the file."""
        raise NotImplementedError

    @property
    def next_wakeup(self) -> float | None:
        """When `tick` has something to do by itself, in monotonic seconds; None: not before the next message."""
        raise NotImplementedError

    def stats(self) -> OutboxStats:
        """Return the counters."""
        raise NotImplementedError

    def close(self) -> None:
        """Commit what is pending and close the store."""
        raise NotImplementedError
