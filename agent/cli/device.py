"""`holdfast device`: what this device is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from agent.device.facts import EpDevice, Facts

app = typer.Typer(help="What this device is: processor, memory, accelerators, cameras.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """What this device is: processor, memory, accelerators, cameras."""


@app.command()
def show(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds that drivers get to answer.")] = 20.0,
) -> None:
    """Probe the device and show what was found."""
    from agent.device.probing import probe_facts

    facts = probe_facts(timeout_s)
    if as_json:
        typer.echo(json.dumps(facts.to_json(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(facts_table(facts))


def facts_table(facts: Facts) -> Table:
    """Return the facts as a table of two columns."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(facts):
        table.add_row(name, escape(text))
    return table


def _rows(facts: Facts) -> list[tuple[str, str]]:
    cpu = facts.cpu
    rows = [
        ("System", f"{facts.os} {facts.os_version}, {facts.architecture}"),
        ("Board", facts.board or "unknown"),
        ("Processor", (cpu.model if cpu.model.startswith(cpu.vendor) else f"{cpu.vendor} {cpu.model}") or "unknown"),
        ("Cores", _cores(facts)),
        ("Features", " ".join(sorted(cpu.features)) or "none known"),
        ("Memory", _memory(facts)),
        ("Runtime", f"ONNX Runtime {facts.runtime_version}" if facts.runtime_version else "none: see the findings"),
    ]
    rows += [("Device", _ep_device(device)) for device in facts.ep_devices]
    rows += [("Camera", f"{camera.path}  {camera.name}") for camera in facts.cameras] or [("Camera", "none found")]
    rows += [("Temperature", f"{zone.name} {zone.celsius:.1f} °C") for zone in facts.thermal_zones]
    rows += [("Finding", f"{finding.probe}: {finding.text}") for finding in facts.findings]
    return [*rows, ("Fingerprint", facts.fingerprint)]


def _cores(facts: Facts) -> str:
    from agent.device.hardware.cpu import usable_cores

    cpu = facts.cpu
    text = f"{cpu.physical_cores} physical, {cpu.logical_cores} logical"
    if cpu.allowed_cores is not None:
        text += f", {cpu.allowed_cores} by affinity"
    if cpu.quota_cores is not None:
        text += f", a quota of {cpu.quota_cores:g}"
    return f"{text}; {usable_cores(cpu)} usable"


def _memory(facts: Facts) -> str:
    text = f"{facts.memory_bytes / 2**30:.1f} GiB"
    limit = facts.memory_limit_bytes
    return text if limit is None else f"{text}, limited to {limit / 2**20:.0f} MiB"


def _ep_device(device: EpDevice) -> str:
    words = [device.provider, device.device_type, device.vendor, device.name]
    if device.driver_version:
        words.append(f"driver {device.driver_version}")
    return " ".join(word for word in words if word)
