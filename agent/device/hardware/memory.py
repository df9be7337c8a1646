"""How much memory the device has."""

from __future__ import annotations

from pathlib import Path

import psutil

from agent.device.hardware.sysfiles import read


def total_bytes(root: Path, system: str) -> int:
    """Return the installed memory as the kernel counts it: /proc/meminfo on Linux, else psutil's word; 0 if unknown."""
    if system not in ("linux", "android"):
        return int(psutil.virtual_memory().total)
    for line in (read(root, "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
