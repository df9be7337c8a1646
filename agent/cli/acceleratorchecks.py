"""What `holdfast doctor` says of accelerators: those that are gone, those that do not work, and those that nothing uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.check import Check

if TYPE_CHECKING:
    from agent.device.facts import Facts

ACCEPT = "or say that this is how it is: `holdfast device accept`"


def accelerator_checks(facts: Facts, state_dir: Path | None) -> Iterator[Check]:
    """Yield a warning for each accelerator that is missing or unusable, and advice for each that nothing uses.

    Args:
        facts: Of the probe.
        state_dir: Where the agent wrote down what it saw at earlier starts.
    """
    from agent.device.absence import Absence, compare
    from agent.paths import StatePaths, default_state_folder

    found = compare(Absence(StatePaths(state_dir or default_state_folder()).accelerators).load(), facts)
    for key in found.missing:
        text = f"{key} was here at an earlier start and is not any more"
        yield Check("accelerator", "warn", text, f"see `holdfast device show` and mend it, {ACCEPT}")
    for key, reason in found.unusable.items():
        yield Check("accelerator", "warn", f"{key} cannot be used: {reason}", f"mend its driver, {ACCEPT}")
    for accelerator in facts.unused_accelerators:
        yield Check("accelerator", "ok", f"{accelerator.name}: nothing uses it", accelerator.hint)
