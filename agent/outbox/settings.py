"""The operator's words for the outbox."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class OutboxSettings(BaseModel):
    """How many events are kept while the broker is away, and what goes when there is no more room."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_mb: Annotated[float, Field(gt=0)] = 256.0
    """Quota on disk, in MiB of event payloads and their index."""
    when_full: Literal["drop_oldest", "thin_out", "drop_newest"] = "drop_oldest"
    """drop_oldest; thin_out: drop every second event of the oldest half; drop_newest: refuse new ones."""
    delivery: Literal["broker", "consumer"] = "broker"
    """When an event counts as delivered: the broker acknowledged it, or the consumer acknowledged its seq."""
    consumer_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """`consumer` only: an event not acknowledged after this long is sent again."""
    commit_ms: Annotated[float, Field(ge=0, le=1000)] = 20.0
    """Events that arrive within this time share one transaction."""
