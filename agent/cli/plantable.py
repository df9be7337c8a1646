"""A plan as a table for people: every candidate with its numbers, where its nodes went, and what became of it.

The table fits 80 columns (a serial console); the reasons, which may be long, stand below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.device.plan import Candidate, Measurement, Outcome, Plan

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def plan_table(plan: Plan) -> Group:
    """Return the plan's outcomes, the chosen one first, then the passed ones by p99, then the refused."""
    chosen = [each for each in plan.outcomes if each.candidate == plan.chosen]
    others = [each for each in plan.outcomes if each.candidate != plan.chosen]
    others.sort(key=lambda each: (each.refusal is not None, each.measurement.p99_ms if each.measurement else 0.0))
    return outcome_table([*chosen, *others], chosen=plan.chosen)


def outcome_table(
    outcomes: Sequence[Outcome], *, chosen: Candidate | None = None, running: Candidate | None = None
) -> Group:
    """Return a table of what was measured, and below it why the others were refused.

    Args:
        outcomes: In the order to show.
        chosen: Marked, where the choice is made already.
        running: The one being measured now; it gets the last row.
    """
    from rich.console import Group
    from rich.text import Text

    table = _empty_table()
    for outcome in outcomes:
        if outcome.measurement is not None:
            cells = [*_numbers(outcome.measurement, outcome.candidate), _verdict(outcome, chosen)]
            table.add_row(outcome.candidate.label, *cells, style=_style(outcome, chosen))
    if running is not None:
        table.add_row(running.label, *[""] * 6, "measuring", style="cyan")
    refusals = [
        Text(f"{each.candidate.label} refused: {each.refusal}", style="dim") for each in outcomes if each.refusal
    ]
    return Group(*([table] if table.row_count else []), *refusals)


def placement(measured: Measurement, candidate: Candidate) -> str:
    """Return where the nodes went against where they were asked to go: `12/12`, or `3/12, CPU 9`."""
    total = sum(measured.nodes.values())
    if not total:
        return "unknown"
    elsewhere = [
        f", {provider.removesuffix('ExecutionProvider')} {count}"
        for provider, count in sorted(measured.nodes.items())
        if provider != candidate.provider
    ]
    return f"{measured.nodes.get(candidate.provider, 0)}/{total}{''.join(elsewhere)}"


def _empty_table() -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Candidate", no_wrap=True)
    for header in ("p50 ms", "p99 ms", "CPU ms", "MiB", "Golden"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Nodes")
    table.add_column("Verdict", no_wrap=True)
    return table


def _numbers(measured: Measurement, candidate: Candidate) -> tuple[str, ...]:
    return (
        f"{measured.p50_ms:.2f}",
        f"{measured.p99_ms:.2f}",
        f"{measured.cpu_ms_per_run:.2f}",
        f"{measured.peak_rss_bytes / 2**20:.0f}",
        "–" if measured.golden_agreement is None else f"{measured.golden_agreement:.3f}",
        placement(measured, candidate),
    )


def _verdict(outcome: Outcome, chosen: Candidate | None) -> str:
    if outcome.refusal is not None:
        return "refused"
    return "chosen" if outcome.candidate == chosen else "passed"


def _style(outcome: Outcome, chosen: Candidate | None) -> str:
    if outcome.candidate == chosen:
        return "bold green"
    return "dim" if outcome.refusal is not None else ""
