"""What goes when the quota is reached."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.outbox.quota import Entry, drop_newest, drop_oldest, thin_out

entries = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=60).map(
    lambda rows: [Entry(seq, pipeline, size) for seq, (pipeline, size) in enumerate(rows)]
)


@given(entries, st.integers(-10, 2000))
def test_drop_oldest_frees_enough_and_not_one_more(rows: list[Entry], excess: int) -> None:
    dropped = drop_oldest(rows, excess)
    assert dropped == rows[: len(dropped)]
    if len(dropped) < len(rows):
        assert sum(entry.size for entry in dropped) >= excess
    assert sum(entry.size for entry in dropped[:-1]) < max(excess, 1)


@given(entries)
def test_thin_out_keeps_the_first_and_every_other_event_of_each_pipeline(rows: list[Entry]) -> None:
    """A pipeline that speaks in turns with another must not vanish."""
    gone = {entry.seq for entry in thin_out(rows)}
    for pipeline in "abc":
        own = [entry.seq for entry in rows if entry.pipeline == pipeline]
        assert [seq for seq in own if seq not in gone] == own[::2]


@given(entries, st.integers(-10, 2000))
def test_drop_newest_keeps_a_prefix_that_fits(rows: list[Entry], room: int) -> None:
    refused = drop_newest(rows, room)
    kept = rows[: len(rows) - len(refused)]
    assert kept + refused == rows
    assert sum(entry.size for entry in kept) <= max(room, 0)
    if refused:
        assert sum(entry.size for entry in kept) + refused[0].size > room
