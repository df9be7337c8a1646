"""The agent as its users start it: a process with a configuration file, a real broker, a consumer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.broker import Mosquitto
from tests.e2e.accelerated import HURRY, Board


def hasty_profiles(folder: Path) -> Path:
    """Write the profile of tests that are about something else, and return its folder: the first that passes its trial runs."""
    profile = {
        "name": "hasty",
        "description": "whatever works, at once",
        "candidates": [{"provider": "CPUExecutionProvider", "variants": ["fp32", "int8"], "threads": [1]}],
        "limits": {"memory_mb": 512, "trial_s": 60},
        "tune": {"mode": "as-listed"},
    }
    profiles = folder / "hasty-profiles"
    profiles.mkdir(exist_ok=True)
    (profiles / "hasty.yaml").write_text(yaml.safe_dump(profile))
    return profiles


class Holdfast:
    """`holdfast …` as a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._running: list[subprocess.Popen[bytes]] = []

    def call(self, *arguments: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = [sys.executable, "-m", "agent", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)

    def write_config(self, **sections: Any) -> Path:
        """Write the operator's file; where it names no profile, the one of `hasty_profiles`."""
        path = self.folder / "holdfast.yaml"
        device = {"profile": "hasty", "profiles": str(hasty_profiles(self.folder)), **sections.pop("device", {})}
        path.write_text(yaml.safe_dump({"version": 1, "state_dir": str(self.state), "device": device, **sections}))
        return path

    def manifest(self, bundle: Path) -> dict[str, Any]:
        """What a built bundle says of itself."""
        manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
        return manifest

    def run(self, config: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start `holdfast run`; its log goes to `log` in the folder."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(config), *options], stdout=log, stderr=log
            )
        self._running.append(process)
        return process

    def log(self) -> str:
        """What every `run` so far wrote."""
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def holdfast(tmp_path: Path) -> Iterator[Holdfast]:
    """Return the command, with a folder and a state of its own."""
    command = Holdfast(tmp_path)
    yield command
    command.end()


@pytest.fixture
def mosquitto(tmp_path: Path, need_tool: Callable[[str], str]) -> Iterator[Mosquitto]:
    """Return a running real broker."""
    need_tool("mosquitto")
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def printer(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Return `print`, past pytest's capture: the counts are the point of some tests."""

    def show(*lines: str) -> None:
        with capsys.disabled():
            print(*lines, sep="\n", flush=True)  # noqa: T201

    return show


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HOLDFAST__")]:
        monkeypatch.delenv(name)


@pytest.fixture
def board(holdfast: Holdfast, mosquitto: Mosquitto) -> Iterator[Board]:
    """Return a board with declared accelerators, whose agent has little patience."""
    with Board(holdfast, mosquitto, HURRY) as board:
        yield board
