"""How much memory the device has."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

from agent.device.hardware import cgroup
from agent.device.hardware.sysfiles import SYSTEM_ROOT, read


def total_bytes(root: Path, system: str) -> int:
    """Return the installed memory as the kernel counts it: /proc/meminfo on Linux, else psutil's word; 0 if unknown."""
    if system not in ("linux", "android"):
        return int(psutil.virtual_memory().total)
    for line in (read(root, "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def most_bytes() -> int:
    """Return what all processes here may take together: what is installed, or a control group's limit."""
    installed = int(psutil.virtual_memory().total)
    with contextlib.suppress(ValueError):  # no two kernels write the same
        limit = cgroup.memory_limit_bytes(SYSTEM_ROOT) if sys.platform.startswith("linux") else None
        return installed if limit is None else min(installed, limit)
    return installed
