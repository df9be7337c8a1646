"""How commands print: the same values as a table for people or as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import typer


def print_json(values: object) -> None:
    """Print values as indented JSON on stdout; what is no number (NaN, infinity) is null, since JSON has no word for it."""
    typer.echo(json.dumps(_finite(values), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _finite(values: object) -> object:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table that fits the terminal; piped, every line is whole."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from agent.log import printable

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
