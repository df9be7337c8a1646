"""The command group `holdfast release`: keys, repository, who is given what, serving."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.output import print_json, print_table
from agent.errors import OperatorError
from bundles.release import broker
from bundles.release.commandline import (
    Channel,
    Json,
    Key,
    Keys,
    OnlineKeys,
    Percent,
    Repo,
    new_passphrase,
    open_with,
    print_outcome,
    print_release,
    role_of,
)
from bundles.release.keycommands import change_keys, key_app, rotate_key

if TYPE_CHECKING:
    from bundles.release.metadata import RoleName

app = typer.Typer(help="Sign releases and bring them to devices.", no_args_is_help=True)
app.add_typer(key_app, name="key")


@app.command()
def init(
    repo: Repo,
    *,
    keys: Annotated[Path, typer.Option("--keys", help="Folder of the offline keys; those that lack are made.")],
    online_keys: Annotated[
        Path | None, typer.Option("--online-keys", help="Folder of the server's keys. Default: the one of --keys.")
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option("--threshold", help="ROLE=N: how many signatures a role needs.")
    ] = None,
    public_key: Annotated[
        list[str] | None, typer.Option("--public-key", help="ROLE=FILE.pub: one more person's key for a role.")
    ] = None,
    expires: Annotated[list[str] | None, typer.Option("--expires", help="ROLE=DAYS.")] = None,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Encrypt new offline keys with HOLDFAST_KEY_PASSPHRASE.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a repository: keys, the first root, empty targets."""
    from bundles.release.creation import create
    from bundles.release.settings import ExpiryDays

    others: dict[RoleName, list[Path]] = {}
    for role, path in (_pair("--public-key", text) for text in public_key or ()):
        others.setdefault(role, []).append(Path(path))
    days = {role: _days(text) for role, text in (_pair("--expires", text) for text in expires or ())}
    counts = {role: _count(text) for role, text in (_pair("--threshold", text) for text in threshold or ())}
    repository, outcome = create(
        repo,
        keys,
        online_keys,
        thresholds=counts,
        public_keys=others,
        expires_days=ExpiryDays.model_validate(days),
        passphrase=new_passphrase() if encrypt else None,
    )
    versions = repository.metadata.versions("root")
    root = repository.metadata.published / f"{versions[-1]}.root.json" if versions else None
    if as_json:
        print_outcome(outcome, as_json=True, root=str(root) if root else None)
        return
    typer.echo(f"{repo}: keys in {keys}" + (f" (offline) and {online_keys} (for the server)" if online_keys else ""))
    if root:
        typer.echo(f"put {root} on each device, as the file that `update.root` names")
    print_outcome(outcome, as_json=False)


@app.command()
def add(
    repo: Repo,
    bundle: Annotated[str, typer.Argument(help="The folder of a built bundle, or the name of one that ships.")],
    *,
    keys: Keys = None,
    key: Key = None,
    online_keys: OnlineKeys = None,
    as_json: Json = False,
) -> None:
    """Take a built bundle into the repository. No device gets it before `publish`."""
    from agent.bundle.finding import find_bundle

    reference, outcome = open_with(repo, keys, key, online_keys).add(find_bundle(bundle))
    if not as_json:
        verb = "added" if outcome.written else "is there already, nothing to do:"
        typer.echo(f"{verb} {reference.name} {reference.version}, manifest {reference.manifest_sha256}")
    print_outcome(outcome, as_json=as_json, bundle=reference.model_dump(mode="json"))


@app.command()
def publish(
    repo: Repo,
    *,
    channel: Channel,
    bundle: Annotated[str, typer.Option("--bundle", help="The bundle's name.")],
    version: Annotated[str | None, typer.Option("--version", help="Default: the one that was added last.")] = None,
    percent: Percent = 100,
    groups: Annotated[str | None, typer.Option("--groups", help="Only devices of these groups, with commas.")] = None,
    not_before: Annotated[
        str | None, typer.Option("--not-before", help="Not before this time: 2026-11-20T22:00:00+01:00.")
    ] = None,
    window: Annotated[str | None, typer.Option("--window", help="Only between these times, UTC: 22:00-04:30.")] = None,
    set_: Annotated[
        Path | None, typer.Option("--set", help="YAML: what changes in pipelines' settings, by pipeline name.")
    ] = None,
    keys: Keys = None,
    key: Key = None,
    online_keys: OnlineKeys = None,
    as_json: Json = False,
) -> None:
    """Assign a bundle to a share of a channel's devices."""
    from bundles.release.overrides import read_overrides

    repository = open_with(repo, keys, key, online_keys)
    others = repository.channels()
    document, outcome = repository.publish(
        channel,
        bundle,
        version,
        percent=percent,
        groups=[word.strip() for word in groups.split(",")] if groups else (),
        not_before=_moment(not_before),
        window=window,
        pipelines=read_overrides(set_) if set_ else None,
    )
    if others and channel not in others and not as_json:
        typer.echo(
            f"{channel} is a new channel, beside {', '.join(others)}: only devices with `channel: {channel}` follow it"
        )
    print_release(document, outcome, as_json=as_json)


