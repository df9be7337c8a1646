"""The version of a kernel's driver, as far as the kernel tells."""

from __future__ import annotations

import re
from pathlib import Path

from agent.device.hardware.sysfiles import read


def driver_version(root: Path, driver: str) -> str:
    """Return what changes when a driver does, its own version first; empty without a driver.

    A driver of the kernel's own tree has no version, or always the same (intel_vpu): the digest of its source (`srcversion`)
    tells a new one, and where there is none, the kernel's release does.
    """
    if not driver:
        return ""
    module = f"sys/module/{driver.replace('-', '_')}"
    version = read(root, f"{module}/version") or (_nvidia_version(root) if driver == "nvidia" else None)
    source = read(root, f"{module}/srcversion")
    if version or source:
        return " ".join(filter(None, (version, source and f"source {source}")))
    release = read(root, "proc/sys/kernel/osrelease")
    return f"Linux {release}" if release else ""


def _nvidia_version(root: Path) -> str | None:
    """Read `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  …`: a container may see /proc only."""
    match = re.search(r"\s(\d+(?:\.\d+)+)\s", read(root, "proc/driver/nvidia/version") or "")
    return match[1] if match else None
