"""The probe as core sees it: facts, whatever a driver does to the child."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading

import psutil
import pytest

from agent.device.probing import probe_facts


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Replace the probe by a Python script."""

    def use(body: str) -> None:
        script = tmp_path / "child.py"
        script.write_text("import os, sys, time\n" + body)
        monkeypatch.setattr("agent.childprocess.command_line", lambda role: [sys.executable, str(script)])

    return use


def test_finds_the_cpu_provider_and_the_runtime():
    """The real child, the real runtime."""
    facts = probe_facts()

    assert facts.findings == ()
    assert facts.runtime_version
    assert ("CPUExecutionProvider", "cpu") in {(device.provider, device.device_type) for device in facts.ep_devices}
    assert probe_facts().fingerprint == facts.fingerprint


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        pytest.param("print('vendor.so: oops', file=sys.stderr); sys.stderr.flush(); os.kill(os.getpid(), 11)",
                     ("signal 11", "vendor.so: oops"), id="crash"),
        pytest.param("time.sleep(60)", ("no answer within 0.5 s",), id="hang"),
        pytest.param("sys.exit(4)", ("status 4",), id="exit"),
        pytest.param("print('{\"is\": \"facts\", \"facts\": {\"os\": 3}}')", ("is no facts",), id="lie"),
        pytest.param("print('{\"is\": \"facts\"}')", ("is no facts",), id="empty"),
    ],
)  # fmt: skip
def test_a_driver_that_misbehaves_is_a_finding(pretend, body, texts):
    """A crashing vendor driver costs its accelerator, never the agent."""
    pretend(body)

    facts = probe_facts(timeout_s=0.5 if "sleep" in body else 20)

    assert facts.ep_devices == ()
    assert facts.cpu.physical_cores >= 1
    (finding,) = facts.findings
    assert finding.probe == "runtime"
    assert all(text in finding.text for text in texts)


def test_stop_ends_the_probe_and_leaves_no_child(pretend, tmp_path):
    """A driver that hangs must not outlive an agent that is told to stop while it starts."""
    pretend(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    stop = threading.Event()
    probing = threading.Thread(target=lambda: probe_facts(60, stop=stop))
    probing.start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        probing.join(0.02)
    stop.set()
    probing.join(10)
    assert not probing.is_alive()
    pid = int((tmp_path / "pid").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(10)


def test_core_side_never_imports_native_code():
    """Core must stay alive when ONNX Runtime or OpenCV crash, so it may not load them, by whatever way."""
    code = (
        "import sys, agent.device.probing, agent.device.profiles, agent.device.planning, agent.device.planstore, "
        "agent.trial.planner, agent.trial.running\n"
        "print([name for name in ('onnxruntime', 'cv2', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
