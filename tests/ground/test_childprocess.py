"""Core's end of a conversation with a child that may hang, die or never listen."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent.childprocess import LAST_WORDS_BYTES, LONGEST_MESSAGE_BYTES, WAITING_BYTES, Child


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that starts a Python script as a child; gives it and what it says, its exit status last."""
    children = []

    def run(body: str) -> tuple[Child, queue.SimpleQueue]:
        script = tmp_path / "child.py"
        script.write_text("import json, sys, time\n" + body)
        monkeypatch.setattr("agent.childprocess.command_line", lambda role: [sys.executable, str(script)])
        said: queue.SimpleQueue = queue.SimpleQueue()
        children.append(Child("test", on_message=said.put, on_exit=said.put))
        return children[-1], said

    yield run
    for child in children:
        child.kill()


def test_messages_arrive_in_order_and_the_end_of_input_is_the_word_to_leave(start):
    child, said = start("for line in sys.stdin: print(line, end='', flush=True)\n")
    for number in range(500):
        assert child.send({"number": number})
    assert [said.get(timeout=20)["number"] for _ in range(500)] == list(range(500))
    child.close_input()
    assert said.get(timeout=20) == 0


def test_child_that_does_not_listen_blocks_nobody_and_costs_bounded_memory(start):
    """Core has one thread: if it waited for a full pipe, it could not even kill the child that does not read it."""
    child, said = start("time.sleep(600)\n")
    text = "x" * 100_000
    sent = sum(child.send({"text": text}) for _ in range(200))
    assert 0 < sent < 1 + (WAITING_BYTES + (1 << 17)) // len(text)
    child.stop(grace_s=0.1)
    assert said.get(timeout=20) == -9


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups that can be killed")
def test_what_a_killed_child_had_started_is_killed_too(start):
    """A vendor's compiler runs processes of its own, which would keep the cores busy for minutes."""
    child, said = start(
        "import subprocess\n"
        "compiler = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'pid': compiler.pid}), flush=True)\n"
        "time.sleep(600)\n"
    )
    compiler = psutil.Process(said.get(timeout=20)["pid"])
    child.kill()
    assert said.get(timeout=20) == -9
    with contextlib.suppress(psutil.NoSuchProcess):
        assert compiler.status() == psutil.STATUS_ZOMBIE or compiler.wait(20) is None


FORK = (
    "import os, signal\n"
    "if (pid := os.fork()) == 0:\n"
    "    {flee}time.sleep(600)\n"
    "print(json.dumps({{'pid': pid}}), flush=True)\n"
    "os.kill(os.getpid(), signal.SIGSEGV)\n"
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("flee", ["", "os.setsid(); "], ids=["in its group", "in a group of its own"])
def test_the_end_of_a_child_is_told_whatever_holds_its_pipes(start, flee):
    """A driver's helper has them from its parent: core waited for ever for the end of a worker that had crashed long before."""
    _, said = start(FORK.format(flee=flee))
    helper = psutil.Process(said.get(timeout=20)["pid"])
    assert said.get(timeout=20) == -signal.SIGSEGV
    if flee:
        helper.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        assert helper.status() == psutil.STATUS_ZOMBIE or helper.wait(20) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent has gone")
def test_child_that_hangs_in_native_code_does_not_outlive_its_parent(tmp_path):
    """A driver that holds Python's lock lets no thread see the end of our input: the process stayed, and kept the device."""
    child, parent = tmp_path / "child.py", tmp_path / "parent.py"
    child.write_text(
        "import ctypes, json, os\n"
        "from agent.childprocess import open_parent_link\n"
        "open_parent_link().send({'pid': os.getpid()})\n"
        "ctypes.PyDLL(None).sleep(600)\n"
    )
    parent.write_text(
        "import sys, time, agent.childprocess as ours\n"
        f"ours.command_line = lambda role: [sys.executable, {str(child)!r}]\n"
        "ours.Child('t', on_message=lambda said: print(said['pid'], flush=True), on_exit=print)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE) as core:
        hung = psutil.Process(int(core.stdout.readline()))
        core.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        assert hung.status() == psutil.STATUS_ZOMBIE or hung.wait(20) is None


def test_a_flood_of_nonsense_is_two_lines_in_the_log(start, caplog):
    """Native code that has gone mad would fill the disk with our complaints about it."""
    _, said = start("print('x\\n' * 100_000, flush=True)\n")
    assert said.get(timeout=20) == 0
    first, last = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert first.endswith("b'x\\n'")
    assert "100001 lines" in last


def test_message_to_a_child_that_has_gone_is_no_error(start):
    """Its exit is told by `on_exit`, once."""
    child, said = start("sys.exit(3)\n")
    assert said.get(timeout=20) == 3
    assert child.send({"is": "late"})
    child.close_input()
    assert said.empty()


@pytest.mark.parametrize(
    "line", ["7", "[" * 100_000, "x" * (LONGEST_MESSAGE_BYTES + 9)], ids=["7", "nested", "endless"]
)
def test_line_that_is_no_message_hides_none(start, line):
    """Native code that has gone mad writes anything; core's reader must outlive it, and not take a number for an exit."""
    _, said = start(f"print({line[0]!r} * {len(line)}, flush=True)\nprint('{{\"is\": 1}}', flush=True)\nsys.exit(5)\n")
    assert said.get(timeout=20) == {"is": 1}
    assert said.get(timeout=20) == 5


def test_child_that_never_ends_a_line_costs_bounded_memory(start):
    """Drivers draw progress bars with carriage returns, for years."""
    child, said = start("sys.stderr.write('10 %\\r' * 1_000_000 + 'end')\n")
    assert said.get(timeout=20) == 0
    assert sum(map(len, child._last_words)) <= 2 * LAST_WORDS_BYTES
    assert child.last_words.endswith("end")


def test_warnings_of_a_childs_logger_stand_in_the_parents_log(start, caplog):
    """What it says on stderr nobody reads while it runs; that every start compiles anew, an operator should hear."""
    _, said = start(
        "import logging\n"
        "from agent.childprocess import open_parent_link\n"
        "open_parent_link().forward_warnings('agent.device')\n"
        "logging.getLogger('agent.device.runtimes').warning('%s is damaged', 'it')\n"
        "logging.getLogger('agent.device.runtimes').info('nothing new')\n"
        "logging.getLogger('agent.sources').warning('a camera')\n"
    )
    assert said.get(timeout=20) == 0
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert record.name == "agent.device.runtimes"
    assert record.getMessage().endswith(": it is damaged")
