"""The probe as core sees it: facts, whatever a driver does to a child."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from agent.atomicfile import LARGEST_BYTES
from agent.device.facts import EpDevice
from agent.device.hardware.gathering import gather
from agent.device.survey.probing import probe_facts
from agent.device.survey.tried import DeviceKind, Tried, kind_of

CPU = EpDevice("CPUExecutionProvider", "cpu")
NPU = EpDevice("XExecutionProvider", "npu", vendor="X", runtime="plugin:x")
DIE = "print('vendor.so: oops', file=sys.stderr); sys.stderr.flush(); os.kill(os.getpid(), 11)"
HANG = "time.sleep(60)"
WORKS = "say({'is': 'tried', 'unusable': None})"


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Replace the probe by a script: Python for each question, `gather`, `list` and `try`; `asked` has them all."""

    def use(*, gather_: str | None = None, list_: str = "", try_: str = WORKS, devices: tuple[EpDevice, ...] = ()):
        facts = replace(gather(), runtime_version="1.31", ep_devices=(CPU, *devices)).to_json()
        bodies = {
            "gather": gather_ or f"say({{'is': 'facts', 'facts': json.loads({json.dumps(facts)!r})}})",
            "list": list_ or f"say({{'is': 'devices', 'devices': {[asdict(NPU)]!r}}})",
            "try": try_,
        }
        script = tmp_path / "child.py"
        script.write_text(
            "import json, os, sys, time\n"
            "def say(message): print(json.dumps(message), flush=True)\n"
            "question = json.loads(sys.stdin.readline())\n"
            f"print(question, os.getpid(), file=open({str(tmp_path / 'asked')!r}, 'a'))\n"
            f"exec({bodies!r}[question['is']])\n"
        )
        monkeypatch.setattr("agent.childprocess.command_line", lambda role: [sys.executable, str(script)])

    return use


@pytest.fixture
def asked(tmp_path):
    """Return a function that gives each question asked so far, as text."""

    def read() -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (tmp_path / "asked").read_text().splitlines()
        return []

    return read


def test_finds_the_cpu_provider_and_the_runtime():
    """The real child, the real runtime."""
    facts = probe_facts()

    assert facts.findings == ()
    assert facts.runtime_version
    assert ("CPUExecutionProvider", "cpu") in {(device.provider, device.device_type) for device in facts.ep_devices}
    assert probe_facts().fingerprint == facts.fingerprint


def test_cpu_alone_is_one_child(pretend, asked):
    """Most devices have nothing else, and must not pay for what others have."""
    pretend()

    assert probe_facts().ep_devices == (CPU,)
    assert len(asked()) == 1


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        pytest.param(DIE, ("SIGSEGV", "vendor.so: oops"), id="crash"),
        pytest.param(HANG, ("no answer within 0.5 s",), id="hang"),
        pytest.param("sys.exit(4)", ("exited with 4",), id="exit"),
        pytest.param("say({'is': 'facts', 'facts': {'os': 3}})", ("is no facts",), id="lie"),
        pytest.param("say({'is': 'facts'})", ("is no facts",), id="empty"),
    ],
)
def test_a_driver_that_misbehaves_is_a_finding(pretend, body, texts):
    """A crashing vendor driver costs its accelerator, never the agent."""
    pretend(gather_=body)

    facts = probe_facts(timeout_s=0.5 if body == HANG else 20)

    assert facts.ep_devices == ()
    assert facts.cpu.physical_cores >= 1
    (finding,) = facts.findings
    assert finding.probe == "runtime"
    assert all(text in finding.text for text in texts)


def test_a_device_that_takes_nothing_is_shown_with_its_drivers_words(pretend):
    """What says why is one line on stderr, between others; `ONNX Runtime gave it all to the CPU` helps nobody."""
    lines = (
        "\x1b[1;31m2026 [E:onnxruntime:Default, bridge.cc:2310 Create] a.cc:141 Device NPU is not available\n\x1b[m",
        "2026 [W:onnxruntime:Default, state.cc:1066 Create] Failed to create XExecutionProvider.",
        "2026 [E:onnxruntime:, session.cc:2466 Init] fallback to CPU EP has been explicitly disabled by the user.",
    )
    said = "X npu probe runs none of this model: ONNX Runtime gave it all to CPUExecutionProvider"
    pretend(try_=f"say({{'is': 'tried', 'unusable': {said!r}}}); print({chr(10).join(lines)!r}, file=sys.stderr)")

    (npu,) = probe_facts(("built-in", "plugin:x")).unusable_devices
    assert npu.unusable == f"{said}; it says: a.cc:141 Device NPU is not available"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(DIE, "was ended by SIGSEGV before it answered; its last words: vendor.so: oops", id="crash"),
        pytest.param(HANG, "gave no answer within 1 s and was killed", id="hang"),
        pytest.param("print('<<garbage>>'); sys.exit(0)", "exited with 0 before it answered", id="garbage"),
        pytest.param(
            "say({'is': 'devices', 'devices': [{'provider': 3}]})", "its answer is no list of devices", id="lie"
        ),
        pytest.param("say({'is': 'devices'})", "its answer is no list of devices", id="empty"),
        pytest.param("say({'is': 'failed', 'text': 'wrong GLIBC'})", "wrong GLIBC", id="refused"),
        pytest.param("say({'is': 'devices', 'devices': []})", "offers no device here", id="no device"),
    ],
)
def test_a_runtime_that_misbehaves_is_a_finding_and_the_others_stay(pretend, body, text):
    """One plugin out of several may be broken; its neighbours and the CPU run."""
    pretend(list_=body)

    facts = probe_facts(("built-in", "plugin:x"), timeout_s=1 if body == HANG else 20)

    assert facts.ep_devices == (CPU,)
    (finding,) = facts.findings
    assert finding.probe == "plugin:x"
    assert text in finding.text


