"""Listen to a broker: what `holdfast events tail` and `holdfast doctor` need, and nothing of the agent's own link.

A subscriber is a guest: it has a client id of its own (one that the agent uses would throw the agent off the broker), a
clean session, no will, and publishes only acknowledgements. paho's thread only hands over to a queue.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import OperatorError
from agent.mqtt import failure
from agent.mqtt.failure import ConnectError
from agent.mqtt.messages import Protocol
from agent.mqtt.session import tls_context
from agent.mqtt.settings import MqttSettings

ANSWER_TIMEOUT_S = 5.0
MAX_WAITING = 10_000
"""Messages that wait to be read; a reader that is slower than this loses the newest."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message on a subscribed topic."""

    topic: str
    payload: bytes
    is_retained: bool


@dataclass(frozen=True, slots=True)
class _Closed:
    """The broker closed the connection instead of answering."""

    text: str


class Subscriber:
    """One connection that subscribes to `topics` again after each reconnect. A context manager.

    Raises:
        ConnectError: on entering: nobody answers there, or the broker refuses.
        OperatorError: on entering: the broker refuses the login, the certificate or the subscription.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        client_id: str,
        topics: Sequence[str] = (),
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._topics = tuple(topics)
        self._answer_timeout_s = answer_timeout_s
        self._inbox: queue.Queue[Arrived] = queue.Queue(MAX_WAITING)
        self._answers: queue.SimpleQueue[ReasonCode | _Closed] = queue.SimpleQueue()
        self._client: paho.Client | None = None
        self.protocol = ""
        """`5` or `3.1.1`, once connected."""

    @property
    def where(self) -> str:
        """The broker's address, for messages."""
        return f"{self._settings.host}:{port_of(self._settings)}"

    def __enter__(self) -> Self:
        asked = self._settings.protocol
        wanted: tuple[Protocol, ...] = ("5", "3.1.1") if asked == "auto" else (asked,)
        for protocol in wanted:
            try:
                self._connect(protocol)
            except ConnectError as error:
                self.close()
                may_be_version = error.kind in ("protocol", "silent")
                if protocol == wanted[-1] or not may_be_version:
                    raise _for_operator(error) from error
            except BaseException:
                self.close()
                raise
            else:
                return self
        raise AssertionError("there is always a protocol to try")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; nothing that was published is waited for."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None

    def messages(self, idle_s: float | None = None) -> Iterator[Arrived]:
        """Yield messages as they arrive, for ever, or until none came for `idle_s` seconds."""
        while True:
            try:
                yield self._inbox.get(timeout=idle_s)
            except queue.Empty:
                return

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1, without waiting for the broker."""
        assert self._client is not None, "enter the context first"
        self._client.publish(topic, payload, qos=1)

    def _connect(self, protocol: Protocol) -> None:
        self._answers = queue.SimpleQueue()
        client = self._client = self._make_client(protocol)
        uses_tls = self._settings.tls is not None
        try:
            if uses_tls:
                client.tls_set_context(tls_context(self._settings))
            client.connect(self._settings.host, port_of(self._settings), keepalive=self._settings.keepalive_s)
        except OSError as error:
            raise failure.from_os_error(error, self.where, uses_tls=uses_tls) from error
        client.loop_start()
        reason = self._answer(protocol)
        if reason.is_failure:
            raise failure.from_connack(int(reason.value), protocol, self.where, str(reason))
        self.protocol = protocol
        if self._topics and (reason := self._answer(protocol)).is_failure:
            hint = "let this user read these topics in the broker's ACL"
            raise OperatorError(f"the broker denies {', '.join(self._topics)}: {reason}", where=self.where, hint=hint)

    def _make_client(self, protocol: Protocol) -> paho.Client:
        settings = self._settings
        is_5 = protocol == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if is_5 else True,
            protocol=paho.MQTTv5 if is_5 else paho.MQTTv311,
        )
        client.connect_timeout = self._answer_timeout_s
        client.reconnect_delay_set(1, 30)
        if settings.user is not None:
            secret = settings.password.get_secret_value() if settings.password else None
            client.username_pw_set(settings.user, secret)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _answer(self, protocol: Protocol) -> ReasonCode:
        """Wait for the CONNACK or SUBACK."""
        try:
            answer = self._answers.get(timeout=self._answer_timeout_s)
        except queue.Empty:
            raise failure.silent(self.where, protocol, self._answer_timeout_s) from None
        if isinstance(answer, _Closed):
            uses_tls = self._settings.tls is not None
            raise failure.closed_at_connect(self.where, protocol, answer.text, uses_tls=uses_tls)
        return answer

    def _on_connect(self, client: paho.Client, _data: object, _flags: Any, reason: ReasonCode, _: Any) -> None:  # noqa: ANN401  paho's
        self._answers.put(reason)
        if not reason.is_failure and self._topics:
            client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(self, _client: Any, _data: object, _mid: int, reasons: list[ReasonCode], _: Any) -> None:  # noqa: ANN401  paho's
        self._answers.put(max(reasons, key=lambda reason: int(reason.value)))

    def _on_connect_fail(self, _client: Any, _data: object) -> None:  # noqa: ANN401  paho's
        self._answers.put(_Closed("the connection broke"))

    def _on_disconnect(self, _client: Any, _data: object, _flags: Any, reason: ReasonCode, _: Any) -> None:  # noqa: ANN401  paho's
        if not self.protocol:
            self._answers.put(_Closed(str(reason)))

    def _on_message(self, _client: Any, _data: object, message: paho.MQTTMessage) -> None:  # noqa: ANN401  paho's
        try:
            self._inbox.put_nowait(Arrived(message.topic, bytes(message.payload), message.retain))
        except queue.Full:
            return


def _for_operator(error: ConnectError) -> ConnectError | OperatorError:
    """Return the error of a command that a person waits for: a wrong login will not mend itself."""
    return OperatorError(error.message, hint=error.hint) if error.kind in ("credentials", "tls") else error


def port_of(settings: MqttSettings) -> int:
    """Return the broker's port: as set, else the registered one."""
    return settings.port or (1883 if settings.tls is None else 8883)
