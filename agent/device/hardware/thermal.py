"""Temperatures, as Linux lists them under /sys/class/thermal (Documentation/driver-api/thermal/sysfs-api.rst)."""

from __future__ import annotations

from pathlib import Path

from agent.device.facts import ThermalZone
from agent.device.hardware.sysfiles import folders, read, read_number


def thermal_zones(root: Path) -> tuple[ThermalZone, ...]:
    """Return each zone that can be read now; `temp` is in thousandths of a degree Celsius."""
    zones = []
    for zone in folders(root, "sys/class/thermal", "thermal_zone"):
        millidegrees = read_number(zone, "temp")
        if millidegrees is not None:
            zones.append(ThermalZone(read(zone, "type") or zone.name, millidegrees / 1000))
    return tuple(zones)
