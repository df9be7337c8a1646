"""The GPUs and NPUs inside a board's chip, which no bus lists: the device tree's nodes that a driver may bind to.

A node counts when the kernel made a platform device of it: one whose `status` is disabled has none. Raspberry Pi's VideoCore
(brcm,…-v3d) and Arm's Mali are left out: no provider of ONNX Runtime computes on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.device.facts import Accelerator
from agent.device.hardware.drivers import driver_version
from agent.device.hardware.support import JETSON, support_of
from agent.device.hardware.sysfiles import properties, read


@dataclass(frozen=True, slots=True)
class _Node:
    """A kind of device-tree node. `name` may use the pattern's first group."""

    compatible: re.Pattern[str]
    kind: str
    vendor: str
    name: str


_NODES = (
    # NVIDIA's L4T kernel, drivers/gpu/nvgpu: gm20b Nano and TX1, gp10b TX2, gv11b Xavier, ga10b Orin.
    _Node(re.compile(r"nvidia,(gm20b|gp10b|gv11b|ga10b)"), "gpu", "NVIDIA", r"Jetson \1 GPU"),
    # Rockchip's kernel, drivers/rknpu (rockchip,rk3588-rknpu); Linux 6.18, drivers/accel/rocket (rockchip,rk3588-rknn-core).
    _Node(re.compile(r"rockchip,(?:(rk\w+)-)?(?:rknpu|rknn-core)"), "npu", "Rockchip", r"\1 NPU"),
    # Linux, Documentation/devicetree/bindings/display/msm/gpu.yaml and remoteproc/qcom,*-pas.yaml (cdsp: the compute DSP).
    _Node(re.compile(r"qcom,adreno-([\d.]+)"), "gpu", "Qualcomm", r"Adreno \1"),
    _Node(re.compile(r"qcom,(\w+)-cdsp\d?-pas"), "npu", "Qualcomm", r"\1 Hexagon NPU"),
)


def from_platform(root: Path) -> list[Accelerator]:
    """Return the board's accelerators; several cores of one NPU are one accelerator."""
    if not (root / "proc/device-tree").exists():
        return []
    found = {accelerator.name: accelerator for accelerator in _from_platform(root)}
    return list(found.values())


def _from_platform(root: Path) -> Iterator[Accelerator]:
    has_cdsp = False
    for device in _platform_devices(root):
        compatibles = [value for key, value in device.items() if key.startswith("OF_COMPATIBLE_") and key[-1].isdigit()]
        for node in _NODES:
            match = next((found for text in compatibles if (found := node.compatible.fullmatch(text))), None)
            if match:
                has_cdsp |= (node.vendor, node.kind) == ("Qualcomm", "npu")
                yield _accelerator(root, node, match.expand(node.name).strip(), device.get("DRIVER", ""))
    if not has_cdsp and (root / "dev/fastrpc-cdsp").exists():
        # Qualcomm's own kernels name the node otherwise; the device that its libraries open is the same.
        yield _accelerator(root, _NODES[-1], f"{_chip(root)} Hexagon NPU".strip(), "fastrpc")


def _platform_devices(root: Path) -> Iterator[dict[str, str]]:
    try:
        names = sorted(entry.name for entry in (root / "sys/bus/platform/devices").iterdir())
    except OSError:
        return
    for name in names:
        yield properties(root, f"sys/bus/platform/devices/{name}/uevent")


def _accelerator(root: Path, node: _Node, name: str, driver: str) -> Accelerator:
    is_jetson = node.vendor == "NVIDIA"
    support = support_of(JETSON if is_jetson else node.vendor, node.kind)
    version = l4t_release(root) if is_jetson else driver_version(root, driver)
    return Accelerator(
        node.kind, node.vendor, f"{node.vendor} {name}", driver, version, provider=support.provider, hint=support.hint
    )


def _chip(root: Path) -> str:
    """Return the chip's name: the last `qcom,…` of the board's compatible strings, from the board to the chip."""
    names = re.split("\0|\n", read(root, "proc/device-tree/compatible") or "")
    return next((name.partition(",")[2] for name in reversed(names) if name.startswith("qcom,")), "")


def l4t_release(root: Path) -> str:
    """Return NVIDIA's release of kernel and user space, which come together: `# R36 (release), REVISION: 3.0, …`."""
    match = re.match(r"# (R\d+) \(release\), REVISION: ([\d.]+)", read(root, "etc/nv_tegra_release") or "")
    return f"L4T {match[1]}.{match[2]}" if match else ""
