"""The command `holdfast`: which words there are, and what becomes of an error.

Only the command that was asked for is imported; the others stand in the table below with one line of help, so that
`holdfast --help` is quick and a missing extra hurts only its own command. Groups of other packages come by entry points
(`holdfast.commands`), since `agent` may import neither `bundles` nor `simulator`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from agent import __version__, log
from agent.errors import ConfigurationError, HoldfastError, OperatorError

ENTRY_POINTS = "holdfast.commands"

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("agent.cli.run:run", "Run the pipelines of the configuration until stopped."),
    "init": ("agent.cli.init:init", "Write a first configuration from what this device has."),
    "doctor": ("agent.cli.doctor:doctor", "Check everything that a run needs, and say what to do."),
    "config": ("agent.cli.config:app", "Check the configuration, show what counts, print its schema."),
    "device": ("agent.cli.device:app", "What this device is: processor, memory, accelerators, cameras."),
    "profile": ("agent.cli.profile:app", "The kinds of device that are known, and which one this is."),
    "plan": ("agent.cli.plan:app", "What runs a bundle on this device, measured, and why."),
    "bench": ("agent.cli.bench:bench", "Compare every way to run a bundle on this device."),
    "update": ("agent.cli.update:app", "Releases on this device: what runs, what comes, and the way back."),
    "events": ("agent.cli.events:app", "Watch the events that arrive at the broker."),
}
"""Name → where the command or group is, and its line of help."""

FOREIGN_HELP: Mapping[str, str] = {
    "bundle": "Build, inspect and verify model bundles.",
    "release": "Sign releases, say who gets them, and serve them.",
    "demo": "See it all at work: own broker, generated camera, live counters.",
}
"""Help for the groups of our own other packages, so that listing them imports nothing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 a broken promise, 2 wrong usage, 130 interrupted, else the error's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_verbose = bool({"-v", "--verbose"} & set(_before_command(given)))
    _print_what_can_be_printed()
    try:
        build(named_command(given))(args=given, prog_name="holdfast")
    except HoldfastError as error:
        _report(error, is_verbose=is_verbose)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  the top of the command line
        _report_bug(error, is_verbose=is_verbose)
        sys.exit(1)
    finally:
        _flush()


def build(asked: str | None) -> typer.Typer:
    """Return the app with the asked command in full and a line of help for each of the others."""
    app = typer.Typer(
        name="holdfast",
        help="An edge inference agent that measures what runs best, and keeps every event.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    foreign = _foreign_commands()
    for name, (_, text) in COMMANDS.items():
        _add(app, name, text, _load(name) if name == asked else None)
    for name in sorted(foreign):
        loaded = _load_foreign(foreign[name]) if name == asked else None
        _add(app, name, FOREIGN_HELP.get(name, f"From the package {_package(foreign[name])}."), loaded)
    return app


def named_command(arguments: Sequence[str]) -> str | None:
    """Return the first word that is no option: the command."""
    return next((word for word in arguments if not word.startswith("-")), None)


def _before_command(arguments: Sequence[str]) -> Sequence[str]:
    name = named_command(arguments)
    return arguments if name is None else arguments[: arguments.index(name)]


def _print_version(value: bool) -> None:  # noqa: FBT001  as Typer calls it
    if value:
        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, and show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand == "run":
        log.configure(verbose=verbose)
        return
    log.configure(verbose=verbose, as_json=False)
    if not verbose:
        logging.getLogger().setLevel(logging.WARNING)  # a command prints its answer; it does not narrate


def _add(app: typer.Typer, name: str, text: str, loaded: Any | None) -> None:  # noqa: ANN401  Typer or function
    """Put a command into the app: a group, a function, a group of one that is the command, or only its help."""
    if loaded is None:
        app.command(name, help=text)(_placeholder)
    elif isinstance(loaded, typer.Typer):
        alone = loaded.registered_commands[0].callback if _is_one_command(loaded, name) else None
        if alone:
            app.command(name)(alone)
        else:
            app.add_typer(loaded, name=name)
    else:
        app.command(name)(loaded)


def _is_one_command(group: typer.Typer, name: str) -> bool:
    """Whether a package brought a single command wrapped in an app of its own."""
    commands = group.registered_commands
    has_more = len(commands) != 1 or group.registered_groups or group.registered_callback
    return not has_more and commands[0].name in (None, name)


def _placeholder() -> None:
    """Stand in the list of commands; the asked one is never a placeholder."""


def _load(name: str) -> Any:  # noqa: ANN401  Typer or function
    module, _, attribute = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _foreign_commands() -> dict[str, importlib.metadata.EntryPoint]:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in found if point.name not in COMMANDS}


def _load_foreign(point: importlib.metadata.EntryPoint) -> Any:  # noqa: ANN401  Typer or function
    try:
        return point.load()
    except ImportError as error:
        raise OperatorError(
            f"`holdfast {point.name}` cannot be loaded: {error}",
            where=point.value,
            hint="install what is missing; in a checkout, `pip install '.[build,release,sim]'` installs all of it",
        ) from error


def _package(point: importlib.metadata.EntryPoint) -> str:
    return point.value.partition(".")[0].partition(":")[0]


def _print_what_can_be_printed() -> None:
    """Let a terminal without Unicode (`LANG=C`, a pipe on Windows) have a `?` for each `×` and `→`, and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _report(error: HoldfastError, *, is_verbose: bool) -> None:
    if is_verbose:
        traceback.print_exception(error)
    text = log.mask_url(str(error))
    if isinstance(error, ConfigurationError) and len(error.problems) > 1:
        text = f"{len(error.problems)} problems\n{text}"
    typer.echo(log.printable(f"error: {text}"), err=True)  # it may quote a broker, a server or a signed document


def _report_bug(error: Exception, *, is_verbose: bool) -> None:
    if is_verbose:
        traceback.print_exception(error)
    typer.echo(log.printable(log.mask_url(f"error: {type(error).__name__}: {error}")), err=True)
    if not is_verbose:
        typer.echo("  → this should not happen; run it again as `holdfast -v …` and report the traceback", err=True)


def _flush() -> None:
    """Write out what is buffered now, while a reader that has gone can still be ignored."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        _silence_stdout()


def _silence_stdout() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
