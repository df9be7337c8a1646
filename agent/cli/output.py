"""How commands print: the same values as a table for people or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer


def print_json(values: object) -> None:
    """Print values as indented JSON on stdout."""
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))


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
