"""Listen to a broker: what `holdfast events tail` and `holdfast doctor` need, and nothing of the agent's own link.

A subscriber is a guest: it has a client id of its own (one that the agent uses would throw the agent off the broker), a
clean session, no will, and publishes only acknowledgements. paho's thread only hands over to a queue.
"""

from __future__ import annotations

import queue
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import HoldfastError, OperatorError, UnavailableError
from agent.mqtt.settings import MqttSettings

ANSWER_TIMEOUT_S = 5.0
MAX_WAITING = 10_000
"""Messages that wait to be read; a reader that is slower than this loses the newest."""

_CREDENTIALS = frozenset({"Bad user name or password", "Not authorized", "Banned"})
_PROTOCOL = frozenset({"Unsupported protocol version"})


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message on a subscribed topic."""

    topic: str
    payload: bytes
    is_retained: bool


@dataclass(frozen=True, slots=True)
class _Answered:
    """The broker's CONNACK or SUBACK."""

    reason: ReasonCode


class Subscriber:
    """One connection that subscribes to `topics` again after each reconnect. A context manager.

    Raises:
        OperatorError: on entering: the broker refuses the login, the certificate or the subscription.
        UnavailableError: on entering: nobody answers there.
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
        self._answers: queue.SimpleQueue[_Answered | HoldfastError] = queue.SimpleQueue()
        self._client: paho.Client | None = None
        self.protocol = ""
        """`5` or `3.1.1`, once connected."""

    @property
    def where(self) -> str:
        """The broker's address, for messages."""
        return f"{self._settings.host}:{port_of(self._settings)}"

    def __enter__(self) -> Self:
        wanted = {"auto": ("5", "3.1.1")}.get(self._settings.protocol, (self._settings.protocol,))
        for protocol in wanted:
            try:
                self._connect(protocol)
            except _OtherProtocolError as error:
                self.close()
                if protocol == wanted[-1]:
                    raise UnavailableError(error.message, where=self.where, hint=error.hint) from error
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

    def _connect(self, protocol: str) -> None:
        self._answers = queue.SimpleQueue()
        client = self._client = self._make_client(protocol)
        try:
            client.connect(self._settings.host, port_of(self._settings), keepalive=self._settings.keepalive_s)
        except ssl.SSLError as error:
            hint = "check `mqtt.tls.ca`, and that `mqtt.host` is the name in the broker's certificate"
            raise OperatorError(f"TLS failed: {error.reason or error}", where=self.where, hint=hint) from error
        except OSError as error:
            hint = "check `mqtt.host` and `mqtt.port`, and whether the broker runs"
            raise UnavailableError(f"no connection: {error.strerror or error}", where=self.where, hint=hint) from error
        client.loop_start()
        self._expect("CONNECT", self._refusal)
        self.protocol = protocol
        if self._topics:
            self._expect("SUBSCRIBE", self._denial)

    def _make_client(self, protocol: str) -> paho.Client:
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
        if settings.tls is not None:
            self._use_tls(client)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _use_tls(self, client: paho.Client) -> None:
        tls = self._settings.tls
        assert tls is not None
        ca, cert, key = (None if path is None else str(path) for path in (tls.ca, tls.cert, tls.key))
        try:
            client.tls_set(ca_certs=ca, certfile=cert, keyfile=key)
        except (OSError, ValueError) as error:
            hint = "the files must be readable, in PEM form, and the key must fit the certificate"
            raise OperatorError(f"the certificates cannot be used: {error}", where="mqtt.tls", hint=hint) from error

    def _expect(self, packet: str, complaint: Callable[[ReasonCode], HoldfastError | None]) -> None:
        try:
            answer = self._answers.get(timeout=self._answer_timeout_s)
        except queue.Empty:
            # Some brokers (amqtt) do not answer a CONNECT of a version that they do not know.
            message = f"something listens, but gave no answer to {packet} within {self._answer_timeout_s:g} s"
            raise _OtherProtocolError(message, hint="check that this is an MQTT broker's port") from None
        if isinstance(answer, HoldfastError):
            raise answer
        if refusal := complaint(answer.reason):
            raise refusal

    def _refusal(self, reason: ReasonCode) -> HoldfastError | None:
        if not reason.is_failure:
            return None
        text = str(reason)
        if text in _CREDENTIALS:
            hint = "check `mqtt.user` and `mqtt.password`, or the client certificate"
            return OperatorError(f"the broker refuses the login: {text}", where=self.where, hint=hint)
        if text in _PROTOCOL:
            return _OtherProtocolError(f"the broker refuses the protocol: {text}", hint="set `mqtt.protocol`")
        return UnavailableError(f"the broker refuses the connection: {text}", where=self.where, hint="see its log")

    def _denial(self, reason: ReasonCode) -> HoldfastError | None:
        if not reason.is_failure:
            return None
        topics = ", ".join(self._topics)
        hint = "let this user read these topics in the broker's ACL"
        return OperatorError(f"the broker denies {topics}: {reason}", where=self.where, hint=hint)

    def _on_connect(self, client: paho.Client, _data: object, _flags: Any, reason: ReasonCode, _: Any) -> None:  # noqa: ANN401  paho's
        self._answers.put(_Answered(reason))
        if not reason.is_failure and self._topics:
            client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(self, _client: Any, _data: object, _mid: int, reasons: list[ReasonCode], _: Any) -> None:  # noqa: ANN401  paho's
        worst = max(reasons, key=lambda reason: int(reason.value))
        self._answers.put(_Answered(worst))

    def _on_connect_fail(self, _client: Any, _data: object) -> None:  # noqa: ANN401  paho's
        self._answers.put(UnavailableError("the connection broke while connecting", where=self.where))

    def _on_disconnect(self, _client: Any, _data: object, _flags: Any, reason: ReasonCode, _: Any) -> None:  # noqa: ANN401  paho's
        if not self.protocol:
            text = f"the broker closed the connection: {reason}"
            self._answers.put(_OtherProtocolError(text, hint="see the broker's log"))

    def _on_message(self, _client: Any, _data: object, message: paho.MQTTMessage) -> None:  # noqa: ANN401  paho's
        try:
            self._inbox.put_nowait(Arrived(message.topic, bytes(message.payload), message.retain))
        except queue.Full:
            return


class _OtherProtocolError(UnavailableError):
    """The broker did not like this version of MQTT, or may not have; the next one is worth a try."""


def port_of(settings: MqttSettings) -> int:
    """Return the broker's port: as set, else the registered one."""
    return settings.port or (1883 if settings.tls is None else 8883)
