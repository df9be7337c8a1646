"""GPUs and NPUs that the operating system lists, whether or not anything in ONNX Runtime can use them.

Takes a root with /sys, /proc, /dev and /etc, and reads text only: no driver is woken. Display adapters that only show a
picture are left out: those of virtual machines and of boards' management controllers are from vendors that make nothing else.

What is not known here:
- Windows: which entries of the registry's driver classes are plugged in now. One that was removed stays listed until its
  driver is uninstalled; only the providers (DirectML asks DXGI) tell.
- Linux inside Windows (WSL): only that there is a /dev/dxg, not whose GPU is behind it.
- macOS on Intel: nothing tells of its GPUs without asking a framework.
- A Raspberry Pi's VideoCore: no provider computes on it, so it is no accelerator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.device.facts import Accelerator
from agent.device.hardware.boardaccelerators import from_platform, l4t_release
from agent.device.hardware.cpu import read_cpu
from agent.device.hardware.drivers import driver_version
from agent.device.hardware.support import JETSON, support_of
from agent.device.hardware.sysfiles import folders, properties, read
from agent.device.hardware.windowsaccelerators import from_windows, registry_entries

PCI_VENDORS = {
    0x10DE: "NVIDIA", 0x1002: "AMD", 0x1022: "AMD", 0x8086: "Intel", 0x17CB: "Qualcomm", 0x1E60: "Hailo", 0x1DA3: "Habana",
}  # fmt: skip
"""pci-ids.ucw.cz. AMD's graphics came with ATI's number, its NPUs carry AMD's own."""

GPU_VENDORS = frozenset({"NVIDIA", "AMD", "Intel"})
"""Whose display adapters compute. The others' (QEMU's bochs, virtio, QXL and Cirrus, VMware, VirtualBox, ASPEED, Matrox)
show a picture."""

DISPLAY_CLASSES = frozenset({0x0300, 0x0302, 0x0380})
PROCESSING_ACCELERATOR = 0x1200
"""Base class and subclass (PCI Code and ID Assignment Specification, §1.4 and §1.19): VGA, 3D and other display
controllers, and processing accelerators, among which AMD's Instinct GPUs list themselves too."""

NPUS = {
    (0x8086, 0x7D1D): "NPU (Meteor Lake)", (0x8086, 0xAD1D): "NPU (Arrow Lake)", (0x8086, 0x643E): "NPU (Lunar Lake)",
    (0x8086, 0xB03E): "NPU (Panther Lake)",
    (0x1022, 0x1502): "XDNA NPU (Phoenix, Hawk Point)", (0x1022, 0x17F0): "XDNA NPU (Strix, Krackan)",
    (0x1E60, 0x2864): "Hailo-8", (0x1E60, 0x45C4): "Hailo-10H",
}  # fmt: skip
"""Linux: drivers/accel/ivpu/ivpu_drv.h, drivers/accel/amdxdna/amdxdna_pci_drv.c; Hailo: hailort-drivers, linux/pcie. AMD's are
signal processors to PCI (0x1180) and Hailo's co-processors (0x0b40), so their numbers tell, not their class."""


@dataclass(frozen=True, slots=True)
class _PciDevice:
    slot: str
    pci_class: int
    vendor_id: int
    device_id: int
    driver: str


def accelerators(root: Path, system: str) -> tuple[Accelerator, ...]:
    """Return each GPU and NPU, sorted by vendor, kind and name: two of the same model are listed twice."""
    if system == "windows":
        found = from_windows(registry_entries())
    elif system == "macos":
        found = from_macos(read_cpu(root, system).model)
    else:
        found = [*_from_pci(root), *from_platform(root)]
    return tuple(sorted(found, key=lambda each: (each.vendor, each.kind, each.name)))


def from_macos(chip: str) -> list[Accelerator]:
    """Return what every Apple chip has, a GPU and a Neural Engine; a virtual machine's chip says `(Virtual)` and has neither."""
    if not chip.startswith("Apple") or "Virtual" in chip:
        return []
    support = support_of("Apple", "npu")
    return [
        Accelerator(kind, "Apple", f"{chip} {name}", provider=support.provider, hint=support.hint)
        for kind, name in (("gpu", "GPU"), ("npu", "Neural Engine"))
    ]


def _from_pci(root: Path) -> Iterator[Accelerator]:
    """Yield PCI's devices by class and number, and those of /sys/class/accel that neither tells."""
    accel_slots = {
        slot
        for entry in folders(root, "sys/class/accel", "accel")
        if (slot := properties(entry, "device/uevent").get("PCI_SLOT_NAME"))
    }
    for device in _pci_devices(root):
        if kind := _kind(device, is_accel=device.slot in accel_slots):
            yield _accelerator(root, device, kind)


def _pci_devices(root: Path) -> Iterator[_PciDevice]:
    try:
        slots = sorted(entry.name for entry in (root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return
    for slot in slots:
        found = properties(root, f"sys/bus/pci/devices/{slot}/uevent")
        vendor, _, device = found.get("PCI_ID", "").partition(":")
        try:
            yield _PciDevice(
                slot, int(found["PCI_CLASS"], 16) >> 8, int(vendor, 16), int(device, 16), found.get("DRIVER", "")
            )
        except (KeyError, ValueError):
            continue


def _kind(device: _PciDevice, *, is_accel: bool) -> str | None:
    vendor = PCI_VENDORS.get(device.vendor_id)
    if (device.vendor_id, device.device_id) in NPUS or is_accel:
        return "npu"
    if device.pci_class in DISPLAY_CLASSES:
        return "gpu" if vendor in GPU_VENDORS else None
    if device.pci_class == PROCESSING_ACCELERATOR:
        return "gpu" if vendor in ("AMD", "NVIDIA") else "npu"
    return None


def _accelerator(root: Path, device: _PciDevice, kind: str) -> Accelerator:
    """Name it by its model where that is known, and always by its PCI number, which no driver changes."""
    vendor = PCI_VENDORS.get(device.vendor_id, f"PCI vendor {device.vendor_id:04x}")
    model = NPUS.get((device.vendor_id, device.device_id)) or _nvidia_model(root, device.slot) or kind.upper()
    name = model if model.startswith(vendor) else f"{vendor} {model}"
    is_jetson = vendor == "NVIDIA" and l4t_release(root)  # Thor's GPU is on PCI, unlike those before it
    support = support_of(JETSON if is_jetson else vendor, kind)
    return Accelerator(
        kind=kind,
        vendor=vendor,
        name=f"{name} [{device.vendor_id:04x}:{device.device_id:04x}]",
        driver=device.driver,
        driver_version=driver_version(root, device.driver),
        provider=support.provider,
        hint=support.hint if device.driver else f"the kernel has bound no driver to it; {support.hint}",
    )


def _nvidia_model(root: Path, slot: str) -> str | None:
    """Return what NVIDIA's driver calls a card (its README, "The proc Filesystem Interface")."""
    for line in (read(root, f"proc/driver/nvidia/gpus/{slot}/information") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Model":
            return value.strip()
    return None
