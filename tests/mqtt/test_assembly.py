"""Pieces of any size become chunks of any size, each byte once, and a refused chunk is asked for again."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.mqtt.assembly import Assembly
from agent.mqtt.pieces import MAX_SPAN, MAX_WANTED
from agent.mqtt.requests import Requests


class Chunks:
    def __init__(self, content: bytes, chunk_bytes: int, have: Sequence[int] = (), refuse: Sequence[int] = ()) -> None:
        self.content = content
        self.size_bytes = len(content)
        self.chunk_bytes = chunk_bytes
        self.refuse = list(refuse)
        count = max(1, -(-len(content) // chunk_bytes))
        self.taken: dict[int, bytes] = {}
        self.open = set(range(count)) - set(have)

    def missing(self) -> list[int]:
        return sorted(self.open)

    def take(self, index: int, data: bytes) -> bool:
        assert index in self.open
        if index in self.refuse:
            self.refuse.remove(index)
            return False
        begin = index * self.chunk_bytes
        assert data == self.content[begin : begin + self.chunk_bytes]
        self.open.discard(index)
        return True


def assemble(chunks: Chunks, piece_bytes: int, seed: int) -> int:
    """Bring every piece that is asked for, in a random order; return how many were asked for."""
    assembly = Assembly(chunks, piece_bytes)
    chance = random.Random(seed)
    asked = 0
    while not assembly.is_complete:
        pieces = list(assembly.next_pieces(chance.randint(1, MAX_WANTED), ()))
        assert pieces == sorted(set(pieces)) and pieces[-1] - pieces[0] < MAX_SPAN
        asked += len(pieces)
        chance.shuffle(pieces)
        for piece in pieces:
            data = chunks.content[piece * piece_bytes : (piece + 1) * piece_bytes]
            assert assembly.is_whole(piece, data)
            assert not assembly.is_whole(piece, data + b"x")
            if assembly.needs(piece):
                assembly.add(piece, data)
    assert assembly.held_bytes == 0
    return asked


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 900), st.integers(1, 900), st.data(), st.integers(0, 100))
def test_every_missing_byte_arrives_whatever_the_sizes(
    size: int, chunk_bytes: int, piece_bytes: int, data: st.DataObject, seed: int
) -> None:
    count = max(1, -(-size // chunk_bytes))
    have = data.draw(st.sets(st.integers(0, count - 1)))
    refuse = data.draw(st.sets(st.integers(0, count - 1), max_size=3)) - have
    chunks = Chunks(random.Random(seed).randbytes(size), chunk_bytes, sorted(have), sorted(refuse))
    if chunks.missing():
        assemble(chunks, piece_bytes, seed)
    assert not chunks.open


def test_chunks_that_are_there_are_not_asked_for() -> None:
    """A download that resumes at its last chunk must not fetch the others again."""
    chunks = Chunks(bytes(64 * 100), 64, have=range(99))
    assert assemble(chunks, 64, 0) == 1


def test_far_pieces_come_in_requests_of_their_own() -> None:
    chunks = Chunks(bytes(4 * 3000), 4, have=range(1, 2999))
    assembly = Assembly(chunks, 4)
    assert [assembly.next_pieces(64, ()) for _ in range(3)] == [(0,), (2999,), ()]


def test_piece_on_its_way_is_not_asked_for_twice() -> None:
    assembly = Assembly(Chunks(bytes(400), 100), 100)
    assembly.ask_again([1, 1])
    assert assembly.next_pieces(64, {0}) == (1, 2, 3)


def test_overtaken_pieces_are_lost_and_reordered_ones_are_not() -> None:
    requests = Requests(0)
    requests.add(range(8), 0.0)
    assert [list(requests.arrived(piece, 0.1)) for piece in (1, 2, 0)] == [[], [], []]
    assert [list(requests.arrived(piece, 0.1)) for piece in (4, 5, 6)] == [[], [], [3]]
    assert set(requests.on_their_way) == {7}


def test_silent_requests_are_overdue_and_their_late_answers_welcome() -> None:
    requests = Requests(0xFFFFFFFF)
    old, new = requests.add([0, 1], 0.0), requests.add([2], 5.0)
    assert (old, new) == (0xFFFFFFFF, 0)
    assert requests.overdue(5.0, 3.0) == [0, 1]
    assert set(requests.on_their_way) == {2}
    assert requests.sent_s(old) == 0.0
    assert list(requests.arrived(0, 6.0)) == []


def test_requests_remembered_are_bounded() -> None:
    requests = Requests(0)
    for number in range(5000):
        requests.add([number], 0.0)
        requests.arrived(number, 0.0)
    assert requests.sent_s(0) is None
    assert requests.sent_s(4999) == 0.0
