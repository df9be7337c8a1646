"""The probe with real children and real providers, well-behaved ones and others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.device.survey.probing import probe_facts
from agent.device.survey.recognition import look, recognise

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def plugins(accelerators, monkeypatch):
    """Install the vendors' plugins, for this process and for its children."""
    folder = str(accelerators / "plugins")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), folder]))


def test_plugins_and_another_wheel_beside_the_built_in_runtime(accelerators, plugins):
    """Qualcomm's NPU in software and the classic OpenVINO compute; OpenVINO's plugin says why it offers nothing here."""
    folder = f"folder:{accelerators / 'openvino'}"
    facts = look([folder])

    found = {(each.runtime, each.provider, each.device_type): each for each in facts.ep_devices}
    assert found["built-in", "CPUExecutionProvider", "cpu"].unusable is None
    assert found["plugin:onnxruntime_qnn", "QNNExecutionProvider", "cpu"].unusable is None
    assert found["plugin:onnxruntime_qnn", "QNNExecutionProvider", "cpu"].library_version
    assert found[folder, "OpenVINOExecutionProvider", "cpu"].unusable is None
    assert not facts.unusable_devices, "a GPU and an NPU that nobody has seen are not missed"
    if facts.cpu.vendor == "Intel":
        assert ("plugin:onnxruntime_ep_openvino", "OpenVINOExecutionProvider", "cpu") in found
    else:
        (finding,) = facts.findings
        assert finding.probe == "plugin:onnxruntime_ep_openvino"
        assert "registered and offers no device here" in finding.text
        assert "Intel processors only" in finding.text
        assert "pip install" not in finding.text, "what it would advise is there already"
        assert "[OpenVINO] Device NPU is not available" in found[folder, "OpenVINOExecutionProvider", "npu"].unusable


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param("import os; os.abort()", "was ended by SIGABRT before it answered", id="aborts"),
        pytest.param("import time; time.sleep(60)", "gave no answer within 3 s and was killed", id="hangs"),
        pytest.param(
            "raise ImportError('libfoo.so.3: no such file')", "libfoo.so.3: no such file", id="library missing"
        ),
        pytest.param("import sys; sys.exit('out of licences')", "out of licences", id="exits"),
        pytest.param("import os; os.write(1, b'{}\\n\\xff garbage\\n'); os.abort()", "garbage", id="prints garbage"),
        pytest.param("__version__ = '1'", "", id="is empty"),
    ],
)
def test_a_wheel_that_misbehaves_costs_its_own_devices_only(tmp_path, body, text):
    """Somebody else's native code, in a child of ours: whatever it does, the CPU is there and the words are kept."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(body)

    facts = probe_facts(("built-in", f"folder:{tmp_path}"), timeout_s=3 if "sleep" in body else 20)

    assert [(each.runtime, each.provider) for each in facts.ep_devices] == [("built-in", "CPUExecutionProvider")]
    (finding,) = facts.findings
    assert finding.probe == f"folder:{tmp_path}"
    assert finding.text
    assert text in finding.text


def test_a_library_that_is_none_says_so(tmp_path):
    """A path that was mistyped, a file that was not fetched whole."""
    library = tmp_path / "libprovider.so"
    library.write_bytes(b"not a library")

    (finding,) = probe_facts(("built-in", f"plugin:{library}")).findings

    assert "cannot be registered" in finding.text


def test_a_runtime_that_was_removed_is_a_finding_and_the_rest_runs(tmp_path):
    """An operator's file names a folder that is not there any more: the CPU still serves."""
    facts, selection = recognise([f"folder:{tmp_path / 'gone'}", "nonsense"])

    assert [each.provider for each in facts.ep_devices] == ["CPUExecutionProvider"]
    assert selection.profile.name
    assert [each.probe for each in facts.findings] == [f"folder:{tmp_path / 'gone'}", "nonsense"]
    assert all(each.text for each in facts.findings)
