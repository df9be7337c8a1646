"""Every topic name of one device. `docs/events.md` lists them for people; one ACL pattern per device covers all."""

from __future__ import annotations

from dataclasses import dataclass

from paho.mqtt.client import topic_matches_sub


@dataclass(frozen=True, slots=True)
class Topics:
    """The names under `<prefix>/devices/<device_id>/`."""

    prefix: str
    device_id: str

    @property
    def root(self) -> str:
        return f"{self.prefix}/devices/{self.device_id}"

    @property
    def status(self) -> str:
        """Retained: the text `online` or `offline`; the last will writes here."""
        return f"{self.root}/status"

    @property
    def info(self) -> str:
        """Retained JSON: what this device is and what it runs."""
        return f"{self.root}/info"

    @property
    def health(self) -> str:
        """Retained JSON: the conditions that hold."""
        return f"{self.root}/health"

    @property
    def metrics(self) -> str:
        """JSON, now and then: counters and latencies."""
        return f"{self.root}/metrics"

    @property
    def update(self) -> str:
        """Retained JSON: how an update goes."""
        return f"{self.root}/update"

    @property
    def ack(self) -> str:
        """A consumer writes JSON here: the `seq` of an event it has (a number, or a list of numbers)."""
        return f"{self.root}/ack"

    def events(self, pipeline: str) -> str:
        """The events of one pipeline, CloudEvents JSON, QoS 1."""
        return f"{self.root}/events/{pipeline}"


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether `topic` falls under the subscription `pattern`, wildcards included (MQTT 5 section 4.7)."""
    return topic_matches_sub(pattern, topic)
