"""What a source delivers: a picture from a camera, or a stretch of a time series from a sensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)  # comparing arrays has no single answer
class Frame:
    """One image from one camera. `pixels` is uint8, (height, width, 3), BGR, and must not be written to."""

    source: str
    id: int
    """Counts from 0 at the first frame since the source was made; it goes on over reconnects."""
    captured_at: datetime
    """UTC, when the sensor delivered it as far as that can be known, not when we read it."""
    captured_monotonic_s: float
    """The same moment on this machine's monotonic clock. Rules count time by it, and a live source's frame age is
    measured from here; a recording played as fast as it goes has its own time, which runs ahead of the clock."""
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Consecutive values of one sensor. `values` is float32, (count, channels); NaN where a value is missing."""

    source: str
    id: int
    captured_at: datetime
    """UTC, of the last value."""
    captured_monotonic_s: float
    values: NDArray[np.float32]
    rate_hz: float


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A fixed number of consecutive values. `values` is float32, (size, channels), without NaN."""

    source: str
    id: int
    captured_at: datetime
    captured_monotonic_s: float
    values: NDArray[np.float32]
    rate_hz: float
    missing_share: float
    """Share of the values, from 0 to 1, that were missing and filled in."""


class Sample(Protocol):
    """What the pipeline needs to know of a Frame or a Window: whose, which, and from when."""

    @property
    def source(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def captured_at(self) -> datetime: ...
    @property
    def captured_monotonic_s(self) -> float: ...


SampleT_co = TypeVar("SampleT_co", bound=Sample, covariant=True)


class Source(Protocol[SampleT_co]):
    """One opened camera or sensor. It is made by a function that takes its settings, a Clock and a stop event.

    A source paces itself: a live one blocks until the next sample, a file played at its own speed waits, a
    file played fast does not. It does not reconnect: it raises, and the pipeline's capture loop makes a new one.
    """

    is_live: bool
    """Whether samples are lost when nobody takes them (camera, paced file), so that the latest wins;
    otherwise every sample waits for its turn (file at full speed, folder of pictures).

    A source may also have `dropped: Mapping[str, int]`: the samples that it left out itself, by cause (`stale`, …)."""

    def read(self) -> SampleT_co | None:
        """Return the next sample, or None at the end of a finite source.

        Raises:
            SourceError: the source could not deliver: vanished, stalled, stale for good, or damaged.
        """
        ...

    def close(self) -> None:
        """Release the device. May be called from another thread while `read` blocks."""
        ...

    def __iter__(self) -> Iterator[SampleT_co]: ...
