"""Readings to windows: where missing values, gaps and wrong rates are met, or slip through to the model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agent.bundle.manifest import SignalInput
from agent.errors import OperatorError, SourceError
from agent.sources.sample import Reading
from agent.sources.windows import Windows

START = datetime(2026, 3, 1, tzinfo=UTC)
NAN = np.nan


class Played:
    """A source that plays what it was given: (values, seconds since the start of the last value)."""

    is_live = False

    def __init__(self, *stretches: tuple[list[float] | np.ndarray, float], rate_hz: float = 10.0) -> None:
        self._stretches = iter(stretches)
        self._rate_hz = rate_hz
        self._id = 0
        self.closed = False

    def read(self) -> Reading | None:
        stretch = next(self._stretches, None)
        if stretch is None:
            return None
        values = np.array(stretch[0], np.float32)
        values = values.reshape(-1, 1) if values.ndim == 1 else values
        self._id += 1
        at = START + timedelta(seconds=stretch[1])
        return Reading("pump", self._id - 1, at, 1000 + stretch[1], values, self._rate_hz)

    def close(self) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[Reading]:
        while (reading := self.read()) is not None:
            yield reading


def steady(values: list[float] | np.ndarray, cut: int = 3) -> Played:
    """Values at 10 Hz in readings of `cut`, without a gap."""
    parts = [values[at : at + cut] for at in range(0, len(values), cut)]
    ends = np.cumsum([len(part) for part in parts]) / 10
    return Played(*zip(parts, ends, strict=True))


def wanted(size: int = 4, hop: int = 4, **more: object) -> SignalInput:
    return SignalInput.model_validate({"rate_hz": 10, "window_size": size, "hop_size": hop, **more})


def listed(windows: Windows) -> list[list[float]]:
    return [window.values[:, 0].tolist() for window in windows]


@pytest.mark.parametrize(("size", "hop"), [(4, 4), (4, 1), (4, 2), (4, 7), (4, 30), (1, 1)], ids=str)
@pytest.mark.parametrize("cut", [1, 3, 50])
def test_windows_are_slices_of_the_series_however_it_was_cut(size, hop, cut):
    """How many values come at once is the network's business and must not change an answer."""
    values = np.arange(100, dtype=np.float32)
    windows = list(Windows(steady(values, cut), wanted(size, hop)))
    expected = [values[at : at + size] for at in range(0, 100 - size + 1, hop)]
    assert len(windows) == len(expected)
    for window, slice_ in zip(windows, expected, strict=True):
        np.testing.assert_array_equal(window.values[:, 0], slice_)
        last_s = (slice_[-1] + 1) / 10
        assert window.captured_at == pytest.approx(
            START + timedelta(seconds=float(last_s)), abs=timedelta(seconds=1e-4)
        )
        assert window.captured_monotonic_s == pytest.approx(1000 + last_s)
        assert window.missing_share == 0
        assert window.values.dtype == np.float32
        assert window.values.flags.c_contiguous
    assert [window.id for window in windows] == list(range(len(expected)))


def test_skip_leaves_out_windows_with_holes_and_counts_them():
    """The strict policy: no invented value ever reaches the model; a hole in the ids tells."""
    windows = Windows(steady([0, 1, 2, 3, 4, NAN, 6, 7, 8, 9, 10, 11]), wanted(missing="skip"), first_id=5)
    found = list(windows)
    assert [window.values[:, 0].tolist() for window in found] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert [window.id for window in found] == [5, 7]
    assert windows.dropped == {"missing": 1, "gap": 0, "invalid": 0}


def test_hold_repeats_the_last_value_also_from_the_window_before():
    """A valve that reports on change only: no news is the old value."""
    source = steady([0, 1, 2, 3, NAN, 5, NAN, NAN])
    windows = list(Windows(source, wanted(missing="hold", max_missing_share=0.9)))
    assert [window.values[:, 0].tolist() for window in windows] == [[0, 1, 2, 3], [3, 5, 5, 5]]
    assert windows[1].missing_share == 0.75


def test_hold_begins_with_the_first_value_there_is():
    """Before the first value nobody knows better."""
    assert listed(Windows(steady([NAN, NAN, 2, 3]), wanted(missing="hold", max_missing_share=0.5))) == [[2, 2, 2, 3]]


def test_interpolate_draws_a_line_and_repeats_at_the_edges():
    """A smooth quantity with single holes."""
    source = steady([NAN, 1, NAN, 3, NAN, 5, 6, 7])
    found = listed(Windows(source, wanted(missing="interpolate", max_missing_share=0.5)))
    assert found == [[1, 1, 2, 3], [5, 5, 6, 7]]


