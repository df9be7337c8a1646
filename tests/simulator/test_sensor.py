"""`signal://` as a source: what the demo and every sensor test runs on."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agent.errors import OperatorError
from agent.sources.settings import SensorSource
from simulator.sensor import open_signal, parse_signal_url


class SteppedClock:
    """A clock that waiting moves on."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self.waits: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return 100.0 + self.elapsed_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        self.elapsed_s += max(0.0, timeout_s)
        return event.is_set()


def opened(url: str, clock: SteppedClock | None = None, stop: threading.Event | None = None, **settings: object):
    return open_signal(
        SensorSource.model_validate({"source": url, **settings}),
        name="motor",
        clock=clock or SteppedClock(),
        stop=stop or threading.Event(),
        first_id=7,
    )


def test_the_whole_signal_comes_once_and_in_order():
    """A finite signal ends by itself, so that a test or the demo does."""
    readings = list(opened("signal://bearing?seed=4&seconds=1.3&kind=inner", pace="fast"))
    values = np.concatenate([reading.values for reading in readings])
    expected = parse_signal_url("signal://bearing?seed=4&kind=inner").signal.values(0, round(1.3 * 8192))
    np.testing.assert_array_equal(values[:, 0], expected)
    assert [reading.id for reading in readings] == list(range(7, 7 + len(readings)))
    assert readings[0].rate_hz == 8192
    assert readings[-1].source == "motor"


def test_own_pace_waits_for_each_reading_and_stamps_when_it_is_due():
    """Frame age is measured from these stamps."""
    clock = SteppedClock()
    source = opened("signal://bearing?seconds=1", clock)
    assert source.is_live
    readings = list(source)
    assert clock.elapsed_s == pytest.approx(1.0)
    assert readings[-1].captured_monotonic_s == pytest.approx(101.0)
    assert readings[-1].captured_at == datetime(2026, 3, 1, 0, 0, 1, tzinfo=UTC)


def test_fast_never_waits():
    """Every sample counts and none is dropped."""
    clock = SteppedClock()
    source = opened("signal://bearing?seconds=5", clock, pace="fast")
    assert not source.is_live
    readings = list(source)
    assert clock.waits == []
    assert readings[-1].captured_monotonic_s == pytest.approx(105.0)  # rules count the signal's own seconds


def test_stop_ends_it_while_it_waits():
    """SIGTERM must not wait for a sensor."""
    stop = threading.Event()
    source = opened("signal://bearing", stop=stop)
    assert source.read() is not None
    stop.set()
    assert source.read() is None


def test_repeat_starts_again():
    """A short fault played in a loop makes a demo that never ends."""
    source = opened("signal://bearing?seconds=0.25", pace="fast", repeat=True)
    first, _, third = (source.read() for _ in range(3))
    np.testing.assert_array_equal(first.values, third.values)
    assert third.captured_at > first.captured_at


def test_the_operators_rate_counts_where_the_url_has_none():
    """`rate_hz:` in the file is the one place that people look."""
    assert opened("signal://bearing", rate_hz=10000, pace="fast").read().rate_hz == 10000
    assert opened("signal://bearing?rate=9000", rate_hz=10000, pace="fast").read().rate_hz == 9000


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("signal://bearing?faultat=3", "'fault_at'"),
        ("signal://bearing?kind=oter", "'outer'"),
        ("signal://gearbox?seed=1", "signal://bearing"),
        ("signal://bearing?seed=one", "seed=NUMBER"),
        ("signal://bearing?seconds=-1", "seconds=NUMBER"),
        ("signal://bearing?rate=100", "cannot carry"),
        ("signal://bearing?missing=nan", "missing=NUMBER"),
    ],
)
def test_mistakes_in_the_url_are_answered_with_the_right_spelling(url, told):
    """A typo that was ignored would be a healthy signal where a fault was ordered."""
    with pytest.raises(OperatorError) as caught:
        opened(url)
    assert told in str(caught.value)
    assert url in str(caught.value)
