"""Devices take turns: nobody starves, and nobody fills the server's memory."""

from __future__ import annotations

from agent.mqtt.pieces import MAX_WANTED, Request
from bundles.release.turns import MAX_DEVICES, MAX_PIECES, Turns


def ask(number: int, count: int = MAX_WANTED) -> Request:
    return Request(number, "blobs/ab", 65536, tuple(range(count)))


def order(turns: Turns, count: int) -> list[str]:
    return [turn[0] for _ in range(count) if (turn := turns.next()) is not None]


def test_greedy_device_delays_a_modest_one_by_one_piece() -> None:
    turns = Turns()
    for number in range(4):
        assert turns.add("greedy", ask(number))
    assert turns.add("modest", ask(9, count=3))
    assert order(turns, 6) == ["greedy", "modest"] * 3


def test_one_devices_requests_are_answered_in_order() -> None:
    turns = Turns()
    turns.add("a", ask(1, count=2))
    turns.add("a", ask(2, count=1))
    answered = [turns.next() for _ in range(4)]
    assert [(turn[1].request_id, turn[2]) for turn in answered if turn] == [(1, 0), (1, 1), (2, 0)]
    assert answered[-1] is None


def test_what_does_not_fit_is_refused_for_that_device_only() -> None:
    turns = Turns()
    taken = [turns.add("greedy", ask(number)) for number in range(10)]
    assert taken == [True] * (MAX_PIECES // MAX_WANTED) + [False] * (10 - MAX_PIECES // MAX_WANTED)
    assert turns.add("modest", ask(1))
    order(turns, 2 * MAX_WANTED)
    assert turns.add("greedy", ask(11))


def test_devices_are_bounded() -> None:
    """Names are cheap to whoever may publish on every request topic."""
    turns = Turns()
    assert all(turns.add(f"gate-{number}", ask(1, count=1)) for number in range(MAX_DEVICES))
    assert not turns.add("one-more", ask(1, count=1))
    assert turns.next() is not None
    assert turns.add("one-more", ask(1, count=1))


def test_dropped_request_leaves_the_others() -> None:
    turns = Turns()
    missing = ask(1)
    turns.add("a", missing)
    turns.add("a", ask(2, count=1))
    turns.next()
    turns.drop("a", missing)
    turns.drop("nobody", missing)
    turn = turns.next()
    assert turn is not None and turn[1].request_id == 2
    assert len(turns) == 0