def test_channels_are_filled_each_by_itself():
    values = np.array([[0, 10], [NAN, 11], [2, NAN], [3, 13]], np.float32)
    source = Played((values, 0.4))
    (window,) = list(Windows(source, wanted(channels=["x", "y"], missing="interpolate", max_missing_share=0.5)))
    np.testing.assert_array_equal(window.values, [[0, 10], [1, 11], [2, 12], [3, 13]])
    assert window.missing_share == 0.25


@pytest.mark.parametrize("policy", ["hold", "interpolate"])
def test_too_large_a_share_is_skipped_whatever_the_policy(policy):
    """A window that is mostly invented is worth no answer."""
    windows = Windows(steady([0, NAN, NAN, 3, 4, 5, NAN, 7]), wanted(missing=policy, max_missing_share=0.25))
    assert len(listed(windows)) == 1
    assert windows.dropped["missing"] == 1


@pytest.mark.parametrize("policy", ["skip", "hold", "interpolate"])
def test_a_window_of_nothing_is_skipped_even_when_every_share_is_allowed(policy):
    """There is nothing to hold and nothing to draw a line through."""
    windows = Windows(steady([NAN] * 8), wanted(missing=policy, max_missing_share=1.0))
    assert listed(windows) == []
    assert windows.dropped["missing"] == 2


def test_infinite_values_are_missing():
    """A model must never see them."""
    assert listed(Windows(steady([0, np.inf, 2, 3]), wanted(missing="interpolate", max_missing_share=0.5))) == [
        [0, 1, 2, 3]
    ]


def test_a_short_gap_in_time_is_missing_values():
    """Two lost packets: the values after them keep their place in time."""
    source = Played(([0, 1], 0.2), ([4, 5, 6, 7], 0.8))
    assert listed(Windows(source, wanted(8, 8, missing="interpolate", max_missing_share=0.5))) == [list(range(8))]


def test_a_long_gap_starts_anew_and_is_counted():
    """A window must not hold values from before and after a night switched off."""
    source = Played(([0, 1, 2], 0.3), ([50, 51, 52, 53], 3600.0))
    windows = Windows(source, wanted(missing="hold", max_missing_share=1.0))
    assert listed(windows) == [[50, 51, 52, 53]]
    assert windows.dropped["gap"] == 1


def test_time_that_goes_back_starts_anew_and_is_counted():
    """A repeated file, a sensor with a reset clock."""
    source = Played(([0, 1, 2], 0.3), ([50, 51, 52, 53], 0.1))
    windows = Windows(source, wanted())
    assert listed(windows) == [[50, 51, 52, 53]]
    assert windows.dropped["gap"] == 1


def test_jitter_that_the_source_declares_is_no_gap():
    """Messages are stamped on arrival; the network holds some up."""
    source = Played(([0, 1], 0.2), ([2, 3], 0.4 + 0.9), ([4, 5], 0.6 + 0.95), ([6, 7], 0.8))
    source.jitter_s = 1.0
    assert listed(Windows(source, wanted(8, 8))) == [list(range(8))]


def test_no_value_is_held_over_a_long_gap():
    """Yesterday's value says nothing about today."""
    source = Played(([0, 1, 2, 3, 4], 0.5), ([NAN, 51, 52, 53], 3600.0))
    assert listed(Windows(source, wanted(missing="hold", max_missing_share=0.5))) == [[0, 1, 2, 3], [51, 51, 52, 53]]


def test_a_wrong_rate_is_refused_with_both_rates():
    """A model trained at 10 Hz answers nonsense at 12."""
    with pytest.raises(OperatorError, match=r"12 values a second .* wants 10"):
        Windows(Played(([0, 1, 2, 3], 0.4), rate_hz=12), wanted()).read()


def test_a_wrong_number_of_channels_is_refused():
    """Features of the wrong column look perfectly plausible."""
    with pytest.raises(OperatorError, match=r"\(1, 2\)(.|\n)*columns:") as caught:
        Windows(Played(([[1, 2]], 0.1)), wanted()).read()
    assert "pump" in str(caught.value)


def test_errors_counts_and_close_reach_through():
    """The capture loop knows this stage only."""

    class Broken(Played):
        invalid = 3

        def read(self) -> Reading | None:
            raise SourceError("gone")

    source = Broken()
    windows = Windows(source, wanted())
    with pytest.raises(SourceError):
        windows.read()
    assert windows.dropped["invalid"] == 3
    windows.close()
    assert source.closed
    assert not windows.is_live
