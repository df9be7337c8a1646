"""The window: fast where the path is free, small where it queues, patient where nothing comes."""

from __future__ import annotations

from agent.mqtt.window import FIRST_TIMEOUT_S, MAX_PIECES, MIN_PIECES, TARGET_S, Window


def fed(*round_trips_s: float, window: Window | None = None, began_s: float = 0.0) -> Window:
    window = window or Window()
    for number, round_trip_s in enumerate(round_trips_s):
        window.arrived(round_trip_s, began_s + 0.01 * number)
    return window


def test_one_piece_asks_whether_anybody_is_there() -> None:
    """A window of 4 MiB sent into a link of 5 kB/s would be in the way for a quarter of an hour."""
    window = Window()
    assert window.size == 1
    assert fed(0.2, window=window).size >= MIN_PIECES


def test_opens_fully_on_a_long_free_path() -> None:
    """Round trips do not matter, queues do: 200 ms each time is an empty path."""
    assert fed(*[0.2] * 70).size == MAX_PIECES


def test_shrinks_to_the_floor_when_the_transfer_fills_the_queue() -> None:
    window = fed(*[0.05] * 70)
    fed(*[0.05 + 10 * TARGET_S] * 300, window=window)
    assert window.size == MIN_PIECES


def test_stays_where_the_queue_is_at_its_target() -> None:
    window = fed(*[0.05] * 30)
    fed(0.05 + TARGET_S, window=window)
    before = window.size
    fed(*[0.05 + TARGET_S] * 200, window=window)
    assert window.size == before


def test_losses_of_one_round_trip_halve_it_once() -> None:
    window = fed(*[0.1] * 70)
    for moment_s in (10.0, 10.01, 10.05):
        window.lost(moment_s)
    assert window.size == MAX_PIECES // 2
    window.lost(11.0)
    assert window.size == MAX_PIECES // 4


def test_timeout_doubles_until_something_comes() -> None:
    window = Window()
    assert window.timeout_s == FIRST_TIMEOUT_S
    window.timed_out()
    assert window.timeout_s == 2 * FIRST_TIMEOUT_S
    assert window.size == 1
    fed(0.1, window=window)
    assert window.timeout_s < FIRST_TIMEOUT_S


def test_timeout_grows_with_the_round_trip() -> None:
    assert fed(20.0).timeout_s > 20.0


def test_longer_route_is_learnt_after_ten_minutes() -> None:
    """Else one lucky round trip would keep the window at its floor for ever."""
    window = fed(*[0.01] * 10)
    for minute in range(1, 14):
        fed(*[0.5] * 20, window=window, began_s=60.0 * minute)
    assert window.size > MIN_PIECES
