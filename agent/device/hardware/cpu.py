"""The processor: who made it, what it can do for inference, and how much of it this process may use.

Takes the kernel's files (Linux), `sysctl` lines (macOS) or the Windows API; gives a `Cpu`. Only features that kernels
of ONNX Runtime look at are kept, under one name on every system: a new kernel that lists more must not change the
fingerprint.
"""

from __future__ import annotations

import math
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from agent.device.facts import Cpu
from agent.device.hardware import cgroup
from agent.device.hardware.armcores import core_name, implementer_name
from agent.device.hardware.features import X86_FEATURES
from agent.device.hardware.sysfiles import folders, read, read_number

LINUX_ARM_FEATURES = {
    "asimd": "neon", "neon": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2", "sme": "sme",
}  # fmt: skip
"""Linux's name (Documentation/arch/arm64/elf_hwcaps.rst) to ours."""
MACOS_FEATURES = {
    "machdep.cpu.features": {
        "SSE4.1": "sse4_1", "SSE4.2": "sse4_2", "AVX1.0": "avx", "FMA": "fma", "F16C": "f16c",
    },
    "machdep.cpu.leaf7_features": {
        "AVX2": "avx2", "AVX512F": "avx512f", "AVX512BW": "avx512bw", "AVX512VL": "avx512vl",
        "AVX512VNNI": "avx512_vnni",
    },
}  # fmt: skip
MACOS_ARM_FLAGS = {
    "hw.optional.AdvSIMD": "neon", "hw.optional.arm.FEAT_FP16": "fp16", "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_SME": "sme",
}  # fmt: skip
WINDOWS_FEATURES = {
    37: "sse4_1", 38: "sse4_2", 39: "avx", 40: "avx2", 41: "avx512f",
    19: "neon", 43: "dotprod", 46: "sve", 47: "sve2", 66: "i8mm", 67: "fp16", 68: "bf16",
}  # fmt: skip
"""PF_* numbers of winnt.h. Windows has none for VNNI, AMX, FMA and F16C: they stay unknown there."""


def read_cpu(root: Path, system: str) -> Cpu:
    """Return this machine's processor."""
    if system == "macos":
        return from_sysctl(_sysctl())
    if system == "windows":
        return from_windows(_windows_registry_value, _windows_has_feature)
    return from_linux(root)


def usable_cores(cpu: Cpu) -> int:
    """Return how many physical cores this process can keep busy: the least of cores, affinity and quota; never below 1.

    A quota of 1.5 cores counts as one: two threads would spend a quarter of each period stopped.
    """
    limits = [cpu.physical_cores, cpu.allowed_cores or cpu.physical_cores]
    if cpu.quota_cores is not None:
        limits.append(math.floor(cpu.quota_cores))
    return max(1, min(limits))


def from_linux(root: Path) -> Cpu:
    """Read /proc/cpuinfo, the topology under /sys, this process's affinity and its control groups."""
    processors = _cpuinfo(read(root, "proc/cpuinfo") or "")
    cores = _cores(root, processors)
    allowed = _allowed_processors(root)
    here = {core for processor, core in cores.items() if allowed is None or processor in allowed}
    physical = max(1, len(set(cores.values())))
    return Cpu(
        vendor=_linux_vendor(processors),
        model=_linux_model(root, processors),
        features=_linux_features(processors),
        physical_cores=physical,
        logical_cores=max(1, len(cores)),
        quota_cores=cgroup.quota_cores(root),
        allowed_cores=len(here) if here and len(here) < physical else None,
    )


def _cpuinfo(text: str) -> list[dict[str, str]]:
    """Split /proc/cpuinfo into one dict a processor. Lines outside (`Hardware`, `Model` on ARM) are left out."""
    blocks = (dict(_pairs(block)) for block in text.split("\n\n"))
    return [block for block in blocks if "processor" in block]


