"""What somebody who owns the way between a release repository and a device can do: a closed vocabulary, played on cue.

    replay        an older file in the place of the one asked for: of the `other` folder, an earlier state of the same repository
    mix           a file of another valid release in its place: also from `other`
    wrong bytes   one bit is turned in each piece
    truncated     the second half is missing
    endless       it never ends, far beyond its size
    slow drip     a few bytes at a time, for ever
    not there     the repository has no such file, it says
    reorder       pieces come in reverse order, or one in the place of another
    duplicate     each piece comes twice
    drop          nothing comes
    giant         it claims to be enormous, or one piece is
    crossed       the answer is given to other devices as well, and this one gets theirs (MQTT only)

`hostile.HostileRepository`, `hostilemirror.HostileMirror` and `hostilebroker.HostileServer` play it as a transport, over HTTP
and over MQTT. A fault that was played and never fired makes `Cues.check` raise: a test whose attack never happened proves
nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

Mischief = Literal[
    "replay",
    "mix",
    "wrong bytes",
    "truncated",
    "endless",
    "slow drip",
    "not there",
    "reorder",
    "duplicate",
    "drop",
    "giant",
    "crossed",
]
EVERYWHERE: frozenset[Mischief] = frozenset(get_args(Mischief)) - {"crossed"}
GIANT_BYTES = 1 << 40
"""What a giant claims."""


@dataclass(slots=True)
class _Cue:
    mischief: Mischief
    path: str
    left: int | None
    fired: int = 0


class Cues:
    """Which mischief is on, for which files. Thread-safe. `known` is what the part that asks can play."""

    def __init__(self, known: Collection[Mischief] = EVERYWHERE) -> None:
        self._known = known
        self._cues: list[_Cue] = []
        self._lock = threading.Lock()

    def play(self, mischief: Mischief, path: str = "*", *, times: int | None = None) -> None:
        """Do this to files whose path matches the glob, as often (None: always). Of several the one played last comes first.

        Raises:
            ValueError: this part cannot do that.
        """
        if mischief not in self._known:
            raise ValueError(f"no {mischief!r} here; there is: {', '.join(sorted(self._known))}")
        with self._lock:
            self._cues.append(_Cue(mischief, path, times))

    def behave(self) -> None:
        """End all mischief; what fired stays counted."""
        with self._lock:
            for cue in self._cues:
                cue.left = 0

    def next(self, path: str) -> Mischief | None:
        """Return what to do to this file now, and count it."""
        with self._lock:
            for cue in reversed(self._cues):
                if cue.left != 0 and fnmatchcase(path, cue.path):
                    cue.left = None if cue.left is None else cue.left - 1
                    cue.fired += 1
                    return cue.mischief
        return None

    @property
    def fired(self) -> Counter[Mischief]:
        """How often each mischief was done."""
        counts: Counter[Mischief] = Counter()
        with self._lock:
            for cue in self._cues:
                counts[cue.mischief] += cue.fired
        return counts

    def check(self) -> None:
        """Raise where something was played and never happened.

        Raises:
            AssertionError: with what it was.
        """
        with self._lock:
            idle = [f"{cue.mischief} of {cue.path}" for cue in self._cues if not cue.fired]
        if idle:
            raise AssertionError(f"played, but never fired: {', '.join(idle)}")


class Shelf:
    """The honest repository's files, and those of another state of it. Reads them anew each time: the repository may go on."""

    def __init__(self, honest: Path, other: Path | None = None) -> None:
        self._honest, self._other = honest, other

    def read(self, path: str) -> bytes | None:
        """Return the honest file, or None where there is none."""
        return _read(self._honest, path)

    def instead(self, path: str) -> bytes | None:
        """Return the other state's file of that path, else of that role or kind: the newest `*.root.json`, any other blob.

        Raises:
            ValueError: there is no other folder.
        """
        if self._other is None:
            raise ValueError("`replay` and `mix` need another folder")
        if (content := _read(self._other, path)) is not None:
            return content
        folder, _, name = path.rpartition("/")
        kind = name.partition(".")[2]
        places = sorted((self._other / folder).glob(f"*.{kind}" if kind else "*"), key=_age)
        return places[-1].read_bytes() if places else None


def _read(folder: Path, path: str) -> bytes | None:
    place = folder / path
    if ".." in place.parts or not place.is_file():
        return None
    return place.read_bytes()


def _age(path: Path) -> tuple[int, str]:
    """Order `9.root.json` before `10.root.json`."""
    version = path.name.partition(".")[0]
    return (int(version) if version.isdecimal() else -1, path.name)


def turn_a_bit(data: bytes) -> bytes:
    """Return the same with one bit turned in the middle; of nothing, one byte."""
    if not data:
        return b"\0"
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)
