"""Before a model runs: what the device is, probed once, and again where nothing could run."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from agent.device.facts import Cpu, EpDevice, Facts
from agent.device.planstore import PlanStore
from agent.preparation import Preparer
from simulator.clock import VirtualClock

CPU = Cpu("x", "y", frozenset({"avx2"}), 2, 4)
EARLY = Facts("linux", "6", "x86_64", "", CPU, 2**30, runtime_version="1.31", ep_devices=(), findings=())
LATE = replace(EARLY, ep_devices=(EpDevice("CPUExecutionProvider", "cpu"),))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Facts]:
    """What the probe will see, one after another."""
    seen = [EARLY, LATE]
    monkeypatch.setattr("agent.device.recognition.probe_facts", lambda *_, **__: seen.pop(0))
    return seen


def test_hardware_is_looked_at_once(tmp_path, probes):
    """A probe starts a process and takes a second; an update asks several times."""
    preparer = Preparer(None, PlanStore(tmp_path), VirtualClock())
    assert [preparer.device(threading.Event())[0] for _ in range(2)] == [EARLY, EARLY]


def test_driver_that_comes_late_is_found_by_the_next_attempt(tmp_path, probes):
    """Nothing could run, so it is tried again later: with the device as it is then, not as it was at the start."""
    preparer = Preparer(None, PlanStore(tmp_path), VirtualClock())
    assert preparer.device(threading.Event())[0] == EARLY
    preparer.look_again()
    assert preparer.device(threading.Event())[0] == LATE
