"""The probe: a short-lived child that asks the operating system and ONNX Runtime what is here, and says it once.

Drivers that it wakes may crash or hang; that is why it is a process of its own. `agent.device.probing` is the
parent's side.
"""

from __future__ import annotations

from dataclasses import replace

from agent.childprocess import open_parent_link
from agent.device.facts import BUILT_IN, Facts, Finding
from agent.device.hardware.gathering import gather
from agent.device.runtimes.catalogue import open_runtime


def main() -> None:
    """Gather the facts, send them as `{"is": "facts", …}`, and end. A parent that goes away ends this process too."""
    link = open_parent_link()
    link.leave_with_parent()
    link.send({"is": "facts", "facts": with_runtime(gather()).to_json()})


def with_runtime(facts: Facts) -> Facts:
    """Add what ONNX Runtime offers. A runtime that cannot be imported is a finding; one that crashes takes us along."""
    try:
        runtime = open_runtime(BUILT_IN)
        return replace(facts, runtime_version=runtime.version, ep_devices=runtime.devices())
    except Exception as error:  # noqa: BLE001  whatever a driver's binding throws, the other facts are wanted
        finding = Finding("runtime", f"{type(error).__name__}: {error}")
        return replace(facts, findings=(*facts.findings, finding))
