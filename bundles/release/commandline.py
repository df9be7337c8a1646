"""What the commands of `holdfast release` share: their options, opening a repository, printing what came of it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.output import print_json
from agent.errors import OperatorError

if TYPE_CHECKING:
    from agent.update.documents import ChannelDocument
    from bundles.release.metadata import RoleName
    from bundles.release.publication import Outcome
    from bundles.release.repository import Repository

Repo = Annotated[Path, typer.Argument(metavar="REPO", help="The repository's folder.")]
Channel = Annotated[str, typer.Option("--channel", help="The channel.")]
Keys = Annotated[
    list[Path] | None, typer.Option("--keys", help="A folder of keys, beside those that the repository remembers.")
]
Key = Annotated[list[Path] | None, typer.Option("--key", help="A key file (.pem or .pub) to sign with.")]
OnlineKeys = Annotated[
    Path | None, typer.Option("--online-keys", help="The folder of snapshot's and timestamp's keys.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Percent = Annotated[int, typer.Option("--percent", min=0, max=100, help="The share of devices.")]


def open_with(
    repo: Path, keys: list[Path] | None = None, key: list[Path] | None = None, online_keys: Path | None = None
) -> Repository:
    """Open a repository with the keys that it remembers and those that the options name."""
    from bundles.release.creation import open_repository

    folders = [*(keys or ()), *([online_keys] if online_keys else ())]
    return open_repository(repo, key_folders=folders, key_files=key or ())


def print_release(document: ChannelDocument, outcome: Outcome, *, as_json: bool) -> None:
    """Print a channel's document, and what came of the change."""
    from bundles.release.cosigning import describe

    if not as_json:
        typer.echo(f"channel {document.channel}, release {document.release}")
        for assignment in document.assignments:
            typer.echo(f"  {describe(assignment)}")
    print_outcome(outcome, as_json=as_json, channel=document.model_dump(mode="json", exclude_none=True))


def print_outcome(outcome: Outcome, *, as_json: bool, **more: Any) -> None:  # noqa: ANN401  any JSON
    """Print what was signed, what waits, and the next step; `more` belongs to the JSON."""
    if as_json:
        print_json({**more, **asdict(outcome)})
        return
    if outcome.written:
        typer.echo(f"signed: {', '.join(outcome.written)}")
    for each in outcome.waiting:
        typer.echo(f"{each.role} {each.version} waits for {each.missing} more signature(s)")
    if outcome.next_step:
        typer.echo(f"next: {outcome.next_step}")
    elif outcome.written:
        typer.echo("done: where this folder is served, devices see it now")


def role_of(option: str, name: str) -> RoleName:
    """Return the role of that name.

    Raises:
        OperatorError: there is none.
    """
    from bundles.release.metadata import ROLES

    for role in ROLES:
        if role == name:
            return role
    raise OperatorError(f"{option}: there is no role `{name}`", hint=f"known: {', '.join(ROLES)}")


def new_passphrase() -> str:
    """Return the passphrase for a new key.

    Raises:
        OperatorError: its variable is not set.
    """
    from bundles.release.keys import PASSPHRASE

    if not (found := os.environ.get(PASSPHRASE)):
        raise OperatorError(f"--encrypt: {PASSPHRASE} is not set", hint="put the passphrase there")
    return found
