"""`holdfast update` beside a running agent: each answer names what runs, what is waited for, or the next step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import update
from agent.settings import Settings
from bundles.release.creation import create
from bundles.release.repository import Repository

REPOSITORY = Path(__file__).resolve().parents[2]
CLOSED = "-".join(f"{datetime.now(UTC) + timedelta(hours=hours):%H:00}" for hours in (6, 7))


class Bench:
    """A device whose releases come from a folder, and the command beside it."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder = folder
        self.repository, _ = create(folder / "releases", folder / "keys")
        self._agent: subprocess.Popen[bytes] | None = None
        self.configure(bundle=str(bundle))

    def configure(self, **model: Any) -> None:
        """Write the operator's file."""
        sections = {
            "device": {"name": "box1"},
            "models": {"m": {"channel": "stable", **model}},
            "cameras": {"door": {"source": "scene://conveyor?fps=10"}},
            "update": {
                "root": "releases/metadata/1.root.json",
                "transports": [str(self.folder / "releases")],
                "hint_jitter_s": 0,
                "probation": {"seconds": 1, "samples": 3},
            },
        }
        (self.folder / "holdfast.yaml").write_text(yaml.safe_dump(sections))

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `holdfast update …`."""
        return subprocess.run(
            self._command("update", *arguments),
            cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    def start(self) -> None:
        """Start the agent; it is there when it has reported."""
        with (self.folder / "log").open("wb") as log:
            self._agent = subprocess.Popen(
                self._command("run"), cwd=self.folder, env=self._environment, stdout=log, stderr=log
            )
        while self.call("status").returncode:
            assert self._agent.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """End the agent."""
        if self._agent is not None and self._agent.poll() is None:
            self._agent.send_signal(signal.SIGTERM)
            self._agent.wait(20)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "agent", *arguments]

    @property
    def _environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST__")}
        state = str(self.folder / "state")
        return {**clean, "PYTHONPATH": str(REPOSITORY), "STATE_DIRECTORY": state, "COLUMNS": "200"}


@pytest.fixture
def bench(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> Iterator[Bench]:
    made = Bench(tmp_path, make_tiny_bundle())
    yield made
    made.stop()


def test_every_word_beside_a_running_agent(bench: Bench, make_tiny_bundle, tiny_classifier):
    """The whole day of an operator on a box: nothing there, a typo, a window, apply, back, and an agent that is off."""
    says(bench.call("status"), 5, "holdfast run")
    says(bench.call("check"), 5, "holdfast run")
    bench.start()
    says(bench.call("check"), 5, "channels/stable.json", "holdfast release publish")
    says(bench.call("status"), 0, "the last check failed", "the operator's own bundle")
    says(bench.call("apply", "nobody"), 3, "known: m")

    retuned = make_tiny_bundle({"fp32": tiny_classifier(gain=1.1)}, version="2")
    publish(bench.repository, retuned, window=CLOSED)
    says(bench.call("check"), 0, "tiny 2 (release 1) comes", f"waits: outside the window {CLOSED} UTC")
    says(bench.call("status"), 0, "tiny 2 (release 1)", "waits: outside the window")
    says(bench.call("apply"), 0, "runs tiny 2", "fetching tiny 2", "probation")

    says(
        bench.call("rollback", "--reason", "false alarms"),
        0,
        "rolled_back",
        "false alarms",
        "the operator's own bundle",
    )
    says(bench.call("rollback"), 3, "nothing was taken back", "holdfast release rollback")
    steps = json.loads(bench.call("history", "--json").stdout)
    assert steps[0]["after"] == "rolled_back"
    assert {"at", "model", "release", "version", "before", "after", "reason"} == set(steps[0])
    (model,) = json.loads(bench.call("check", "--json").stdout).values()
    assert model["denied"][0]["release"] == 1

    bench.stop()
    says(bench.call("status"), 0, "no agent runs here")
    says(bench.call("apply"), 5, "holdfast run")


def test_release_for_another_kind_of_input_is_refused_with_both_kinds(bench: Bench):
    """Somebody published the bearing's bundle to the cameras: it is the release that is wrong, and it says how."""
    bench.start()
    from agent.bundle.finding import find_bundle

    publish(bench.repository, find_bundle("bearing"))
    done = bench.call("apply")
    says(done, 1, "refused", "the camera door has a model for signals", "publish a newer release")


def publish(repository: Repository, bundle: Path, **options: Any) -> None:
    """Give a bundle to everybody."""
    reference, _ = repository.add(bundle)
    repository.publish("stable", reference.name, **options)


def says(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check an answer; an error is no traceback."""
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    assert [word for word in words if word not in text] == [], text
    assert "Traceback" not in text


MODEL: dict[str, Any] = {
    "channel": "stable", "state": "idle", "release": None, "name": None, "version": None, "candidate": None,
    "progress": None, "reason": "", "waits_for": "",
}  # fmt: skip


def test_row_shows_how_far_a_download_is():
    """On a link of 8 KiB/s somebody looks for an hour."""
    candidate = {"name": "people", "version": "2", "release": 7}
    progress = {"done_bytes": 500_000, "total_bytes": 2_000_000, "transport": "mqtt"}
    row = update._row("m", {**MODEL, "state": "fetching", "candidate": candidate, "progress": progress}, Settings())
    assert row[2] == "fetching 25 % of 2.0 MB by mqtt"
    assert row[5] == "people 2 (release 7)"


def test_device_without_any_bundle_runs_nothing_yet():
    """It must not claim an operator's bundle that nobody named."""
    assert update._row("m", MODEL, Settings())[3] == "nothing yet"


def test_terminal_shows_a_bar_with_bytes_and_speed(monkeypatch, capsys):
    """Somebody waits beside the box."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    from agent.cli.updatefollowing import _Display

    model = {**MODEL, "state": "fetching", "candidate": {"name": "people", "version": "2", "release": 7}}
    with _Display() as display:
        display.show("m", model)
        display.show("m", {**model, "progress": {"done_bytes": 2**19, "total_bytes": 2**21, "transport": "mqtt"}})
    shown = capsys.readouterr().err
    assert "m: fetching people 2 by mqtt" in shown and "0.5/2.0 MiB" in shown
