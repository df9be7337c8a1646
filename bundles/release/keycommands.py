"""The commands of `holdfast release` that change keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.output import print_json
from agent.errors import OperatorError
from bundles.release.commandline import (
    Json,
    Key,
    Keys,
    OnlineKeys,
    Repo,
    new_passphrase,
    open_with,
    print_outcome,
    role_of,
)

key_app = typer.Typer(help="Make keys, and bring those of an HSM or a cloud's key service.", no_args_is_help=True)


def rotate_key(
    repo: Repo,
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")],
    *,
    old: Annotated[
        str | None, typer.Option("--old", help="The key's id (or its beginning), where there are several.")
    ] = None,
    new: Annotated[
        Path | None,
        typer.Option("--new", help="The new key: a .pub file, or a .pem to make. Default: beside the old one."),
    ] = None,
    keys: Keys = None,
    key: Key = None,
    online_keys: OnlineKeys = None,
    as_json: Json = False,
) -> None:
    """Replace one key of a role, by a new root. Devices follow by themselves."""
    from bundles.release.rotation import replace_key

    repository = open_with(repo, keys, key, online_keys)
    replaced = replace_key(repository, role_of("ROLE", role), old, new)
    if not as_json:
        typer.echo(f"{role}: {replaced.new_keyid} replaces {replaced.old_keyid}")
        typer.echo("keep the old private key until every step below is done, then destroy it")
    values = {"old": replaced.old_keyid, "new": replaced.new_keyid}
    print_outcome(replaced.outcome, as_json=as_json, **values)


def change_keys(
    repo: Repo,
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")],
    *,
    add_: Annotated[list[Path] | None, typer.Option("--add", help="A public key file; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A key's id; may be repeated.")] = None,
    threshold: Annotated[int | None, typer.Option("--threshold", min=1, help="How many must sign.")] = None,
    keys: Keys = None,
    key: Key = None,
    online_keys: OnlineKeys = None,
    as_json: Json = False,
) -> None:
    """Let more or fewer people sign for a role, or ask for more of them."""
    from bundles.release.keys import read_public_key
    from bundles.release.rotation import find_key

    if not (add_ or remove or threshold):
        raise OperatorError("nothing would change", hint="say --add FILE, --remove KEYID or --threshold N")
    repository = open_with(repo, keys, key, online_keys)
    name = role_of("ROLE", role)
    outcome = repository.change_keys(
        name,
        add=[read_public_key(path)[0] for path in add_ or ()],
        remove=[find_key(repository, name, word) for word in remove or ()],
        threshold=threshold,
    )
    print_outcome(outcome, as_json=as_json)


@key_app.command("new")
def key_new(
    file: Annotated[Path, typer.Argument(help="Where: FILE.pem, and FILE.pub beside it.")],
    *,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Encrypt it with HOLDFAST_KEY_PASSPHRASE.")] = False,
    as_json: Json = False,
) -> None:
    """Make an Ed25519 key. Give others the .pub file only."""
    from bundles.release.keys import generate

    path = file.with_suffix(".pem")
    made = generate(path, new_passphrase() if encrypt else None)
    public = path.with_suffix(".pub")
    if as_json:
        print_json({"keyid": made.keyid, "private": str(path), "public": str(public)})
    else:
        typer.echo(f"{made.keyid}: {path} (private, stays here) and {public} (for others)")


@key_app.command("import")
def key_import(
    uri: Annotated[str, typer.Argument(help="hsm:, awskms:KEY, gcpkms:KEY, azurekms:VAULT/KEY or hv:NAME.")],
    file: Annotated[Path, typer.Argument(help="The .pub file to write.")],
    *,
    as_json: Json = False,
) -> None:
    """Bring the public key of an HSM or a cloud's key service."""
    from bundles.release.keys import import_key, write_public_key

    signer_uri, key = import_key(uri)
    public = file.with_suffix(".pub")
    write_public_key(public, key, signer_uri)
    if as_json:
        print_json({"keyid": key.keyid, "uri": signer_uri, "public": str(public)})
    else:
        typer.echo(f"{key.keyid}: {public}, signed with by {signer_uri}")
