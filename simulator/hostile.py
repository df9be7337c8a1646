"""A transport that cannot be trusted: the honest repository's files with mischief on cue, without a network in between.

It keeps what every transport promises about itself (returns at `stop`, never gives more than `limit_bytes`), and nothing about
the bytes. `endless` and `giant` are therefore the most that a transport lets through; the flood itself comes over HTTP and MQTT.
"""

from __future__ import annotations

import threading
from pathlib import Path

from agent.clock import Clock
from agent.update.transports.transport import (
    Chunks,
    NotThereError,
    StoppedError,
    UnavailableError,
    WrongContentError,
)
from simulator.mischief import Cues, Mischief, Shelf, turn_a_bit

MOST_WRONG = 3
LONGEST_CHUNK_BYTES = 8 << 20


class HostileRepository:
    """Implements `agent.update.transports.transport.Transport`. Honest until `cues.play`.

    Args:
        honest: The repository's folder.
        other: An older state of it, or another release, for `replay` and `mix`.
        clock: For the slow drip.
        patience_s: After how long a drip is given up, as a real transport does.
        name: For people.
    """

    def __init__(
        self,
        honest: Path,
        other: Path | None = None,
        *,
        clock: Clock,
        patience_s: float = 0.5,
        name: str = "hostile",
    ) -> None:
        self.name = name
        self.cues = Cues()
        self.asked: list[str] = []
        """Every path, in order: a rollback to a stored bundle asks for no blob."""
        self._shelf = Shelf(honest, other)
        self._clock, self._patience_s = clock, patience_s

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        self.asked.append(path)
        mischief = self.cues.next(path)
        content = self._content(path, mischief, stop)
        if mischief == "wrong bytes":
            content = turn_a_bit(content)
        elif mischief == "truncated":
            content = content[: len(content) // 2]
        elif mischief in {"endless", "giant"}:
            content += b" " * max(0, limit_bytes - len(content))  # JSON may end in spaces
        elif mischief == "reorder":
            content = content[len(content) // 2 :] + content[: len(content) // 2]
        elif mischief == "duplicate":
            content += content
        if len(content) > limit_bytes:
            raise UnavailableError(f"{path} has more than the {limit_bytes} bytes allowed", where=self.name)
        return content

    def fetch(self, path: str, chunks: Chunks, stop: threading.Event) -> None:
        self.asked.append(path)
        mischief = self.cues.next(path)
        content = self._content(path, mischief, stop)
        wrong = 0
        for index, data in self._pieces(content, chunks, mischief):
            if stop.is_set():
                raise StoppedError("stopped", where=path)
            wrong += not chunks.take(index, data)
        if chunks.missing():
            if wrong >= MOST_WRONG or mischief in {"wrong bytes", "replay", "mix", "reorder"}:
                raise WrongContentError(f"{path} is not what was signed", where=self.name)
            raise UnavailableError(f"{path} was cut off", where=self.name)

    def close(self) -> None:
        pass

    def _content(self, path: str, mischief: Mischief | None, stop: threading.Event) -> bytes:
        """Return the whole file that this answer is made of; raise where the answer is none."""
        if mischief == "drop":
            raise UnavailableError(f"{path}: silence", where=self.name)
        if mischief == "slow drip":
            if self._clock.wait(stop, self._patience_s):
                raise StoppedError("stopped", where=path)
            raise UnavailableError(f"{path} came too slowly", where=self.name)
        content = self._shelf.instead(path) if mischief in {"replay", "mix"} else self._shelf.read(path)
        if content is None or mischief == "not there":
            raise NotThereError(f"{path} is not there", where=self.name)
        return content

    @staticmethod
    def _pieces(content: bytes, chunks: Chunks, mischief: Mischief | None) -> list[tuple[int, bytes]]:
        """Return what is handed to `chunks`, in order."""
        size = chunks.chunk_bytes
        pieces = [(index, content[index * size : (index + 1) * size]) for index in chunks.missing()]
        match mischief:
            case "wrong bytes":
                return [(index, turn_a_bit(data)) for index, data in pieces]
            case "truncated":
                return [*pieces[: len(pieces) // 2], *((index, data[:-1]) for index, data in pieces[-1:])]
            case "endless":
                beyond = max((index for index, _ in pieces), default=0) + 1
                return [*pieces, *((beyond + more, bytes(size)) for more in range(16)), (-1, bytes(size))]
            case "giant":
                return [(index, data + bytes(LONGEST_CHUNK_BYTES)) for index, data in pieces]
            case "reorder":  # each chunk under its neighbour's number
                data = [data for _, data in pieces]
                return [(index, data[place - 1]) for place, (index, _) in enumerate(pieces)]
            case "duplicate":
                return [piece for piece in pieces for _ in range(2)]
            case _:
                return pieces
