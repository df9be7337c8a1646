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
MOST_OF_A_RANGE = 0.5
"""A trial takes seconds, a range many minutes: what looks like more than half a range is a counter that was reset."""


def package_energy_uj(root: Path) -> dict[str, int]:
    """Return each package's counter, in microjoules; empty where none can be read."""
    # `intel-rapl:0` is a package; its parts (core, uncore, dram) are `intel-rapl:0:0` and have no plain number.
    found = {zone.name: read_number(zone, "energy_uj") for zone in folders(root, ZONES, "intel-rapl:")}
    return {name: value for name, value in found.items() if value is not None}


def spent_mj(root: Path, before: Mapping[str, int], after: Mapping[str, int]) -> float | None:
    """Return what all packages took between two readings, in millijoules; None where there was nothing to read.

    Nor where a counter went back otherwise than by its wrap, as after a suspend: an energy of nothing would win.
    """
    if not before or before.keys() != after.keys():
        return None
    spent = [_difference_uj(root, name, before[name], after[name]) for name in before]
    known = [each for each in spent if each is not None]
    return sum(known) / 1000 if len(known) == len(spent) else None


def _difference_uj(root: Path, name: str, before: int, after: int) -> int | None:
    if after >= before:
        return after - before
    range_uj = read_number(root / ZONES / name, "max_energy_range_uj") or 0
    has_wrapped = before <= range_uj and after - before + range_uj < range_uj * MOST_OF_A_RANGE
    return after - before + range_uj if has_wrapped else None
