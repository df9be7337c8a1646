"""What the link posts to core's queue. Values, so that a thread of the link never touches core's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["5", "3.1.1"]
FailureKind = Literal["unreachable", "silent", "refused", "credentials", "tls", "protocol"]


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted us; status, info and the other retained messages are on their way again."""

    session: int
    """Counts connections of this process; `Publish.session` and `PublishAcknowledged.session` refer to it."""
    protocol: Protocol
    receive_maximum: int
    """How many QoS 1 messages may be unacknowledged (MQTT 5 section 3.2.2.3.3); 65535: no limit."""

    @property
    def sees_denials(self) -> bool:
        """Whether the broker can say that it threw a publish away: MQTT 3.1.1 has no reason codes in its PUBACK."""
        return self.protocol == "5"


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is over; the link tries again by itself unless it was stopped."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """One attempt failed; the link tries again by itself after `retry_in_s`."""

    kind: FailureKind
    reason: str
    """What happened and what to do about it, one or two sentences, ready to be a condition's text."""
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class PublishAcknowledged:
    """The broker's answer (PUBACK) to a publish that carried a token."""

    session: int
    token: int
    reason_code: int
    """MQTT 5 section 3.4.2.1: below 0x80 is success. Always 0 on MQTT 3.1.1."""


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A message on a subscribed topic."""

    topic: str
    payload: bytes
    retain: bool = False


LinkMessage = Connected | Disconnected | ConnectFailed | PublishAcknowledged | MessageArrived