@app.command()
def promote(
    repo: Repo,
    *,
    channel: Channel,
    percent: Percent = 100,
    version: Annotated[str | None, typer.Option("--version", help="Default: the newest release.")] = None,
    keys: Keys = None,
    key: Key = None,
    online_keys: OnlineKeys = None,
    as_json: Json = False,
) -> None:
    """Give the newest release to more devices; who has it keeps it."""
    document, outcome = open_with(repo, keys, key, online_keys).promote(channel, percent, version)
    print_release(document, outcome, as_json=as_json)


@app.command()
def rollback(
    repo: Repo,
    *,
    channel: Channel,
    to: Annotated[str, typer.Option("--to", help="The version to go back to.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; devices show it.")],
    from_version: Annotated[str | None, typer.Option("--from", help="Default: the newest release's version.")] = None,
    keys: Keys = None,
    key: Key = None,
    online_keys: OnlineKeys = None,
    as_json: Json = False,
) -> None:
    """Give an older version back to the devices that were given the newest one."""
    document, outcome = open_with(repo, keys, key, online_keys).rollback(channel, to, reason, from_version=from_version)
    print_release(document, outcome, as_json=as_json)


@app.command()
def show(repo: Repo, *, as_json: Json = False) -> None:
    """Show what a repository holds: channels, bundles, keys, expiries, what waits for signatures."""
    from bundles.release.cosigning import changes, describe
    from bundles.release.overview import overview

    repository = open_with(repo)
    view = overview(repository)
    if as_json:
        print_json({**asdict(view), "channels": [each.model_dump(mode="json") for each in view.channels]})
        return
    print_table(
        ("role", "version", "expires", "signatures", "keys (* at hand)"),
        [
            (
                each.role,
                str(each.version),
                f"{each.expires:%Y-%m-%d %H:%M} UTC" if each.expires else "",
                f"{each.threshold} of {len(each.keyids)}",
                " ".join(keyid[:16] + ("*" if keyid in each.at_hand else "") for keyid in each.keyids),
            )
            for each in view.roles
        ],
    )
    for document in view.channels:
        typer.echo(f"\nchannel {document.channel}, release {document.release}")
        for assignment in document.assignments:
            typer.echo(f"  {describe(assignment)}")
    typer.echo("\nbundles: " + (", ".join(view.bundles) or "none yet"))
    for line in changes(repository):
        typer.echo(f"pending: {line}")
    print_outcome(view.outcome, as_json=False)


@app.command()
def status(
    *,
    host: broker.Host,
    port: broker.Port = None,
    user: broker.User = None,
    password_env: broker.PasswordEnv = "MQTT_PASSWORD",  # noqa: S107  the variable's name
    ca: broker.Ca = None,
    cert: broker.Cert = None,
    tls_key: broker.KeyFile = None,
    prefix: broker.Prefix = "holdfast",
    as_json: Json = False,
) -> None:
    """Show what runs where, from the devices' retained reports at the broker."""
    from agent.clock import SystemRandom
    from bundles.release.fleet import read_fleet, rows

    settings = broker.settings(
        host, port=port, user=user, password_env=password_env, ca=ca, cert=cert, key=tls_key, prefix=prefix
    )
    with broker.said_as_options():
        devices = read_fleet(settings, f"holdfast-fleet-{SystemRandom().bytes(4).hex()}")
    if as_json:
        print_json([asdict(device) for device in devices])
        return
    if not devices:
        typer.echo(f"no device has reported at {host} under {prefix}/devices/")
        return
    columns = ("device", "", "model", "channel", "runs", "release", "state", "")
    print_table(columns, [tuple(asdict(row).values()) for row in rows(devices)])


