"""A .csv file as a sensor: what people have on a USB stick, with everything that is wrong with such files."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import OperatorError
from agent.sources.csv_replay import open_csv
from agent.sources.settings import SensorSource


class SteppedClock:
    """A clock that waiting moves on."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self.waits = 0

    def now(self) -> datetime:
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return 100.0 + self.elapsed_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waits += 1
        self.elapsed_s += max(0.0, timeout_s)
        return event.is_set()


@pytest.fixture
def opened(tmp_path: Path):
    sources = []

    def open_file(content: str | bytes, clock: SteppedClock | None = None, **settings: object):
        file = tmp_path / "sensor.csv"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        source = open_csv(
            SensorSource.model_validate({"source": str(file), "pace": "fast", **settings}),
            name="pump",
            clock=clock or SteppedClock(),
            stop=threading.Event(),
            first_id=3,
        )
        sources.append(source)
        return source

    yield open_file
    for source in sources:
        source.close()


def values(source) -> np.ndarray:
    return np.concatenate([reading.values for reading in source])


def test_columns_come_by_name_in_the_order_asked_for(opened):
    """The bundle's channels have an order; the file's columns have another."""
    source = opened("x,y,z\n1,2,3\n4,5,6\n", rate_hz=10, columns=["z", "x"])
    readings = list(source)
    np.testing.assert_array_equal(readings[0].values, np.array([[3, 1], [6, 4]], np.float32))
    assert readings[0].values.dtype == np.float32
    assert (readings[0].id, readings[0].source, readings[0].rate_hz) == (3, "pump", 10)


def test_a_long_file_comes_whole(opened):
    """Chunks are an inner matter: no row is lost or doubled at their seams."""
    rows = np.arange(5000)
    source = opened("value\n" + "\n".join(str(row) for row in rows), rate_hz=100)
    readings = list(source)
    np.testing.assert_array_equal(np.concatenate([reading.values for reading in readings])[:, 0], rows)
    assert [reading.id for reading in readings] == list(range(3, 3 + len(readings)))


def test_garbage_is_missing_and_counted_and_an_empty_cell_is_just_missing(opened):
    """One bad cell in a year of data must neither stop the pipeline nor pass as a value."""
    source = opened("a,b\n1,2\nfoo,3\n,4\n5\n1e999,6\n7,8\n", rate_hz=10, columns=["a", "b"])
    nan = np.nan
    np.testing.assert_array_equal(values(source), [[1, 2], [nan, 3], [nan, 4], [5, nan], [nan, 6], [7, 8]])
    assert source.invalid == 3  # foo, the short row, 1e999


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("v;w\n1,5;2\n-3,25;4\n", [[1.5, 2], [-3.25, 4]], id="semicolon-and-decimal-comma"),
        pytest.param("v\tw\n1.5\t2\n", [[1.5, 2]], id="tab"),
        pytest.param("\ufeffv,w\r\n1.5,2\r\n", [[1.5, 2]], id="bom-and-crlf"),
        pytest.param('"v","w"\n"1.5"," 2 "\n\n', [[1.5, 2]], id="quotes-and-empty-line"),
    ],
)
def test_files_as_spreadsheets_write_them(opened, content, expected):
    """Half of the world's spreadsheets write semicolons and decimal commas."""
    source = opened(content, rate_hz=10, columns=["v", "w"])
    np.testing.assert_array_equal(values(source), np.array(expected, np.float32))
    assert source.invalid == 0


def test_rfc3339_times_set_the_rate_and_the_capture_time(opened):
    """An event from a recording must carry the time of the recording."""
    source = opened(
        "time,value\n2026-01-31T12:00:00.000Z,1\n2026-01-31T12:00:00.100Z,2\n2026-01-31T13:00:00.200+01:00,3\n"
    )
    (reading,) = list(source)
    assert reading.rate_hz == pytest.approx(10)
    assert reading.captured_at == datetime(2026, 1, 31, 12, 0, 0, 200_000, tzinfo=UTC)


def test_times_coarser_than_the_rate_are_no_gaps(opened):
    """Loggers write milliseconds at 8 kHz: most steps are zero and some are one."""
    rows = "".join(f"{int(row / 8192 * 1000) / 1000},{row}\n" for row in range(4096))
    source = opened("time,value\n" + rows, rate_hz=8192)
    readings = list(source)
    assert readings[0].rate_hz == 8192
    assert len(readings) == 4


def test_a_gap_in_time_starts_a_new_reading(opened):
    """Inside a Reading values are consecutive; the window stage sees the gap by the times."""
    seconds = [0.0, 0.1, 0.2, 0.3, 5.0, 5.1, 5.2]
    source = opened("time,value\n" + "".join(f"{at},{at}\n" for at in seconds))
    readings = list(source)
    assert [len(reading.values) for reading in readings] == [4, 3]
    assert (readings[1].captured_at - readings[0].captured_at).total_seconds() == pytest.approx(4.9)


def test_one_lost_row_is_a_gap(opened):
    """A single dropped row shifts everything after it."""
    source = opened("time,value\n" + "".join(f"{at / 10},{at}\n" for at in range(50) if at != 30))
    assert [len(reading.values) for reading in source] == [30, 19]


