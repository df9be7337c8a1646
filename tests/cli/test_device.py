"""`holdfast device`: text and JSON say the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from agent.cli.acceleratorchecks import accelerator_checks
from agent.cli.device import app, facts_table
from agent.device.facts import Accelerator, EpDevice, Facts, Finding
from agent.device.hardware.gathering import gather
from agent.device.survey.absence import Absence
from agent.paths import StatePaths

CPU = EpDevice("CPUExecutionProvider", "cpu")
NPU = EpDevice(
    "OpenVINOExecutionProvider", "npu", "Intel", driver_version="32.0", runtime="plugin:openvino", library_version="1.8"
)
CHIP = Accelerator("npu", "Intel", "Intel NPU [8086:7d1d]", "intel_vpu", "1.0", "OpenVINOExecutionProvider", "no hint")
CARD = Accelerator("gpu", "NVIDIA", "NVIDIA GPU [10de:2504]", hint="install its driver")


def test_show_as_json_and_as_text():
    """The same facts for a script and for a person."""
    as_json = CliRunner().invoke(app, ["show", "--json"])
    as_text = CliRunner().invoke(app, ["show"])

    facts = json.loads(as_json.stdout)
    assert facts["cpu"]["physical_cores"] >= 1
    assert facts["ep_devices"]
    assert facts["fingerprint"] in as_text.stdout
    assert "CPUExecutionProvider" in as_text.stdout


def test_findings_are_shown_whatever_they_hold(capsys):
    """A driver's last words may look like markup, and must not break the page that explains them."""
    Console().print(facts_table(replace(gather(), findings=(Finding("runtime", "[/red] crashed [bold"),))))

    assert "[/red] crashed [bold" in capsys.readouterr().out


@pytest.fixture
def sees(monkeypatch, tmp_path):
    """Return a function that says what every probe finds from now on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))

    def see(*devices: EpDevice, accelerators: tuple[Accelerator, ...] = ()) -> Facts:
        facts = replace(
            gather(tmp_path, system="linux"), runtime_version="1", ep_devices=(CPU, *devices), accelerators=accelerators
        )
        monkeypatch.setattr("agent.device.survey.recognition.probe_facts", lambda *_, **__: facts)
        return facts

    return see


def show(*options: str) -> str:
    return CliRunner().invoke(app, ["show", *options], env={"COLUMNS": "400"}).stdout


def test_show_leaves_out_what_an_older_provider_could_drive_and_nobody_has_seen(sees):
    """The classic OpenVINO lists no devices, so its GPU and NPU are tried everywhere: a laptop without one lacks nothing."""
    classic = EpDevice("OpenVINOExecutionProvider", "npu", runtime="folder:/opt/openvino", unusable="runs none of it")
    sees(classic, replace(classic, device_type="cpu", unusable=None))

    assert "OpenVINOExecutionProvider npu" not in show()
    assert json.loads(show("--json"))["ep_devices"][1]["unusable"] == "runs none of it"


def test_show_says_what_is_installed_in_vain(sees):
    """Who installed `onnxruntime-gpu` on a box without a GPU must not find that nothing is said of it."""
    sees(EpDevice("CUDAExecutionProvider", "gpu", unusable="no [CUDA] device"))

    text = show()

    assert "Unusable" not in text, "nothing is missing: there is no such card"
    assert "CUDAExecutionProvider gpu: ONNX Runtime brings it, but the system lists no such device" in text


def test_show_names_what_brings_a_device_and_why_one_is_of_no_use(sees):
    """Somebody who bought an NPU wants to know who uses it, or what keeps it from being used."""
    sees(NPU, replace(NPU, device_type="gpu", unusable="no [firmware]"), accelerators=(CHIP, CARD))

    text = show()

    assert "OpenVINOExecutionProvider npu Intel driver 32.0 by plugin:openvino 1.8" in text
    assert "Unusable" in text
    assert "no [firmware]" in text
    assert "Intel NPU [8086:7d1d], driver intel_vpu 1.0: used by OpenVINOExecutionProvider" in text
    assert "NVIDIA GPU [10de:2504], no driver: nothing uses it; install its driver" in text
    as_json = json.loads(show("--json"))
    assert [each["unusable"] for each in as_json["ep_devices"]] == [None, None, "no [firmware]"]
    assert as_json["accelerators"][1]["hint"] == "install its driver"


def test_show_tells_equal_cards_apart(sees):
    """Two lines that are the same word for word help nobody who looks for the broken one."""
    sees(*(replace(NPU, name="Arc", metadata=(("pci_bus_id", f"0000:0{bus}:00.0"),)) for bus in (1, 3)))

    assert "Intel Arc 0000:01:00.0 driver" in show()
    assert "Intel Arc 0000:03:00.0 driver" in show()


def test_accept_makes_what_is_there_the_expected(sees, tmp_path):
    """The card was sold: from now on nobody misses it."""
    absence = Absence(StatePaths(tmp_path).accelerators)
    absence.look(sees(NPU, accelerators=(CHIP, CARD)))
    assert [each.name for each in absence.look(sees())]

    accepted = CliRunner().invoke(app, ["accept"])

    assert accepted.exit_code == 0
    assert (
        "expected no more: OpenVINOExecutionProvider-npu, intel-npu-8086-7d1d, nvidia-gpu-10de-2504" in accepted.stdout
    )
    assert Absence(StatePaths(tmp_path).accelerators).look(sees()) == []
    again = json.loads(CliRunner().invoke(app, ["accept", "--json"]).stdout)
    assert again == {"expected": [], "unusable": [], "gone": []}


def test_doctor_says_what_is_missing_unusable_or_unused(sees, tmp_path):
    """The same as the agent's conditions, for somebody who stands before the box."""
    Absence(StatePaths(tmp_path).accelerators).look(sees(accelerators=(CHIP,)))
    facts = sees(replace(NPU, unusable="no firmware"), accelerators=(CARD,))

    found = [(each.verdict, each.text, bool(each.advice)) for each in accelerator_checks(facts, tmp_path)]

    assert found == [
        ("warn", "intel-npu-8086-7d1d was here at an earlier start and is not any more", True),
        ("warn", "OpenVINOExecutionProvider-npu cannot be used: no firmware", True),
        ("ok", "NVIDIA GPU [10de:2504]: nothing uses it", True),
    ]


def test_runtimes_of_the_operators_file_are_asked(tmp_path, monkeypatch):
    """`device show` and the agent must see the same device."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holdfast.yaml").write_text("device: {runtimes: ['folder:/nowhere']}\n")

    facts = json.loads(show("--json"))

    assert [each["probe"] for each in facts["findings"]] == ["folder:/nowhere"]
