"""A worker's event message → CloudEvents 1.0 JSON, as it is stored and sent.

Structured content mode, `application/json` data (CloudEvents 1.0.2, JSON Event Format 1.0.2). The types are
`dev.holdfast.event.<kind of rule>` for what a rule saw and `dev.holdfast.loss` for a report of lost events. The
subject is `tracks/<track_id>` where the event has one, else `rules/<rule>`. `data.replayed` is the last key of the last
key, so that the sender can turn it to true without parsing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ulid import ULID

from agent.clock import Clock, Random

CONTENT_TYPE = "application/cloudevents+json"
_FRESH = b'"replayed":false}}'
_REPLAYED = b'"replayed":true}}'
_PASSED_ON = ("phase", "label", "score", "box", "box_norm", "track_id")
_PASSED_ON_LATER = ("rule", "frame", "value", "extra")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model spoke: `data.model` of the event."""

    name: str
    version: str
    digest: str
    """Of the bundle's manifest."""
    variant: str
    ep: str


@dataclass(frozen=True, slots=True)
class LossReport:
    """How many events of one pipeline were lost for one cause."""

    pipeline: str
    cause: str
    count: int
    """Since the report before, as far as that one was delivered."""
    total: int
    """Since the database was made: a report that comes twice does no harm."""
    first_seq: int
    last_seq: int


class Envelope:
    """Seals events of one device. `clock` and `random` make the ids (ULID)."""

    def __init__(self, device_id: str, clock: Clock, random: Random) -> None:
        self._device_id = device_id
        self._clock = clock
        self._ids = _IdMaker(clock, random)

    def seal(self, message: Mapping[str, Any], seq: int, model: ModelInfo | None) -> bytes:
        """Return the CloudEvent of `Event.to_message()` (and `latency_ms`, `snapshot` where it has them).

        Raises:
            ValueError: the message lacks `pipeline`, `type` or a readable `captured_at`, or holds what JSON cannot say
                (NaN, infinity).
        """
        try:
            pipeline, kind, captured_at = message["pipeline"], message["type"], message["captured_at"]
        except KeyError as error:
            raise ValueError(f"an event message without {error}") from None
        data: dict[str, Any] = {"seq": seq}
        data.update((name, message[name]) for name in _PASSED_ON if message.get(name) is not None)
        if "box" in data or "track_id" in data or message.get("zones_current") or message.get("zones_entered"):
            data["zones"] = {
                "current": list(message.get("zones_current", ())),
                "entered": list(message.get("zones_entered", ())),
            }
        data.update((name, message[name]) for name in _PASSED_ON_LATER if message.get(name) is not None)
        if model is not None:
            data["model"] = asdict(model)
        data["latency_ms"] = message.get("latency_ms")
        data["snapshot"] = message.get("snapshot")
        track_id = message.get("track_id")
        subject = f"rules/{message.get('rule', kind)}" if track_id is None else f"tracks/{track_id}"
        return self._encode(pipeline, f"event.{kind}", _rfc3339(captured_at), subject, data)

    def seal_loss(self, loss: LossReport, seq: int) -> bytes:
        """Return the CloudEvent that reports a loss."""
        data = {"seq": seq, **{key: value for key, value in asdict(loss).items() if key != "pipeline"}}
        time = _rfc3339(self._clock.now().isoformat())
        return self._encode(loss.pipeline, "loss", time, f"losses/{loss.cause}", data)

    def _encode(self, pipeline: str, kind: str, time: str, subject: str, data: dict[str, Any]) -> bytes:
        event = {
            "specversion": "1.0",
            "id": self._ids.next_id(),
            "source": f"/devices/{self._device_id}/pipelines/{pipeline}",
            "type": f"dev.holdfast.{kind}",
            "time": time,
            "subject": subject,
            "datacontenttype": "application/json",
            "data": {**data, "replayed": False},
        }
        return json.dumps(event, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def mark_replayed(payload: bytes) -> bytes:
    """Return the sealed event with `data.replayed` true: recorded before this connection began, or sent before."""
    return payload.removesuffix(_FRESH) + _REPLAYED if payload.endswith(_FRESH) else payload


def _rfc3339(text: str) -> str:
    """Return `text` (ISO 8601 with an offset) as RFC 3339 UTC with a Z and milliseconds."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"captured_at without an offset: {text}")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _IdMaker:
    """ULIDs that rise within a millisecond (github.com/ulid/spec, "Monotonicity"), and when the clock jumps back."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self._clock = clock
        self._random = random
        self._last_ms = -1
        self._last_chance = 0

    def next_id(self) -> str:
        ms = max(0, self._last_ms, int(self._clock.now().timestamp() * 1000))
        if ms == self._last_ms and self._last_chance < (1 << 80) - 1:
            self._last_chance += 1
        else:
            self._last_ms, self._last_chance = ms, int.from_bytes(self._random.bytes(10), "big")
        return str(ULID.from_bytes((ms << 80 | self._last_chance).to_bytes(16, "big")))
