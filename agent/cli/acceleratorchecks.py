"""What `holdfast doctor` says of accelerators: gone, broken, used by nothing, or asked for in vain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.check import Check

if TYPE_CHECKING:
    from agent.device.facts import Facts
    from agent.settings import Settings

ACCEPT = "or say that this is how it is: `holdfast device accept`"


def accelerator_checks(facts: Facts, state_dir: Path | None) -> Iterator[Check]:
    """Yield a warning for each accelerator that is missing or unusable, and advice for each that nothing uses.

    Args:
        facts: Of the probe.
        state_dir: Where the agent wrote down what it saw at earlier starts.
    """
    from agent.device.survey.absence import Absence, compare
    from agent.paths import StatePaths, default_state_folder

    found = compare(Absence(StatePaths(state_dir or default_state_folder()).accelerators).load(), facts)
    for key in found.missing:
        text = f"{key} was here at an earlier start and is not any more"
        yield Check("accelerator", "warn", text, f"see `holdfast device show` and mend it, {ACCEPT}")
    for key, reason in found.unusable.items():
        yield Check("accelerator", "warn", f"{key} cannot be used: {reason}", f"mend its driver, {ACCEPT}")
    for accelerator in facts.unused_accelerators:
        yield Check("accelerator", "ok", f"{accelerator.name}: nothing uses it", accelerator.hint)


def run_on_checks(facts: Facts, settings: Settings) -> Iterator[Check]:
    """Yield for each model with `run_on` whether a device that it may mean is here; it fails where a pipeline requires one."""
    from agent.pipeline.jobs import pipelines_by_model

    pipelines = pipelines_by_model(settings.cameras, settings.sensors, list(settings.models))
    usable = [device for device in facts.devices_here if device.unusable is None]
    for name, model in settings.models.items():
        wanted = model.run_on
        if wanted == "auto":
            continue
        found = sorted({device.provider for device in usable if wanted in (device.device_type, device.provider)})
        if found:
            yield Check(f"model {name}", "ok", f"run_on: {wanted}: here by {', '.join(found)}")
            continue
        waiting = [each.name for each in pipelines.get(name, ()) if each.settings["fallback"] == "require"]
        effect = f"{', '.join(waiting)} will not run (`fallback: require`)" if waiting else "the next best will run"
        vain = [each for each in facts.in_vain if wanted in (each.device_type, each.provider)]
        words = "".join(f"; {each.provider} is installed: {each.unusable}" for each in vain)
        text = f"run_on: {wanted}: no usable device of that kind is here{words}; {effect}"
        advice = "`holdfast device show` says what is here and what to install for it; or correct `run_on:`"
        yield Check(f"model {name}", "fail" if waiting else "warn", text, advice)
