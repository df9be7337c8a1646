"""`holdfast device`: what this device is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.output import print_json
from agent.cli.thisdevice import ConfigOption, settings_if_any

if TYPE_CHECKING:
    from rich.table import Table

    from agent.device.facts import Accelerator, EpDevice, Facts

app = typer.Typer(help="What this device is: processor, memory, accelerators, cameras.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """What this device is: processor, memory, accelerators, cameras."""


@app.command()
def show(
    *,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds that drivers get to answer.")] = 20.0,
) -> None:
    """Probe the device, try every accelerator, and show what was found."""
    from agent.device.survey.recognition import look

    facts = look(settings_if_any(config).device.runtimes, timeout_s)
    if as_json:
        print_json(facts.to_json())
        return
    from rich.console import Console

    Console().print(facts_table(facts))


@app.command()
def accept(
    *,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say that the accelerators are as they should be now: what is gone is expected no more, what does not work may stay so."""
    from agent.device.survey.absence import Absence, accepted
    from agent.device.survey.recognition import look
    from agent.paths import open_state

    settings = settings_if_any(config)
    absence = Absence(open_state(settings.state_dir).accelerators)
    before, after = absence.load(), accepted(look(settings.device.runtimes))
    absence.write(after)
    gone = sorted(set(before.present) - set(after.present) - set(after.accepted))
    if as_json:
        print_json({"expected": after.present, "unusable": after.accepted, "gone": gone})
        return
    for title, keys in (("expected", after.present), ("may be unusable", after.accepted), ("expected no more", gone)):
        typer.echo(f"{title}: {', '.join(keys) or 'none'}")
    typer.echo("An agent that runs takes this at its next start.")


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
    rows += [("Device", _ep_device(facts, each)) for each in facts.devices_here if each.unusable is None]
    rows += [("Unusable", f"{_ep_device(facts, each)}: {each.unusable}") for each in facts.unusable_devices]
    rows += [("Not here", text) for text in _not_here(facts)]
    rows += [("Accelerator", _accelerator(facts, each)) for each in facts.accelerators]
    rows += [("Camera", f"{camera.path}  {camera.name}") for camera in facts.cameras] or [("Camera", "none found")]
    rows += [("Temperature", f"{zone.name} {zone.celsius:.1f} °C") for zone in facts.thermal_zones]
    rows += [("Finding", f"{finding.probe}: {finding.text}") for finding in facts.findings]
    return [*rows, ("Fingerprint", facts.fingerprint)]


def _not_here(facts: Facts) -> list[str]:
    """Say what is installed in vain: somebody who installed it looks for it in this list."""
    from agent.device.facts import BUILT_IN

    texts = (
        f"{each.provider} {each.device_type}: {'ONNX Runtime' if each.runtime == BUILT_IN else each.runtime} brings it, "
        "but the system lists no such device (--json has the driver's words)"
        for each in facts.in_vain
    )
    return list(dict.fromkeys(texts))


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


def _ep_device(facts: Facts, device: EpDevice) -> str:
    from agent.device.facts import BUILT_IN

    words = [device.provider, device.device_type, device.vendor, facts.key_of(device) or device.name]
    if device.driver_version:
        words.append(f"driver {device.driver_version}")
    if device.runtime != BUILT_IN:
        words.append(f"by {device.runtime} {device.library_version}".rstrip())
    return " ".join(word for word in words if word)


def _accelerator(facts: Facts, accelerator: Accelerator) -> str:
    """Say what the operating system knows of it, who uses it, and where nobody does, what to install."""
    text = f"{accelerator.name}, " + (
        f"driver {accelerator.driver} {accelerator.driver_version}".rstrip() if accelerator.driver else "no driver"
    )
    if accelerator in facts.unused_accelerators:
        return f"{text}: nothing uses it; {accelerator.hint}"
    served = [each for each in facts.ep_devices if accelerator.is_served_by(each)]
    users = dict.fromkeys(each.provider for each in served if each.unusable is None)
    return f"{text}: used by {', '.join(users)}" if users else f"{text}: cannot be used, see above; {accelerator.hint}"
