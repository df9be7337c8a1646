"""`holdfast init`: the first configuration file, written from what this device has. It asks nothing."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent import atomicfile
from agent.config.file import FILE_NAME
from agent.errors import OperatorError, StateError

if TYPE_CHECKING:
    from agent.device.facts import Camera, Facts

_HEAD = """\
# Holdfast, written by `holdfast init` on {board}.
# Every key: docs/configuration.md. Check it with `holdfast config check`; run it with `holdfast run`.
version: 1
device: {{name: {name}}}
mqtt: {{host: localhost}}        # and: user: …, password: "${{MQTT_PASSWORD}}", tls: {{}}
models:
  parcels: {{bundle: parcels}}   # ships with Holdfast; `holdfast bundle build` makes one of your own model
cameras:
"""
_SCENE = '  conveyor: {source: "scene://conveyor?seed=1", fps: 10, model: parcels}   # generated; no camera was found\n'


def init(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(FILE_NAME),
    force: Annotated[bool, typer.Option("--force", help="Replace the file where there is one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found and written as JSON.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds that drivers get to answer.")] = 20.0,
) -> None:
    """Write a first configuration from what this device has."""
    from agent.cli.output import print_json
    from agent.device.survey.probing import probe_facts

    if not force:
        _refuse_existing(output)
    facts = probe_facts(timeout_s=timeout_s)
    text = first_file(facts, platform.node())
    _write(output, text, is_forced=force)
    if as_json:
        print_json({"file": str(output), "cameras": [camera.path for camera in facts.cameras], "text": text})
        return
    typer.echo(f"{output} written: {_summary(facts)}.")
    typer.echo("next: `holdfast doctor` to check everything, `holdfast run` to start")


def first_file(facts: Facts, host_name: str) -> str:
    """Return the file's text for these facts: the cameras found, or the generated scene, so that it runs at once."""
    board = re.sub(r"[^\x20-\x7e]", "", facts.board) or f"{facts.os} {facts.architecture}"
    head = _HEAD.format(board=board, name=device_name(host_name))
    if not facts.cameras:
        return head + _SCENE
    return head + "".join(_camera(number, camera) for number, camera in enumerate(facts.cameras))


def device_name(host_name: str) -> str:
    """Return the host's name as a device may be called: letters, digits, `-` and `_`."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", host_name.partition(".")[0]).strip("-_")
    return name[:64] or "device"


def _camera(number: int, camera: Camera) -> str:
    source = camera.path.replace("\\", "\\\\").replace('"', '\\"')
    label = re.sub(r"\s+", " ", camera.name).strip()
    return f'  camera{number}: {{source: "{source}", fps: 5, model: parcels}}   # {label}\n'


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise OperatorError(
            "there is a file already", where=str(output), hint="use --force to replace it, or --output for another"
        )


def _write(output: Path, text: str, *, is_forced: bool) -> None:
    try:
        if is_forced:
            atomicfile.write(output, text.encode())
        else:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        _refuse_existing(output)
    except OSError as error:
        raise StateError(
            f"cannot be written: {error.strerror or error}", where=str(output), hint="name another with --output"
        ) from error


def _summary(facts: Facts) -> str:
    count = len(facts.cameras)
    if not count:
        return "no camera was found, so it runs a generated scene"
    return f"{count} camera{'s' if count > 1 else ''} found"
