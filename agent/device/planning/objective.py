"""What is compared under an objective, pure: one figure a candidate, of which less is better, and when two are equal.

latency: p99, but the median in the early rounds of successive halving, since p99 of few runs is their maximum, and where
p99 varies so much from trial to trial that chance would decide.
throughput: time for a run with `Demand.streams` at a time. power: energy a run where it could be measured for all that
are compared, else their CPU time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Self

from agent.device.planning.plan import Candidate, Demand, Measurement, Objective, Outcome

EQUAL_SHARE = 1.05
"""Candidates whose figures are within this factor of the best are equally good: that is how far one measurement repeats."""
EQUAL_MS = 0.05
"""So are times that differ by less than one wake-up of a thread: a model of microseconds wants no second core."""
_TINY = 0.0995
"""Two decimals of less are one digit, or none."""
FEWEST_FOR_P99 = 30
"""With fewer runs the largest time says nothing; the median stands in."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """How the measurements of one set are compared."""

    objective: Objective
    has_p99: bool
    """All of them had enough runs for one, and it tells the best apart."""
    has_energy: bool
    """All of them have one."""

    @classmethod
    def of(cls, demand: Demand, measured: Sequence[Measurement]) -> Self:
        """Return the yardstick for these measurements."""
        return cls(
            demand.objective,
            has_p99=all(each.runs >= FEWEST_FOR_P99 for each in measured) and _p99_tells(measured),
            has_energy=all(each.energy_mj_per_run is not None for each in measured),
        )

    def figure(self, measured: Measurement) -> float:
        """Return what is compared; less is better."""
        match self.objective:
            case "latency":
                return measured.p99_ms if self.has_p99 else measured.p50_ms
            case "throughput":
                return 1000.0 / max(runs_per_s(measured), 1e-9)
            case "power":
                energy = measured.energy_mj_per_run if self.has_energy else None
                return measured.cpu_ms_per_run if energy is None else energy

    def still_equal(self, best: float) -> float:
        """Return the largest figure that counts as equal to the best one."""
        is_time = self.objective != "power" or not self.has_energy
        return max(best * EQUAL_SHARE, best + EQUAL_MS * is_time)

    @property
    def name(self) -> str:
        """What the figure is, for people."""
        if self.objective == "power":
            return "energy" if self.has_energy else "CPU time"
        return {"throughput": "throughput", "latency": "p99" if self.has_p99 else "median"}[self.objective]

    @property
    def best(self) -> str:
        """`lowest p99`, `highest throughput`."""
        return f"{'highest' if self.objective == 'throughput' else 'lowest'} {self.name}"

    def amount(self, measured: Measurement) -> str:
        """Return the figure with its unit, for people."""
        if self.objective == "throughput":
            return f"{runs_per_s(measured):.1f} runs/s"
        unit = {"energy": "mJ a run", "CPU time": "ms a run"}.get(self.name, "ms")
        return f"{digits(self.figure(measured))} {unit}"


def digits(value: float) -> str:
    """Return a figure in words that still tell two tiny models apart: 0.006, 0.35, 12.30."""
    return f"{value:.{3 if value < _TINY else 2}f}"


def p99_range_ms(trials: Sequence[Measurement]) -> tuple[float, float] | None:
    """Return the lowest and the highest p99; None for a single trial."""
    times_ms = [each.p99_ms for each in trials]
    return (min(times_ms), max(times_ms)) if len(times_ms) > 1 else None


def _p99_tells(measured: Sequence[Measurement]) -> bool:
    """Return whether p99 decides: for the one with the best median too, or apart from it in every trial."""
    if not measured:
        return True
    best = min(measured, key=lambda each: (each.p99_ms, each.p50_ms))
    by_median = min(measured, key=lambda each: (each.p50_ms, each.p99_ms))
    highest_ms = best.p99_range_ms[1] if best.p99_range_ms else best.p99_ms
    lowest_ms = by_median.p99_range_ms[0] if by_median.p99_range_ms else by_median.p99_ms
    return best.p50_ms <= by_median.p50_ms or lowest_ms > highest_ms


def by_median(passed: Sequence[Outcome], demand: Demand) -> list[tuple[Candidate, float]]:
    """Return the candidates best first, with their figures: how trials of different length can be compared."""
    measured = {each.candidate: each.measurement for each in passed if each.measurement is not None}
    yardstick = replace(Yardstick.of(demand, list(measured.values())), has_p99=False)
    figures = [(candidate, yardstick.figure(each)) for candidate, each in measured.items()]
    return sorted(figures, key=lambda pair: (pair[1], measured[pair[0]].cpu_ms_per_run, astuple(pair[0])))


def runs_per_s(measured: Measurement) -> float:
    """Return the throughput: as measured with several streams, else from the mean time of a run."""
    return measured.runs_per_s if measured.runs_per_s is not None else 1000.0 / max(measured.mean_ms, 1e-9)
