"""The CloudEvent as consumers read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from ulid import ULID

from agent.events.event import Event
from agent.outbox.envelope import Envelope, LossReport, ModelInfo, mark_replayed
from simulator.clock import SeededRandom, VirtualClock

MODEL = ModelInfo("parcels", "1.0.0", "ab" * 32, "int8", "CPUExecutionProvider")
EVENT = Event(
    pipeline="door", type="enter", captured_at=datetime(2026, 11, 20, 10, 0, 0, 250_000, timezone(timedelta(hours=1))),
    phase="new", rule="at-the-door", label="person", score=0.5, box=(1, 2, 3, 4), box_norm=(0.1, 0.2, 0.3, 0.4),
    track_id=17, zones_current=("mat",), zones_entered=("mat",), frame={"id": 9, "w": 640, "h": 360},
)  # fmt: skip


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def envelope(clock: VirtualClock) -> Envelope:
    return Envelope("gate-07", clock, SeededRandom(3))


def test_event_has_the_documented_fields(envelope: Envelope) -> None:
    sealed = json.loads(envelope.seal({**EVENT.to_message(), "latency_ms": 12.5}, 42, MODEL))
    assert ULID.from_str(sealed.pop("id"))
    assert sealed == {
        "specversion": "1.0",
        "source": "/devices/gate-07/pipelines/door",
        "type": "dev.holdfast.event.enter",
        "time": "2026-11-20T09:00:00.250Z",
        "subject": "tracks/17",
        "datacontenttype": "application/json",
        "data": {
            "seq": 42, "phase": "new", "label": "person", "score": 0.5, "box": [1, 2, 3, 4],
            "box_norm": [0.1, 0.2, 0.3, 0.4], "track_id": 17, "zones": {"current": ["mat"], "entered": ["mat"]},
            "rule": "at-the-door", "frame": {"id": 9, "w": 640, "h": 360},
            "model": {"name": "parcels", "version": "1.0.0", "digest": "ab" * 32, "variant": "int8",
                      "ep": "CPUExecutionProvider"},
            "latency_ms": 12.5, "snapshot": None, "replayed": False,
        },
    }  # fmt: skip


def test_sensor_event_knows_no_pictures(envelope: Envelope) -> None:
    event = Event("pump", "level", datetime(2026, 11, 20, tzinfo=UTC), "new", "level", value=0.0)
    data = json.loads(envelope.seal(event.to_message(), 1, None))["data"]
    assert data["value"] == 0.0
    assert not {"box", "zones", "frame", "label"} & set(data)


def test_replayed_changes_one_word_and_nothing_that_looks_like_it(envelope: Envelope) -> None:
    sealed = envelope.seal({**EVENT.to_message(), "label": '"replayed":false}}'}, 1, MODEL)
    marked = json.loads(mark_replayed(sealed))
    original = json.loads(sealed)
    assert marked["data"].pop("replayed") is True
    assert original["data"].pop("replayed") is False
    assert marked == original
    assert mark_replayed(mark_replayed(sealed)) == mark_replayed(sealed)


def test_ids_rise_within_a_millisecond_and_over_time(envelope: Envelope, clock: VirtualClock) -> None:
    """Sorting by id must be sorting by time: that is what a ULID is for."""
    ids = []
    for _ in range(50):
        ids += [json.loads(envelope.seal(EVENT.to_message(), 1, None))["id"] for _ in range(20)]
        clock.advance(0.001)
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("year", [1970, 2100])
def test_ids_can_be_made_whatever_the_clock_says(envelope: Envelope, clock: VirtualClock, year: int) -> None:
    clock.set_wall(datetime(year, 1, 1, tzinfo=UTC))
    assert json.loads(envelope.seal(EVENT.to_message(), 1, None))["id"]


def test_loss_report_says_how_many_and_which(envelope: Envelope) -> None:
    sealed = json.loads(envelope.seal_loss(LossReport("door", "drop_oldest", 3, 10, 5, 9), 11))
    assert sealed["type"] == "dev.holdfast.loss"
    assert sealed["data"] == {
        "seq": 11, "cause": "drop_oldest", "count": 3, "total": 10, "first_seq": 5, "last_seq": 9, "replayed": False,
    }  # fmt: skip
