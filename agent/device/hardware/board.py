"""Which board or machine this is."""

from __future__ import annotations

from pathlib import Path

from agent.device.hardware.sysfiles import read

DMI_PLACEHOLDERS = frozenset(
    {"", "to be filled by o.e.m.", "default string", "system product name", "not specified", "none"}
)
"""What firmware vendors leave in the DMI table when they fill in nothing."""


def board_model(root: Path) -> str:
    """Return the device-tree model (`Raspberry Pi 5 Model B Rev 1.0`), else DMI's vendor and product, else nothing."""
    for tree in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if model := read(root, tree):
            return model
    parts = [read(root, f"sys/class/dmi/id/{name}") or "" for name in ("sys_vendor", "product_name")]
    return " ".join(part.strip() for part in parts if part.strip().lower() not in DMI_PLACEHOLDERS)
