"""A plan as a table for people: every candidate with its numbers, where its nodes went, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.device.plan import Candidate, Measurement, Outcome, Plan

if TYPE_CHECKING:
    from rich.table import Table


def plan_table(plan: Plan) -> Table:
    """Return the plan's outcomes, the chosen one first, then the passed ones by p99, then the refused."""
    chosen = [each for each in plan.outcomes if each.candidate == plan.chosen]
    others = [each for each in plan.outcomes if each.candidate != plan.chosen]
    others.sort(key=lambda each: (each.refusal is not None, each.measurement.p99_ms if each.measurement else 0.0))
    return outcome_table([*chosen, *others], chosen=plan.chosen)


def outcome_table(
    outcomes: Sequence[Outcome], *, chosen: Candidate | None = None, running: Candidate | None = None
) -> Table:
    """Return outcomes as a table; also while they are being measured, with the one that runs at the end."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("Provider", "Variant"):
        table.add_column(header, no_wrap=True)
    for header in ("Threads", "p50 ms", "p99 ms", "CPU ms", "Load ms", "MiB", "Golden"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Nodes")
    table.add_column("Verdict", overflow="fold")
    for outcome in outcomes:
        is_chosen = outcome.candidate == chosen
        cells = [
            *_name(outcome.candidate),
            *_numbers(outcome.measurement, outcome.candidate),
            _verdict(outcome, chosen),
        ]
        table.add_row(*(escape(cell) for cell in cells), style=_style(outcome, is_chosen=is_chosen))
    if running is not None:
        table.add_row(*_name(running), *[""] * 7, "measuring …", style="cyan")
    return table


def _name(candidate: Candidate) -> tuple[str, str, str]:
    return candidate.provider.removesuffix("ExecutionProvider"), candidate.variant, str(candidate.threads)


def _numbers(measured: Measurement | None, candidate: Candidate) -> tuple[str, ...]:
    if measured is None:
        return ("",) * 7
    return (
        f"{measured.p50_ms:.2f}",
        f"{measured.p99_ms:.2f}",
        f"{measured.cpu_ms_per_run:.2f}",
        f"{measured.load_ms:.0f}",
        f"{measured.peak_rss_bytes / 2**20:.0f}",
        "–" if measured.golden_agreement is None else f"{measured.golden_agreement:.3f}",
        placement(measured, candidate),
    )


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


def _verdict(outcome: Outcome, chosen: Candidate | None) -> str:
    if outcome.refusal is not None:
        return f"refused: {outcome.refusal}"
    return "chosen" if outcome.candidate == chosen else "passed"


def _style(outcome: Outcome, *, is_chosen: bool) -> str:
    if is_chosen:
        return "bold green"
    return "dim" if outcome.refusal is not None else ""
