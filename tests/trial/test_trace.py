"""The profiler's files, recorded from real runs (`traces/`): what is summed up, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import StateError
from agent.trial import trace as reading
from agent.trial.trace import read_trace

TRACES = Path(__file__).parent / "traces"
"""Four runs each: a tiny classifier and a Loop with a MatMul inside on onnxruntime 1.31.1, UltraFace on OpenVINO 1.24.1."""


def events(name: str) -> list[dict]:
    return json.loads((TRACES / name).read_text())


def durations_ms(name: str, wanted: str) -> list[float]:
    return [event["dur"] / 1000 for event in events(name) if event["name"] == wanted]


@pytest.fixture
def cut(tmp_path):
    """Return a function that writes the first part of a recorded trace, as a killed process leaves it."""

    def write(content: bytes) -> Path:
        path = tmp_path / "cut.json"
        path.write_bytes(content)
        return path

    return write


def test_loading_and_the_first_run_are_left_out():
    """The first run allocates and is many times slower; a share of time with it in would be of no use."""
    trace = read_trace(TRACES / "tiny-cpu.json")

    runs_ms = durations_ms("tiny-cpu.json", "model_run")
    assert trace.runs == 3
    assert trace.run_ms == pytest.approx(sum(runs_ms[1:]) / 3)
    assert all(node.calls == 3 for node in trace.nodes)
    assert trace.nodes_ms <= trace.run_ms
    assert trace.is_whole


def test_operators_gather_their_nodes_and_shares_sum_to_one():
    """The table of operators is what a person reads first."""
    trace = read_trace(TRACES / "tiny-cpu.json")

    assert {each.operator for each in trace.operators} >= {"MatMul", "Softmax"}
    assert sum(each.nodes for each in trace.operators) == len(trace.nodes)
    assert sum(each.share for each in trace.operators) == pytest.approx(1)
    assert trace.share_by_provider == {"CPUExecutionProvider": 1.0}
    assert [each.total_ms for each in trace.operators] == sorted((e.total_ms for e in trace.operators), reverse=True)


def test_a_subgraph_on_an_accelerator_counts_for_its_provider():
    """OpenVINO compiles a whole graph to one node of its own."""
    trace = read_trace(TRACES / "ultraface-openvino.json")

    assert trace.share_by_provider == {"OpenVINOExecutionProvider": 1.0}
    assert [(node.operator, node.calls) for node in trace.nodes] == [("OpenVINO-EP-subgraph_1", 3)]


def test_what_a_loop_contains_is_not_counted_twice():
    """The profiler's time of a Loop holds that of its body: summed up naively, shares of it would exceed the run."""
    trace = read_trace(TRACES / "loop-cpu.json")

    inner, outer = (next(n for n in trace.nodes if n.operator == name) for name in ("MatMul", "Loop"))
    assert (inner.calls, outer.calls) == (9, 3)
    assert outer.total_ms < sum(durations_ms("loop-cpu.json", "again_kernel_time")[1:])
    assert trace.nodes_ms <= trace.run_ms


@pytest.mark.parametrize("removed", [1, 2, 40, 400, 2000])
def test_a_trace_that_a_killed_process_left_is_read_as_far_as_it_is_whole(removed, cut):
    """A provider that dies in the middle of tracing is what one wants to look at."""
    trace = read_trace(cut((TRACES / "tiny-cpu.json").read_bytes()[:-removed]))

    assert 1 <= trace.runs <= 3
    assert all(node.calls == trace.runs for node in trace.nodes)  # the unfinished run is not in it
    assert trace.is_whole is (removed == 1)  # only the newline after the bracket is missing


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "0 whole runs", id="empty"),
        pytest.param(b"[\n", "0 whole runs", id="nothing-in-it"),
        pytest.param(b"\x08\x07ONNX", "no trace of ONNX Runtime", id="a-model"),
        pytest.param(b'{"traceEvents": []}', "no trace of ONNX Runtime", id="another-program's"),
        pytest.param(b"[\n{broken\n{}\n]\n", "line 2 is damaged", id="damaged-in-the-middle"),
        pytest.param(b"[\n{broken\n]\n", "line 2 is damaged", id="damaged-at-the-end-but-closed"),
        pytest.param(b"[\n17\n]\n", "line 2 is no event", id="a-number"),
        pytest.param(b'[\n{"cat":"Session","name":"model_run","dur":NaN}\n]\n', "lasted nan", id="not-a-number"),
        pytest.param(b'[\n{"cat":"Session","name":"model_run"}\n]\n', "line 2 is no event", id="no-duration"),
        pytest.param(b"[\n" + b"[" * 200_000 + b"\n{}\n]", "line 2 is damaged", id="deeper-than-the-stack"),
        pytest.param(b'[\n"' + b"a" * (3 << 20) + b'"\n]', "is damaged", id="an-endless-line"),
    ],
)
def test_what_is_no_trace_is_refused(content, said, cut):
    """The path and what is wrong with it, never a traceback."""
    path = cut(content)

    with pytest.raises(StateError, match=said) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(cut, monkeypatch):
    """A trace is bounded by ONNX Runtime itself; whatever is larger is something else."""
    monkeypatch.setattr(reading, "MOST_BYTES", 100)

    with pytest.raises(StateError, match="limit"):
        read_trace(cut(b" " * 101))


def test_a_missing_trace_is_said(tmp_path):
    """A session without profiling leaves no file."""
    with pytest.raises(StateError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.json")


def test_too_few_runs_are_refused():
    """A share of a single cold run would be shown as if it were typical."""
    with pytest.raises(StateError, match="holds 4 whole runs; more than 4 are needed"):
        read_trace(TRACES / "tiny-cpu.json", warm_up_runs=4)
