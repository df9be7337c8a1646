"""Pieces as they travel become chunks as they were signed. No clock, no thread, no network.

The two sizes are independent: the broker's largest packet decides the piece, the release decides the chunk. A chunk that
came whole goes on without a copy; the others wait here for the rest of their bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.mqtt.pieces import MAX_SPAN, piece_count


class Chunks(Protocol):
    """The file that is being fetched: see `agent/update/transports/transport.py`, which this package must not import."""

    @property
    def chunk_bytes(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    def missing(self) -> Sequence[int]: ...

    def take(self, index: int, data: bytes) -> bool: ...


@dataclass(slots=True)
class _Partial:
    """A chunk of which some pieces are there."""

    content: bytearray
    absent: set[int]
    """Pieces."""


class Assembly:
    """What is still to be asked for of one file, and what is there of it.

    Args:
        chunks: Takes the chunks.
        piece_bytes: The size in which they travel.
    """

    def __init__(self, chunks: Chunks, piece_bytes: int) -> None:
        self.piece_bytes = piece_bytes
        self._chunks = chunks
        self._chunk_bytes = chunks.chunk_bytes
        self._size_bytes = chunks.size_bytes
        self._pieces = piece_count(self._size_bytes, piece_bytes)
        self._missing = set(chunks.missing())
        self._partial: dict[int, _Partial] = {}
        self._to_ask = sorted({piece for chunk in self._missing for piece in self._pieces_of(chunk)})
        self.wrong = 0
        """Chunks that were refused."""

    @property
    def is_complete(self) -> bool:
        """Whether every chunk has been taken."""
        return not self._missing

    @property
    def held_bytes(self) -> int:
        """Memory of chunks that wait for pieces."""
        return len(self._partial) * self._chunk_bytes

    def next_pieces(self, limit: int, on_their_way: Container[int]) -> tuple[int, ...]:
        """Return up to `limit` pieces to ask for now, ascending, near enough to each other for one request."""
        found: list[int] = []
        while self._to_ask and len(found) < limit:
            if found and self._to_ask[0] - found[0] >= MAX_SPAN:
                break
            piece = heapq.heappop(self._to_ask)
            if self.needs(piece) and piece not in on_their_way and (not found or piece != found[-1]):
                found.append(piece)
        return tuple(found)

    def ask_again(self, pieces: Iterable[int]) -> None:
        """Put pieces back that were asked for and did not come."""
        for piece in pieces:
            heapq.heappush(self._to_ask, piece)

    def needs(self, piece: int) -> bool:
        """Whether a piece has bytes that are not there yet."""
        return 0 <= piece < self._pieces and any(
            chunk in self._missing and (chunk not in self._partial or piece in self._partial[chunk].absent)
            for chunk in self._chunks_of(piece)
        )

    def is_whole(self, piece: int, data: bytes) -> bool:
        """Whether `data` has a piece's length."""
        begin = piece * self.piece_bytes
        return len(data) == max(0, min(self.piece_bytes, self._size_bytes - begin))

    def add(self, piece: int, data: bytes) -> int:
        """Take a needed, whole piece; return how many bytes the chunks took because of it.

        A chunk that is refused is counted, and its pieces are to be asked for again.
        """
        taken = 0
        for chunk in self._chunks_of(piece):
            if chunk not in self._missing:
                continue
            content = self._content(chunk, piece, data)
            if content is None:
                continue
            if self._chunks.take(chunk, content):
                self._missing.discard(chunk)
                taken += len(content)
            else:
                self.wrong += 1
                self.ask_again(self._pieces_of(chunk))
        return taken

    def _content(self, chunk: int, piece: int, data: bytes) -> bytes | None:
        """Return the whole chunk where `data` completes it."""
        begin, end = self._bounds(chunk)
        offset = piece * self.piece_bytes
        if offset <= begin and offset + len(data) >= end:
            self._partial.pop(chunk, None)
            is_same = offset == begin and len(data) == end - begin
            return data if is_same else data[begin - offset : end - offset]
        partial = self._partial.get(chunk)
        if partial is None:
            partial = self._partial[chunk] = _Partial(bytearray(end - begin), set(self._pieces_of(chunk)))
        low, high = max(begin, offset), min(end, offset + len(data))
        partial.content[low - begin : high - begin] = data[low - offset : high - offset]
        partial.absent.discard(piece)
        if partial.absent:
            return None
        del self._partial[chunk]
        return bytes(partial.content)

    def _bounds(self, chunk: int) -> tuple[int, int]:
        begin = chunk * self._chunk_bytes
        return begin, min(self._size_bytes, begin + self._chunk_bytes)

    def _pieces_of(self, chunk: int) -> range:
        begin, end = self._bounds(chunk)
        return range(begin // self.piece_bytes, max(begin, end - 1) // self.piece_bytes + 1)

    def _chunks_of(self, piece: int) -> range:
        begin = piece * self.piece_bytes
        end = min(self._size_bytes, begin + self.piece_bytes)
        return range(begin // self._chunk_bytes, max(begin, end - 1) // self._chunk_bytes + 1)
