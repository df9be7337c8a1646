"""A .csv file as a sensor: the first row names the columns, each further row is one value of each channel.

Takes SensorSource settings; gives Readings at the file's own pace or as fast as they are taken. An optional
column `time` (RFC 3339, or seconds) sets the rate and shows gaps. An empty cell is a missing value; a cell that
is no number becomes one too and is counted in `invalid`. It refuses what is no such file: empty, binary, without
a header, without the columns asked for.
"""

from __future__ import annotations

import csv
import difflib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from agent.clock import Clock
from agent.errors import OperatorError, SourceError
from agent.sources.sample import Reading, Source
from agent.sources.settings import SensorSource

TIME_COLUMN = "time"
_CHUNK_ROWS = 1024
_READING_S = 0.125
"""Length of a Reading at the file's own pace."""
_LONGEST_WAIT_S = 60.0
"""A gap in the recording is played as this at most: nobody waits for last weekend, nor for a mistyped year."""
_EPOCH_FROM_S = 1e9
"""Seconds from here up (September 2001) count from 1970; smaller ones from the file's own beginning."""

_LATEST_S = 2.5e11
"""The end of the year 9891, as seconds since 1970; what lies beyond counts milliseconds, or nothing."""


def open_csv(
    settings: SensorSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int
) -> Source[Reading]:
    """Open the .csv file that `settings.source` names.

    Raises:
        OperatorError: no such file, empty, binary, no header, a column is missing, or nothing tells the rate.
    """
    return CsvSource(settings, name=name, clock=clock, stop=stop, first_id=first_id)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows: `values` float32 (n, channels), `times` float64 (n,) seconds, NaN where unreadable, or None."""

    values: NDArray[np.float32]
    times: NDArray[np.float64] | None


class CsvSource:
    """An opened .csv file."""

    def __init__(
        self, settings: SensorSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int
    ) -> None:
        self.is_live = settings.pace == "own"
        self.invalid = 0
        """Cells that hold neither a number nor nothing."""
        self._path, self._name, self._clock, self._stop = Path(settings.source).expanduser(), name, clock, stop
        self._repeat, self._id, self._closed = settings.repeat, first_id, False
        self._file = _open_text(self._path)
        try:
            self._reader, header, separator = _header(self._file, self._path)
            self._decimal_comma = separator == ";"
            self._columns = _columns(header, settings.columns, self._path)
            self._time_index = header.index(TIME_COLUMN) if TIME_COLUMN in header else None
            first = self._rows()
            if first is None:
                raise OperatorError("the file has a header and no rows", where=str(self._path), hint="record some data")
            self._origin_s = _first_time(first)
            self.rate_hz, self.jitter_s = self._timing(first, settings.rate_hz)
        except BaseException:
            self._file.close()
            raise
        self._readings = self._generate(first)
        self._started_at, self._started_s = clock.now(), clock.monotonic()

    def read(self) -> Reading | None:
        """Return the next Reading, or None at the end of the file (or when stopped).

        Raises:
            SourceError: the file could not be read any further.
        """
        if self._closed or self._stop.is_set():
            return None
        try:
            return next(self._readings, None)
        except (OSError, ValueError, OverflowError, csv.Error) as error:
            if self._closed:
                return None
            raise SourceError(f"reading stopped: {error}", where=str(self._path), hint="check the file") from error

    def close(self) -> None:
        self._closed = True
        self._file.close()

    def __iter__(self) -> Iterator[Reading]:
        while (reading := self.read()) is not None:
            yield reading

    def _generate(self, rows: _Rows | None) -> Iterator[Reading]:
        """Cut rows into Readings without a gap inside, and stamp them."""
        count = max(1, round(self.rate_hz * _READING_S)) if self.is_live else _CHUNK_ROWS
        period_s = 1 / self.rate_hz
        round_s = row_s = played_s = 0.0  # when this round began; the last row's time in it; both without long gaps
        while rows is not None:
            at_s = self._times(rows, row_s)
            steps = np.diff(at_s, prepend=row_s)
            cuts = np.flatnonzero((steps > self.jitter_s + period_s) | (steps < 0))
            longest_s = max(_LONGEST_WAIT_S, period_s)
            playing_s = played_s + np.cumsum(np.where(steps < 0, period_s, np.minimum(steps, longest_s)))
            for part in _cut(len(at_s), cuts, count):
                last = part.stop - 1
                stamped = self._stamp(round_s, float(at_s[last]), float(playing_s[last]))
                if stamped is None:
                    return
                yield Reading(self._name, self._id, *stamped, rows.values[part], self.rate_hz)
                self._id += 1
            row_s, played_s = float(at_s[-1]), float(playing_s[-1])
            rows = self._rows()
            if rows is None and self._repeat:
                round_s, row_s, played_s = round_s + row_s + period_s, 0.0, played_s + period_s
                self._file.seek(0)
                self._reader, _, _ = _header(self._file, self._path)
                rows = self._rows()

    def _times(self, rows: _Rows, row_s: float) -> NDArray[np.float64]:
        """Return each row's seconds since the first row (without times: since one period before it)."""
        period_s = 1 / self.rate_hz
        if rows.times is None:
            return np.asarray(row_s + period_s * np.arange(1, len(rows.values) + 1), np.float64)
        return _fill_times(rows.times, period_s, self._origin_s + row_s) - self._origin_s

    def _stamp(self, round_s: float, at_s: float, played_s: float) -> tuple[datetime, float] | None:
        """Wait until it is time, at the file's own pace; return both times of capture, or None when stopped.

        The wall time is the recording's where it tells it. The monotonic time is that of the replay; played fast,
        it runs ahead of the clock, so that rules count the recording's seconds.
        """
        monotonic_s = self._started_s + played_s
        if self.is_live and self._clock.wait(self._stop, monotonic_s - self._clock.monotonic()):
            return None
        if self._origin_s >= _EPOCH_FROM_S:
            return datetime.fromtimestamp(self._origin_s + at_s, UTC), monotonic_s
        return self._started_at + timedelta(seconds=round_s + at_s), monotonic_s

    def _rows(self) -> _Rows | None:
        rows = list(islice((row for row in self._reader if row), _CHUNK_ROWS))
        if not rows:
            return None
        cells = [[row[index] if index < len(row) else "?" for index in self._columns] for row in rows]
        try:
            values = np.array(cells, dtype=np.float64)
        except ValueError:
            values = np.array([[self._cell(text) for text in row] for row in cells])
        infinite = np.isinf(values)
        self.invalid += int(infinite.sum())
        values[infinite | (np.abs(values) > np.finfo(np.float32).max)] = np.nan
        times = None
        if self._time_index is not None:
            at = self._time_index
            times = np.array([self._time(row[at] if at < len(row) else "") for row in rows])
        return _Rows(values.astype(np.float32), times)

    def _cell(self, text: str) -> float:
        text = text.strip()
        if not text:
            return math.nan
        try:
            return float(text.replace(",", ".") if self._decimal_comma else text)
        except ValueError:
            self.invalid += 1
            return math.nan

    def _time(self, text: str) -> float:
        seconds = _seconds(text.strip())
        if not abs(seconds) <= _LATEST_S:
            self.invalid += 1
            return math.nan
        return seconds

    def _timing(self, rows: _Rows, rate_hz: float | None) -> tuple[float, float]:
        """Return the rate, and by how many seconds a step between rows may exceed the period without being a gap.

        Timestamps win over `rate_hz`; where the two agree to 5 % the round number is the truer one. Stamps are
        often coarser than the rate (milliseconds at 8 kHz), so the rate is a mean and the jitter is measured.
        """
        if rows.times is None:
            if rate_hz is None:
                raise OperatorError(
                    "nothing tells how many values a second this file holds",
                    where=str(self._path),
                    hint="write `rate_hz:` in the sensor's section, or add a column `time`",
                )
            return rate_hz, math.inf
        times = rows.times[np.isfinite(rows.times)]
        steps = np.diff(times)
        if len(times) < 2 or not (steps > 0).any():
            if len(times) == len(rows.times) == 1 and rate_hz is not None:
                return rate_hz, 0.5 / rate_hz
            raise OperatorError(
                f"the column `{TIME_COLUMN}` does not tell the rate: it holds no two rising times",
                where=str(self._path),
                hint="write times as RFC 3339 (2026-01-31T12:00:00.125Z) or as seconds, not milliseconds",
            )
        regular = steps[(steps >= 0) & (steps <= 2.5 * np.median(steps[steps > 0]))]
        period_s = float(np.mean(regular))
        jitter_s = max(0.5 * period_s, 1.1 * float(np.percentile(regular, 95)) - period_s)
        if rate_hz is not None and abs(period_s * rate_hz - 1) <= 0.05:
            return rate_hz, jitter_s
        return float(f"{1 / period_s:.5g}"), jitter_s