@app.command()
def sign(
    repo: Repo,
    *,
    keys: Keys = None,
    key: Key = None,
    online_keys: OnlineKeys = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Show what waits for signatures, and sign it."""
    from bundles.release.cosigning import changes

    repository = open_with(repo, keys, key, online_keys)
    lines = changes(repository)
    for line in lines:
        typer.echo(line, err=as_json)
    if lines and not yes and not typer.confirm("Sign this?", err=as_json):
        raise OperatorError("nothing was signed", hint="ask whoever made the change")
    print_outcome(repository.sign(), as_json=as_json)


@app.command()
def refresh(
    repo: Repo,
    *,
    online_keys: OnlineKeys = None,
    valid_days: Annotated[
        float | None, typer.Option("--valid-days", min=0.01, max=3650, help="For a USB stick that travels long.")
    ] = None,
    if_due: Annotated[bool, typer.Option("--if-due", help="Only where half of the time is over; for a timer.")] = False,
    as_json: Json = False,
) -> None:
    """Make what is signed current, with the online keys only: on the serving side."""
    print_outcome(open_with(repo, None, None, online_keys).refresh(valid_days, only_if_due=if_due), as_json=as_json)


@app.command()
def verify(
    repo: Repo,
    *,
    channel: Annotated[
        list[str] | None, typer.Option("--channel", help="Only what these need: for an exported folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every signature, hash, length, chunk and expiry. Exit code 1 where anything is wrong."""
    from agent.clock import SystemClock
    from bundles.release.verification import verify as check

    findings = check(repo, SystemClock().now(), channel)
    errors = [each for each in findings if each.severity == "error"]
    if as_json:
        print_json({"is_whole": not errors, "findings": [asdict(each) for each in findings]})
    else:
        for each in findings:
            typer.echo(f"{each.severity}: {each.where}: {each.text}")
        if not errors:
            typer.echo(f"{repo}: whole")
    if errors:
        raise typer.Exit(1)


@app.command()
def export(
    repo: Repo,
    destination: Annotated[Path, typer.Argument(help="The folder on the stick.")],
    *,
    channel: Annotated[list[str] | None, typer.Option("--channel", help="Only this one; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Copy what devices need onto a USB stick, which they read as a folder."""
    from bundles.release.export import export as copy

    exported = copy(repo, destination, channel)
    if as_json:
        print_json(asdict(exported))
    else:
        size = f"{exported.files} files, {exported.size_bytes / 1e6:.1f} MB"
        typer.echo(f"{exported.folder}: {', '.join(exported.channels)}; {size} copied")


@app.command()
def serve(
    repo: Repo,
    *,
    host: broker.Host,
    port: broker.Port = None,
    user: broker.User = None,
    password_env: broker.PasswordEnv = "MQTT_PASSWORD",  # noqa: S107  the variable's name
    ca: broker.Ca = None,
    cert: broker.Cert = None,
    tls_key: broker.KeyFile = None,
    prefix: broker.Prefix = "holdfast",
    online_keys: OnlineKeys = None,
) -> None:
    """Answer devices over MQTT until stopped; with the online keys, also keep the timestamp fresh."""
    import signal
    import threading

    from agent.clock import SystemClock, SystemRandom
    from bundles.release import serving
    from bundles.release.repository import BusyError

    settings = broker.settings(
        host, port=port, user=user, password_env=password_env, ca=ca, cert=cert, key=tls_key, prefix=prefix
    )
    open_with(repo, None, None, online_keys)

    def refresh_if_due() -> None:
        with contextlib.suppress(BusyError):  # another server, beside this one, is at it
            open_with(repo, None, None, online_keys).refresh(only_if_due=True)

    if online_keys:
        refresh_if_due()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    typer.echo(f"serving {repo} at {host}, {prefix}/devices/+/fetch/request; Ctrl-C ends it", err=True)
    clock, random = SystemClock(), SystemRandom()
    served = serving.serve(
        repo, settings, clock=clock, random=random, stop=stop, refresh=refresh_if_due if online_keys else None
    )
    typer.echo(f"served {served.pieces} pieces, {served.piece_bytes / 1e6:.1f} MB", err=True)


app.command("rotate-key")(rotate_key)
app.command("change-keys")(change_keys)


def _pair(option: str, text: str) -> tuple[RoleName, str]:
    name, separator, value = text.partition("=")
    if not separator or not value:
        raise OperatorError(f"{option} {text}: expected ROLE=…", hint=f"for example {option} targets=…")
    return role_of(option, name), value


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise OperatorError(f"--threshold: {text} is no number of signatures", hint="for example targets=2")
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36500:
        raise OperatorError(f"--expires: {text} is no number of days", hint="for example timestamp=7")
    return days


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    hint = "write it as 2026-11-20T22:00:00+01:00 or 2026-11-20T21:00:00Z"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise OperatorError(f"--not-before: `{text}` is no time", hint=hint) from error
    if moment.tzinfo is None:
        raise OperatorError(f"--not-before: `{text}` has no time zone", hint=hint)
    return moment
