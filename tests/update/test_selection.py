"""Who takes which assignment, and when."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.update.documents import ChannelDocument
from agent.update.selection import Device, choose, gate, selects, slot_of

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
BUNDLE = {"name": "parcels", "version": "1.2.0", "manifest_sha256": "a" * 64}


def document(*assignments):
    values = [{"release": 9 - index, "bundle": BUNDLE, **each} for index, each in enumerate(assignments)]
    return ChannelDocument.model_validate(
        {"channel": "stable", "release": 9, "issued": NOON, "assignments": values}
    )  # fmt: skip


def chosen(doc, device="box", groups=()):
    assignment = choose(doc, Device(device, frozenset(groups)))
    return assignment and assignment.release


def test_first_assignment_that_selects_the_device_wins():
    """Newest first: a later one is for those that the first leaves out."""
    doc = document({"groups": ["lab"]}, {"percent": 0}, {}, {})
    assert chosen(doc) == 7
    assert chosen(doc, groups=["lab", "hall"]) == 9


def test_nothing_selects_the_device():
    """Then it keeps what it runs."""
    assert chosen(document({"percent": 0})) is None
    assert chosen(document()) is None


def test_percent_selects_about_that_share():
    """5 % of a fleet must be 5 %, whatever the ids look like."""
    (assignment,) = document({"percent": 25, "seed": "s"}).assignments
    count = sum(selects(assignment, Device(f"box-{number}")) for number in range(4000))
    assert 900 < count < 1100


@given(st.text(), st.integers(0, 99))
def test_a_higher_percentage_only_adds_devices(device, percent):
    """Promoting must not take a release away from who has it."""
    less, more = document({"percent": percent, "seed": "s"}, {"percent": percent + 1, "seed": "s"}).assignments
    assert selects(more, Device(device)) or not selects(less, Device(device))


def test_hundred_percent_is_everybody_and_zero_nobody():
    """The ends of the range are where off-by-one hides."""
    every, none = document({"percent": 100}, {"percent": 0}).assignments
    devices = [Device(f"box-{number}") for number in range(500)]
    assert all(selects(every, device) for device in devices)
    assert not any(selects(none, device) for device in devices)


def test_another_seed_selects_other_devices():
    """Else the same few devices would be first in every roll-out."""
    one, two = document({"percent": 50, "seed": "a"}, {"percent": 50, "seed": "b"}).assignments
    devices = [Device(f"box-{number}") for number in range(100)]
    assert [selects(one, device) for device in devices] != [selects(two, device) for device in devices]


@pytest.mark.parametrize(
    ("windows", "now", "is_open", "changes_h"),
    [
        pytest.param([], "12:00", True, None, id="no window"),
        pytest.param(["08:00-16:00"], "12:00", True, 4, id="inside"),
        pytest.param(["08:00-12:00"], "12:00", False, 20, id="its end is outside"),
        pytest.param(["12:00-13:00"], "12:00", True, 1, id="its start is inside"),
        pytest.param(["22:00-04:30"], "23:00", True, 5.5, id="before midnight"),
        pytest.param(["22:00-04:30"], "04:00", True, 0.5, id="after midnight"),
        pytest.param(["22:00-04:30"], "04:30", False, 17.5, id="closed by day"),
        pytest.param(["08:00-08:00"], "03:00", True, None, id="a whole day"),
        pytest.param(["08:00-16:00", "15:00-20:00"], "12:00", False, 3, id="both must be open"),
        pytest.param(["08:00-10:00", "15:00-20:00"], "12:00", False, None, id="never both"),
    ],
)
def test_windows(windows, now, is_open, changes_h):
    """UTC; a device's and a release's window narrow each other."""
    at = datetime.combine(NOON.date(), time.fromisoformat(now), UTC)
    found = gate(None, windows, at)
    assert found.is_open == is_open
    assert found.changes_in_s == (None if changes_h is None else changes_h * 3600)


@given(
    st.datetimes(),
    st.datetimes(),
    st.lists(st.tuples(st.times(), st.times()), max_size=2),
)
def test_gate_changes_when_it_says(now, not_before, windows):
    """Any clock, any document: no error, and the moment named is the moment at which it changes."""
    texts = [f"{start:%H:%M}-{end:%H:%M}" for start, end in windows]
    now = now.replace(tzinfo=UTC)
    found = gate(not_before.replace(tzinfo=UTC), texts, now)
    if found.changes_in_s is not None and now.year < 9000:
        at = now + timedelta(seconds=found.changes_in_s)
        assert gate(not_before.replace(tzinfo=UTC), texts, at).is_open != found.is_open
        before = at - timedelta(microseconds=1)
        if before > now:
            assert gate(not_before.replace(tzinfo=UTC), texts, before).is_open == found.is_open


@pytest.mark.parametrize(
    "at", [datetime.min.replace(tzinfo=UTC), NOON.replace(year=9999, month=12, day=31)], ids=["year 1", "year 9999"]
)
def test_any_clock_gives_an_answer(at):
    """A board without a battery may believe anything; core must not end by it."""
    assert gate(at, ["22:00-04:30"], at) is not None
    assert gate(NOON.replace(year=9999), ["22:00-04:30"], NOON).is_open is False


def test_not_before_waits_and_says_until_when():
    """A release for Monday is published on Friday."""
    found = gate(NOON + timedelta(days=3), [], NOON)
    assert (found.reason, found.changes_in_s) == ("not before 2026-11-23 12:00 UTC", 3 * 86400)


def test_own_window_gates_too():
    """The operator of the device has the last word on when."""
    found = gate(None, ["08:00-16:00", "15:00-20:00"], NOON)
    assert (found.reason, found.changes_in_s) == ("outside the window 15:00-20:00 UTC", 3 * 3600)


def test_slot_remembers_the_assignment():
    """Overrides that say nothing are not in it: they would look different after a newer repository adds fields."""
    doc = document({"pipelines": {"door": {"min_score": 0.7}}, "rollback": {"from_version": "2.0", "reason": "noise"}})
    slot = slot_of(doc.assignments[0])
    assert (slot.release, slot.name, slot.version, slot.digest) == (9, "parcels", "1.2.0", "a" * 64)
    assert slot.pipelines == {"door": {"min_score": 0.7}}
    assert slot.rollback_reason == "noise"


@pytest.mark.parametrize(
    ("not_before", "is_open"),
    [
        pytest.param("0001-01-01T00:00:00+14:00", True, id="before the first day"),
        pytest.param("9999-12-31T23:59:59-14:00", False, id="after the last day"),
    ],
)
def test_moment_that_utc_cannot_say_is_the_nearest_one(not_before, is_open):
    """A signed slip must not end the thread that asks for its correction."""
    (assignment,) = document({"not_before": not_before}).assignments
    assert gate(slot_of(assignment).not_before, [], NOON).is_open is is_open
