"""Names for the implementer and part numbers that ARM processors report in MIDR_EL1.

Numbers are from each core's Technical Reference Manual (MIDR_EL1) and Linux's arch/arm64/include/asm/cputype.h. A
number that is not here is shown as it is: it is not an error.
"""

from __future__ import annotations

IMPLEMENTERS = {
    0x41: "ARM", 0x42: "Broadcom", 0x43: "Cavium", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA",
    0x51: "Qualcomm", 0x53: "Samsung", 0x56: "Marvell", 0x61: "Apple", 0xC0: "Ampere",
}  # fmt: skip

CORES = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35", (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72", (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD40): "Neoverse-V1", (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE", (0x41, 0xD44): "Cortex-X1", (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2", (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C", (0x41, 0xD4F): "Neoverse-V2", (0x41, 0xC07): "Cortex-A7",
    (0x41, 0xC0F): "Cortex-A15",
    (0x4E, 0x003): "Denver 2", (0x4E, 0x004): "Carmel", (0xC0, 0xAC3): "Ampere-1",
}  # fmt: skip


def implementer_name(implementer: str) -> str:
    """Return the name for `CPU implementer` as /proc/cpuinfo writes it, such as `0x41`."""
    return IMPLEMENTERS.get(int(implementer, 16), implementer)


def core_name(implementer: str, part: str) -> str:
    """Return the name for `CPU implementer` and `CPU part`, such as `0x41` and `0xd08`."""
    return CORES.get((int(implementer, 16), int(part, 16)), f"{implementer_name(implementer)} {part}")
