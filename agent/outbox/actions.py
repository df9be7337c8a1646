"""What the outbox asks core to do. Values; core carries them out in the order in which they come."""

from __future__ import annotations

from dataclasses import dataclass

from agent.health.conditions import ClearCondition, SetCondition


@dataclass(frozen=True, slots=True)
class Publish:
    """Send one event at QoS 1, not retained, to its pipeline's topic, and report the broker's answer with `seq`."""

    seq: int
    pipeline: str
    payload: bytes
    """A CloudEvent, UTF-8 JSON."""
    session: int
    """The connection it is meant for: a link that is on another one already drops it."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Take delivered events out of the store. The outbox does this itself; core never sees it."""

    seqs: tuple[int, ...]


Action = Publish | SetCondition | ClearCondition
"""What reaches core."""
