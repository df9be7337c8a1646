"""A plan as a table for people: every candidate with its numbers, where its nodes went, and what became of it.

The table fits 80 columns (a serial console); the reasons, which may be long, stand below it. Times are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.clock import Clock
from agent.device.planning.objective import digits, runs_per_s
from agent.device.planning.plan import Candidate, Demand, Measurement, Outcome, Plan, labels
from agent.trial.measuring import Loaded

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

HEADERS = ("p50", "p99", "CPU", "MiB", "Agree", "Nodes", "Parts", "Time")
"""Median, p99 and CPU time of a run in ms; peak memory; agreement with the golden answers or the CPU; and on the candidate's own
provider: nodes, connected parts of the graph, share of a run's time."""

DROPPED = "dropped: it works, and was behind after a short round; its p99 is of few runs."


def plan_table(plan: Plan) -> Group:
    """Return the plan's outcomes: what passed, best first, then the refused, measured ones before the others."""
    places = {candidate: place for place, candidate in enumerate(plan.ranked)}
    outcomes = sorted(
        plan.outcomes,
        key=lambda each: (places.get(each.candidate, len(places)), each.measurement is None),
    )
    return outcome_table(outcomes, plan.demand, chosen=plan.chosen)


class Growing:
    """The table of a plan in the making: what was measured so far, and what is being done now. Two threads use it."""

    def __init__(self, demand: Demand, clock: Clock) -> None:
        self._demand = demand
        self._clock = clock
        self._outcomes: dict[Candidate, Outcome] = {}
        self._running: Candidate | None = None
        self._loading_since_s: float | None = None

    def add(self, news: Candidate | Loaded | Outcome) -> None:
        """Take the planner's progress."""
        match news:
            case Candidate():
                self._running, self._loading_since_s = news, self._clock.monotonic()
            case Loaded():
                self._loading_since_s = None
            case Outcome(candidate):
                self._outcomes = {**self._outcomes, candidate: news}
                self._running = None

    def table(self) -> Group:
        """Return the table as it is now."""
        since_s = self._loading_since_s
        doing = "measuring" if since_s is None else f"loading {self._clock.monotonic() - since_s:.0f} s"
        return outcome_table(list(self._outcomes.values()), self._demand, running=self._running, doing=doing)


def outcome_table(
    outcomes: Sequence[Outcome],
    demand: Demand,
    *,
    chosen: Candidate | None = None,
    running: Candidate | None = None,
    doing: str = "measuring",
) -> Group:
    """Return a table of what was measured, and below it why the others were refused.

    Args:
        outcomes: In the order to show.
        demand: Its objective may want a column of its own.
        chosen: Marked, where the choice is made already.
        running: The one being measured now; it gets the last row.
        doing: What is done with it.
    """
    from rich.console import Group
    from rich.text import Text

    names = labels([*(each.candidate for each in outcomes), *([running] if running else [])])
    table = _empty_table(demand)
    for outcome in outcomes:
        if outcome.measurement is not None:
            cells = [*_numbers(outcome.measurement, outcome.candidate, demand), _verdict(outcome, chosen)]
            table.add_row(names[outcome.candidate], *cells, style=_style(outcome, chosen))
    if running is not None:
        table.add_row(names[running], *[""] * (len(table.columns) - 2), doing, style="cyan")
    dropped = any(_verdict(outcome, chosen) == "dropped" for outcome in outcomes)
    notes = [Text(DROPPED, style="dim")] if dropped else []
    refusals = [
        Text(f"{names[each.candidate]} refused: {each.refusal}", style="dim") for each in outcomes if each.refusal
    ]
    return Group(*([table] if table.row_count else []), *notes, *refusals)


def demand_text(demand: Demand) -> str:
    """Return what a plan was made for, in words."""
    streams = f" of {demand.streams} streams" if demand.streams > 1 else ""
    cores = f" with {demand.cores} core{'s' if demand.cores > 1 else ''}" if demand.cores else ""
    place = "" if demand.run_on == "auto" else f" on {demand.run_on}"
    return f"for {demand.objective}{streams}{cores}{place}{', all nodes there' if demand.is_required else ''}"


def _empty_table(demand: Demand) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("Candidate", overflow="fold")
    for header in (*_objective_header(demand), *HEADERS):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    return table


def _objective_header(demand: Demand) -> tuple[str, ...]:
    return {"throughput": ("Runs/s",), "power": ("mJ",), "latency": ()}[demand.objective]


def _numbers(measured: Measurement, candidate: Candidate, demand: Demand) -> list[str]:
    agreement = measured.cpu_agreement if measured.golden_agreement is None else measured.golden_agreement
    numbers = [
        _short(measured.p50_ms),
        _short(measured.p99_ms),
        _short(measured.cpu_ms_per_run),
        f"{measured.peak_rss_bytes / 2**20:.0f}",
        "–" if agreement is None else f"{agreement:.3f}",
        _nodes(measured, candidate),
        str(measured.partitions.get(candidate.provider, "–")),
        _time_share(measured, candidate),
    ]
    match demand.objective:
        case "throughput":
            return [_short(runs_per_s(measured)), *numbers]
        case "power":
            return ["–" if measured.energy_mj_per_run is None else _short(measured.energy_mj_per_run), *numbers]
        case "latency":
            return numbers


def _short(value: float) -> str:
    """Return two or three digits that count: 0.006, 0.12, 3.46, 34.6, 346."""
    if value < 1:
        return digits(value)
    return f"{value:.{max(0, 2 - (value >= 10) - (value >= 100))}f}"


def _nodes(measured: Measurement, candidate: Candidate) -> str:
    total = sum(measured.nodes.values())
    return f"{measured.nodes.get(candidate.provider, 0)}/{total}" if total else "–"


def _time_share(measured: Measurement, candidate: Candidate) -> str:
    if set(measured.nodes) == {candidate.provider}:
        return "100%"
    return f"{measured.time_share.get(candidate.provider, 0.0):.0%}" if measured.time_share else "–"


def _verdict(outcome: Outcome, chosen: Candidate | None) -> str:
    if outcome.refusal is not None:
        return "refused"
    if outcome.candidate == chosen:
        return "chosen"
    return "passed" if outcome.dropped_in is None else "dropped"


def _style(outcome: Outcome, chosen: Candidate | None) -> str:
    if outcome.candidate == chosen:
        return "bold green"
    return "dim" if outcome.refusal is not None else ""