def test_what_to_install_is_said_unless_it_is_there(pretend):
    """Advice that was followed, and stands there still, makes one doubt that it helped."""
    classic = asdict(EpDevice("OpenVINOExecutionProvider", "cpu"))
    pretend(list_=f"say({{'is': 'devices', 'devices': [{classic!r}] if 'folder' in question['runtime'] else []}})")

    (alone,) = probe_facts(("built-in", "plugin:onnxruntime_ep_openvino")).findings
    (beside,) = probe_facts(("built-in", "plugin:onnxruntime_ep_openvino", "folder:/opt/ov")).findings

    assert "pip install --no-deps --target FOLDER onnxruntime-openvino" in alone.text
    assert "Intel processors only" in beside.text
    assert "pip install" not in beside.text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(WORKS, None, id="works"),
        pytest.param("say({'is': 'tried', 'unusable': 'off by 1'})", "off by 1", id="wrong"),
        pytest.param(DIE, "vendor.so: oops", id="crash"),
        pytest.param(HANG, "gave no answer within 1 s and was killed", id="hang"),
        pytest.param("say({'is': 'tried', 'unusable': 7})", "nonsense", id="nonsense"),
        pytest.param("say({'is': 'hello'})", "nonsense", id="another answer"),
    ],
)
def test_a_listed_device_is_tried_and_kept_with_the_reason(pretend, body, text):
    """A device that drivers list and that makes no session is there, and it is said why it is of no use."""
    pretend(try_=body)

    (cpu, npu) = probe_facts(("built-in", "plugin:x"), try_timeout_s=1 if body == HANG else 20).ep_devices

    assert cpu == CPU
    assert replace(npu, unusable=None) == NPU
    assert npu.unusable is None if text is None else text in npu.unusable


@pytest.mark.parametrize("question", ["list_", "try_"])
def test_a_driver_that_eats_memory_is_killed_and_said(pretend, monkeypatch, question):
    """The probe runs beside everything else on the device, and small boards have no swap."""
    monkeypatch.setattr("agent.device.survey.probing.most_memory_bytes", lambda: 100 << 20)
    pretend(**{question: "held = bytearray(300 << 20); time.sleep(60)"})

    facts = probe_facts(("plugin:x",))

    said = facts.findings[-1].text if question == "list_" else facts.ep_devices[-1].unusable
    assert "MiB of memory, where 100 MiB are allowed, and was killed" in said


def test_each_card_is_tried_and_those_that_nothing_tells_apart_once(pretend, asked):
    """One of two GPUs may be broken, whoever shares its driver; where a try cannot say which it means, one is enough."""
    cards = [EpDevice("YExecutionProvider", "gpu", name=name) for name in ("good", "bad", "bad")]
    pretend(
        devices=tuple(cards), try_="say({'is': 'tried', 'unusable': 'no' if question['device'] == 'bad' else None})"
    )

    assert [each.unusable for each in probe_facts().ep_devices] == [None, None, "no", "no"]
    assert len(asked()) == 3


def test_what_worked_is_believed_and_what_did_not_is_tried_again(pretend, asked, tmp_path):
    """A start need not wake every driver again, and a driver that was mended is noticed."""
    tried = Tried(tmp_path / "tried.json")
    pretend(try_="say({'is': 'tried', 'unusable': 'not yet'})")
    assert probe_facts(("plugin:x",), tried=tried).ep_devices[1].unusable == "not yet"

    pretend()
    assert probe_facts(("plugin:x",), tried=tried).ep_devices[1].unusable is None
    assert len(asked()) == 6, "what failed was not tried again"

    pretend(try_=DIE)
    assert probe_facts(("plugin:x",), tried=tried).ep_devices[1].unusable is None
    assert len(asked()) == 8, "what worked was tried again"

    tried.forget()
    assert probe_facts(("plugin:x",), tried=tried).ep_devices[1].unusable


