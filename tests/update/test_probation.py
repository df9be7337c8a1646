"""When a new bundle is good, and when it has failed."""

from __future__ import annotations

import pytest

from agent.update.notes import Health
from agent.update.probation import Watch
from agent.update.record import Gates
from agent.update.settings import ProbationSettings

SETTINGS = ProbationSettings(seconds=60, samples=100)
GATES = Gates(p99_ms=20.0, rss_bytes=100 << 20)


def health(running_s, samples, **fields):
    values = {"crashes": 0, "last_failure": "", "invalid_answers": 0, "p99_ms": 10.0, "rss_bytes": 50 << 20, **fields}
    return Health(running_s=running_s, samples=samples, **values)


def watched(observations, watch=None, first_s=0):
    watch = watch or Watch()
    for second, each in enumerate(observations, start=first_s):
        watch = watch.observe(each, GATES, float(second))
    return watch


def good(seconds, rate=10):
    return [health(second, second * rate) for second in range(seconds)]


def test_good_bundle_passes_when_both_time_and_samples_are_reached():
    """A fast camera shows nothing in two seconds, a slow sensor nothing in a minute."""
    assert watched(good(61)).has_passed(SETTINGS, GATES)
    assert not watched(good(60)).has_passed(SETTINGS, GATES)
    assert not watched(good(70, rate=1)).has_passed(SETTINGS, GATES)
    assert watched(good(101, rate=1)).has_passed(SETTINGS, GATES)


def test_short_probation_does_not_end_before_a_slow_bundle_is_found_out():
    """A p99 counts from a hundred samples on; a probation of fewer would confirm whatever is slow."""
    short = ProbationSettings(seconds=3, samples=10)
    slow = [health(second, second * 10, p99_ms=900.0) for second in range(10)]
    assert not watched(slow).has_passed(short, GATES)
    assert watched(good(10)).has_passed(short, GATES)
    more = [health(second, second * 10, p99_ms=900.0) for second in range(10, 16)]
    assert watched(more, watched(slow), first_s=10).failure(GATES).startswith("p99 of inference is 900.0 ms")


def test_time_does_not_run_while_no_source_delivers():
    """A camera that is away for a night proves nothing about the bundle."""
    watch = watched([health(second, 500) for second in range(36000)])
    assert not watch.has_passed(SETTINGS, GATES)
    assert watch.failure(GATES) == ""
    watch = watched([health(second, 500 + second) for second in range(100)], watch, first_s=36000)
    assert watch.seconds == pytest.approx(100 + 10, abs=2)


def test_slow_sensor_collects_time_between_its_windows():
    """One window in five seconds is a source that delivers."""
    watch = watched([health(second, second // 5) for second in range(600)])
    assert watch.has_passed(SETTINGS, GATES)


@pytest.mark.parametrize(
    ("observations", "why"),
    [
        pytest.param([*good(5), health(0, 50, crashes=1, last_failure="SIGSEGV")], "SIGSEGV", id="early crash"),
        pytest.param(
            [*good(30), health(0, 300, crashes=1), *[health(each, 310, crashes=1) for each in range(20)],
             health(0, 310, crashes=2, last_failure="exited with 1")],
            "exited with 1", id="second crash",
        ),
        pytest.param([*good(30), health(30, 300, is_stalled=True)], "stalled", id="stall"),
        pytest.param([*good(30), *[health(30, 300, p99_ms=20.1)] * 5], "20.1 ms", id="too slow"),
        pytest.param([*good(30), *[health(30, 300, rss_bytes=101 << 20)] * 5], "101 MiB", id="too large"),
        pytest.param([health(1, 0), health(2, 0, invalid_answers=2)], "2 of 2", id="only NaN"),
        pytest.param([*good(30), health(30, 300, invalid_answers=4)], "4 of 304", id="1.3 % invalid"),
    ],
)  # fmt: skip
def test_failure(observations, why):
    """Each named ill ends probation, with its number in the reason."""
    assert why in watched(observations).failure(GATES)


@pytest.mark.parametrize(
    "observations",
    [
        pytest.param([*good(11), health(0, 110, crashes=1)], id="one crash after ten seconds"),
        pytest.param([*good(30), *[health(30, 300, p99_ms=90.0)] * 4, health(31, 310)], id="slow for a moment"),
        pytest.param([health(second, 90, p99_ms=400.0) for second in range(20)], id="p99 of the first samples"),
        pytest.param([*good(30), health(30, 300, invalid_answers=3)], id="one per cent invalid"),
        pytest.param([health(1, 1), health(2, 2, invalid_answers=1)], id="one of the first three invalid"),
        pytest.param([health(1, 1, p99_ms=None, rss_bytes=None)] * 9, id="not measured"),
    ],
)
def test_no_failure(observations):
    """A good bundle must not be lost to a moment."""
    watch = Watch()
    for second, each in enumerate(observations):
        watch = watch.observe(each, GATES, float(second))
        assert watch.failure(GATES) == ""


def test_no_gate_no_verdict():
    """Without a limit nothing is too slow or too large."""
    watch = Watch()
    for second in range(20):
        watch = watch.observe(health(second, 1000, p99_ms=9e9, rss_bytes=1 << 60), Gates(), second)
    assert watch.failure(Gates()) == ""


def test_earlier_starts_count():
    """Two starts before this process: its first crash is the third, and a fourth start is one too many."""
    watch = watched([*good(30), health(0, 300, crashes=1)], Watch(starts=3, seconds=100))
    assert "crashed" in watch.failure(GATES)
    assert watched([*good(30), health(0, 300, crashes=1)], Watch(starts=2, seconds=100)).failure(GATES) == ""


def test_counters_that_begin_anew_lose_nothing():
    """A worker that was started again counts from zero."""
    watch = watched([*good(30), *[health(second, second * 10, crashes=1) for second in range(30)]])
    assert watch.samples == 290 + 290
