"""`holdfast doctor`: each ill is found, named, and comes with advice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.cli import checks
from agent.cli.acceleratorchecks import run_on_checks
from agent.device.facts import Cpu, EpDevice, Facts, Finding
from agent.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent.parent


class At:
    def __init__(self, year: int) -> None:
        self._now = datetime(year, 6, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self._now


def facts(*providers: str, runtime: str = "1.31", findings: tuple[Finding, ...] = ()) -> Facts:
    cpu = Cpu("x", "y", frozenset({"avx2"}), 2, 4)
    devices = tuple(EpDevice(provider, "cpu") for provider in providers)
    return Facts("linux", "6", "x86_64", "", cpu, 2**30, runtime_version=runtime, ep_devices=devices, findings=findings)


@pytest.mark.parametrize(("year", "verdict"), [(1970, "fail"), (2027, "ok"), (2100, "fail")])
def test_clock_that_cannot_be_right_fails(year, verdict):
    """Boards without a battery wake in 1970."""
    assert checks.clock_check(At(year)).verdict == verdict


def test_state_folder_without_room_for_the_outbox_warns(tmp_path, monkeypatch):
    """Before the disk is full, not after."""
    assert checks.state(tmp_path / "s", 1).verdict == "ok"
    assert checks.state(tmp_path / "s", 1e12).verdict == "warn"
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: os.statvfs_result and type("U", (), {"free": 1000})())
    assert checks.state(tmp_path / "s", 1).verdict == "fail"
    (tmp_path / "file").write_text("")
    failed = checks.state(tmp_path / "file" / "below", 1)
    assert (failed.verdict, "state_dir" in failed.advice) == ("fail", True)


def test_device_checks_name_what_is_missing():
    """A driver that crashed in the probe, no runtime, a profile that is not there."""
    crashed = list(checks.device(facts("CPUExecutionProvider", findings=(Finding("npu", "it crashed"),)), None))
    assert [(check.name, check.verdict) for check in crashed] == [
        ("probe", "warn"), ("profile", "ok"), ("providers", "ok"),
    ]  # fmt: skip
    assert [check.verdict for check in checks.device(facts(runtime=""), None)] == ["fail"]
    assert [check.verdict for check in checks.device(facts(), None)] == ["ok", "fail"]
    assert [check.verdict for check in checks.device(facts("MineExecutionProvider"), None)] == ["ok", "warn"]
    (wrong,) = checks.device(facts("CPUExecutionProvider"), "nope")
    assert (wrong.name, wrong.verdict) == ("profile", "fail")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        pytest.param("npu", "holdfast device show", id="the system's"),
        pytest.param("plugin:onnxruntime_qnn", "pip uninstall onnxruntime-qnn", id="a package"),
        pytest.param("folder:/opt/openvino", "take it out of `device: {runtimes", id="named by the operator"),
    ],
)
def test_advice_on_a_finding_fits_where_it_comes_from(probe, words):
    """Nobody can uninstall a folder that is not there."""
    found = checks.device(facts("CPUExecutionProvider", findings=(Finding(probe, "nothing there"),)), None)
    assert words in next(found).advice


@pytest.mark.parametrize(
    ("run_on", "fallback", "verdict"),
    [
        ("cpu", "require", "ok"),
        ("npu", "prefer", "warn"),
        ("npu", "require", "fail"),
        ("QNNExecutionProvider", "allow", "warn"),
    ],
)
def test_device_that_a_model_asks_for_in_vain_is_said_before_the_start(run_on, fallback, verdict):
    """A pipeline with `require` would not run at all, and its operator looks here first."""
    settings = Settings.model_validate(
        {
            "models": {"m": {"bundle": "parcels", "run_on": run_on}},
            "cameras": {"door": {"source": "scene://conveyor", "fallback": fallback}},
        }
    )
    (check,) = run_on_checks(facts("CPUExecutionProvider"), settings)
    assert check.verdict == verdict
    assert ("door will not run" in check.text) == (verdict == "fail")


def test_provider_that_was_installed_in_vain_is_named_where_a_model_asks_for_it():
    """`onnxruntime-gpu` in a container without the GPU: its words are the nearest to a cause that there is."""
    settings = Settings.model_validate(
        {"models": {"m": {"bundle": "parcels", "run_on": "gpu"}}, "cameras": {"door": {"source": "scene://conveyor"}}}
    )
    seen = facts("CPUExecutionProvider")
    cuda = EpDevice("CUDAExecutionProvider", "gpu", unusable="no CUDA-capable device")
    (check,) = run_on_checks(replace(seen, ep_devices=(*seen.ep_devices, cuda)), settings)
    assert "CUDAExecutionProvider is installed: no CUDA-capable device" in check.text


def test_driver_that_crashes_is_an_answer():
    """Native code may crash; doctor may not."""
    answer = checks.ask_child({"kind": "camera"}, 20.0, role="no-such-role")
    assert answer["is"] == "failed"
    assert "no-such-role" in answer["text"]


@pytest.fixture
def doctor(tmp_path):
    def run(text: str | None) -> tuple[int, dict[str, dict]]:
        if text is not None:
            (tmp_path / "holdfast.yaml").write_text(text)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "agent", "doctor", "--config", "holdfast.yaml", "--json"],
            cwd=tmp_path, text=True, capture_output=True, timeout=90, check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "STATE_DIRECTORY": str(tmp_path / "state")},
        )  # fmt: skip
        assert done.stdout, done.stderr
        return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    return run


def test_doctor_without_a_configuration_still_looks_at_the_device(doctor):
    """It is often the first command that somebody runs."""
    code, found = doctor(None)
    assert code == 1
    assert found["configuration"]["verdict"] == "fail"
    assert found["profile"]["verdict"] == "ok"


def test_doctor_finds_everything_that_is_wrong_in_one_go(doctor, tmp_path, start_broker):
    """Broker there, bundle damaged, video not a video: each its own line, and no secret in any."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "manifest.json").write_text("{}")
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    port = start_broker()
    code, found = doctor(
        f"mqtt: {{host: 127.0.0.1, port: {port}}}\nmodels: {{m: {{bundle: ./m}}}}\n"
        "cameras: {door: {source: x.mp4}}\n"
    )
    assert code == 1
    assert found["broker"]["verdict"] == "ok"
    assert found["bundle m"]["verdict"] == "fail"
    assert found["camera door"]["verdict"] == "fail"
    assert all(check["advice"] for check in found.values() if check["verdict"] != "ok")


def test_broker_that_is_away_fails_with_advice(doctor, tmp_path, make_tiny_bundle):
    """And says that nothing is lost meanwhile. Rules that the bundle cannot serve are told before a worker fails."""
    bundle = make_tiny_bundle()
    rules = "{r: {when: class, labels: [purple]}}"
    code, found = doctor(
        f"mqtt: {{host: 127.0.0.1, port: 1}}\nmodels: {{m: {{bundle: {bundle}}}}}\n"
        f"cameras: {{door: {{source: 'rtsp://u:hunter2@127.0.0.1:1/x', open_timeout_s: 1, rules: {rules}}}}}\n"
    )
    assert found["rules of camera door"]["verdict"] == "fail" and "purple" in found["rules of camera door"]["text"]
    assert (code, found["broker"]["verdict"], found["bundle m"]["verdict"]) == (1, "fail", "ok")
    assert "outbox" in found["broker"]["advice"]
    assert "hunter2" not in json.dumps(found)