def test_another_driver_or_runtime_makes_it_tried_again(tmp_path):
    """What an older driver could do says nothing of the new one."""
    facts = replace(gather(), runtime_version="1.31", ep_devices=(CPU, NPU))
    tried, kind = Tried(tmp_path / "tried.json"), kind_of(NPU, facts)
    tried.remember(facts, frozenset({kind}))

    assert tried.worked(facts) == {kind} == {DeviceKind("plugin:x", "XExecutionProvider", "npu")}
    assert not tried.worked(replace(facts, runtime_version="1.32"))
    assert not tried.worked(replace(facts, ep_devices=(CPU, replace(NPU, driver_version="2"))))
    assert not tried.worked(replace(facts, ep_devices=(CPU, replace(NPU, library_version="2"))))
    assert tried.worked(replace(facts, ep_devices=(CPU, replace(NPU, unusable="no")))) == {kind}


PIPE = os.mkfifo if hasattr(os, "mkfifo") else Path.mkdir
HUGE = b'{"key": "k", "worked": []}' + b" " * LARGEST_BYTES


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"key": 3}', b"\xff\xfe", b"[" * 99_999, HUGE, PIPE, Path.mkdir], ids=range(9)
)
def test_a_damaged_memory_is_ignored_with_a_log_line(tmp_path, caplog, content):
    """A cache: worth a second, never a start."""
    path = tmp_path / "tried.json"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    facts = replace(gather(), ep_devices=(NPU,))

    assert Tried(path).worked(facts) == frozenset()
    assert "is ignored" in caplog.text
    Tried(path).remember(facts, frozenset({kind_of(NPU, facts)}))
    assert bool(Tried(path).worked(facts)) is (content is not Path.mkdir)


@pytest.mark.parametrize("question", ["gather_", "list_", "try_"])
def test_stop_ends_the_probe_and_leaves_no_child(pretend, asked, question):
    """A driver that hangs must not outlive an agent that is told to stop while it starts."""
    pretend(**{question: HANG})
    stop = threading.Event()
    probing = threading.Thread(target=lambda: probe_facts(("plugin:x", "plugin:y"), 60, stop=stop))
    probing.start()
    while probing.is_alive() and not any(f"'{question[:-1]}'" in line for line in asked()):
        probing.join(0.02)
    assert probing.is_alive(), "it ended before it was asked to"
    stop.set()
    probing.join(10)
    assert not probing.is_alive()
    for line in asked():
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(int(line.split()[-1])).wait(10)


def listing(*devices: EpDevice) -> str:
    return f"say({{'is': 'devices', 'devices': {[asdict(device) for device in devices]!r}}})"


def test_a_driver_that_lists_thousands_is_bounded_and_said(pretend, asked):
    """Each kind is tried in a process of its own: the start would take days."""
    pretend(list_=listing(*(replace(NPU, provider=f"X{number}ExecutionProvider") for number in range(5000))))

    facts = probe_facts(["plugin:x"], stop=StopAfter(asked, 40))

    assert len([device for device in facts.ep_devices if device.runtime == "plugin:x"]) == 32
    assert "it lists 5000 devices; the first 32 count" in facts.findings[-1].text


class StopAfter(threading.Event):
    """Ends a probe that would ask for ever."""

    def __init__(self, asked, most):
        super().__init__()
        self.is_set = lambda: len(asked()) > most


def test_texts_of_a_driver_are_short_and_printable(pretend):
    """They are shown in terminals, kept in plans and sent over MQTT."""
    name = "\x1b[2JNPU" + "x" * 100_000
    pretend(
        list_=listing(replace(NPU, name=name, metadata=((name, name),) * 3)),
        try_="say({'is': 'tried', 'unusable': 'y' * 999_999})",
    )

    device = probe_facts(["plugin:x"]).ep_devices[-1]

    assert device.name.startswith("\\x1b[2JNPUx")
    assert max(map(len, (device.name, device.unusable, *device.metadata[0]))) <= 1000


@pytest.mark.parametrize("provider", ["", "../../evil", "A\nB", "x" * 65, "Ünicode/1"])
def test_a_provider_with_a_strange_name_is_left_out_and_said(pretend, provider):
    """Its name becomes a part of conditions' and folders' names."""
    pretend(list_=listing(replace(NPU, provider=provider), NPU))

    facts = probe_facts(["plugin:x"])

    assert [device.provider for device in facts.ep_devices if device.runtime == "plugin:x"] == [NPU.provider]
    assert "is no name of a provider" in facts.findings[-1].text


def test_core_side_never_imports_native_code():
    """Core must stay alive when ONNX Runtime or OpenCV crash, so it may not load them, by whatever way."""
    code = (
        "import sys, agent.preparation, agent.device.survey.probing, agent.device.profiles.selection\n"
        "import agent.device.planning.candidates, agent.device.planning.planstore\n"
        "import agent.device.survey.absence, agent.trial.planner, agent.trial.running\n"
        "from agent.device.runtimes.catalogue import find_runtimes; find_runtimes()\n"
        "print([name for name in ('onnxruntime', 'cv2', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
