"""A consumer of events that keeps an account: what came, what came twice, what came out of order.

It is what an integrator would write, and it is the judge in the demo and in the tests that kill things.
"""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode


@dataclass(slots=True)
class Account:
    """What a consumer saw. `seqs` holds each event's number in order of first arrival, by pipeline."""

    seqs: dict[str, list[int]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    duplicates: int = 0
    altered: int = 0
    """Duplicates that said something else than the first time, `data.replayed` apart: must never happen."""
    clashes: int = 0
    """Two different events of a device with the same number: must never happen."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Each event once, in order of first arrival."""
    _by_number: dict[tuple[str, int], int] = field(default_factory=dict, repr=False)
    """Device and number → where the event stands in `events`."""

    @property
    def out_of_order(self) -> int:
        """How many events came, for the first time, after a later one of the same pipeline."""
        return sum(later < earlier for seqs in self.seqs.values() for earlier, later in pairwise(seqs))

    def add(self, event: dict[str, Any]) -> None:
        """Take one event into the account."""
        _, _, device, _, pipeline = event["source"].split("/", 4)
        seq = event["data"]["seq"]
        known = self._by_number.setdefault((device, seq), len(self.events))
        if event["id"] in self.ids:
            self.duplicates += 1
            self.altered += known == len(self.events) or _content(self.events[known]) != _content(event)
            return
        self.clashes += known < len(self.events)
        self.ids.add(event["id"])
        self.seqs.setdefault(pipeline, []).append(seq)
        self.events.append(event)


def _content(event: dict[str, Any]) -> dict[str, Any]:
    """Return what must be equal in every copy of an event."""
    return {**event, "data": {**event["data"], "replayed": None}}


class Consumer:
    """Subscribes to a device's events with a session that survives reconnects; acknowledges each when asked to."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        prefix: str = "holdfast",
        device: str = "+",
        acknowledge: bool = False,
        name: str = "consumer",
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._topic = f"{prefix}/devices/{device}/events/#"
        self._prefix = prefix
        self._acknowledge = acknowledge
        self._lock = threading.Condition()
        self.account = Account()
        self.subscribed = threading.Event()
        is_v5 = protocol == MQTTProtocolVersion.MQTTv5
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=protocol, clean_session=None if is_v5 else False
        )
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        self._client.on_message = self._on_message
        self.reconnect_after(1.0)
        options: dict[str, Any] = {}
        if is_v5:
            options["clean_start"] = False
            options["properties"] = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            options["properties"].SessionExpiryInterval = 3600
        self._client.connect_async(host, port, keepalive=10, **options)

    def reconnect_after(self, delay_s: float) -> None:
        """Set how long it stays away after it lost the broker, and between attempts."""
        self._client.reconnect_delay_set(delay_s, delay_s)  # type: ignore[arg-type]  # it only adds it to the time

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` different events came; return whether they did."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self.account.ids) >= count, timeout_s)

    def settle(self, quiet_s: float) -> None:
        """Wait until nothing new came for `quiet_s` seconds."""
        with self._lock:
            while self._lock.wait(quiet_s):
                pass

    def _on_connect(
        self, client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if not reason.is_failure:
            client.subscribe(self._topic, qos=1)

    def _on_message(self, client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        event = json.loads(message.payload)
        with self._lock:
            self.account.add(event)
            self._lock.notify_all()
        if self._acknowledge:
            device = event["source"].split("/")[2]
            client.publish(f"{self._prefix}/devices/{device}/ack", json.dumps({"seq": event["data"]["seq"]}), qos=1)
