"""Where the data files that ship with Holdfast are, installed, in a checkout, or frozen into one file."""

from __future__ import annotations

import sys
from pathlib import Path


def is_frozen() -> bool:
    """Whether this program runs from a PyInstaller binary."""
    return bool(getattr(sys, "frozen", False))


def root() -> Path:
    """Return the folder that holds `agent/`, `device_profiles/` and `bundles/`."""
    if is_frozen():
        return Path(sys._MEIPASS)  # type: ignore[attr-defined]
    return Path(__file__).resolve().parent.parent


def device_profiles() -> Path:
    """Return the folder of the device profiles (*.yaml) that ship with the agent."""
    return root() / "device_profiles"


def probe_model(*, is_quantized: bool = False) -> Path:
    """Return the tiny model that devices are tried with (`agent.device.runtimes.probemodel`), in float or in int8."""
    name = "probe-int8.onnx" if is_quantized else "probe.onnx"
    return root() / "agent" / "device" / "runtimes" / name


def shipped_bundle(name: str) -> Path:
    """Return the folder of a built bundle that ships with Holdfast, such as `parcels` or `bearing`."""
    return root() / "bundles" / "recipes" / name / "built"
