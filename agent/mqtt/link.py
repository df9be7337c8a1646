"""The connection to the broker: paho in a thread of its own that only hands over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from agent.clock import Clock, Random
from agent.mqtt.messages import LinkMessage
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics


class Link:
    """Keeps one connection to the broker, for ever, and never blocks its caller.

    Args:
        settings: The operator's words.
        topics: This device's names; `topics.status` carries the will.
        post: Called from threads of the link with each message; must only hand over (`queue.put`).
        subscriptions: Topics to subscribe on each connect, QoS 1 (the ack topic, sensors' topics).
        clock, random: Time and jitter.
        client_id: `settings.client_id`, else this, usually the device's id.
        answer_timeout_s: How long a broker may take to answer CONNECT before it counts as silent.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topics: Topics,
        *,
        post: Callable[[LinkMessage], None],
        clock: Clock,
        random: Random,
        subscriptions: Sequence[str] = (),
        answer_timeout_s: float = 5.0,
    ) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Start connecting. Returns at once."""
        raise NotImplementedError

    def stop(self) -> None:
        """Say `offline` where connected, disconnect, return within a second in any state."""
        raise NotImplementedError

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        token: int | None = None,
        session: int | None = None,
        content_type: str = "application/json",
    ) -> bool:
        """Hand a message to the broker; return False, and forget it, where there is no connection.

        Args:
            token: Comes back in `PublishAcknowledged` (QoS 1 only).
            session: Only for this connection; dropped where the link is on another one.
        """
        raise NotImplementedError

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish retained at QoS 1 now and on each later connect (info, health, update); the newest payload wins."""
        raise NotImplementedError

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at this moment."""
        raise NotImplementedError

    def __enter__(self) -> Link:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
