"""An MQTT topic as a sensor. Core subscribes and forwards; this stage reads what core put into an inbox.

Takes payloads with the time of their arrival; gives Readings. A payload is one of

    21.5                                   one value
    [0.1, 0.2, 0.3]                        consecutive values of one channel
    [[0.1, 9.8], [0.2, 9.7]]               consecutive rows, one column a channel
    {"x": 0.1, "y": 9.8, "time": "…"}      by key; each a number or an equally long list of numbers
    0.1,9.8                                a CSV line (several lines: several rows)

null is a missing value. `time` (RFC 3339, or seconds since 1970) is when the last value was measured. A payload
that is none of these is counted in `invalid` and skipped: a stranger on the broker stops no pipeline.
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.clock import Clock
from agent.errors import OperatorError, SourceError
from agent.sources.sample import Reading
from agent.sources.settings import SensorSource

Inbox = queue.Queue[tuple[datetime, float, bytes]]
"""What core forwards: UTC and monotonic time of arrival, and the payload."""

_LONGEST_PAYLOAD = 4 * 1024 * 1024
_LOOK_UP_S = 0.2
"""How often a silent topic looks whether it should stop."""
_NETWORK_JITTER_S = 1.0
"""A message that comes this much late was held up; later than that, something is missing."""


class InvalidPayloadError(ValueError):
    """The payload is none of the forms that this module's head lists."""


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """A decoded payload: `values` float32 (count, channels), NaN where missing; `measured_at` UTC, if it says."""

    values: NDArray[np.float32]
    measured_at: datetime | None


class TopicSource:
    """One topic. The inbox buffers, and values of a sensor do not perish as frames do: every one waits for its turn.

    Raises:
        OperatorError: nothing tells the rate.
    """

    is_live = False

    def __init__(
        self,
        settings: SensorSource,
        *,
        name: str,
        clock: Clock,
        inbox: Inbox,
        stop: threading.Event,
        first_id: int,
    ) -> None:
        if settings.rate_hz is None:
            raise OperatorError(
                "nothing tells how many values a second come on this topic",
                where=settings.source,
                hint="write `rate_hz:` in the sensor's section",
            )
        self.rate_hz = settings.rate_hz
        self.invalid = 0
        self.jitter_s = _NETWORK_JITTER_S
        self._settings, self._name, self._clock, self._inbox, self._stop = settings, name, clock, inbox, stop
        self._id = first_id
        self._channels: int | None = len(settings.columns) or None
        # A sensor that speaks once a minute is not silent after five seconds.
        self._timeout_s = max(settings.read_timeout_s, 5 / settings.rate_hz)
        self._closed = threading.Event()

    def read(self) -> Reading | None:
        """Return the next Reading, or None when stopped.

        Raises:
            SourceError: no usable message came for `read_timeout_s` (or five periods, if that is longer).
        """
        deadline_s = self._clock.monotonic() + self._timeout_s
        while not (self._stop.is_set() or self._closed.is_set()):
            try:
                arrived_at, arrived_s, content = self._inbox.get(timeout=_LOOK_UP_S)
            except queue.Empty:
                if self._clock.monotonic() >= deadline_s:
                    raise self._silent() from None
                continue
            try:
                payload = decode_payload(content, self._settings.columns)
                if self._channels not in (None, payload.values.shape[1]):
                    raise InvalidPayloadError(f"{payload.values.shape[1]} channels, expected {self._channels}")
            except InvalidPayloadError:
                self.invalid += 1
                if self._clock.monotonic() >= deadline_s:
                    raise self._silent() from None
                continue
            return self._reading(payload, arrived_at, arrived_s)
        return None

    def close(self) -> None:
        self._closed.set()

    def __iter__(self) -> Iterator[Reading]:
        while (reading := self.read()) is not None:
            yield reading

    def _reading(self, payload: Payload, arrived_at: datetime, arrived_s: float) -> Reading:
        self._channels = payload.values.shape[1]
        self.jitter_s = _NETWORK_JITTER_S if payload.measured_at is None else 0.5 / self.rate_hz
        reading = Reading(
            source=self._name,
            id=self._id,
            captured_at=payload.measured_at or arrived_at,
            captured_monotonic_s=arrived_s,
            values=payload.values,
            rate_hz=self.rate_hz,
        )
        self._id += 1
        return reading

    def _silent(self) -> SourceError:
        return SourceError(
            f"no usable message for {self._timeout_s:g} s ({self.invalid} were not understood)",
            where=self._settings.source,
            hint="check the sensor, the topic's name and the broker's permissions",
        )


