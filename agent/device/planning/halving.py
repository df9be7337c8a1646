"""Successive halving, pure: how long each round is, and who stays for the next (Karnin, Koren and Somekh, ICML 2013).

All candidates get a short round, the better half a longer one, and so on: most of the time goes to those that may win.
The last few are measured in turns, since noise comes and goes over seconds and turns spread it evenly. Early rounds
compare medians: of a few runs, p99 is the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.device.planning.objective import Yardstick, by_median, p99_range_ms
from agent.device.planning.plan import Candidate, Demand, Outcome

FIRST_RUNS = 20
FINAL_RUNS = 200
"""With 200 runs, p99 is the third largest: the least for which it is not simply the maximum."""
GROWTH = 3
"""How many times longer each round is than the one before."""
FIRST_S, FINAL_S = 0.5, 3.0
"""A slow model ends its runs here."""
MOST_FINALISTS = 3
TURNS = 3
CONTENDER = 1.25
"""Finalists are within this factor of the best; further away, more runs change nothing."""


def runs_in(number: int) -> int:
    """Return how many runs a candidate gets in a round, 1 the first."""
    return min(FINAL_RUNS, FIRST_RUNS * int(GROWTH ** (number - 1)))


def seconds_in(number: int) -> float:
    """Return how long a candidate is run at most in a round, 1 the first."""
    return min(FINAL_S, FIRST_S * number)


def better_half(passed: Sequence[Outcome], demand: Demand) -> list[Candidate]:
    """Return the better half of what passed a round, never fewer than the finalists' number where there are so many."""
    return [candidate for candidate, _ in by_median(passed, demand)][: max(MOST_FINALISTS, len(passed) // 2)]


def finalists(passed: Sequence[Outcome], demand: Demand) -> list[Candidate]:
    """Return those that are worth many runs: the best, and up to two that come close to it."""
    ordered = by_median(passed, demand)[:MOST_FINALISTS]
    return [candidate for candidate, figure in ordered if figure <= ordered[0][1] * CONTENDER]


def typical(trials: Sequence[Outcome], demand: Demand) -> Outcome:
    """Return one outcome for all trials of a candidate: the longest ones' median, and the worst agreement of any.

    The lowest p99 would favour whichever is sometimes lucky, and a long tail is what p99 is about. A refusal stands:
    what crashed once will again.
    """
    if refused := [each for each in trials if each.measurement is None]:
        return refused[0]
    measured = [each.measurement for each in trials if each.measurement is not None]
    longest = [each for each in measured if 2 * each.runs >= max(other.runs for other in measured)]
    yardstick = Yardstick.of(demand, longest)
    middle = sorted(longest, key=yardstick.figure)[len(longest) // 2]
    return replace(
        trials[0],
        measurement=replace(
            middle,
            golden_agreement=_worst([each.golden_agreement for each in measured]),
            cpu_agreement=_worst([each.cpu_agreement for each in measured]),
            p99_range_ms=p99_range_ms(longest),
            compile_ms=next((each.compile_ms for each in measured if each.compile_ms is not None), None),
        ),
    )


def _worst(agreements: Sequence[float | None]) -> float | None:
    """Return the least; NaN, which agrees with nothing, is less than any."""
    known = [each for each in agreements if each is not None]
    return min(known, key=lambda each: each if each == each else -1.0, default=None)  # noqa: PLR0124  NaN is not itself
