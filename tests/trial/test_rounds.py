"""A comparison is fair: every candidate has as many trials, in turns, and one disturbed round changes nothing."""

from __future__ import annotations

import threading

from agent.device.planning.plan import Candidate, Measurement, Outcome
from agent.trial.rounds import compare
from simulator.clock import VirtualClock

FAST, SLOW, BROKEN = (Candidate("CPUExecutionProvider", "cpu", variant, 1) for variant in ("int8", "fp32", "fp16"))


class Trials:
    """Stands in for trial processes: knows each candidate's p99 in each round; None crashes."""

    def __init__(self, clock: VirtualClock, p99s_ms: dict[Candidate, list[float | None]]) -> None:
        self.asked: list[Candidate] = []
        self._clock, self._p99s_ms = clock, p99s_ms

    def __call__(self, candidate: Candidate) -> Outcome:
        p99_ms = self._p99s_ms[candidate][self.asked.count(candidate)]
        self.asked.append(candidate)
        self._clock.advance(1.0)
        if p99_ms is None:
            return Outcome(candidate, refusal="crashed")
        measured = Measurement(100, p99_ms, p99_ms, p99_ms, p99_ms, 5.0, p99_ms, int(p99_ms * 1e6))
        return Outcome(candidate, measured)


def test_rounds_are_equal_and_turn_their_order_round():
    """Whoever comes first after a pause finds a cooler processor."""
    clock = VirtualClock()
    trials = Trials(clock, {FAST: [2.0] * 4, SLOW: [5.0] * 4})

    found = compare([FAST, SLOW], trials, clock, seconds=7.0)

    assert trials.asked == [FAST, SLOW, SLOW, FAST, FAST, SLOW, SLOW, FAST]
    assert found.rounds == 4
    assert [each.measurement.runs for each in found.outcomes] == [400, 400]


def test_a_slow_candidate_is_measured_to_the_end():
    """What the planner would drop early is what a comparison is asked for."""
    clock = VirtualClock()
    found = compare([FAST, SLOW], Trials(clock, {FAST: [1.0] * 3, SLOW: [900.0] * 3}), clock, seconds=0)

    assert [each.measurement.p99_ms for each in found.outcomes] == [1.0, 900.0]


def test_one_disturbed_round_changes_no_figure_but_the_peak_of_memory():
    """Something else ran meanwhile; memory that was needed once is needed."""
    clock = VirtualClock()
    found = compare([FAST], Trials(clock, {FAST: [2.0, 80.0, 2.1]}), clock, seconds=0)

    measured = found.outcomes[0].measurement
    assert (measured.p50_ms, measured.p99_ms, measured.cpu_ms_per_run) == (2.1, 2.1, 2.1)
    assert measured.peak_rss_bytes == 80_000_000


def test_a_refusal_stands_and_is_not_tried_again():
    """What crashed once has crashed, whatever it measured before; the others go on."""
    clock = VirtualClock()
    trials = Trials(clock, {FAST: [2.0] * 3, BROKEN: [1.0, None]})

    found = compare([FAST, BROKEN], trials, clock, seconds=0)

    assert [each.refusal for each in found.outcomes] == [None, "crashed"]
    assert found.outcomes[1].measurement is None
    assert trials.asked.count(BROKEN) == 2


def test_nothing_left_to_try_ends_it():
    """A device on which everything crashes must not be asked for the whole time."""
    clock = VirtualClock()
    trials = Trials(clock, {BROKEN: [None]})

    assert compare([BROKEN], trials, clock, seconds=60.0).rounds == 1
    assert compare([], trials, clock, seconds=60.0).outcomes == ()


def test_stop_leaves_out_the_round_that_was_running():
    """Half a round would favour whoever came first."""
    clock, stop = VirtualClock(), threading.Event()
    trials = Trials(clock, {FAST: [2.0] * 3, SLOW: [5.0] * 3})

    def progress(candidate: Candidate, number: int, outcomes: object) -> None:
        if (candidate, number) == (FAST, 2):
            stop.set()

    found = compare([FAST, SLOW], trials, clock, seconds=60.0, progress=progress, stop=stop)

    assert found.rounds == 1
    assert [each.measurement.runs for each in found.outcomes] == [100, 100]
