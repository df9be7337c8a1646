"""The plan's table: every number that decided, on a serial console's 80 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from agent.cli.plan import print_plan
from agent.cli.plantable import Growing, demand_text
from agent.device.planning.plan import Candidate, Demand, Measurement, Outcome, Plan
from agent.trial.measuring import Loaded
from simulator.clock import VirtualClock

NPU = Candidate("OpenVINOExecutionProvider", "npu", "int8", 1, options=(("precision", "f16"),), runtime="plugin:x")
OTHER = replace(NPU, options=(("precision", "f32"),))
CPU = Candidate("CPUExecutionProvider", "cpu", "int8-dynamic", 2)
GPU = Candidate("CUDAExecutionProvider", "gpu", "fp32", 1)
MEASURED = Measurement(
    200, 120.4, 119.6, 130.2, 145.7, 50.0, 12.34, 815 << 20, {NPU.provider: 374, "CPUExecutionProvider": 12}, 0.973,
    partitions={NPU.provider: 4}, time_share={NPU.provider: 0.61, "CPUExecutionProvider": 0.39},
)  # fmt: skip
PLAN = Plan(
    fingerprint="0123456789abcdef",
    bundle_digest="d" * 64,
    runtime_version="1.31.1",
    profile="intel-core-ultra",
    chosen=NPU,
    reason="OpenVINO npu int8 precision=f16 has the lowest p99, 145.70 ms; next is CPU int8-dynamic ×2 with 150.00 ms.",
    outcomes=(
        Outcome(OTHER, refusal="was not loaded and compiled within 60 s and was killed", cause="failed"),
        Outcome(CPU, replace(MEASURED, nodes={CPU.provider: 386}, partitions={}, time_share={}, golden_agreement=None)),
        Outcome(NPU, MEASURED),
        Outcome(
            GPU, replace(MEASURED, cpu_agreement=0.2, golden_agreement=None), "its outputs agree by 0.200", "wrong"
        ),
    ),
    made_at="2026-11-20T09:00:00Z",
    ranked=(NPU, CPU),
    requested="npu",
    fallback="CUDA gpu fp32: its outputs agree by 0.200",
)


@pytest.fixture
def printed(monkeypatch, capsys):
    """Return a function that prints a plan on a narrow terminal and gives its lines."""
    monkeypatch.setenv("COLUMNS", "80")

    def show(plan: Plan, *others: Plan) -> list[str]:
        print_plan(plan, others)
        return capsys.readouterr().out.splitlines()

    return show


def test_every_number_is_there_and_no_line_is_longer_than_a_serial_console(printed):
    """Wrapped tables are unreadable, and cut off ones hide what was asked for."""
    lines = printed(PLAN)
    text = " ".join(" ".join(lines).split())

    assert max(map(len, lines)) <= 80
    for number in ("120", "146", "12.3", "815", "0.973", "374/386", "4", "61%", "chosen"):
        assert number in text
    assert "was not loaded and compiled within 60 s" in text
    assert "precision=f16" in text
    assert "Fallback: CUDA gpu fp32: its outputs agree by 0.200" in text
    assert "Requested: auto (expected: npu). Chosen: OpenVINO npu int8 precision=f16 (plugin:x)." in text


def test_lower_p99_of_a_short_round_is_told_from_one_that_counts(printed):
    """Else the table contradicts the sentence below it: the choice "has the lowest p99", and another line a lower one."""
    quick = Outcome(replace(CPU, threads=1), replace(MEASURED, p99_ms=1.0), dropped_in=1)
    lines = printed(replace(PLAN, outcomes=(*PLAN.outcomes, quick)))

    assert any(line.startswith("CPU int8-dynamic ×1") and line.split()[-1] == "dropped" for line in lines)
    assert "dropped: it works, and was behind after a short round" in " ".join(lines)
    assert not any("dropped" in line for line in printed(PLAN))


def test_what_passed_stands_first_in_its_rank_and_the_refused_last(printed):
    """The table is read from the top: the choice, what would take over, and what will not."""
    lines = printed(PLAN)

    names = [
        line.split()[0] + line.split()[-1] for line in lines[1:8] if line.split()[-1] in ("chosen", "passed", "refused")
    ]
    assert names == ["OpenVINOchosen", "CPUpassed", "CUDArefused"]


def test_a_share_that_was_not_traced_is_not_invented(printed):
    """All nodes on one provider is all of the time; anything else is known from a trace only."""
    untraced = replace(PLAN, outcomes=(PLAN.outcomes[1], Outcome(NPU, replace(MEASURED, time_share={}))))

    rows = {line.split()[0]: line for line in printed(untraced)[1:] if line}

    assert "100%" in rows["CPU"]
    assert "%" not in rows["OpenVINO"]


@pytest.mark.parametrize(("objective", "header", "number"), [("throughput", "Runs/s", "16.6"), ("power", "mJ", "987")])
def test_the_objectives_own_number_has_a_column(printed, objective, header, number):
    """What decided must be on the table, still within 80 columns."""
    measured = replace(MEASURED, runs_per_s=16.6, energy_mj_per_run=987.0)
    plan = replace(PLAN, demand=Demand(objective=objective, streams=2), outcomes=(Outcome(NPU, measured),))

    lines = printed(plan)

    assert header in lines[0]
    assert number in " ".join(lines)
    assert max(map(len, lines)) <= 80


def test_other_stored_plans_are_named_with_their_demand(printed):
    """Two models of a device may ask for two plans of one bundle."""
    other = replace(PLAN, demand=Demand("throughput", 4, 2, "gpu", is_required=True), chosen=GPU)

    text = " ".join(" ".join(printed(PLAN, other)).split())

    assert "for latency. Profile" in text
    assert "Also stored: for throughput of 4 streams with 2 cores on gpu, all nodes there" in text


def test_demand_in_words():
    """The least that says it."""
    assert demand_text(Demand()) == "for latency"
    assert demand_text(Demand(cores=1)) == "for latency with 1 core"


def test_compiling_and_measuring_are_two_things():
    """Minutes of `measuring` would look like a device that hangs."""
    clock = VirtualClock()
    growing = Growing(Demand(), clock)

    def shown() -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(growing.table())
        return capture.get()

    growing.add(NPU)
    clock.advance(43)
    assert "loading 43 s" in shown()
    growing.add(Loaded(NPU))
    assert "measuring" in shown()
    growing.add(Outcome(NPU, MEASURED))
    assert "passed" in shown()
    assert "measuring" not in shown()
