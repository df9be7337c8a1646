"""What a trace is a symptom of: each rule speaks where its cure would pay, and is silent where it would not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.device.planning.plan import Candidate
from agent.trial.symptoms import symptoms
from agent.trial.trace import NodeTime, OperatorTime, Trace, read_trace

TRACES = Path(__file__).parent / "traces"
CPU, NPU = "CPUExecutionProvider", "QNNExecutionProvider"
ON_CPU, ON_NPU = Candidate(CPU, "cpu", "fp32", 1), Candidate(NPU, "npu", "int8-qnn", 1)


def made(*rows: tuple[str, str, int, float], run_ms: float | None = None) -> Trace:
    """Return a trace of one run from (operator, provider, nodes, ms) rows."""
    total_ms = sum(ms for *_, ms in rows)
    nodes = tuple(
        NodeTime(f"{op}{i}", op, provider, 1, ms / count) for op, provider, count, ms in rows for i in range(count)
    )
    operators = tuple(OperatorTime(op, provider, n, n, ms, ms / total_ms) for op, provider, n, ms in rows)
    shares = {name: sum(ms for _, provider, _, ms in rows if provider == name) / total_ms for _, name, _, _ in rows}
    return Trace(1, total_ms if run_ms is None else run_ms, nodes, operators, shares, is_whole=True)


CASES = [
    pytest.param(
        made(("QNN_1", NPU, 1, 8.0), ("Resize", CPU, 2, 1.5), ("TopK", CPU, 1, 0.5)), ON_NPU,
        "3 of 4 nodes, 20% of the time, ran on CPU instead of QNN: Resize ×2, TopK ×1", id="fell-back",
    ),
    pytest.param(
        made(("MatMul", CPU, 5, 9.5), ("MemcpyToHost", CPU, 4, 0.5)), ON_CPU,
        "4 copies between host and device inside the graph take 5% of the time", id="to-and-fro",
    ),
    pytest.param(
        made(("Conv", CPU, 5, 8.0), ("Transpose", CPU, 6, 1.5), ("ReorderOutput", CPU, 1, 0.5)), ON_CPU,
        "7 nodes that only reorder memory take 20% of the time", id="layout",
    ),
    pytest.param(
        made(("MatMul", CPU, 9, 7.0), ("ReduceMean", CPU, 8, 1.0), ("Sqrt", CPU, 4, 0.5), ("Div", CPU, 4, 1.5)), ON_CPU,
        "4 LayerNormalization patterns were not fused; their parts take up to 30% of the time", id="layer-norm",
    ),
    pytest.param(
        made(("MatMul", CPU, 9, 7.0), ("Erf", CPU, 3, 2.0), ("Mul", CPU, 6, 1.0)), ON_CPU,
        "3 GELU patterns were not fused; their parts take up to 30% of the time", id="gelu",
    ),
    pytest.param(
        made(("MatMul", CPU, 12, 8.0), ("Softmax", CPU, 3, 1.0), ("Transpose", CPU, 9, 0.5)), ON_CPU,
        "3 attention patterns were not fused; their parts take 100% of the time", id="attention",
    ),
    pytest.param(
        made(("QLinearConv", CPU, 9, 8.0), ("QuantizeLinear", CPU, 20, 1.0), ("DequantizeLinear", CPU, 20, 1.0)), ON_CPU,
        "40 nodes that only quantize or dequantize take 20% of the time", id="quantizers",
    ),
    pytest.param(
        made(("MatMul", CPU, 10, 5.0), ("Mul", CPU, 20, 3.0), ("Add", CPU, 20, 2.0)), ON_CPU,
        "40 of 50 nodes are small elementwise operators and take 50% of the time", id="elementwise",
    ),
    pytest.param(
        made(("MatMul", CPU, 100, 1.0), run_ms=2.5), ON_CPU,
        "50% of a run passed between nodes: 100 nodes of 10 µs each", id="idle",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("trace", "candidate", "said"), CASES)
def test_a_symptom_is_told_with_its_numbers_and_one_cure(trace, candidate, said):
    """A table of forty operators tells an expert; a sentence with a cure tells everybody."""
    found = symptoms(trace, candidate)

    assert len(found) == 1
    assert said in found[0].text
    assert found[0].cure
    assert "\n" not in found[0].text + found[0].cure


def test_a_cure_is_none_that_was_taken_already():
    """Nobody builds fp32-fused from fp32-fused, or takes fewer threads than one."""
    attention = made(("MatMul", CPU, 12, 8.0), ("Softmax", CPU, 3, 1.0), ("Transpose", CPU, 9, 0.5))
    idle = made(("MatMul", CPU, 100, 1.0), run_ms=2.5)
    cures = [
        symptoms(trace, replace(ON_CPU, variant=variant, threads=threads))[0].cure
        for trace, variant, threads in (
            (attention, "fp32", 1), (attention, "fp32-fused", 1), (idle, "fp32", 2), (idle, "fp32", 1),
        )
    ]  # fmt: skip
    assert ["fp32-fused" in cure for cure in cures[:2]] == [True, False]
    assert ["threads" in cure for cure in cures[2:]] == [True, False]


def test_batch_norms_that_were_not_folded_show_in_a_real_trace():
    """UltraFace as published lists its weights as inputs, which costs it more than half of its speed."""
    found = symptoms(read_trace(TRACES / "ultraface-shipped-cpu.json"), ON_CPU)

    assert [each.text for each in found] == ["35 BatchNormalization nodes were not folded into their convolutions"]
    assert "holdfast bundle build" in found[0].cure


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(made(("Conv", CPU, 50, 9.5), ("Transpose", CPU, 4, 0.3), ("Mul", CPU, 4, 0.2)), id="a-detector"),
        pytest.param(made(("QLinearConv", CPU, 50, 9.5), ("QuantizeLinear", CPU, 1, 3.0)), id="quantized-throughout"),
        pytest.param(made(("Mul", CPU, 3, 0.003), ("Add", CPU, 3, 0.003), run_ms=0.05), id="a-model-of-microseconds"),
        pytest.param(made(("MatMul", CPU, 94, 0.66), run_ms=1.08), id="the-profilers-own-time"),
        pytest.param(
            made(("Gemm", CPU, 9, 8.0), ("Conv", CPU, 1, 0.5), ("Transpose", CPU, 9, 1.5)), id="no-convolutions"
        ),
        pytest.param(made(("MatMul", CPU, 8, 9.0), ("Attention", CPU, 2, 0.5), ("Softmax", CPU, 1, 0.5)), id="fused"),
    ],
)
def test_a_healthy_trace_has_no_symptoms(trace):
    """Advice that is always given is never read."""
    assert symptoms(trace, ON_CPU) == ()


def test_an_accelerator_that_took_all_nodes_has_no_fallback():
    """OpenVINO compiles the whole graph to one node."""
    candidate = Candidate("OpenVINOExecutionProvider", "cpu", "fp32", 1)

    assert symptoms(read_trace(TRACES / "ultraface-openvino.json"), candidate) == ()
