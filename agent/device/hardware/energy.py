"""Energy counters of processor packages, as Linux lists them (Documentation/power/powercap/powercap.rst; Intel RAPL,
also on AMD).

`/sys/class/powercap/intel-rapl:<n>/energy_uj` counts microjoules and wraps at `max_energy_range_uj`. Only root may read
it since the side channel of CVE-2020-8694; virtual machines and other systems have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.device.hardware.sysfiles import folders, read_number

ZONES = "sys/class/powercap"


def package_energy_uj(root: Path) -> dict[str, int]:
    """Return each package's counter, in microjoules; empty where none can be read."""
    # `intel-rapl:0` is a package; its parts (core, uncore, dram) are `intel-rapl:0:0` and have no plain number.
    found = {zone.name: read_number(zone, "energy_uj") for zone in folders(root, ZONES, "intel-rapl:")}
    return {name: value for name, value in found.items() if value is not None}


def spent_mj(root: Path, before: Mapping[str, int], after: Mapping[str, int]) -> float | None:
    """Return what all packages took between two readings, in millijoules; None where there was nothing to read."""
    if not before or before.keys() != after.keys():
        return None
    return sum(_difference_uj(root, name, before[name], after[name]) for name in before) / 1000


def _difference_uj(root: Path, name: str, before: int, after: int) -> int:
    if after >= before:
        return after - before
    return after - before + (read_number(root / ZONES / name, "max_energy_range_uj") or 0)
