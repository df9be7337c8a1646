"""What `holdfast bench` prints: speed, placement, a bar a candidate, the variants side by side, and a trace's operators.

Each table fits 80 columns (a serial console); the reasons, which may be long, stand below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.benchplot import Scale, ms
from agent.cli.benchreport import Report
from agent.device.planning.objective import runs_per_s
from agent.device.planning.plan import Candidate, Measurement, Outcome
from agent.log import printable
from agent.trial.tracing import Traced
from agent.trial.variants import VariantRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WIDEST_BAR, NARROWEST_BAR = 44, 12
MOST_OPERATORS = 12
"""The rest of a graph's operator types rarely takes a tenth of the time together."""


def print_report(report: Report) -> None:
    """Print the comparison."""
    console = _console()
    _head(console, f"{report.bundle} on {report.device}", f"{report.rounds} rounds in turns, medians of the rounds")
    console.print(_speed(report))
    _head(console, "Loading and placement")
    console.print(_placement(report))
    _head(console, "p50 to p99", "ms" + (", logarithmic" if _scale(report).is_logarithmic else ""))
    for line in bars(report, console.width):
        console.print(line, no_wrap=True, overflow="ellipsis")
    _head(console, "Variants", "each by its best candidate; the task metric is the builder's")
    console.print(_variants(report.variants))
    for outcome in report.plan.outcomes:
        if outcome.refusal and outcome.cause != "slow":  # the tables say that already
            _note(console, f"{report.names[outcome.candidate]} refused: {outcome.refusal}")
    told = {each.candidate.variant for each in report.plan.outcomes}
    for row in report.variants:
        if row.refusal and row.name not in told:
            _note(console, f"{row.name}: {row.refusal}")
    _say(console, "", report.plan.reason, report.verdict)


def print_trace(traced: Traced, target: Path) -> None:
    """Print where the time went, and what to do about it."""
    console = _console()
    trace = traced.trace
    _head(
        console, f"{traced.candidate.label}, traced",
        f"{trace.runs} runs of {ms(trace.run_ms)} ms, {ms(trace.nodes_ms)} ms of it inside {len(trace.nodes)} "
        f"node{'s' * (len(trace.nodes) != 1)}",
    )  # fmt: skip
    console.print(_operators(traced))
    shares = ", ".join(f"{_short(name)} {share:.1%}" for name, share in trace.share_by_provider.items())
    _say(console, "", f"By provider: {shares}.")
    for symptom in traced.symptoms:
        _say(console, f"• {symptom.text}", f"  → {symptom.cure}")
    if not traced.symptoms:
        _say(console, "Nothing in it asks for a cure.")
    if traced.refusal:
        _say(console, f"The trial ended early: {traced.refusal}")
    _say(console, f"{target} opens in https://ui.perfetto.dev or chrome://tracing.")


def bars(report: Report, width: int) -> list[Text]:
    """Return a line for each measured candidate: its name, p50 as a point, and a line to p99."""
    from rich.text import Text

    scale, named = _scale(report), report.names
    measured = [(each, each.measurement) for each in report.measured if each.measurement is not None]
    numbers = [f"{ms(each.p50_ms)}–{ms(each.p99_ms)}" for _, each in measured]
    longest = max(len(named[outcome.candidate]) for outcome, _ in measured)
    cells = max(NARROWEST_BAR, min(WIDEST_BAR, width - longest - max(map(len, numbers)) - 4))
    lines = []
    for (outcome, found), text in zip(measured, numbers, strict=True):
        start, end = (min(cells - 1, int(scale.place(each_ms) * cells)) for each_ms in (found.p50_ms, found.p99_ms))
        bar = (" " * start + "●" + "━" * (end - start)).ljust(cells)
        name = printable(named[outcome.candidate]).ljust(longest)
        lines.append(Text(f"{name}  {bar}  {text}", style=_style(report, outcome)))
    return lines


def _scale(report: Report) -> Scale:
    return Scale.of([each.measurement for each in report.measured if each.measurement is not None])


def _speed(report: Report) -> Table:
    table = _table("Candidate", "p50 ms", "p95 ms", "p99 ms", "runs/s", "CPU ms", "MiB", "Verdict")
    for outcome in report.measured:
        measured = outcome.measurement
        assert measured is not None
        cells = (
            ms(measured.p50_ms),
            ms(measured.p95_ms),
            ms(measured.p99_ms),
            f"{runs_per_s(measured):.0f}",
            ms(measured.cpu_ms_per_run),
            f"{measured.peak_rss_bytes / 2**20:.0f}",
            _verdict(report, outcome),
        )
        _add(table, [report.names[outcome.candidate], *cells], _style(report, outcome))
    return table


