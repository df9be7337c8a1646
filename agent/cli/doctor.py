"""`holdfast doctor`: is everything there that a run needs, and what to do where it is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.output import print_json
from agent.errors import ConfigurationError
from agent.log import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cli.check import Check

_MARKS = {"ok": ("ok  ", typer.colors.GREEN), "warn": ("warn", typer.colors.YELLOW), "fail": ("FAIL", typer.colors.RED)}


def doctor(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check everything that a run needs, and say what to do. Exits with 1 when something fails."""
    found: list[Check] = []
    for check in _checks(config):
        found.append(check)
        if not as_json:
            _print(check)
    has_failed = any(check.verdict == "fail" for check in found)
    if as_json:
        print_json({"ok": not has_failed, "checks": [asdict(check) for check in found]})
    raise typer.Exit(1 if has_failed else 0)


def _checks(config: Path | None) -> Iterator[Check]:
    from agent.cli.acceleratorchecks import accelerator_checks
    from agent.cli.check import Check
    from agent.cli.checks import clock_check, device, run_all, state
    from agent.clock import SystemClock
    from agent.config import file as configfile
    from agent.device.survey.recognition import look

    clock = SystemClock()
    try:
        configuration = configfile.read(config)
    except ConfigurationError as error:
        for problem in error.problems:
            key = f"{problem.key}: " if problem.key else ""
            yield Check("configuration", "fail", f"{problem.where}: {key}{problem.message}", problem.hint)
        yield clock_check(clock)
        yield state(None, 0)
        facts = look()
        yield from device(facts, None)
        yield from accelerator_checks(facts, None)
        return
    yield from run_all(configuration, clock)


def _print(check: Check) -> None:
    mark, color = _MARKS[check.verdict]
    typer.echo(f"{typer.style(mark, fg=color)}  {check.name}: {printable(check.text)}")
    if check.advice:
        typer.echo(f"      → {printable(check.advice)}")
