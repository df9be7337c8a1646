"""`holdfast update`: what this device runs by which release, and the operator's words to the agent that runs here.

Everything goes through the state folder: it needs no network, and no permission but that folder's.
"""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.output import print_json, print_table
from agent.errors import OperatorError, UnavailableError

if TYPE_CHECKING:
    from agent.paths import StatePaths
    from agent.update.requests import Verb

app = typer.Typer(help="Releases on this device: what runs, what comes, and the way back.", no_args_is_help=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The configuration file; else the first of the search path.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelArgument = Annotated[
    str | None, typer.Argument(help="A model's name in the configuration; all that follow a channel.")
]
WaitOption = Annotated[float, typer.Option("--wait", min=0, help="Seconds to follow what happens; 0: do not wait.")]
LOOK_S = 0.2
WORKING = frozenset({"checking", "fetching", "staged", "trying", "switching"})


@app.command()
def status(*, config: ConfigOption = None, as_json: AsJson = False) -> None:
    """Show, for each model that follows a channel, what runs, what comes, and why."""
    document = _document(_paths(config))
    if as_json:
        print_json(document)
        return
    print_table(
        ("model", "channel", "state", "runs", "release", "comes", "why"),
        [_row(name, model) for name, model in document["models"].items()],
    )


@app.command()
def history(*, config: ConfigOption = None, as_json: AsJson = False, limit: int = 20) -> None:
    """Show the steps of past updates, newest first."""
    from agent.update.history import History

    rows = [asdict(step) for step in History(_paths(config).updates / "history.db").newest(limit)]
    if as_json:
        print_json(rows)
        return
    columns = ("at", "model", "release", "version", "before", "after", "reason")
    print_table(columns, [[str(row[column]) for column in columns] for row in rows])


@app.command()
def check(model: ModelArgument = None, *, config: ConfigOption = None, wait: WaitOption = 30.0) -> None:
    """Ask the repository now; what it offers is taken as configured."""
    _ask("check", model, "", config, wait)


@app.command()
def apply(model: ModelArgument = None, *, config: ConfigOption = None, wait: WaitOption = 600.0) -> None:
    """Take the newest release now, whatever the maintenance windows say."""
    _ask("apply", model, "", config, wait)


@app.command()
def rollback(
    model: ModelArgument = None,
    *,
    reason: Annotated[str, typer.Option(help="For the report.")] = "the operator said so",
    config: ConfigOption = None,
    wait: WaitOption = 60.0,
) -> None:
    """Go back to the last confirmed bundle, and deny the release that runs."""
    _ask("rollback", model, reason, config, wait)


def _ask(verb: Verb, model: str | None, reason: str, config: Path | None, wait_s: float) -> None:
    from agent.clock import SystemRandom
    from agent.update.requests import Request, Requests

    paths = _paths(config)
    before = _document(paths)
    if model is not None and model not in before["models"]:
        known = ", ".join(before["models"]) or "none"
        raise OperatorError(f"no model {model!r} follows a channel here", hint=f"known: {known}")
    _require_running(paths)
    folder = paths.updates / "requests"
    Requests(folder).post(Request(verb=verb, model=model, reason=reason), SystemRandom())
    if wait_s:
        _follow(paths, folder, model, wait_s)


def _follow(paths: StatePaths, folder: Path, model: str | None, wait_s: float) -> None:
    """Show progress until nothing moves any more, then say where each model stands."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from agent.clock import SystemClock

    clock, never = SystemClock(), threading.Event()
    until_s, quiet_since_s = clock.monotonic() + wait_s, clock.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}
        while clock.monotonic() < until_s and clock.monotonic() - quiet_since_s < 3 * 1.0:
            chosen = {name: each for name, each in _document(paths)["models"].items() if model in (None, name)}
            if any(folder.glob("*.json")) or any(each["state"] in WORKING for each in chosen.values()):
                quiet_since_s = clock.monotonic()
            for name, each in chosen.items():
                progress = each["progress"] or {"done_bytes": 0, "total_bytes": None}
                task = tasks.setdefault(name, bars.add_task(name)) if name not in tasks else tasks[name]
                text = f"{name}: {each['state']}"
                bars.update(task, description=text, completed=progress["done_bytes"], total=progress["total_bytes"])
            clock.wait(never, LOOK_S)
    for name, each in _document(paths)["models"].items():
        if model in (None, name):
            why = f" ({each['reason']})" if each["reason"] else ""
            typer.echo(f"{name}: {each['state']}: runs {_version(each)}{why}")


def _row(name: str, model: dict[str, Any]) -> list[str]:
    candidate = model["candidate"]
    comes = f"{candidate['name']} {candidate['version']} (release {candidate['release']})" if candidate else ""
    release = str(model["release"] or "")
    return [name, model["channel"], model["state"], _version(model), release, comes, model["reason"]]


def _version(model: dict[str, Any]) -> str:
    return f"{model['name']} {model['version']}" if model["version"] else "the operator's own bundle"


def _paths(config: Path | None) -> StatePaths:
    from agent.config import file as configfile
    from agent.paths import StatePaths, default_state_folder

    settings = configfile.read(config, for_run=False).settings
    if settings.update is None:
        hint = "add `update: {root: root.json}`, and a `channel:` to a model"
        raise OperatorError("the configuration has no `update:` section", hint=hint)
    return StatePaths(settings.state_dir or default_state_folder())


def _document(paths: StatePaths) -> dict[str, Any]:
    from agent.update.report import read_report

    document = read_report(paths.updates)
    if document is None:
        raise UnavailableError(
            "no agent has worked with this configuration yet", where=str(paths.updates), hint="start `holdfast run`"
        )
    return document


def _require_running(paths: StatePaths) -> None:
    from agent.errors import StateError
    from agent.paths import hold_state

    try:
        with hold_state(paths):
            pass
    except StateError:
        return
    raise UnavailableError(
        "no agent runs with this state folder, so nobody would act", where=str(paths.root), hint="start `holdfast run`"
    )
