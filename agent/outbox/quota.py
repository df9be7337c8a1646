"""Which events go when the quota is reached. Pure: entries in, entries out; `docs/outbox.md` tells it to people.

The three policies share one promise: an event that may be on its way to the broker right now is not dropped
(the caller leaves it out of the entries), and everything dropped is returned, so that it can be counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROW_OVERHEAD_BYTES = 48
"""Estimate of what a row costs beside its payload and its pipeline's name (which stands in the row and in the index):
row and index headers, two varint numbers in each, page slack. Measured on 220-byte payloads: 41 to 52."""


class Entry(NamedTuple):
    """One event as the quota sees it."""

    seq: int
    pipeline: str
    size: int
    """Bytes on disk, payload and index."""


def entry_size(pipeline: str, payload: bytes) -> int:
    """Return what an event costs on disk, in bytes: payload, row and index."""
    return len(payload) + 2 * len(pipeline) + ROW_OVERHEAD_BYTES


def drop_oldest(oldest_first: Iterable[Entry], excess_bytes: int) -> list[Entry]:
    """Return the shortest run of oldest entries that frees `excess_bytes` (all where that is not enough)."""
    dropped: list[Entry] = []
    for entry in oldest_first:
        if excess_bytes <= 0:
            break
        dropped.append(entry)
        excess_bytes -= entry.size
    return dropped


def thin_out(oldest_half: Iterable[Entry]) -> list[Entry]:
    """Return every second entry of each pipeline, beginning with its second: the story stays, with less detail.

    Counted per pipeline, because two pipelines that speak in turns would otherwise lose one of them altogether.
    """
    dropped: list[Entry] = []
    keep_next: dict[str, bool] = {}
    for entry in oldest_half:
        keep = keep_next.get(entry.pipeline, True)
        keep_next[entry.pipeline] = not keep
        if not keep:
            dropped.append(entry)
    return dropped


def drop_newest(incoming: Sequence[Entry], room_bytes: int) -> list[Entry]:
    """Return the entries of `incoming` that do not fit, from the first on: order is kept, no gaps are filled."""
    for index, entry in enumerate(incoming):
        room_bytes -= entry.size
        if room_bytes < 0:
            return list(incoming[index:])
    return []