def _placement(report: Report) -> Table:
    table = _table("Candidate", "load ms", "compile ms", "agrees", "nodes", "parts", "own time")
    for outcome in report.measured:
        measured = outcome.measurement
        assert measured is not None
        cells = (
            f"{measured.load_ms:.0f}",
            "–" if measured.compile_ms is None else f"{measured.compile_ms:.0f}",
            _agreement(measured),
            _nodes(measured, outcome.candidate),
            str(sum(measured.partitions.values())) if measured.partitions else "–",
            _own_time(measured, outcome.candidate),
        )
        _add(table, [report.names[outcome.candidate], *cells], _style(report, outcome))
    return table


def _variants(rows: Iterable[VariantRow]) -> Table:
    table = _table("Variant", "KiB", "p99 ms", "× fp32", "agrees", "task metric", "points lost")
    for row in rows:
        measured = row.best.measurement if row.best else None
        cells = (
            "–" if row.size_bytes is None else f"{row.size_bytes / 1024:,.0f}",
            "–" if measured is None else ms(measured.p99_ms),
            "–" if row.speed_up is None else f"{row.speed_up:.2f}",
            "–" if measured is None else _agreement(measured),
            "–" if row.metric is None else f"{row.metric} {row.value:.3f}",
            "–" if row.lost_points is None else _points(row.lost_points),
        )
        _add(table, [row.name, *cells], "dim" if row.refusal else "")
    return table


def _operators(traced: Traced) -> Table:
    table = _table("Operator", "nodes", "ms a run", "%", "provider")
    runs, shown = traced.trace.runs, traced.trace.operators[:MOST_OPERATORS]
    for each in shown:
        cells = [
            each.operator,
            str(each.nodes),
            f"{each.total_ms / runs:.3f}",
            f"{each.share:.1%}",
            _short(each.provider),
        ]
        _add(table, cells, "")
    if rest := traced.trace.operators[MOST_OPERATORS:]:
        total_ms, share = sum(each.total_ms for each in rest) / runs, sum(each.share for each in rest)
        cells = [f"{len(rest)} others", str(sum(each.nodes for each in rest)), f"{total_ms:.3f}", f"{share:.1%}", ""]
        _add(table, cells, "dim")
    return table


def _points(lost: float) -> str:
    return "0" if abs(lost) < 0.05 else f"{lost:+.1f}"


def _agreement(measured: Measurement) -> str:
    """With the golden answers; in a bundle without any, of the raw outputs with the CPU's."""
    found = measured.cpu_agreement if measured.golden_agreement is None else measured.golden_agreement
    return "–" if found is None else f"{found:.3f}"


def _nodes(measured: Measurement, candidate: Candidate) -> str:
    """Return where the nodes went against where they were asked to go: `12/12`, or `3/12, CPU 9`."""
    elsewhere = [
        f", {_short(provider)} {count}"
        for provider, count in sorted(measured.nodes.items())
        if provider != candidate.provider
    ]
    total = sum(measured.nodes.values())
    return f"{measured.nodes.get(candidate.provider, 0)}/{total}{''.join(elsewhere)}" if total else "–"


def _own_time(measured: Measurement, candidate: Candidate) -> str:
    if set(measured.nodes) == {candidate.provider}:
        return "100%"
    return f"{measured.time_share.get(candidate.provider, 0.0):.0%}" if measured.time_share else "–"


def _verdict(report: Report, outcome: Outcome) -> str:
    if outcome.refusal is not None:
        return "slower" if outcome.cause == "slow" else "refused"
    return "best" if outcome.candidate == report.plan.chosen else ""


def _style(report: Report, outcome: Outcome) -> str:
    if outcome.candidate == report.plan.chosen:
        return "bold green"
    return "dim" if outcome.refusal is not None else ""


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for header in others:
        is_text = header in ("Verdict", "nodes", "provider", "task metric")
        table.add_column(header, justify="left" if is_text and first != "Operator" else "right", overflow="fold")
    return table


def _add(table: Table, cells: Sequence[str], style: str) -> None:
    from rich.markup import escape

    table.add_row(*(escape(printable(cell)) for cell in cells), style=style)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _head(console: Console, text: str, note: str = "") -> None:
    from rich.text import Text

    console.print()
    console.print(Text.assemble((printable(text), "bold"), (f"  {note}" if note else "", "dim")))


def _note(console: Console, text: str) -> None:
    console.print(printable(text), style="dim", markup=False)


def _say(console: Console, *texts: str) -> None:
    for text in texts:
        console.print(printable(text), markup=False)
