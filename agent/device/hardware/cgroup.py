"""What Linux control groups allow this process: a share of the processors, and memory. Versions 1, 2 and both at once.

The rules are those of the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst. A limit of any
ancestor holds, so the lowest one on the way up to the root is the answer. A container often shows a path that is not
mounted inside it; the limits are then those of the mount itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from agent.device.hardware.sysfiles import read, read_number

NO_MEMORY_LIMIT_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of the page size; nothing real comes near this."""


def quota_cores(root: Path) -> float | None:
    """Return how many cores' worth of time this process may use; None where nothing limits it."""
    groups = _groups(root)
    limits = [_v2_quota(read(root, f"{folder}/cpu.max")) for folder in _v2_folders(root, groups)]
    for folder in _v1_folders(groups, "cpu"):
        quota, period = (read_number(root, f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period"))
        limits.append(quota / period if quota and period and quota > 0 else None)
    return min((limit for limit in limits if limit is not None), default=None)


def memory_limit_bytes(root: Path) -> int | None:
    """Return how many bytes this process may use; None where nothing limits it."""
    groups = _groups(root)
    limits = [read_number(root, f"{folder}/memory.max") for folder in _v2_folders(root, groups)]
    limits += [read_number(root, f"{folder}/memory.limit_in_bytes") for folder in _v1_folders(groups, "memory")]
    return min((limit for limit in limits if limit is not None and limit < NO_MEMORY_LIMIT_BYTES), default=None)


def _v2_quota(text: str | None) -> float | None:
    """Read `cpu.max`: `200000 100000` is two cores, `max 100000` is no limit."""
    try:
        quota, period = map(int, (text or "").split())
    except ValueError:
        return None
    return quota / period if period else None


def _groups(root: Path) -> dict[str, str]:
    """Return this process's group by controller, from lines such as `4:cpu,cpuacct:/system.slice`; `` is version 2."""
    groups: dict[str, str] = {}
    for line in (read(root, "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _v2_folders(root: Path, groups: dict[str, str]) -> Iterator[str]:
    if "" in groups:
        # On a hybrid system, version 2 is mounted beside the controllers of version 1.
        hybrid = (root / "sys/fs/cgroup/unified").is_dir()
        yield from _ancestors("sys/fs/cgroup/unified" if hybrid else "sys/fs/cgroup", groups[""])


def _v1_folders(groups: dict[str, str], controller: str) -> Iterator[str]:
    if controller in groups:
        yield from _ancestors(f"sys/fs/cgroup/{controller}", groups[controller])


def _ancestors(mount: str, group: str) -> Iterator[str]:
    path = PurePosixPath(group.lstrip("/"))
    for folder in (path, *path.parents):
        yield f"{mount}/{folder}"
