"""`holdfast update`: what this device runs by which release, and the operator's words to the agent that runs here.

Everything goes through the state folder: it needs no network, and no permission but that folder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.output import print_json, print_table
from agent.errors import OperatorError, UnavailableError

if TYPE_CHECKING:
    from agent.paths import StatePaths
    from agent.settings import Settings
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
Model = Mapping[str, Any]
"""What the agent reports of one model: see `Updater.document`."""


@app.command()
def status(*, config: ConfigOption = None, as_json: AsJson = False) -> None:
    """Show, for each model that follows a channel, what runs, what comes, and why."""
    settings = _settings(config)
    paths = _paths(settings)
    document = _document(paths)
    if as_json:
        print_json(document)
        return
    print_table(
        ("model", "channel", "state", "runs", "release", "comes", "why"),
        [_row(name, model, settings) for name, model in document["models"].items()],
    )
    if not _is_running(paths):
        typer.echo(f"no agent runs here; the last one said this at {document['at']}", err=True)


@app.command()
def history(
    *,
    config: ConfigOption = None,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, help="How many steps.")] = 20,
) -> None:
    """Show the steps of past updates, newest first."""
    from agent.update.history import History

    rows = [asdict(step) for step in History(_paths(_settings(config)).updates / "history.db").newest(limit)]
    if as_json:
        print_json(rows)
        return
    columns = ("at", "model", "release", "version", "before", "after", "reason")
    print_table(columns, [[str(row[column]) for column in columns] for row in rows])


@app.command()
def check(
    model: ModelArgument = None, *, config: ConfigOption = None, wait: WaitOption = 60.0, as_json: AsJson = False
) -> None:
    """Ask the repository now; what it offers is taken as configured. Exit code 5 where nobody answers."""
    settings = _settings(config)
    for name, each in _ask("check", model, "", settings, wait, as_json=as_json).items():
        if failed := each.get("check_failed"):
            raise UnavailableError(f"{name}: {failed['reason']}", hint=failed["hint"] or None)


@app.command()
def apply(
    model: ModelArgument = None, *, config: ConfigOption = None, wait: WaitOption = 600.0, as_json: AsJson = False
) -> None:
    """Take the newest release now, whatever the maintenance windows say. Exit code 1 where it is refused."""
    settings = _settings(config)
    for name, each in _ask("apply", model, "", settings, wait, as_json=as_json).items():
        if failed := each.get("check_failed"):
            raise UnavailableError(f"{name}: {failed['reason']}", hint=failed["hint"] or None)
        if each["state"] in ("refused", "rolled_back"):
            typer.echo("  → publish a newer release: this one is not tried again here", err=True)
            raise typer.Exit(1)


@app.command()
def rollback(
    model: ModelArgument = None,
    *,
    reason: Annotated[str, typer.Option(help="For the report.")] = "the operator said so",
    config: ConfigOption = None,
    wait: WaitOption = 60.0,
    as_json: AsJson = False,
) -> None:
    """Go back to the last confirmed bundle, and deny the release that runs. Exit code 3 where there is none."""
    settings = _settings(config)
    before = _document(_paths(settings))["models"]
    after = _ask("rollback", model, reason, settings, wait, as_json=as_json)
    if wait and all(each["release"] == before[name]["release"] for name, each in after.items()):
        raise OperatorError(
            "nothing was taken back: this device knows no bundle before the one that runs",
            hint="give an older one back by a release: `holdfast release rollback`",
        )


def _ask(
    verb: Verb, model: str | None, reason: str, settings: Settings, wait_s: float, *, as_json: bool
) -> dict[str, Model]:
    """Hand a request to the agent, follow it, print where each model stands; return that."""
    from agent.cli.updatefollowing import follow
    from agent.clock import SystemRandom
    from agent.update.requests import Request, Requests

    paths = _paths(settings)
    before = _document(paths)["models"]
    if model is not None and model not in before:
        known = ", ".join(before) or "none"
        raise OperatorError(f"no model {model!r} follows a channel here", hint=f"known: {known}")
    if not _is_running(paths):
        raise UnavailableError(
            "no agent runs with this state folder, so nobody would act",
            where=str(paths.root),
            hint="start it: `holdfast run`",
        )
    chosen = {name: each for name, each in before.items() if model in (None, name)}
    Requests(paths.updates / "requests").post(Request(verb=verb, model=model, reason=reason), SystemRandom())
    after = follow(paths.updates, chosen, verb, wait_s) if wait_s else {}
    if as_json:
        print_json(after)
    else:
        for name, each in after.items():
            typer.echo(_line(name, each, settings))
    return after


def _line(name: str, model: Model, settings: Settings) -> str:
    runs = _version(name, model, settings)
    comes = f", {_comes(model)} comes" if model["candidate"] else ""
    return f"{name}: {model['state']}: runs {runs}{comes}" + (f" ({why})" if (why := _why(model)) else "")


def _row(name: str, model: Model, settings: Settings) -> list[str]:
    state, progress = model["state"], model["progress"]
    if progress and progress["total_bytes"]:
        percent = 100 * progress["done_bytes"] // progress["total_bytes"]
        state = f"{state} {percent} % of {progress['total_bytes'] / 1e6:.1f} MB by {progress['transport']}"
    release = str(model["release"] or "")
    return [name, model["channel"], state, _version(name, model, settings), release, _comes(model), _why(model)]


def _comes(model: Model) -> str:
    candidate = model["candidate"]
    return f"{candidate['name']} {candidate['version']} (release {candidate['release']})" if candidate else ""


def _why(model: Model) -> str:
    """Return the reason of the state, or else why nobody knows better."""
    if model["candidate"] and model.get("waits_for"):
        return f"waits: {model['waits_for']}"
    failed = model.get("check_failed")
    return str(model["reason"] or (f"the last check failed: {failed['reason']}" if failed else ""))


def _version(name: str, model: Model, settings: Settings) -> str:
    if model["version"]:
        return f"{model['name']} {model['version']}"
    own = settings.models[name].bundle if name in settings.models else None
    return "the operator's own bundle" if own else "nothing yet"


def _settings(config: Path | None) -> Settings:
    from agent.config import file as configfile

    settings = configfile.read(config, for_run=False).settings
    if settings.update is None:
        hint = "add `update: {root: root.json}`, and a `channel:` to a model"
        raise OperatorError("the configuration has no `update:` section", hint=hint)
    return settings


def _paths(settings: Settings) -> StatePaths:
    from agent.paths import StatePaths, default_state_folder

    return StatePaths(settings.state_dir or default_state_folder())


def _document(paths: StatePaths) -> dict[str, Any]:
    from agent.update.report import read_report

    document = read_report(paths.updates)
    if document is None:
        raise UnavailableError(
            "no agent has worked with this configuration yet",
            where=str(paths.updates),
            hint="start it: `holdfast run`; where it runs already, name its file with --config, and use its user",
        )
    return document


def _is_running(paths: StatePaths) -> bool:
    from agent.errors import StateError
    from agent.paths import hold_state

    try:
        with hold_state(paths):
            return False
    except StateError:
        return True
