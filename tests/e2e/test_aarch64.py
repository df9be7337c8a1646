"""The agent on aarch64, emulated: that it works there, from the hardware's facts to events at a broker. No speed is read off it.

`make aarch64` makes the arm64 system that these tests run in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from simulator.consumer import Consumer
from tests.conftest import REPOSITORY, missing

if TYPE_CHECKING:
    from simulator.broker import Mosquitto

HERE = Path("/opt/holdfast")
"""Where the code lies inside the arm64 system."""
COMPARE = """
import json, sys
from agent.bundle.reader import open_bundle
from agent.bundle.finding import find_bundle
from agent.clock import SystemClock
from agent.device.planning.plan import Candidate
from agent.inference.model import open_model
from agent.trial.comparison import against_golden
bundle, found = open_bundle(find_bundle("parcels")), {}
for variant in ("fp32", "int8"):
    model = open_model(bundle, Candidate("CPUExecutionProvider", "cpu", variant, 2))
    found[variant] = against_golden(bundle, model, variant, SystemClock())[0]
print(json.dumps(found))
"""


class Arm:
    """An arm64 system with this checkout's code in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def call(self, *arguments: str, timeout_s: float = 240) -> str:
        """Run a Python command line there and return what it printed."""
        command = ["chroot", str(self.root), "/usr/bin/env", f"PYTHONPATH={HERE}:/opt/site", "python3", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def arm() -> Iterator[Arm]:
    root = REPOSITORY / ".aarch64"
    if not (root / "made").exists() or os.geteuid() != 0 or not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        missing("an arm64 system under emulation: run `make aarch64` as root")
    code = root / HERE.relative_to("/")
    shutil.rmtree(code, ignore_errors=True)
    for package in ("agent", "bundles", "simulator", "device_profiles"):
        shutil.copytree(REPOSITORY / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    _announce_entry_points(code)
    # With /sys as well ONNX Runtime would take the host's processor for its own and crash.
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    yield Arm(root)
    subprocess.run(["umount", "--lazy", root / "proc"], check=True)


def _announce_entry_points(code: Path) -> None:
    """Write what an installation would: the sources that the simulator brings are found through it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    folder = code / "holdfast-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: holdfast\nVersion: 0\n")
    (folder / "entry_points.txt").write_text("\n".join(lines))


def test_both_variants_agree_with_the_golden_answers_that_x86_gave(arm: Arm) -> None:
    """Other kernels, other orders of addition, signed saturation: the answers must be the same objects all the same."""
    agreement = json.loads(arm.call("-c", COMPARE))
    assert agreement["fp32"] >= 0.99
    assert agreement["int8"] >= 0.95


def test_a_sensor_is_planned_and_run_and_its_events_arrive(arm: Arm, mosquitto: Mosquitto) -> None:
    """Probe, profile, trials in child processes, worker, outbox and link: every process of ours is an arm64 one."""
    config = {
        "version": 1,
        "state_dir": "/var/holdfast",
        "device": {"name": "arm"},
        "mqtt": {"host": mosquitto.host, "port": mosquitto.port},
        "models": {"motor": {"bundle": "bearing"}},
        "sensors": {
            "motor": {"source": "signal://bearing?seed=11&kind=outer&fault_at=5&growth=4&seconds=12", "pace": "fast"}
        },
    }
    shutil.rmtree(arm.root / "var/holdfast", ignore_errors=True)
    (arm.root / "etc/holdfast.yaml").write_text(yaml.safe_dump(config))
    facts = json.loads(arm.call("-m", "agent", "device", "show", "--json"))
    assert facts["architecture"] == "aarch64"
    assert "CPUExecutionProvider" in {device["provider"] for device in facts["ep_devices"]}
    with Consumer(mosquitto.port) as consumer:
        assert consumer.subscribed.wait(10)
        arm.call("-m", "agent", "run", "--config", "/etc/holdfast.yaml", "--exit-when-finished")
        consumer.settle(2)
        events = list(consumer.account.events)
    assert events
    assert not consumer.account.out_of_order
    assert {event["data"]["model"]["ep"] for event in events} == {"CPUExecutionProvider"}
