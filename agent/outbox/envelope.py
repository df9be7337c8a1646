"""A worker's event message → CloudEvents 1.0 JSON, as it is stored and sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.clock import Clock, Random


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model spoke: `data.model` of the event."""

    name: str
    version: str
    digest: str
    """Of the bundle's manifest."""
    variant: str
    ep: str


class Envelope:
    """Seals events of one device. `clock` and `random` make the ids (ULID)."""

    def __init__(self, device_id: str, clock: Clock, random: Random) -> None:
        raise NotImplementedError

    def seal(self, message: Mapping[str, Any], seq: int, model: ModelInfo | None) -> bytes:
        """Return the CloudEvent of `Event.to_message()` with the number `seq`.

        Raises:
            ValueError: the message lacks `pipeline`, `type` or a readable `captured_at`, or holds what JSON cannot say.
        """
        raise NotImplementedError
