"""GPUs and NPUs of Windows, from the driver classes in the registry: names and driver versions without any native call.

An entry stays when its device is pulled out, until the driver is uninstalled: what is listed was there once. What is there
now, the providers tell.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from agent.device.facts import Accelerator
from agent.device.hardware.support import support_of

CLASSES = {
    "gpu": "{4d36e968-e325-11ce-bfc1-08002be10318}",
    "npu": "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}",
}
"""Device setup classes Display and ComputeAccelerator (learn.microsoft.com, "System-Defined Device Setup Classes")."""

VENDORS = {"10de": "NVIDIA", "1002": "AMD", "1022": "AMD", "8086": "Intel", "qcom": "Qualcomm"}
"""By the vendor in `MatchingDeviceId`, such as `PCI\\VEN_8086&DEV_7D1D` or `ACPI\\VEN_QCOM&DEV_0C36`. Any other display adapter
(Hyper-V's, a remote desktop's, a virtual machine's) only shows a picture."""

Entry = tuple[str, Mapping[str, str]]
"""A kind, and the values of one driver's key."""


def from_windows(entries: Iterator[Entry]) -> list[Accelerator]:
    """Return an accelerator for each driver of a vendor that computes."""
    found = []
    for kind, values in entries:
        match = re.search(r"VEN_(\w{4})", values.get("MatchingDeviceId", ""), re.IGNORECASE)
        vendor = VENDORS.get(match[1].lower()) if match else None
        if vendor is None:
            continue
        support = support_of(vendor, kind)
        name, version = values.get("DriverDesc", f"{vendor} {kind.upper()}"), values.get("DriverVersion", "")
        driver = values.get("InfPath", "")
        found.append(Accelerator(kind, vendor, name, driver, version, support.provider, support.hint))
    return found


def registry_entries() -> Iterator[Entry]:
    """Yield each driver's key below the two classes."""
    import winreg

    for kind, identifier in CLASSES.items():
        path = rf"SYSTEM\CurrentControlSet\Control\Class\{identifier}"
        with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as drivers:  # type: ignore[attr-defined]
            for number in range(winreg.QueryInfoKey(drivers)[0]):  # type: ignore[attr-defined]
                name = winreg.EnumKey(drivers, number)  # type: ignore[attr-defined]
                with contextlib.suppress(OSError), winreg.OpenKey(drivers, name) as key:  # type: ignore[attr-defined]
                    count = winreg.QueryInfoKey(key)[1]  # type: ignore[attr-defined]
                    values = (winreg.EnumValue(key, each) for each in range(count))  # type: ignore[attr-defined]
                    yield kind, {name: str(value) for name, value, _ in values}
