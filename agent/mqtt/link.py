"""The connection to the broker: paho in threads of its own that only hand over.

Takes messages from core's thread (`publish`, `retain`), gives `LinkMessage`s to a callable. Each attempt to connect
has a paho client of its own with a clean start: the outbox keeps what must not be lost, and a queue of paho's that
lives on would send it twice. MQTT 5 comes first; a broker that refuses it, closes the connection at it, or never
answers it is tried with 3.1.1, and what worked is remembered.

Nothing here blocks core. A thread that hangs in a connect or a name look-up is left behind by `stop`; it is a
daemon, and it posts nothing any more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from agent.backoff import Backoff
from agent.clock import Clock, Random
from agent.mqtt.failure import ConnectError
from agent.mqtt.messages import Connected, ConnectFailed, Disconnected, LinkMessage
from agent.mqtt.protocol import ProtocolChoice
from agent.mqtt.session import Session
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics

OFFLINE, ONLINE = b"offline", b"online"
STOP_WITHIN_S = 1.0
STEADY_AFTER_S = 10.0
"""A broker that accepts us and throws us out at once must not be hammered: the delay grows until a connection lasts."""
log = logging.getLogger(__name__)


class Link:
    """Keeps one connection to the broker, for ever, and never blocks its caller.

    Args:
        settings: The operator's words.
        topics: This device's names; `topics.status` carries the will, and the device's id is the default client id.
        post: Called from threads of the link with each message; must only hand over (`queue.put`).
        clock: Time.
        random: Jitter between attempts.
        subscriptions: Topics to subscribe on each connect, QoS 1 (the ack topic, sensors' topics).
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
        self._settings = settings
        self._topics = topics
        self._post_to_core = post
        self._clock = clock
        self._subscriptions = tuple(subscriptions)
        self._answer_timeout_s = answer_timeout_s
        self._backoff = Backoff(random)
        self._choice = ProtocolChoice(settings.protocol, clock)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt-link", daemon=True)
        self._lock = threading.Lock()
        """Guards the three fields below; never held while paho is called."""
        self._session: Session | None = None
        """The one that core may publish on."""
        self._attempt: Session | None = None
        """The one that the link's thread is busy with."""
        self._retained: dict[str, bytes] = {topics.status: ONLINE}
        self._sessions = 0

    def start(self) -> None:
        """Start connecting. Returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Say `offline` where connected, disconnect, return within a second in any state."""
        if self._stopping.is_set():
            return
        deadline = self._clock.monotonic() + STOP_WITHIN_S
        self._stopping.set()
        with self._lock:
            session, self._session = self._session, None
            attempt = self._attempt
        if session is not None:
            session.leave(self._topics.status, OFFLINE, timeout_s=STOP_WITHIN_S / 2)
        if attempt is not None:
            attempt.abort()
        if self._thread.is_alive():
            self._thread.join(max(0.05, deadline - self._clock.monotonic()))

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
            topic: Without wildcards.
            payload: At most 256 MiB.
            qos: 0 or 1.
            retain: Whether the broker keeps it for later subscribers.
            token: Comes back in `PublishAcknowledged` (QoS 1 only).
            session: Only for this connection; dropped where the link is on another one.
            content_type: MQTT 5 only.
        """
        with self._lock:
            current = self._session
        if current is None or (session is not None and session != current.number):
            return False
        return current.publish(topic, payload, qos=qos, retain=retain, token=token, content_type=content_type)

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish retained now and on each later connect (info, health, update); the newest payload wins.

        QoS 0: what a lost connection swallows is sent again with the next one, and the broker's receive maximum is left
        to events.
        """
        with self._lock:
            self._retained[topic] = payload
            current = self._session
        if current is not None:
            current.publish(topic, payload, qos=0, retain=True)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._session is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- the link's own thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._stay_connected()
            except ConnectError as error:
                self._connect_failed(error)
            except Exception as error:  # the top of a thread: whatever it was, the device must connect again
                log.exception("the MQTT link failed")
                self._connect_failed(ConnectError("unreachable", f"the MQTT link failed: {error}", hint="see the log"))

    def _connect_failed(self, error: ConnectError) -> None:
        if self._choice.failed(error.kind):
            return  # the other protocol is tried at once
        delay_s = self._backoff.next_delay_s()
        self._post(ConnectFailed(error.kind, error.reason, delay_s))
        self._clock.wait(self._stopping, delay_s)

    def _stay_connected(self) -> None:
        """Connect, and return when the connection is over."""
        self._sessions += 1
        session = Session(
            self._sessions,
            self._choice.next(),
            self._settings,
            client_id=self._settings.client_id or self._topics.device_id,
            will=(self._topics.status, OFFLINE),
            post=self._post,
        )
        with self._lock:
            self._attempt = session
        try:
            receive_maximum = session.connect(self._answer_timeout_s)
            connected_at = self._clock.monotonic()
            self._choice.worked()
            self._welcome(session, receive_maximum)
            reason = session.wait_until_over()
        finally:
            with self._lock:
                self._session = self._attempt = None
            session.close()
        log.info("disconnected from the broker: %s", reason)
        self._post(Disconnected(session.number, reason))
        if self._clock.monotonic() - connected_at >= STEADY_AFTER_S:
            self._backoff.reset()
        self._clock.wait(self._stopping, self._backoff.next_delay_s())

    def _welcome(self, session: Session, receive_maximum: int) -> None:
        """Tell the broker who is there, and core that it may send."""
        with self._lock:
            retained = dict(self._retained)
        session.subscribe(self._subscriptions)
        for topic, payload in retained.items():
            session.publish(topic, payload, qos=0, retain=True)
        with self._lock:
            if self._stopping.is_set():
                return
            self._session = session
            changed = {topic: payload for topic, payload in self._retained.items() if retained.get(topic) != payload}
        for topic, payload in changed.items():
            session.publish(topic, payload, qos=0, retain=True)
        log.info("connected to the broker, MQTT %s", session.protocol)
        self._post(Connected(session.number, session.protocol, receive_maximum))

    def _post(self, message: LinkMessage) -> None:
        if not self._stopping.is_set():
            self._post_to_core(message)
