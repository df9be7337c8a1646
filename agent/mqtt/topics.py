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

    @property
    def fetch_request(self) -> str:
        """Where the device asks for pieces of a release: binary, `agent/mqtt/pieces.py`, QoS 0."""
        return f"{self.root}/fetch/request"

    @property
    def fetch_reply(self) -> str:
        """A release server answers here, one message a piece, QoS 0."""
        return f"{self.root}/fetch/reply"

    @property
    def release_hint(self) -> str:
        """Retained, for all devices of the prefix: the version of the newest timestamp.json as a decimal number."""
        return release_hint(self.prefix)

    def events(self, pipeline: str) -> str:
        """The events of one pipeline, CloudEvents JSON, QoS 1."""
        return f"{self.root}/events/{pipeline}"


def release_hint(prefix: str) -> str:
    """Return where release servers say that there is something new."""
    return f"{prefix}/releases/timestamp"


def fetch_requests(prefix: str, *, is_shared: bool) -> str:
    """Return what a release server subscribes to; shared (MQTT 5 section 4.8.2), each request reaches one of several."""
    pattern = Topics(prefix, "+").fetch_request
    return f"$share/releases/{pattern}" if is_shared else pattern


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether `topic` falls under the subscription `pattern`, wildcards included (MQTT 5 section 4.7)."""
    return topic_matches_sub(pattern, topic)
