"""One connection to the broker, from CONNECT to its end, on a paho client of its own.

paho's thread calls the `_on_…` methods; `publish` is called from core's thread, everything else from the link's.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.mqtt import failure
from agent.mqtt.boundedclient import BoundedClient
from agent.mqtt.messages import LinkMessage, MessageArrived, Protocol, PublishAcknowledged
from agent.mqtt.settings import MqttSettings

NO_LIMIT = 65535
LARGEST_INCOMING_BYTES = 1 << 20
"""A larger message on a topic of ours is nothing that this device asked for."""
LARGEST_PACKET_BYTES = 16 << 20
"""A still larger one is not even read: it would have to be held in memory first. The connection ends."""
log = logging.getLogger(__name__)


class Session:
    """One connection.

    Args:
        number: Counts connections.
        protocol: What to speak.
        settings: The operator's words.
        client_id: Who we are to the broker.
        post: Takes what arrives.
        will: Topic and payload that the broker publishes, retained, when we are gone without a word.
        largest_packet_bytes: The broker is asked (MQTT 5) to send nothing larger; larger ones end the connection.
    """

    def __init__(
        self,
        number: int,
        protocol: Protocol,
        settings: MqttSettings,
        *,
        client_id: str,
        post: Callable[[LinkMessage], None],
        will: tuple[str, bytes] | None = None,
        largest_packet_bytes: int = LARGEST_PACKET_BYTES,
    ) -> None:
        self.number = number
        self.protocol: Protocol = protocol
        self.maximum_packet_bytes: int | None = None
        """The largest packet that the broker takes and gives (MQTT 5 section 3.2.2.3.6), once connected; None: unknown."""
        self.denied: str | None = None
        """Why the broker denied a subscription."""
        self.is_subscribed = False
        """The broker has taken a subscription."""
        self._settings = settings
        self._post = post
        self._port = settings.port or (8883 if settings.tls else 1883)
        self._address = f"{settings.host}:{self._port}"
        self._answer: tuple[int, str, int] | None = None
        """The CONNACK: reason code, its text, receive maximum."""
        self._answered = threading.Event()
        self._over = threading.Event()
        self._reason = "the connection was lost"
        self._is_aborted = False
        self._is_leaving = False
        self._properties_by_type: dict[str, Properties] = {}
        self._lock = threading.Lock()
        """Guards the two below. Not held while paho is called: paho calls `_on_publish` with a lock of its own."""
        self._tokens: dict[int, int | None] = {}
        self._early: dict[int, int] = {}
        """Answers that came before `publish` learnt the packet's identifier."""
        self._largest_packet_bytes = largest_packet_bytes
        self._client = self._make_client(client_id, will)

    def connect(self, answer_timeout_s: float) -> int:
        """Connect and wait for the broker's answer; return its receive maximum.

        Raises:
            ConnectError: with the kind of failure and advice.
        """
        try:
            if self._settings.tls:
                self._client.tls_set_context(tls_context(self._settings))
            self._client.connect(self._settings.host, self._port, self._settings.keepalive_s, **self._connect_options())
        except OSError as error:
            raise failure.from_os_error(error, self._address, uses_tls=self._settings.tls is not None) from error
        self._client.loop_start()
        if not self._answered.wait(answer_timeout_s):
            raise failure.silent(self._address, self.protocol, answer_timeout_s)
        if self._answer is None:
            uses_tls = self._settings.tls is not None
            raise failure.closed_at_connect(self._address, self.protocol, self._reason, uses_tls=uses_tls)
        code, text, receive_maximum = self._answer
        if code != 0:
            raise failure.from_connack(code, self.protocol, self._address, text)
        return receive_maximum

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended; `reason` says why."""
        return self._over.is_set()

    @property
    def reason(self) -> str:
        """Why the connection ended."""
        return self._reason

    def subscribe(self, topics: Iterable[str], *, qos: int = 1) -> None:
        """Subscribe; what the broker answers comes later (`denied`)."""
        wishes = [(topic, qos) for topic in topics]
        if wishes:
            self._client.subscribe(wishes)

    def publish(
        self,
        topic: str,
        payload: bytes | bytearray,
        *,
        qos: int,
        retain: bool,
        token: int | None = None,
        content_type: str | None = "application/json",
    ) -> bool:
        """Queue a message; return whether there was a connection. Never blocks.

        `token` comes back in `PublishAcknowledged`: at QoS 1 when the broker has it, at QoS 0 when it is written out.
        """
        info = self._client.publish(topic, payload, qos, retain, self._properties(content_type))
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        with self._lock:
            early = self._early.pop(info.mid, None)
            if early is None:
                self._tokens[info.mid] = token  # also for None: every answer must find its entry, or it would be kept
        if early is not None and token is not None:
            self._post(PublishAcknowledged(self.number, token, early))
        return True

    def wait_until_over(self) -> str:
        """Wait for the end of the connection; return its reason. `abort` ends it too."""
        self._over.wait()
        return self._reason

    def abort(self) -> None:
        """Stop waiting for anything, and do not send CONNECT if that has not happened yet."""
        self._is_aborted = True
        self._answered.set()
        self._over.set()

    def leave(self, topic: str, payload: bytes, *, timeout_s: float) -> None:
        """Publish a last retained word, wait for at most `timeout_s` until it is out, and disconnect."""
        with contextlib.suppress(ValueError, RuntimeError):  # paho's words for "not connected"
            self._client.publish(topic, payload, 0, retain=True).wait_for_publish(timeout_s)
        self._is_leaving = True
        self._client.disconnect()
        self._over.wait(timeout_s / 5)  # lets the DISCONNECT out, so that the broker does not fire the will

    def disconnect(self) -> None:
        """Say DISCONNECT and close: nobody is to be told that we are gone."""
        self._is_leaving = True
        self._client.disconnect()
        self._over.wait(1.0)  # lets it out
        self.close()

    def close(self) -> None:
        """End paho's thread, in any state."""
        if (sock := self._client.socket()) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
        self._client.disconnect()
        self._client.loop_stop()

    def _connect_options(self) -> dict[str, Any]:
        if self.protocol != "5":
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = self._largest_packet_bytes
        return {"clean_start": True, "properties": properties}

    def _properties(self, content_type: str | None) -> Properties | None:
        if self.protocol != "5" or content_type is None:
            return None
        if content_type not in self._properties_by_type:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = content_type
            self._properties_by_type[content_type] = properties
        return self._properties_by_type[content_type]

    def _make_client(self, client_id: str, will: tuple[str, bytes] | None) -> mqtt.Client:
        version = mqtt.MQTTv5 if self.protocol == "5" else mqtt.MQTTv311
        client = BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=version,
            reconnect_on_failure=False,
            clean_session=True if self.protocol == "3.1.1" else None,
        )
        client.largest_packet_bytes = self._largest_packet_bytes
        if self._settings.user is not None:
            secret = self._settings.password
            client.username_pw_set(self._settings.user, secret.get_secret_value() if secret else None)
        if will is not None:
            client.will_set(will[0], will[1], qos=1, retain=True)
        # The outbox keeps to the broker's receive maximum, which paho would have to know before it connects.
        client.max_inflight_messages_set(0)
        client.max_queued_messages_set(0)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        return client

    # -- paho's thread ------------------------------------------------------------------------------------------

    def _on_socket_open(self, _client: object, _data: object, _socket: object) -> None:
        """Called between TCP (or TLS) and CONNECT: a link that was stopped must not take over its client id."""
        if self._is_aborted:
            raise OSError("the link was stopped")

    def _on_connect(
        self, _client: object, _data: object, _flags: object, code: ReasonCode, properties: Properties | None
    ) -> None:
        self._answer = (code.value, str(code), int(getattr(properties, "ReceiveMaximum", NO_LIMIT)))
        self.maximum_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        self._answered.set()

    def _on_disconnect(
        self, _client: object, _data: object, flags: mqtt.DisconnectFlags, code: ReasonCode, _properties: object
    ) -> None:
        if self._over.is_set():
            return  # paho reports the broker's DISCONNECT, and then the closed socket
        if self._is_leaving:
            self._reason = "we left"
        elif flags.is_disconnect_packet_from_server:
            self._reason = f"the broker ended the connection: {code}"
        else:
            self._reason = f"the connection was lost: {code}"
        self._over.set()
        self._answered.set()

    def _on_publish(self, _client: object, _data: object, mid: int, code: ReasonCode, _properties: object) -> None:
        with self._lock:
            if mid not in self._tokens:
                self._early[mid] = code.value
                return
            token = self._tokens.pop(mid)
        if token is not None:
            self._post(PublishAcknowledged(self.number, token, code.value))

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        if len(message.payload) > LARGEST_INCOMING_BYTES:
            log.warning("a message of %d bytes on %s is ignored", len(message.payload), message.topic)
            return
        self._post(MessageArrived(message.topic, bytes(message.payload), message.retain))

    def _on_subscribe(self, _client: object, _data: object, _mid: int, codes: list[ReasonCode], _more: object) -> None:
        for code in codes:
            if code.is_failure:
                self.denied = str(code)
                log.error("the broker denies a subscription: %s; allow it in the broker's ACL", code)
            else:
                self.is_subscribed = True


def tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """Read the certificates anew for each attempt, so that renewed ones are taken up without a restart."""
    tls = settings.tls
    assert tls is not None
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except OSError as error:
        paths = ", ".join(str(path) for path in (tls.ca, tls.cert, tls.key) if path)
        raise failure.from_tls_files(error, paths) from error
    return context
