"""`holdfast config`: is the file right, what counts in the end, and what may stand in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.output import print_json, print_table
from agent.errors import ConfigurationError

app = typer.Typer(help="Check the configuration, show what counts, print its schema.", no_args_is_help=True)

File = Annotated[Path | None, typer.Argument(help="The file; the first of the search path where none is given.")]
AsOption = Annotated[Path | None, typer.Option("--config", "-c", help="The same, as the other commands take it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def check(file: File = None, *, config: AsOption = None, as_json: AsJson = False) -> None:
    """List everything that is wrong in the file: line, key, and what to do. Exits with 3 when there is any."""
    from agent.config import file as configfile

    try:
        configuration = configfile.read(file or config)
    except ConfigurationError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problems": [asdict(problem) for problem in error.problems], "warnings": []})
        raise typer.Exit(error.exit_code) from error
    if as_json:
        warnings = [asdict(problem) for problem in configuration.warnings]
        print_json({"ok": True, "file": str(configuration.file), "problems": [], "warnings": warnings})
        return
    for warning in configuration.warnings:
        typer.echo(f"warning: {warning}", err=True)
    settings = configuration.settings
    counts = f"cameras: {len(settings.cameras)}, sensors: {len(settings.sensors)}, models: {len(settings.models)}"
    typer.echo(f"{configuration.file}: ok ({counts})")


@app.command()
def show(file: File = None, *, config: AsOption = None, as_json: AsJson = False) -> None:
    """Show every setting that counts, with where it comes from. Secrets are masked."""
    from agent.config import file as configfile
    from agent.config import view

    values = view.effective(configfile.read(file or config))
    if as_json:
        print_json([value.to_json() for value in values])
    else:
        print_table(("KEY", "VALUE", "FROM"), [(each.key, _text(each.value), each.origin) for each in values])


@app.command()
def schema() -> None:
    """Print the JSON Schema of the file, for editors."""
    from agent.config import schema

    print_json(schema.schema())


def _text(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(_text, value)) or "–"
        case dict():
            return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or "–"
        case _:
            return str(value)
