"""What a process has used of its processor and memory, and a fence around how much it may take."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil

FENCE_HEADROOM_BYTES = 256 * 2**20
"""Thread stacks and allocator arenas count as data although nobody touches most of them."""


def cpu_seconds() -> float:
    """Return the CPU time of all threads so far. This is work done, not time passing, so no `Clock` knows it."""
    return time.process_time()


def peak_rss_bytes() -> int:
    """Return the largest resident memory so far; where the system does not keep it, the present one."""
    if sys.platform == "win32":
        return int(getattr(psutil.Process().memory_info(), "peak_wset", psutil.Process().memory_info().rss))
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # getrusage(2): bytes on macOS
    # Linux hands ru_maxrss on from the process that forked us; the high-water mark of our own memory is in proc(5).
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def rss_bytes_of(pid: int) -> int:
    """Return the resident memory of another process now; 0 where it has gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def fence_memory(limit_bytes: int, *, headroom_bytes: int = FENCE_HEADROOM_BYTES) -> None:
    """Make allocations beyond about `limit_bytes` more than now fail, where the system can (Linux).

    The limit is on private writable memory (RLIMIT_DATA), not on address space: ONNX Runtime and the C library reserve
    gigabytes of addresses that they never touch. The parent watches the resident size; this fence stops what grows
    faster than the parent looks.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    wanted = int(psutil.Process().memory_info().data) + limit_bytes + headroom_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
