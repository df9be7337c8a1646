"""A generated sensor as a source: `signal://bearing?seed=1&rate=8192&fault_at=20&kind=outer&seconds=60`.

Takes the operator's SensorSource settings; gives Readings of one channel at their own pace, or as fast as
they are asked for; refuses unknown signals, unknown keys and values that are not numbers.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from agent.clock import Clock
from agent.errors import OperatorError
from agent.sources.sample import Reading, Source
from agent.sources.settings import SensorSource
from simulator.signals import FAULT_KINDS, BearingSignal, FaultKind

_READING_S = 0.125
"""Length of one Reading: short enough that a window is hardly older than its last value."""
_DEFAULT_RATE_HZ = 8192.0
_NUMBERS = ("seed", "rate", "fault_at", "growth", "severity", "shaft", "noise", "missing", "seconds")
_KEYS = (*_NUMBERS, "kind")


@dataclass(frozen=True, slots=True)
class SignalUrl:
    """What a `signal://` URL says: the signal, and how long it lasts (None: for ever)."""

    signal: BearingSignal
    seconds: float | None


def parse_signal_url(url: str, *, rate_hz: float | None = None) -> SignalUrl:
    """Read a `signal://` URL. `rate_hz` is used where the URL has no `rate`.

    Raises:
        OperatorError: an unknown signal or key (with the nearest one), or a value that does not fit.
    """
    parts = urlsplit(url)
    if parts.netloc != "bearing":
        raise OperatorError(f"there is no generated signal {parts.netloc!r}", where=url, hint="use signal://bearing")
    given: dict[str, str] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _KEYS:
            raise OperatorError(f"unknown key {key!r}", where=url, hint=_nearest(key, _KEYS))
        given[key] = value
    numbers = {key: _number(url, key, given[key]) for key in _NUMBERS if key in given}
    kind = given.get("kind", "outer" if "fault_at" in given else "none")
    try:
        signal = BearingSignal(
            seed=int(numbers.get("seed", 1)),
            rate_hz=numbers.get("rate", rate_hz or _DEFAULT_RATE_HZ),
            kind=_kind(url, kind),
            fault_at_s=numbers.get("fault_at", 0.0),
            growth_s=numbers.get("growth", 10.0),
            severity=numbers.get("severity", 1.0),
            shaft_hz=numbers.get("shaft", 29.2),
            noise=numbers.get("noise", 0.35),
            missing=numbers.get("missing", 0.0),
        )
    except ValueError as error:
        raise OperatorError(str(error), where=url, hint="change the value in the URL") from error
    return SignalUrl(signal, numbers.get("seconds"))


def open_signal(
    settings: SensorSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int
) -> Source[Reading]:
    """Open the generated signal that `settings.source` names.

    Raises:
        OperatorError: see `parse_signal_url`.
    """
    url = parse_signal_url(settings.source, rate_hz=settings.rate_hz)
    return SignalSource(url, settings, name=name, clock=clock, stop=stop, first_id=first_id)


class SignalSource:
    """A generated sensor. `truth_at` tells what was true when a Reading or Window was captured."""

    def __init__(
        self,
        url: SignalUrl,
        settings: SensorSource,
        *,
        name: str,
        clock: Clock,
        stop: threading.Event,
        first_id: int,
    ) -> None:
        self.is_live = settings.pace == "own"
        self._signal, self._repeat = url.signal, settings.repeat
        self._length = None if url.seconds is None else round(url.seconds * url.signal.rate_hz)
        self._count = max(1, round(_READING_S * url.signal.rate_hz))
        self._name, self._clock, self._stop, self._id = name, clock, stop, first_id
        self._position = 0
        self._delivered = 0
        self._closed = False
        self._started_at, self._started_s = clock.now(), clock.monotonic()

    @property
    def started_at(self) -> datetime:
        """UTC of sample 0."""
        return self._started_at

    def read(self) -> Reading | None:
        """Return the next Reading, or None after `seconds` (or when stopped)."""
        if self._length is not None and self._position >= self._length:
            if not self._repeat or self._length == 0:
                return None
            self._position = 0
        if self._closed or self._stop.is_set():
            return None
        left = self._count if self._length is None else min(self._count, self._length - self._position)
        values = self._signal.values(self._position, left).reshape(-1, 1)
        self._position += left
        self._delivered += left
        offset_s = self._delivered / self._signal.rate_hz
        # Played fast it runs ahead of the clock, so that rules count the signal's own seconds.
        captured_monotonic_s = self._started_s + offset_s
        if self.is_live and self._clock.wait(self._stop, captured_monotonic_s - self._clock.monotonic()):
            return None
        reading = Reading(
            source=self._name,
            id=self._id,
            captured_at=self._started_at + timedelta(seconds=offset_s),
            captured_monotonic_s=captured_monotonic_s,
            values=values,
            rate_hz=self._signal.rate_hz,
        )
        self._id += 1
        return reading

    def close(self) -> None:
        self._closed = True

    def __iter__(self) -> Iterator[Reading]:
        while (reading := self.read()) is not None:
            yield reading


def _number(url: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise OperatorError(f"{key} is {text!r}, not a number from 0 up", where=url, hint=f"write {key}=NUMBER")
    return value


def _kind(url: str, text: str) -> FaultKind:
    for kind in FAULT_KINDS:
        if kind == text:
            return kind
    raise OperatorError(f"unknown kind of fault {text!r}", where=url, hint=_nearest(text, FAULT_KINDS))


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listed = f"the known ones are {', '.join(known)}"
    return f"did you mean {near[0]!r}? {listed}" if near else listed
