"""Every candidate measured alike: equal rounds in turns, until a time is spent. What `holdfast bench` shows.

Planning ends soon and drops what is clearly slower; a comparison wants the slow ones measured as well as the fast. Each
round gives every candidate that still runs one trial, so that whatever else the device does meets all of them, and the order
turns round from one round to the next: the first after a pause has the cooler processor. A candidate's figures are the
medians over its rounds. A refusal stands, and is not tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from agent.clock import Clock
from agent.device.planning.objective import p99_range_ms
from agent.device.planning.plan import Candidate, Measurement, Outcome

FEWEST_ROUNDS = 3
"""The least for which a median leaves out a disturbed one."""

Trial = Callable[[Candidate], Outcome]
Progress = Callable[[Candidate, int, Sequence[Outcome]], None]
"""Told before each trial: of whom, the round (from 1), and the outcomes so far."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of each candidate, in the order given."""

    outcomes: tuple[Outcome, ...]
    rounds: int
    """Whole rounds that the figures are medians of."""


def compare(
    found: Sequence[Candidate],
    trial: Trial,
    clock: Clock,
    *,
    seconds: float,
    progress: Progress = lambda *_: None,
    stop: threading.Event | None = None,
) -> Comparison:
    """Measure every candidate in turns.

    Args:
        found: What to measure.
        trial: Measures one, in a process of its own.
        clock: For `seconds`.
        seconds: No round begins after that; `FEWEST_ROUNDS` are run in any case.
        progress: Called from this thread.
        stop: When set, the round that runs is left out, and no other begins.
    """
    stop = stop or threading.Event()
    trials: dict[Candidate, list[Outcome]] = {candidate: [] for candidate in found}
    began_s, rounds = clock.monotonic(), 0
    while rounds < FEWEST_ROUNDS or clock.monotonic() - began_s < seconds:
        if not (runs := [each for each in found if not _is_refused(trials[each])]):
            break
        round_outcomes: dict[Candidate, Outcome] = {}
        for candidate in runs if rounds % 2 == 0 else reversed(runs):
            progress(candidate, rounds + 1, typical(trials))
            round_outcomes[candidate] = trial(candidate)
            if stop.is_set():
                return Comparison(typical(trials), rounds)
        for candidate, outcome in round_outcomes.items():
            trials[candidate].append(outcome)
        rounds += 1
    return Comparison(typical(trials), rounds)


def typical(trials: dict[Candidate, list[Outcome]]) -> tuple[Outcome, ...]:
    """Return one outcome for each candidate that has been tried: its refusal, or the medians of its trials."""
    return tuple(_typical(of_one) for of_one in trials.values() if of_one)


def _is_refused(of_one: Sequence[Outcome]) -> bool:
    return any(each.measurement is None for each in of_one)


def _typical(of_one: Sequence[Outcome]) -> Outcome:
    refused = next((each for each in of_one if each.measurement is None), None)
    measured = [each.measurement for each in of_one if each.measurement is not None]
    return refused or replace(of_one[0], measurement=median_of(measured))


def median_of(measured: Sequence[Measurement]) -> Measurement:
    """Return medians of what varies from one trial to the next, sums of runs, and the most memory that any took."""
    return replace(
        measured[0],
        runs=sum(each.runs for each in measured),
        mean_ms=median(each.mean_ms for each in measured),
        p50_ms=median(each.p50_ms for each in measured),
        p95_ms=median(each.p95_ms for each in measured),
        p99_ms=median(each.p99_ms for each in measured),
        load_ms=median(each.load_ms for each in measured),
        cpu_ms_per_run=median(each.cpu_ms_per_run for each in measured),
        peak_rss_bytes=max(each.peak_rss_bytes for each in measured),
        runs_per_s=_median_of_known(each.runs_per_s for each in measured),
        energy_mj_per_run=_median_of_known(each.energy_mj_per_run for each in measured),
        celsius=_median_of_known(each.celsius for each in measured),
        p99_range_ms=p99_range_ms(measured),
        compile_ms=max((each.compile_ms for each in measured if each.compile_ms is not None), default=None),
    )


def _median_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
