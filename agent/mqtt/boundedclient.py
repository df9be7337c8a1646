"""A paho client whose memory a hostile broker cannot fill, and whose thread it cannot end.

paho reads whatever length a packet claims (up to 256 MiB) before anybody sees it, and keeps each QoS 2 message until the
broker releases it. A packet that it did not foresee (a topic that is no UTF-8) ends its thread without a word: nobody would
ever learn that the connection is gone. All are answered here by ending the connection. The three methods are private ones
of paho 2.2: tests/mqtt/test_boundedclient.py fails if a later version goes round them.
"""

from __future__ import annotations

import logging

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

_QOS_2 = 0x04
log = logging.getLogger(__name__)


class BoundedClient(mqtt.Client):
    """Set `largest_packet_bytes` before connecting."""

    largest_packet_bytes = 16 << 20

    def _sock_recv(self, bufsize: int) -> bytes:
        """Read from the socket; paho asks for the whole rest of a packet at once, so its length shows here."""
        if bufsize > self.largest_packet_bytes:
            raise OSError(f"the broker sends a packet of {bufsize} bytes; {self.largest_packet_bytes} is the limit")
        return super()._sock_recv(bufsize)

    def _packet_handle(self) -> MQTTErrorCode:
        """Deal with one whole packet, and with what its receiver made of it."""
        try:
            return super()._packet_handle()
        except Exception:  # the top of paho's thread
            log.exception("a packet of the broker cannot be dealt with; the connection ends")
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _handle_publish(self) -> MQTTErrorCode:
        """Take a message; we subscribe at QoS 1 at most, so QoS 2 breaks the protocol (MQTT 5 section 3.8.4)."""
        if self._in_packet["command"] & _QOS_2:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return super()._handle_publish()
