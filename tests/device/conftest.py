"""Devices as files: in devices/ the /proc and /sys that the gatherers read, in facts/ what a probe with accelerators gives.

Each says whether it was recorded on a machine or constructed from documents, and from which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from agent.device.facts import EpDevice, Facts
from agent.device.hardware.gathering import gather

DEVICES = Path(__file__).parent / "devices"
FACTS = Path(__file__).parent / "facts"
CPU_DEVICE = EpDevice("CPUExecutionProvider", "cpu")


def expand(lines: list[str]) -> Iterator[str]:
    """Write out `@repeat 0-3` … `@end` blocks, with {n} as the number."""
    numbers, block = range(0), []
    for line in lines:
        if line.startswith("@repeat"):
            first, last = map(int, line.split()[1].split("-"))
            numbers, block = range(first, last + 1), []
        elif line == "@end":
            yield from (text.replace("{n}", str(number)) for number in numbers for text in block)
            numbers = range(0)
        elif numbers:
            block.append(line)
        else:
            yield line


@pytest.fixture
def device_tree(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a device's files below a folder and returns it."""

    def write(name: str) -> Path:
        root = tmp_path / name
        sections = re.split(r"(?m)^=== (.+)\n", (DEVICES / f"{name}.txt").read_text())
        for path, text in zip(sections[1::2], sections[2::2], strict=True):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text("\n".join(expand(text.splitlines())) + "\n")
        return root

    return write


@pytest.fixture
def device_facts(device_tree: Callable[[str], Path]) -> Callable[[str], Facts]:
    """Return a function that gathers a device's facts, with the CPU as its one EP device."""

    def facts(name: str) -> Facts:
        architecture = re.search(r"^# architecture: (\S+)$", (DEVICES / f"{name}.txt").read_text(), re.MULTILINE)
        gathered = gather(device_tree(name), system="linux", architecture=architecture[1])
        return replace(gathered, runtime_version="1.31.1", ep_devices=(CPU_DEVICE,))

    return facts


@pytest.fixture
def known_facts(device_facts: Callable[[str], Facts]) -> Callable[[str], Facts]:
    """Return a function that gives the facts of any device that is known here, by the name of its file."""

    def facts(name: str) -> Facts:
        file = FACTS / f"{name}.json"
        if not file.is_file():
            return device_facts(name)
        return TypeAdapter(Facts).validate_python(json.loads(file.read_text())["facts"])

    return facts
