"""The arithmetic of the table; what it measures is never asserted here."""

from __future__ import annotations

import pytest

from benchmarks.table import Figure, Goal, Missing, render, spread, summary


def figure(ours, peer=(), goal=None, name="speed"):
    return Figure(name, "fps", ours, goal, peer, "ideal")


def test_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians():
    """A round in which the machine was busy slows both halves: its ratio still counts as any other."""
    line = figure([100, 50, 90], [100, 100, 10])
    assert line.ratio == 1.0
    assert figure([100], [0]).ratio is None
    assert figure([100]).ratio is None


@pytest.mark.parametrize(
    ("goal", "ours", "peer", "verdict"),
    [
        pytest.param(Goal("ratio", "≥", 0.95), [95], [100], "met", id="exactly the bound is met"),
        pytest.param(Goal("ratio", "≥", 0.95), [94], [100], "missed", id="below"),
        pytest.param(Goal("ratio", "≤", 1.1), [112], [100], "missed", id="above"),
        pytest.param(Goal("difference", "≤", 30, "MiB"), [142, 139], [113, 110], "met", id="difference"),
        pytest.param(Goal("difference", "≤", 1, "ms"), [5.1], [4.0], "missed", id="difference missed"),
        pytest.param(Goal("value", "≤", 80, "MiB"), [62.8], [], "met", id="value"),
        pytest.param(Goal("value", "≥", 1000), [999], [], "missed", id="value missed"),
    ],
)
def test_verdict_holds_the_judged_number_against_the_bound(goal, ours, peer, verdict):
    """A table that calls a miss a hit is worse than none."""
    assert figure(ours, peer, goal).verdict == verdict


def test_figure_without_a_promise_has_no_verdict():
    """Figures for comparison neither help nor harm the count."""
    line = figure([1.0], [2.0])
    assert line.verdict == ""
    assert summary([line]) == "0 met, 0 missed, 0 not measured"


def test_rounds_that_do_not_pair_are_an_error():
    """Seven of ours against six of theirs would pair the wrong rounds."""
    with pytest.raises(ValueError, match="zip"):
        _ = figure([1.0, 2.0], [1.0], Goal("ratio", "≥", 1)).verdict


def test_spread_shows_median_smallest_and_largest():
    """A median alone hides whether the rounds agree."""
    assert spread([612.4, 598.2, 640.0], "fps") == "612 (598–640) fps"
    assert spread([0.0000012]) == "1.2e-06"
    assert spread([20_000], "events/s") == "20,000 events/s"
    assert spread([0.0], "%") == "0 %"


def test_table_names_what_was_missed_and_what_could_not_be_measured():
    """The reader of a CI log looks at the end first."""
    lines = [
        figure([90], [100], Goal("ratio", "≥", 0.95), name="throughput"),
        figure([70], [], Goal("value", "≤", 80, "MiB"), name="memory"),
        Missing("peer", "not installed"),
    ]
    text = render(lines, "a machine")
    assert text.startswith("a machine\n")
    assert text.endswith("1 met, 1 missed, 1 not measured; missed: throughput")
    assert "not installed" in text
    assert "≥ 0.95 ×" in text
