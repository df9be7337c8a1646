"""A topic as a sensor: anybody on the broker may publish there, so anything may arrive."""

from __future__ import annotations

import json
import queue
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import OperatorError, SourceError
from agent.sources.mqtt_topic import InvalidPayloadError, TopicSource, decode_payload
from agent.sources.settings import SensorSource

ARRIVED = datetime(2026, 3, 1, tzinfo=UTC)
NAN = float("nan")


class LeapingClock:
    """Each look at the monotonic clock finds a second gone."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> datetime:
        return ARRIVED

    def monotonic(self) -> float:
        self.looks += 1
        return float(self.looks)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.is_set()


def topic(*payloads: bytes, stop: threading.Event | None = None, **settings: object) -> TopicSource:
    inbox: queue.Queue[tuple[datetime, float, bytes]] = queue.Queue()
    for number, payload in enumerate(payloads):
        inbox.put((ARRIVED + timedelta(seconds=number), 50.0 + number, payload))
    return TopicSource(
        SensorSource.model_validate({"source": "mqtt:plant/pump", "rate_hz": 1, **settings}),
        name="pump",
        clock=LeapingClock(),
        inbox=inbox,
        stop=stop or threading.Event(),
        first_id=2,
    )


@pytest.mark.parametrize(
    ("payload", "columns", "expected"),
    [
        pytest.param(b"21.5", (), [[21.5]], id="number"),
        pytest.param(b" -3 \n", (), [[-3]], id="integer-with-blanks"),
        pytest.param(b"[1, 2.5, null]", (), [[1], [2.5], [NAN]], id="list"),
        pytest.param(b"[[1, 2], [3, 4]]", (), [[1, 2], [3, 4]], id="rows"),
        pytest.param(b'{"y": 2, "x": 1}', ("x", "y"), [[1, 2]], id="keys"),
        pytest.param(b'{"y": [2, 4], "x": [1, 3], "unit": "g"}', ("x", "y"), [[1, 2], [3, 4]], id="key-lists"),
        pytest.param(b'{"value": 7, "battery": 3}', (), [[7]], id="value-key"),
        pytest.param(b'{"temperature": 7, "time": 1772323200}', (), [[7]], id="only-key"),
        pytest.param(b"1.5,2,,4", (), [[1.5], [2], [NAN], [4]], id="csv-line"),
        pytest.param(b"1,2\r\n3,4\r\n", ("x", "y"), [[1, 2], [3, 4]], id="csv-rows"),
        pytest.param(b"NaN", (), [[NAN]], id="nan"),
        pytest.param(b"1e300", (), [[NAN]], id="beyond-float32"),
        pytest.param(b"1" + b"0" * 400, (), [[NAN]], id="beyond-float64"),
        pytest.param(b"1" * 5000, (), [[NAN]], id="beyond-pythons-own-limit"),
    ],
)
def test_every_listed_form_is_understood(payload, columns, expected):
    """Sensors in the field speak all of these."""
    values = decode_payload(payload, columns).values
    np.testing.assert_array_equal(values, np.array(expected, np.float32))
    assert values.dtype == np.float32


INVALID = [
    pytest.param(b"", (), id="empty"),
    pytest.param(b"offline", (), id="word"),
    pytest.param(b"\xff\xfe\x00", (), id="binary"),
    pytest.param(b"true", (), id="boolean"),
    pytest.param(b'"21.5"', (), id="string"),
    pytest.param(b"[]", (), id="empty-list"),
    pytest.param(b"[[1], [1, 2]]", (), id="ragged"),
    pytest.param(b"[1, [2]]", ("x", "y"), id="mixed"),
    pytest.param(b'{"x": 1}', ("x", "y"), id="missing-key"),
    pytest.param(b'{"a": 1, "b": 2}', (), id="which-key"),
    pytest.param(b"{}", (), id="empty-object"),
    pytest.param(b'{"x": [1, 2], "y": [1]}', ("x", "y"), id="unequal-keys"),
    pytest.param(b'{"value": 1, "time": "noon"}', (), id="time"),
    pytest.param(b'{"value": 1, "time": 1e300}', (), id="time-beyond"),
    pytest.param(b"[" * 100_000, (), id="deep"),
    pytest.param(b"1," * 3_000_000, (), id="huge"),
    pytest.param(b",,,", (), id="commas"),
]


@pytest.mark.parametrize(("payload", "columns"), INVALID)
def test_every_other_payload_is_refused_and_nothing_else_breaks(payload, columns):
    """An exception of another kind would take the pipeline down."""
    with pytest.raises(InvalidPayloadError):
        decode_payload(payload, columns)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "time", "value"]), inner),
    max_leaves=12,
)


@given(
    st.binary(max_size=60)
    | st.text('0123456789.,-+eE\n[]{}:"xnula ', max_size=40).map(str.encode)
    # Python's own JSON writes NaN and Infinity, as many sensors' firmware does.
    | JSON_LIKE.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([(), ("x",), ("x", "y")]),
)
def test_whatever_arrives_becomes_finite_values_and_holes_or_is_refused(payload, columns):
    """Anybody may publish anything."""
    try:
        values = decode_payload(payload, columns).values
    except InvalidPayloadError:
        return
    assert values.ndim == 2
    assert values.size > 0
    assert values.dtype == np.float32
    assert not np.isinf(values).any()


def test_bad_payloads_are_counted_and_skipped():
    """A stranger on the topic must be visible and harmless."""
    source = topic(b"1", b"offline", b"[[1, 2]]", b"2")
    assert [float(source.read().values[0, 0]) for _ in range(2)] == [1.0, 2.0]
    assert source.invalid == 2


def test_readings_carry_the_time_of_arrival_or_the_sensors_own():
    """The sensor knows better when it measured; the age counts from the arrival here."""
    source = topic(b"1", b'{"value": 2, "time": "2026-02-28T23:59:00+00:00"}')
    arrived, measured = source.read(), source.read()
    assert (arrived.id, arrived.captured_at, arrived.captured_monotonic_s) == (2, ARRIVED, 50.0)
    assert measured.captured_at == datetime(2026, 2, 28, 23, 59, tzinfo=UTC)
    assert (measured.id, measured.captured_monotonic_s) == (3, 51.0)


def test_a_silent_topic_is_reported_and_not_waited_for_in_vain():
    """Wrong topic, dead sensor, ACL: all look like silence, and somebody must hear of it."""
    with pytest.raises(SourceError, match=r"no usable message for 5 s .*\n.*topic"):
        topic().read()


def test_a_topic_of_nothing_but_garbage_is_reported_too():
    """Else a sensor that only says `offline` would look alive for months."""
    source = topic(*[b"offline"] * 50)
    with pytest.raises(SourceError, match=r"\d+ were not understood"):
        source.read()
    assert source.invalid < 50  # it did not wait for the garbage to end


def test_stop_and_close_end_a_waiting_read():
    """SIGTERM within two seconds, also while nothing arrives."""
    stop = threading.Event()
    stop.set()
    assert topic(b"1", stop=stop).read() is None
    source = topic(b"1")
    source.close()
    assert source.read() is None


def test_without_a_rate_it_is_refused():
    """A window has a length in time; without the rate nobody knows it."""
    with pytest.raises(OperatorError, match="rate_hz"):
        topic(rate_hz=None)
