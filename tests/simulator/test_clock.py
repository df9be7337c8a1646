"""Virtual time goes only where it is sent."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from simulator.clock import SeededRandom, VirtualClock


def test_time_moves_by_advance_and_by_waiting_alone() -> None:
    clock = VirtualClock()
    began = clock.now()
    clock.advance(5)
    assert not clock.wait(threading.Event(), 3600)
    assert clock.monotonic() == 3605
    assert (clock.now() - began).total_seconds() == 3605


def test_waiting_for_something_that_has_happened_takes_no_time() -> None:
    clock, event = VirtualClock(), threading.Event()
    event.set()
    assert clock.wait(event, 10)
    assert clock.monotonic() == 0


def test_wall_clock_jumps_and_monotonic_time_does_not() -> None:
    clock = VirtualClock()
    clock.set_wall(datetime(1970, 1, 1, tzinfo=UTC))
    clock.advance(1)
    assert (clock.now().year, clock.monotonic()) == (1970, 1)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_chance_repeats_for_a_seed() -> None:
    assert SeededRandom(7).bytes(16) == SeededRandom(7).bytes(16) != SeededRandom(8).bytes(16)
