"""A traced trial in a real child: the file that Perfetto opens, and what is left when the child dies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agent.device.planning.plan import Candidate
from agent.device.profiles.profile import Limits
from agent.errors import CandidateError, StateError
from agent.trial.tracing import trace_candidate

CPU = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
TRACE = Path(__file__).parent / "traces" / "tiny-cpu.json"


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Replace the child by a script that writes a part of a recorded trace where it was asked to, and dies."""

    def use(part: bytes) -> None:
        script = tmp_path / "child.py"
        script.write_text(
            "import json, os, sys\nrequest = json.loads(sys.stdin.readline())\n"
            f"open(request['trace'] + '_2026.json', 'wb').write({part!r})\nos.kill(os.getpid(), 9)\n"
        )
        monkeypatch.setattr("agent.childprocess.command_line", lambda role: [sys.executable, str(script)])

    return use


def test_the_whole_way_through_a_real_child(make_tiny_bundle, tmp_path):
    """The trace is JSON with every event, and the sums are of its runs."""
    target = tmp_path / "trace.json"

    traced = trace_candidate(make_tiny_bundle(), CPU, Limits(), target)

    written = json.loads(target.read_text())
    assert traced.refusal is None
    assert traced.trace.share_by_provider == {"CPUExecutionProvider": 1.0}
    assert traced.trace.is_whole
    assert sum(event["name"] == "model_run" for event in written) == traced.trace.runs + 1
    assert all({"name", "ph", "ts", "pid", "tid"} <= set(event) for event in written)


def test_no_place_for_temporary_files_is_said_in_words(make_tiny_bundle, tmp_path, monkeypatch):
    """A read-only system with no folder for them is no bug of ours, and its owner can name one."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(StateError, match="Read-only file system") as raised:
        trace_candidate(make_tiny_bundle(), CPU, Limits(), tmp_path / "trace.json")
    assert "TMPDIR" in (raised.value.hint or "")


def test_a_child_that_is_killed_leaves_a_trace_that_opens(make_tiny_bundle, tmp_path, pretend):
    """A provider that dies while it is traced is what one wants to look at most."""
    target = tmp_path / "trace.json"
    pretend(TRACE.read_bytes()[:-400])

    traced = trace_candidate(make_tiny_bundle(), CPU, Limits(), target)

    assert "SIGKILL" in traced.refusal
    assert traced.trace.runs >= 1
    assert not traced.trace.is_whole
    assert len(json.loads(target.read_text())) > 10


def test_a_child_that_dies_at_once_says_why(make_tiny_bundle, tmp_path, pretend):
    """There is nothing to sum up, and the reason is the crash, not the file."""
    pretend(b"[\n")

    with pytest.raises(CandidateError, match="left no whole trace.*SIGKILL"):
        trace_candidate(make_tiny_bundle(), CPU, Limits(), tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()


def test_a_candidate_that_cannot_be_opened_leaves_no_trace(make_tiny_bundle, tmp_path):
    """The refusal of the trial is what the operator needs."""
    with pytest.raises(CandidateError, match="not a whole, valid ONNX model"):
        trace_candidate(make_tiny_bundle({"fp32": b"damaged"}), CPU, Limits(), tmp_path / "trace.json")


def test_a_place_that_cannot_be_written_is_said(make_tiny_bundle, tmp_path):
    """A disk that is full or read-only is the operator's to see."""
    with pytest.raises(StateError, match="the trace cannot be written"):
        trace_candidate(make_tiny_bundle(), CPU, Limits(), tmp_path / "none" / "trace.json")
