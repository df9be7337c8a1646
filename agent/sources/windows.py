"""Readings of any length become windows of the size that the bundle wants.

Takes a source of Readings and the bundle's SignalInput; gives Windows without NaN. Missing values are NaN in a
Reading, or a gap between the times of two Readings; what happens to them is the bundle's missing-data policy. It
refuses a source whose rate or number of channels is not the bundle's: a model trained at one rate answers nonsense
at another.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import SignalInput
from agent.errors import OperatorError
from agent.sources.sample import Reading, Source, Window

_RATE_TOLERANCE = 0.02
"""Two per cent moves a spectral line by less than a bearing's own slip does."""


class Windows:
    """A source of Windows, made of a source of Readings, which it closes.

    Args:
        source: May have `jitter_s` (how late a Reading may be stamped without a gap before it) and `invalid`
            (payloads or cells that were not understood).
        input: The bundle's.
        first_id: Id of the first window. Skipped windows count too, so a hole in the ids is a skipped window.
    """

    def __init__(self, source: Source[Reading], input: SignalInput, *, first_id: int = 0) -> None:  # noqa: A002
        self.is_live = False  # frames are perishable, windows are not: each counts, however they come
        self._source, self._input, self._id = source, input, first_id
        self._missing = self._gaps = 0
        self._buffer = np.empty((0, len(input.channels)), np.float32)
        self._held = np.full(len(input.channels), np.nan, np.float32)
        self._skip = 0  # values still to be thrown away, where hop_size is larger than window_size
        self._name = ""
        self._end: tuple[datetime, float] | None = None  # both times of the buffer's last value

    @property
    def dropped(self) -> dict[str, int]:
        """What was skipped, by cause.

        `missing`: windows with missing values, as the policy says. `gap`: times that the series broke off (a gap
        longer than a window, or time that went back) and the window begun was lost. `invalid`: payloads or cells
        of the source that were not understood.
        """
        invalid = int(getattr(self._source, "invalid", 0))
        return {"missing": self._missing, "gap": self._gaps, "invalid": invalid}

    def read(self) -> Window | None:
        """Return the next window, or None at the source's end. What is left there is less than a window.

        Raises:
            OperatorError: the source's rate or number of channels is not the bundle's.
            SourceError: the source's own.
        """
        size = self._input.window_size
        while True:
            while len(self._buffer) < size:
                reading = self._source.read()
                if reading is None:
                    return None
                self._take(reading)
            window = self._window(self._buffer[:size])
            self._advance(self._input.hop_size)
            if window is not None:
                return window

    def close(self) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[Window]:
        while (window := self.read()) is not None:
            yield window

    def _take(self, reading: Reading) -> None:
        """Append a reading, with NaN for the values that a gap before it swallowed."""
        self._check(reading)
        self._name = reading.source
        lost = self._lost(reading)
        if lost is None or lost > self._input.window_size:
            self._gaps += 1
            self._buffer, self._skip = self._buffer[:0], 0
            self._held[:] = np.nan
            lost = 0
        values = reading.values
        if lost:
            values = np.concatenate([np.full((lost, values.shape[1]), np.nan, np.float32), values])
        self._end = (reading.captured_at, reading.captured_monotonic_s)
        if self._skip:
            skipped = min(self._skip, len(values))
            self._skip -= skipped
            values = values[skipped:]
        self._buffer = np.concatenate([self._buffer, values])

    def _lost(self, reading: Reading) -> int | None:
        """Return how many values are missing between the buffer's end and this reading; None: time went back."""
        if self._end is None:
            return 0
        step_s = (reading.captured_at - self._end[0]).total_seconds()
        late_s = step_s - len(reading.values) / reading.rate_hz
        # Two microseconds: datetimes have no finer resolution.
        tolerance_s = max(0.5 / reading.rate_hz, float(getattr(self._source, "jitter_s", 0.0)), 2e-6)
        if step_s < -tolerance_s:
            return None
        return round(late_s * reading.rate_hz) if late_s > tolerance_s else 0

    def _check(self, reading: Reading) -> None:
        wanted = self._input
        if abs(reading.rate_hz / wanted.rate_hz - 1) > _RATE_TOLERANCE:
            raise OperatorError(
                f"the sensor delivers {reading.rate_hz:g} values a second and the bundle wants {wanted.rate_hz:g}",
                where=reading.source,
                hint="set the sensor's rate, or use a bundle that was trained at this one",
            )
        if reading.values.ndim != 2 or reading.values.shape[1] != len(wanted.channels):
            raise OperatorError(
                f"the sensor delivers values of shape {reading.values.shape} and the bundle wants "
                f"(count, {len(wanted.channels)}): {', '.join(wanted.channels)}",
                where=reading.source,
                hint="name the columns in `columns:`, in the order of the bundle's channels",
            )

    def _window(self, values: NDArray[np.float32]) -> Window | None:
        """Fill what is missing as the policy says; None: the window is skipped."""
        window_id, self._id = self._id, self._id + 1
        missing = ~np.isfinite(values)
        share = float(missing.mean())
        if share > 0:
            if self._input.missing == "skip" or share > self._input.max_missing_share or missing.all(axis=0).any():
                self._missing += 1
                return None
            fill = self._hold if self._input.missing == "hold" else _interpolate
            values = fill(values, missing)
        assert self._end is not None
        after_s = (len(self._buffer) - len(values)) / self._input.rate_hz
        return Window(
            source=self._name,
            id=window_id,
            captured_at=self._end[0] - timedelta(seconds=after_s),
            captured_monotonic_s=self._end[1] - after_s,
            values=np.ascontiguousarray(values),
            rate_hz=self._input.rate_hz,
            missing_share=share,
        )

    def _hold(self, values: NDArray[np.float32], missing: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Repeat the last value; before the first one ever, the first."""
        rows = np.arange(len(values))[:, None]
        latest = np.maximum.accumulate(np.where(missing, -1, rows), axis=0)
        held = np.take_along_axis(values, np.maximum(latest, 0), axis=0)
        first = np.take_along_axis(values, np.argmax(~missing, axis=0)[None, :], axis=0)[0]
        before = np.where(np.isfinite(self._held), self._held, first)
        return np.where(latest >= 0, held, before)

    def _advance(self, hop: int) -> None:
        gone = self._buffer[:hop]
        for channel in range(gone.shape[1]):
            known = gone[np.isfinite(gone[:, channel]), channel]
            if len(known):
                self._held[channel] = known[-1]
        self._skip = max(0, hop - len(self._buffer))
        self._buffer = self._buffer[hop:]


def _interpolate(values: NDArray[np.float32], missing: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Draw a straight line between the neighbours; at an edge, repeat the nearest."""
    filled = values.copy()
    rows = np.arange(len(values))
    for channel in np.flatnonzero(missing.any(axis=0)):
        lost = missing[:, channel]
        filled[lost, channel] = np.interp(rows[lost], rows[~lost], values[~lost, channel])
    return filled
