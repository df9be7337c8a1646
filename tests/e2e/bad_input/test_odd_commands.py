"""Commands as a hostile newcomer types them: an answer in words and an exit code, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simulator.broker import free_port
from tests.e2e.bad_input.conftest import broker_at

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

USAGE, CONFIGURATION, BUNDLE, UNAVAILABLE = 2, 3, 4, 5


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        pytest.param((), USAGE, "Commands", id="nothing"),
        pytest.param(("rnu",), USAGE, "No such command", id="no-such-command"),
        pytest.param(("run", "--config", "{}/none.yaml"), CONFIGURATION, "No such file", id="run-without-file"),
        pytest.param(("run", "--config", "{}"), CONFIGURATION, "directory", id="run-with-a-folder"),
        pytest.param(("plan", "explain", "--bundle", "nonsense"), BUNDLE, "bundle build", id="plan-of-nothing"),
        pytest.param(("plan", "measure", "--bundle", "{}"), BUNDLE, "manifest.json", id="plan-of-a-folder"),
        pytest.param(("bundle", "build", "nonsense"), BUNDLE, "nonsense", id="build-nothing"),
        pytest.param(("bundle", "inspect", "nonsense"), BUNDLE, "nonsense", id="inspect-nothing"),
        pytest.param(("profile", "show", "nonsense"), CONFIGURATION, "safe-default", id="no-such-profile"),
        pytest.param(("demo", "--seconds", "-3"), USAGE, "--seconds", id="demo-in-negative-time"),
        pytest.param(("demo", "--video", "{}/none.mp4"), USAGE, "--video", id="demo-without-its-video"),
        pytest.param(("demo", "--model", "{}/none.onnx"), USAGE, "--model", id="demo-without-its-model"),
        pytest.param(("child",), USAGE, "role", id="child-without-role"),
        pytest.param(("child", "nonsense"), USAGE, "nonsense", id="child-of-no-role"),
    ],
)
def test_odd_words_are_answered(
    holdfast: Holdfast, tmp_path: Path, words: tuple[str, ...], status: int, text: str
) -> None:
    """The first minute decides whether somebody stays."""
    done = holdfast.call(*(word.replace("{}", str(tmp_path)) for word in words), timeout_s=60)
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert text in said.replace("\n", " "), said
    assert "Traceback" not in said and "should not happen" not in said


def test_events_without_a_broker_and_a_second_init(holdfast: Holdfast, tmp_path: Path) -> None:
    """Nothing that was there is overwritten, and what is absent is named."""
    config = holdfast.write_config(mqtt=broker_at(free_port()))
    done = holdfast.call("events", "tail", "--config", config)
    assert (done.returncode, "start the broker" in done.stderr) == (UNAVAILABLE, True), done.stderr
    first = tmp_path / "first.yaml"
    assert holdfast.call("init", "--output", first).returncode == 0
    written = first.read_bytes()
    done = holdfast.call("init", "--output", first)
    assert (done.returncode, "--force" in done.stderr) == (CONFIGURATION, True), done.stderr
    assert first.read_bytes() == written