def test_an_unreadable_time_is_counted_and_bridged(opened):
    """The row's value is fine; only its time is not."""
    source = opened("time,value\n0.0,1\n0.1,2\nnoon,3\n0.3,4\n0.4,5\n")
    assert [len(reading.values) for reading in source] == [5]
    assert source.invalid == 1


@pytest.mark.parametrize("time", ["1e300", "inf", "-1e18", "9999-12-31T23:59:59-12:00"])
def test_a_time_beyond_the_calendar_is_an_unreadable_one(opened, time):
    """One such cell must not end the recording with an overflow."""
    source = opened(f"time,value\n0.0,1\n0.1,2\n{time},3\n0.3,4\n")
    assert len(values(source)) == 4
    assert source.invalid == 1


def test_own_pace_takes_as_long_as_the_recording(opened):
    """Also over a gap: the machine was off then."""
    clock = SteppedClock()
    source = opened("time,value\n" + "".join(f"{at},1\n" for at in (0, 1, 2, 3, 10, 11)), clock, pace="own")
    assert source.is_live
    list(source)
    assert clock.elapsed_s == pytest.approx(11)


def test_a_weekend_switched_off_is_not_waited_for(opened):
    """Nor a mistyped year; and a step back in time neither stops the replay nor makes it race."""
    clock = SteppedClock()
    source = opened(
        "time,value\n" + "".join(f"{at},1\n" for at in (0, 1, 2, 200_000, 200_001, 3, 4)), clock, pace="own"
    )
    readings = list(source)
    assert clock.elapsed_s == pytest.approx(2 + 60 + 1 + 1 + 1)
    times = [reading.captured_monotonic_s for reading in readings]
    assert times == sorted(times)


def test_fast_does_not_wait_and_counts_the_recordings_seconds(opened):
    """A rule that waits for ten seconds above a level must find them in the recording."""
    clock = SteppedClock()
    readings = list(opened("value\n" + "1\n" * 3000, clock, rate_hz=10))
    assert clock.waits == 0
    assert readings[-1].captured_monotonic_s == pytest.approx(100 + 300)


def test_empty_lines_do_not_end_the_file(opened):
    """Some loggers write one after each row, or thousands at a pause."""
    assert len(values(opened("value\n1\n" + "\n" * 5000 + "2\n", rate_hz=10))) == 2


def test_repeat_goes_on_in_time(opened):
    """A second round that began in the past would look like a clock that jumped."""
    source = opened("value\n1\n2\n3\n", rate_hz=10, repeat=True)
    first, second = source.read(), source.read()
    np.testing.assert_array_equal(first.values, second.values)
    assert (second.captured_at - first.captured_at).total_seconds() == pytest.approx(0.3, abs=0.11)


@pytest.mark.parametrize(
    ("content", "settings", "told"),
    [
        pytest.param("", {}, "empty", id="empty"),
        pytest.param(" \n\n", {}, "empty", id="blank"),
        pytest.param("time,value\n", {}, "no rows", id="header-only"),
        pytest.param("1.5,2\n3,4\n", {"rate_hz": 1}, "add a header row", id="no-header"),
        pytest.param("temprature,x\n1,2\n", {"rate_hz": 1, "columns": ["temperature"]}, "'temprature'", id="column"),
        pytest.param("time\n1\n2\n", {}, "no column but", id="only-time"),
        pytest.param("value\n1\n", {}, "rate_hz", id="no-rate"),
        pytest.param("time,value\nx,1\ny,2\n", {}, "RFC 3339", id="no-time-readable"),
        pytest.param("time,value\n1772323200000,1\n1772323200100,2\n", {}, "milliseconds", id="milliseconds"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), {}, "UTF-8", id="picture"),
        pytest.param("a,b\n1,2\n".encode("utf-16"), {}, "UTF-8", id="utf-16"),
        pytest.param(b"abc" + bytes(300), {}, "text file", id="nul"),
    ],
)
def test_files_that_are_no_recording_are_refused_with_the_way_out(opened, content, settings, told):
    """A sensor that can never deliver must be said at the start, not be silent for months."""
    with pytest.raises(OperatorError) as caught:
        opened(content, **settings)
    assert told in str(caught.value)
    assert "sensor.csv" in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=80)
    | st.text('0123456789.,;-eE\n\r"\ttimevalu ', max_size=80).map(lambda text: "time,value\n" + text)
)
def test_whatever_lies_in_the_file_is_read_or_refused(opened, content):
    """A file from a USB stick may be cut off or be something else."""
    try:
        source = opened(content, rate_hz=10)
    except OperatorError:
        return
    for reading in source:
        assert len(reading.values) > 0
        assert not np.isinf(reading.values).any()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OperatorError, match="cannot be read"):
        open_csv(
            SensorSource(source=str(tmp_path / "none.csv")),
            name="pump",
            clock=SteppedClock(),
            stop=threading.Event(),
            first_id=0,
        )


def test_close_from_elsewhere_ends_it_without_an_error(opened):
    """The supervisor closes a source whose pipeline it stops."""
    source = opened("value\n" + "1\n" * 5000, rate_hz=10)
    assert source.read() is not None
    source.close()
    assert source.read() is None