def decode_payload(content: bytes, columns: tuple[str, ...]) -> Payload:
    """Decode one message. `columns` are the keys of an object, in the order of the channels.

    Raises:
        InvalidPayloadError: it is none of the forms that this module's head lists.
    """
    if len(content) > _LONGEST_PAYLOAD:
        raise InvalidPayloadError(f"{len(content)} bytes, at most {_LONGEST_PAYLOAD} are read")
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InvalidPayloadError("not UTF-8") from error
    try:
        decoded = json.loads(text)
    except RecursionError as error:
        raise InvalidPayloadError("nested too deeply") from error
    except ValueError:
        return Payload(_csv(text, len(columns)), None)
    if isinstance(decoded, Mapping):
        return _keyed(decoded, columns)
    return Payload(_rows(decoded), None)


def _keyed(decoded: Mapping[str, Any], columns: tuple[str, ...]) -> Payload:
    keys = columns or ("value",)
    if not columns and "value" not in decoded:
        keys = tuple(key for key in decoded if key != "time")
        if len(keys) != 1:
            raise InvalidPayloadError(f"which of {', '.join(keys) or 'no keys'} is the value?")
    absent = [key for key in keys if key not in decoded]
    if absent:
        raise InvalidPayloadError(f"no key {', '.join(absent)}")
    channels = [_rows(decoded[key]) for key in keys]
    if len({len(channel) for channel in channels}) > 1 or any(channel.shape[1] != 1 for channel in channels):
        raise InvalidPayloadError("the channels are not equally long lists of numbers")
    return Payload(np.concatenate(channels, axis=1), _moment(decoded.get("time")))


def _rows(decoded: object) -> NDArray[np.float32]:
    """Turn a number, a list of numbers or a list of equally long lists into float32 (count, channels)."""
    listed = decoded if isinstance(decoded, list) else [decoded]
    rows: list[list[object]] = [row if isinstance(row, list) else [row] for row in listed]
    is_nested = {isinstance(row, list) for row in listed}
    if not rows or not rows[0] or len(is_nested) > 1 or len({len(row) for row in rows}) > 1:
        raise InvalidPayloadError("no values, or rows of different length")
    return _array([[_number(value) for value in row] for row in rows])


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidPayloadError(f"{value!r:.40} is no number")
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return math.nan


def _array(rows: list[list[float]]) -> NDArray[np.float32]:
    """What a float32 cannot hold is missing, not infinite."""
    values = np.array(rows, dtype=np.float64)
    values[~(np.abs(values) <= np.finfo(np.float32).max)] = np.nan
    return values.astype(np.float32)


def _csv(text: str, channels: int) -> NDArray[np.float32]:
    """One channel: a line holds consecutive values. Several: a line is a row."""
    try:
        rows = [[float(cell) if cell.strip() else math.nan for cell in line.split(",")] for line in text.splitlines()]
    except ValueError as error:
        raise InvalidPayloadError("neither JSON nor a line of numbers") from error
    if channels <= 1:
        rows = [[value] for row in rows for value in row]
    if not rows or len({len(row) for row in rows}) > 1 or np.isnan(np.array(rows)).all():
        raise InvalidPayloadError("no values, or rows of different length")
    return _array(rows)


def _moment(value: object) -> datetime | None:
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidPayloadError(f"time {value!r:.40} is no moment") from error
    if value is not None:
        raise InvalidPayloadError(f"time {value!r:.40} is no moment")
    return None