def _pairs(block: str) -> Iterable[tuple[str, str]]:
    for line in block.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _cores(root: Path, processors: list[dict[str, str]]) -> dict[int, tuple[int, int]]:
    """Return (package, core) by logical processor: /sys knows it on every architecture, cpuinfo on x86 only."""
    cores = {}
    for folder in folders(root, "sys/devices/system/cpu", "cpu"):
        core = read_number(folder, "topology/core_id")
        if core is not None:
            number = int(folder.name.removeprefix("cpu"))
            cores[number] = (read_number(folder, "topology/physical_package_id") or 0, core)
    if cores:
        return cores
    numbers = [int(processor["processor"]) for processor in processors]
    ids = [(int(entry.get("physical id", 0)), int(entry.get("core id", entry["processor"]))) for entry in processors]
    return dict(zip(numbers, ids, strict=True))


def _allowed_processors(root: Path) -> frozenset[int] | None:
    """Read the affinity, such as `0-3,6`, from /proc/self/status; None where it is not there."""
    for line in (read(root, "proc/self/status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return frozenset(_numbers(line.split(":", 1)[1].strip()))
    return None


def _numbers(ranges: str) -> Iterable[int]:
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _linux_vendor(processors: list[dict[str, str]]) -> str:
    names = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
    first = processors[0] if processors else {}
    if vendor := first.get("vendor_id"):
        return names.get(vendor, vendor)
    return implementer_name(first["CPU implementer"]) if "CPU implementer" in first else ""


def _linux_model(root: Path, processors: list[dict[str, str]]) -> str:
    """Return `model name`, or on ARM the cores by name: `Cortex-A76 ×4 + Cortex-A55 ×4`."""
    if processors and "model name" in processors[0] and "CPU part" not in processors[0]:
        return processors[0]["model name"]
    parts = Counter(
        core_name(entry["CPU implementer"], entry["CPU part"])
        for entry in processors
        if "CPU part" in entry and "CPU implementer" in entry
    )
    if parts:
        return " + ".join(f"{name} ×{count}" for name, count in sorted(parts.items(), reverse=True))
    return read(root, "proc/device-tree/cpus/cpu@0/compatible") or ""


def _linux_features(processors: list[dict[str, str]]) -> frozenset[str]:
    """Return what *every* processor has: threads move between big and little cores."""
    sets = []
    for processor in processors:
        x86 = frozenset(processor.get("flags", "").split()) & X86_FEATURES
        arm = {LINUX_ARM_FEATURES[name] for name in processor.get("Features", "").split() if name in LINUX_ARM_FEATURES}
        sets.append(x86 | arm)
    return frozenset.intersection(*sets) if sets else frozenset()


def from_sysctl(lines: str) -> Cpu:
    """Read the output of `sysctl machdep.cpu hw`: lines such as `hw.physicalcpu: 8`."""
    values = dict(_pairs(lines))
    brand = values.get("machdep.cpu.brand_string", "")
    features = {MACOS_ARM_FLAGS[key] for key, value in values.items() if key in MACOS_ARM_FLAGS and value == "1"}
    for key, names in MACOS_FEATURES.items():
        features |= {names[word] for word in values.get(key, "").split() if word in names}
    vendor = {"GenuineIntel": "Intel"}.get(values.get("machdep.cpu.vendor", ""), "Apple" if "Apple" in brand else "")
    return Cpu(
        vendor=vendor,
        model=brand,
        features=frozenset(features),
        physical_cores=int(values.get("hw.physicalcpu", 1)),
        logical_cores=int(values.get("hw.logicalcpu", 1)),
    )


def _sysctl() -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "machdep.cpu", "hw"], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def from_windows(registry_value: Callable[[str], str], has_feature: Callable[[int], bool]) -> Cpu:
    """Read the first processor's key in the registry, and ask IsProcessorFeaturePresent for each feature."""
    vendor = registry_value("VendorIdentifier")
    logical = psutil.cpu_count() or 1
    return Cpu(
        vendor={"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(vendor, vendor),
        model=(registry_value("ProcessorNameString") or platform.processor()).strip(),
        features=frozenset(name for number, name in WINDOWS_FEATURES.items() if has_feature(number)),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
    )


def _windows_registry_value(name: str) -> str:
    import winreg

    key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as processor:  # type: ignore[attr-defined]
            return str(winreg.QueryValueEx(processor, name)[0])  # type: ignore[attr-defined]
    except OSError:
        return ""


def _windows_has_feature(number: int) -> bool:
    import ctypes

    return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(number))  # type: ignore[attr-defined]