def _open_text(path: Path) -> TextIO:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if not head.strip():
            raise OperatorError("the file is empty", where=str(path), hint="give a .csv file with a header row")
        # Four bytes of slack: the cut may go through a character.
        head[: len(head) - 4].decode("utf-8")
        if b"\0" in head:
            raise OperatorError("this is no text file", where=str(path), hint="give a .csv file in UTF-8")
        return path.open(encoding="utf-8-sig", errors="replace", newline="")
    except UnicodeDecodeError as error:
        raise OperatorError("this is no UTF-8 text file", where=str(path), hint="save it as UTF-8") from error
    except OSError as error:
        raise OperatorError(
            f"the file cannot be read: {error.strerror or error}", where=str(path), hint="check path and permissions"
        ) from error


def _header(file: TextIO, path: Path) -> tuple[Iterator[list[str]], list[str], str]:
    """Return the rows after the header, the header, and the separator.

    The separator is whichever of comma, semicolon and tab the header has most of.
    """
    try:
        line = file.readline(65536)
        delimiter = max(",;\t", key=line.count)
        header = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise OperatorError(f"the header cannot be read: {error}", where=str(path), hint="check the file") from error
    if any(_is_number(cell) for cell in header) or not any(header):
        raise OperatorError(
            f"the first row holds values, not column names: {line.strip()[:60]!r}",
            where=str(path),
            hint="add a header row, for example `time,value`",
        )
    return csv.reader(file, delimiter=delimiter), header, delimiter


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _seconds(text: str) -> float:
    """Return seconds since 1970, or those written; NaN where `text` is neither. Without an offset it is UTC."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _columns(header: list[str], wanted: tuple[str, ...], path: Path) -> list[int]:
    if not wanted:
        found = [index for index, column in enumerate(header) if column and column != TIME_COLUMN]
        if not found:
            raise OperatorError(f"there is no column but `{TIME_COLUMN}`", where=str(path), hint="add one with values")
        return found
    for column in wanted:
        if column not in header:
            near = difflib.get_close_matches(column, header, n=1, cutoff=0.5)
            ask = f"did you mean {near[0]!r}? " if near else ""
            raise OperatorError(
                f"there is no column {column!r}", where=str(path), hint=f"{ask}the file has {', '.join(header)}"
            )
    return [header.index(column) for column in wanted]


def _first_time(rows: _Rows) -> float:
    """Return the file's first readable time; 0 where it has none."""
    if rows.times is None or not np.isfinite(rows.times).any():
        return 0.0
    return float(rows.times[np.isfinite(rows.times)][0])


def _fill_times(times: NDArray[np.float64], period_s: float, before_s: float) -> NDArray[np.float64]:
    """Give a row without a readable time the one before it plus the period."""
    if np.isfinite(times).all():
        return times
    known = np.isfinite(times)
    latest = np.maximum.accumulate(np.where(known, np.arange(len(times)), -1))
    base = np.where(latest >= 0, times[np.maximum(latest, 0)], before_s)
    return np.asarray(base + period_s * (np.arange(len(times)) - latest) * ~known)


def _cut(count: int, cuts: NDArray[np.intp], longest: int) -> Iterator[slice]:
    """Cut `count` rows before each index in `cuts`, and into stretches of at most `longest`."""
    edges = [0, *(int(cut) for cut in cuts if 0 < cut < count), count]
    for start, stop in pairwise(edges):
        for at in range(start, stop, longest):
            yield slice(at, min(at + longest, stop))
