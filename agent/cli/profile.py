"""`holdfast profile`: the kinds of device that Holdfast knows, and which of them this one is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.thisdevice import ConfigOption, settings_if_any
from agent.device.profiles.profile import ANY, Limits, Profile
from agent.errors import ConfigurationError, OperatorError

app = typer.Typer(help="The kinds of device that Holdfast knows, and which one this is.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="A folder with profiles of your own; one of the same name replaces a shipped one."),
]


@app.command("list")
def list_profiles(*, folder: Folder = None, as_json: AsJson = False) -> None:
    """List every profile with its conditions."""
    profiles = load(folder)
    if as_json:
        typer.echo(json.dumps([profile.model_dump(mode="json") for profile in profiles], indent=2))
        return
    _print_table(
        ("Profile", "Matches", "Description"),
        [(profile.name, conditions(profile), profile.description) for profile in profiles],
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A profile's name, or several joined by `+`.")],
    *,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Show one profile, or each part of one such as `x86-64-avx2+openvino`: what it tries, within which limits."""
    from agent.device.profiles.selection import named

    profiles = load(folder)
    parts = [named(part, profiles) for part in name.split("+")]
    if as_json:
        shown = [part.model_dump(mode="json") for part in parts]
        typer.echo(json.dumps(shown if len(shown) > 1 else shown[0], indent=2))
        return
    for part in parts:
        _show(part)


def _show(profile: Profile) -> None:
    typer.echo(f"{profile.name}: {profile.description}")
    typer.echo(f"Matches: {conditions(profile)}")
    typer.echo(f"Limits: {_limits(profile.limits)}")
    if profile.accelerator is None:
        tune = profile.tune
        typer.echo(f"Tuning: {tune.mode} for {tune.objective}, up to {tune.budget_s:g} s without compiling")
    _print_table(
        ("Provider", "Device", "Variants", "Threads", "Options"),
        [
            (
                candidate.provider,
                candidate.device_type,
                ", ".join(candidate.variants),
                ", ".join(map(str, candidate.threads)),
                ", ".join(_option(*each) for each in (candidate.options | candidate.session_options).items()),
            )
            for candidate in profile.candidates
        ],
    )


@app.command()
def check(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder with profiles of your own, checked with ours.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check every profile: keys, types, options, pairs that nothing decides between, profiles that are never selected."""
    from agent.device.profiles.selection import check as check_profiles

    _require_profiles(folder)
    profiles = load(folder)
    problems = check_profiles(profiles)
    if as_json:
        fields = ("where", "key", "message", "hint")
        typer.echo(json.dumps([{field: getattr(each, field) for field in fields} for each in problems], indent=2))
        if problems:
            raise typer.Exit(ConfigurationError.exit_code)
        return
    if problems:
        raise ConfigurationError(problems)
    typer.echo(f"{len(profiles)} profiles, no problem found.")


@app.command()
def explain(*, config: ConfigOption = None, folder: Folder = None, as_json: AsJson = False) -> None:
    """Say which profiles this device gets, for its processor and its accelerators, and why no others."""
    from agent.device.survey.recognition import recognise

    device = settings_if_any(config).device
    facts, selection = recognise(device.runtimes, device.profile, profiles=folder or device.profiles)
    if as_json:
        verdicts = [
            {"profile": each.profile, "selected": each.is_selected, "matches": each.is_match, "text": each.text}
            for each in selection.verdicts
        ]
        findings = [asdict(each) for each in facts.runtime_findings]
        answer = {"selected": selection.profile.name, "verdicts": verdicts, "findings": findings}
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(f"{selection.profile.name}: {selection.profile.description}")
    first = sorted(selection.verdicts, key=lambda each: (not each.is_selected, not each.is_match))
    _print_table(("Profile", "Verdict"), [(each.profile, each.text) for each in first])
    for finding in facts.runtime_findings:
        typer.echo(f"\n{finding.probe}: {finding.text}")


def _require_profiles(folder: Path | None) -> None:
    """Refuse what would look like a passed check of nothing."""
    if folder is None or not folder.exists():
        return
    if folder.is_file():
        raise OperatorError("a folder is checked, with ours", where=str(folder), hint=f"name {folder.parent}")
    if passed_over := sorted(folder.glob("*.yml")):
        hint = f"call it {passed_over[0].with_suffix('.yaml').name}"
        raise OperatorError("only *.yaml are read", where=str(passed_over[0]), hint=hint)
    if not any(folder.glob("*.yaml")):
        raise OperatorError("there is no *.yaml in this folder", where=str(folder), hint="name that of your profiles")


def load(folder: Path | None) -> list[Profile]:
    """Return the shipped profiles and those of `folder`.

    Raises:
        ConfigurationError: a file is no profile.
        OperatorError: the folder does not exist.
    """
    from agent import resources
    from agent.device.profiles.selection import load_profiles

    return load_profiles([resources.device_profiles(), *([folder] if folder else [])])


def conditions(profile: Profile) -> str:
    """Return what a profile holds for in words: `architecture aarch64, board Raspberry Pi 5`."""
    kind = "a provider that no other profile is for" if profile.accelerator == ANY else profile.accelerator
    words = [f"a device of {kind}"] if kind else []
    for key, value in profile.match.model_dump(exclude_defaults=True).items():
        text = " ".join(sorted(value)) if isinstance(value, frozenset) else str(value)
        words.append(f"{key.replace('_', ' ')} {text}")
    return ", ".join(words) or "any device"


def _option(name: str, value: str | tuple[str, ...]) -> str:
    return f"{name}={value if isinstance(value, str) else ' or '.join(value)}"


def _limits(limits: Limits) -> str:
    parts = [f"{limits.memory_mb} MiB", f"{limits.trial_s:g} s for one trial", f"{limits.compile_s:g} s to compile"]
    parts += [f"p99 up to {limits.p99_ms:g} ms"] if limits.p99_ms is not None else []
    parts += [f"up to {limits.celsius:g} °C"] if limits.celsius is not None else []
    return ", ".join(parts)


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"  # an option that is cut off is no answer
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)
