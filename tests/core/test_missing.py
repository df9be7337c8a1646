"""An accelerator that vanishes between two starts of the agent: said, kept said, and accepted."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.app import Core
from agent.cli.device import app
from agent.clock import SystemClock, SystemRandom
from agent.config.file import read
from agent.paths import open_state

STICK = """
accelerators:
  - {provider: VirtualNpuExecutionProvider, device_type: npu, vendor: Acme, name: USB stick, run_ms: 6}
"""
MISSING = "accelerator-missing/VirtualNpuExecutionProvider-npu"


@pytest.fixture
def hardware(tmp_path: Path) -> Path:
    path = tmp_path / "hardware.yaml"
    path.write_text("cpu: {run_ms: 24}\n" + STICK)
    (tmp_path / "holdfast.yaml").write_text(
        f"state_dir: {tmp_path}\ndevice: {{runtimes: ['virtual:{path}']}}\n"
        "models: {parcels: {bundle: parcels}}\ncameras: {door: {source: 'scene:', model: parcels}}\n"
    )
    return path


def conditions_of_a_start(hardware: Path) -> set[str]:
    """Start the agent, wait until it knows its hardware and has said so, stop it."""
    settings = read(hardware.with_name("holdfast.yaml")).settings
    core = Core(settings, open_state(hardware.parent), SystemClock(), SystemRandom())
    running = threading.Thread(target=core.run)
    running.start()
    clock = SystemClock()
    until_s = clock.monotonic() + 30
    while core.status.facts is None and clock.monotonic() < until_s:
        running.join(0.05)
    core.stop()
    running.join(10)
    return {condition.name for condition in core.status.conditions if condition.name.startswith("accelerator")}


def test_vanished_accelerator_is_said_until_it_is_accepted(hardware, tmp_path):
    """Today's agents go on with the CPU and say nothing."""
    assert conditions_of_a_start(hardware) == set()

    hardware.write_text("cpu: {run_ms: 24}\naccelerators: []\n")
    assert conditions_of_a_start(hardware) == {MISSING}
    assert conditions_of_a_start(hardware) == {MISSING}

    accepted = CliRunner().invoke(app, ["accept", "--config", str(tmp_path / "holdfast.yaml")])
    assert "expected no more: VirtualNpuExecutionProvider-npu" in accepted.stdout
    assert conditions_of_a_start(hardware) == set()
