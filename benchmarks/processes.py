"""What the operating system says of a process: peak memory, memory now, CPU time. psutil comes late: the peers do without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def peak_rss_mb(pid: int | str) -> float:
    """Return the largest resident memory of a process that still runs, in MiB.

    Not `ru_maxrss`: a child starts with its parent's there, since the kernel keeps it over `exec`.
    """
    if sys.platform.startswith("linux"):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    import psutil

    process = psutil.Process(None if pid == "self" else int(pid))
    return float(getattr(process.memory_info(), "peak_wset", process.memory_info().rss)) / 2**20


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process now, in MiB."""
    import psutil

    return float(psutil.Process(pid).memory_info().rss) / 2**20


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used so far, to a hundredth."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def run_module(module: str, *arguments: object, python: str = sys.executable) -> dict[str, Any]:
    """Run `python -m MODULE` and return the JSON of its last line."""
    command = [python, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": _here()}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def _here() -> str:
    return str(Path(__file__).resolve().parent.parent)
