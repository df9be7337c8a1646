"""Cameras that the operating system lists. None is opened: opening one may hang, or take it from who uses it."""

from __future__ import annotations

from pathlib import Path

from agent.device.facts import Camera, Finding
from agent.device.hardware.sysfiles import folders, read, read_number


def cameras(root: Path, system: str) -> tuple[tuple[Camera, ...], tuple[Finding, ...]]:
    """Return the cameras, and a finding where this operating system shows none without opening them."""
    if system not in ("linux", "android"):
        text = f"cameras cannot be listed on {system} without opening them; give their number in the configuration"
        return (), (Finding("cameras", text),)
    # A camera has one node for pictures (index 0) and often others for its metadata.
    nodes = (
        node for node in folders(root, "sys/class/video4linux", "video") if read_number(node, "index") in (0, None)
    )
    return tuple(Camera(f"/dev/{node.name}", read(node, "name") or node.name) for node in nodes), ()
