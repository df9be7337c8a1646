"""Facts from the operating system's own files, without any native library: safe to call in any process."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from agent.device.facts import Camera, Cpu, Facts, Finding
from agent.device.hardware import accelerators, board, cameras, cgroup, cpu, memory, thermal
from agent.device.hardware.features import ARCHITECTURES
from agent.device.hardware.sysfiles import SYSTEM_ROOT

Gathered = TypeVar("Gathered")

UNKNOWN_CPU = Cpu(vendor="", model="", features=frozenset(), physical_cores=1, logical_cores=1)


def this_system() -> str:
    """Return `linux`, `windows`, `macos` or `android`."""
    if hasattr(sys, "getandroidapilevel"):
        return "android"
    return {"win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)


def this_architecture() -> str:
    """Return the machine's architecture by Linux's name, such as `x86_64` or `aarch64`."""
    machine = platform.machine().lower()
    return ARCHITECTURES.get(machine, machine)


def gather(root: Path = SYSTEM_ROOT, *, system: str | None = None, architecture: str | None = None) -> Facts:
    """Gather everything but what ONNX Runtime offers. A part that fails becomes a finding; the others stay.

    Args:
        root: A recorded tree with /proc and /sys in tests.
        system: Whose rules to follow, instead of this machine's.
        architecture: The recorded machine's, instead of this one's.
    """
    system = system or this_system()
    findings: list[Finding] = []

    def attempt(name: str, gatherer: Callable[[], Gathered], otherwise: Gathered) -> Gathered:
        try:
            return gatherer()
        except Exception as error:  # noqa: BLE001  no two kernels agree; whatever one of them writes, the rest is wanted
            findings.append(Finding(name, f"{type(error).__name__}: {error}"))
            return otherwise

    no_cameras: tuple[tuple[Camera, ...], tuple[Finding, ...]] = ((), ())
    found_cameras, camera_findings = attempt("cameras", lambda: cameras.cameras(root, system), no_cameras)
    facts = Facts(
        os=system,
        os_version=platform.release(),
        architecture=architecture or this_architecture(),
        board=attempt("board", lambda: board.board_model(root), ""),
        cpu=attempt("cpu", lambda: cpu.read_cpu(root, system), UNKNOWN_CPU),
        memory_bytes=attempt("memory", lambda: memory.total_bytes(root, system), 0),
        memory_limit_bytes=attempt("memory", lambda: cgroup.memory_limit_bytes(root), None),
        accelerators=attempt("accelerators", lambda: accelerators.accelerators(root, system), ()),
        cameras=found_cameras,
        thermal_zones=attempt("thermal", lambda: thermal.thermal_zones(root), ()),
        findings=camera_findings,
    )
    return replace(facts, findings=(*facts.findings, *findings))
