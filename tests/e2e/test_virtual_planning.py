"""Every way in which an accelerator can be good, bad or absent when it is chosen, through the real agent: probe, trials, policy.

The hardware is declared (simulator/hardware.py), everything else is what runs on a device. Each camera speaks for every picture,
and pictures are numbered: an event that is lost, or made twice, leaves a gap or a repetition.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from agent.paths import StatePaths
from simulator.broker import Mosquitto, find_mosquitto
from tests.conftest import missing
from tests.e2e.accelerated import (
    CPU,
    HURRY,
    SWIFT,
    Board,
    device,
    ep,
    nothing_is_lost,
    severity,
    text,
)

# -- planning: seventeen devices at once, each with its own trouble ----------------------------------------------------------


DEVICES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "Swift": ({}, None, ""),
    "Partial": ({"run_ms": 12, "unsupported_ops": ["Softmax"], "error": 0.002}, None, ""),
    "Absent": ({"absent_driver": "libabsent.so: cannot open"}, "unusable", r"present but unusable: .*libabsent\.so: cannot open"),
    "Clumsy": ({"crash_on_compile": True, "spares_small": False}, "unusable", r"trying it: .*SIGABRT.*the compiler crashed"),
    "Liar": ({"wrong_results": "zeros", "spares_small": False}, "unusable", "computes wrongly"),
    "Unbuilt": ({"fails_on_compile": "no memory on the device"}, "failed", "no memory on the device"),
    "Stuck": ({"hang_on_compile": True}, "failed", "was not loaded and compiled within 3 s and was killed"),
    "Crashing": ({"crash_on_compile": True}, "failed", r"SIGABRT.*Crashing: the compiler crashed"),
    "Wrong": ({"wrong_results": "negated"}, "wrong", r"agrees with the golden answers by 0\.000; at least 0\.990"),
    "Fickle": ({"wrong_results": "negated", "wrong_after": 24}, "failed", "other outputs for the same input after a while"),
    "Undefined": ({"wrong_results": "nan"}, "failed", "NaN|no numbers|not finite"),
    "Scattered": ({"supported_ops": ["Softmax", "Conv", "FusedConv"]}, "misplaced", rf"only 20% .*{CPU} 4, \w+ 1"),
    "Slow": ({"run_ms": 60}, "slow", r"worse than the CPU: (p99|median) \d+\.\d\d ms, where CPU fp32 ×1 has \d+\.\d\d ms"),
    "Greedy": ({"leaks_mb": 20}, "memory", r"MiB.*limit is 400 MiB|400 MiB"),
    "Dying": ({"dies_after": 20}, "failed", "Dying failed while running: the device does not answer any more"),
    "Fragile": ({"crashes_after": 20}, "failed", "SIGABRT.*Fragile: the driver crashed"),
    "Frozen": ({"hangs_after": 20}, "failed", "gave no answer within 4 s and was killed"),
}  # fmt: skip
"""By name: what is declared, the cause of the refusal (None: it passes), and what the refusal says."""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """Return a board with all of them, and with two libraries that crash and hang; its plan is made."""
    if find_mosquitto() is None:
        missing("the program mosquitto")
    from tests.e2e.conftest import Holdfast

    folder = tmp_path_factory.mktemp("planned")
    with Mosquitto(folder / "broker") as broker, Board(Holdfast(folder), broker, HURRY) as board:
        board.declare(*(device(name, **declared) for name, (declared, _, _) in DEVICES.items()))
        board.try_on(*((ep(name), "npu") for name in DEVICES), limits={"compile_s": 3, "trial_s": 4})
        for trouble in ("crash", "hang"):
            file = folder / f"{trouble}.yaml"
            file.write_text(
                f"accelerators: [{{provider: {ep('Bad')}, name: Bad, run_ms: 1, {trouble}_on_register: true}}]"
            )
            board.runtimes.append(f"virtual:{file}")
        board.start()
        board.until(lambda: bool(board.plans() and board.info.get("device")), "a plan", within_s=180)
        board.stop()
        yield board


@pytest.mark.parametrize("name", [name for name, (_, cause, _) in DEVICES.items() if cause])
def test_each_bad_device_is_refused_for_its_own_reason(planned: Board, name: str) -> None:
    """The plan has the reason in words, with the numbers, and no device's trouble is another's."""
    _, cause, text = DEVICES[name]
    outcome = planned.outcome(ep(name))
    assert outcome.cause == cause, outcome
    assert re.search(text, outcome.refusal or "", re.DOTALL), outcome.refusal


def test_the_fastest_that_answers_right_is_chosen_and_the_rest_are_ranked(planned: Board) -> None:
    """Not the first listed, and not on paper: by the p99 that was measured."""
    plan = planned.plan()
    assert [each.provider for each in plan.ranked] == [SWIFT, ep("Partial"), CPU]
    assert plan.chosen.provider == SWIFT
    assert re.match(r"Swift npu fp32 has the lowest (p99|median), \d+\.\d\d ms; next is ", plan.reason)


def test_partial_placement_is_counted(planned: Board) -> None:
    """Four nodes in two parts on the device, one on the processor: it passes, and nobody need guess."""
    measured = planned.outcome(ep("Partial")).measurement
    assert measured is not None
    assert (measured.nodes, measured.partitions) == ({ep("Partial"): 4, CPU: 1}, {ep("Partial"): 2, CPU: 1})


def test_unusable_device_is_listed_with_its_reason(planned: Board) -> None:
    """Present but unusable is something else than not there: somebody forgot a driver."""
    devices = {each["provider"]: each for each in planned.info["device"]["ep_devices"]}
    assert set(devices) == {ep(name) for name in DEVICES} | {CPU}
    assert "libabsent.so" in devices[ep("Absent")]["unusable"]
    assert devices[SWIFT]["unusable"] is None


def test_library_that_crashes_or_hangs_is_a_finding(planned: Board) -> None:
    """The agent starts, the other runtimes are there, and the words of the driver are kept."""
    said = {name: text for name, text in planned.all_conditions if name.startswith("probe/")}
    (crash,) = (text for name, text in said.items() if name.endswith("crash.yaml"))
    (hang,) = (text for name, text in said.items() if name.endswith("hang.yaml"))
    assert re.search("SIGABRT.*Bad: the driver crashed while it was registered", crash, re.DOTALL)
    assert "gave no answer within 4 s and was killed" in hang


# -- compiling, and the next starts ----------------------------------------------------------------------------------------


def test_cpu_serves_while_the_accelerator_compiles_and_then_is_swapped(board: Board) -> None:
    """Minutes on some devices: pictures are worked on meanwhile, and the swap loses none.

    The next start measures and compiles nothing. Without what was compiled it compiles again, and that is all. A new driver
    may be faster, slower or broken: with it everything is measured anew.
    """
    board.declare(device("Swift", compile_s=2))
    board.try_on((SWIFT, "npu"))
    board.start()
    board.until(lambda: board.serves(CPU), "events while it compiles")
    assert board.plans() == [], "the interim plan is not stored"
    board.until(lambda: board.serves(SWIFT), "events of the accelerator")
    nothing_is_lost(board)
    made_by = board.providers()
    assert made_by == sorted(made_by, key=[CPU, SWIFT].index), "once swapped it stays"
    (plan,) = board.plans()

    _start_again(board)
    assert board.model()["actual"]["was_prepared"] is True
    board.stop()
    shutil.rmtree(StatePaths(board.holdfast.state).prepared)
    _start_again(board)
    assert board.model()["actual"]["was_prepared"] is False
    board.stop()
    assert set(board.providers()[len(made_by) :]) == {SWIFT}
    assert board.plans() == [plan]

    board.declare(device("Swift", driver_version="2", run_ms=50))
    board.start()
    board.until(lambda: len(board.plans()) == 2, "another plan")
    assert {plan.chosen.provider for plan in board.plans()} == {SWIFT, CPU}
    board.stop()


def _start_again(board: Board) -> None:
    before = len(board.providers())
    board.start()
    board.until(lambda: len(board.providers()) > before, "events after another start")
    board.until(lambda: bool(board.model().get("actual")), "word of what runs")


# -- policy ------------------------------------------------------------------------------------------------------------------


def test_policy_decides_who_runs_when_what_was_asked_for_does_not(board: Board) -> None:
    """`require` does not run and says so, `prefer` runs and says so, `allow` runs. And where it runs is the operator's word.

    The NPU takes no model. The GPU is slower than the processor and leaves a node to it: good for who asks for it, refused for
    who requires all of it.
    """
    board.declare(
        device("Broken", fails_on_compile="no memory on the device"),
        device("Partial", 50, device_type="gpu", unsupported_ops=["Softmax"]),
    )
    board.try_on((ep("Broken"), "npu"), (ep("Partial"), "gpu"))
    bundle = str(board.bundle())
    asked = {"strict": "npu", "loose": "npu", "whole": "gpu", "most": "gpu"}
    cameras = {
        "never": ("strict", "require"), "said": ("strict", "prefer"), "unsaid": ("loose", "allow"),
        "waits": ("whole", "require"), "here": ("most", "prefer"),
    }  # fmt: skip
    board.start(
        models={name: {"bundle": bundle, "run_on": run_on} for name, run_on in asked.items()},
        cameras={name: board.camera(model=model, fallback=fallback) for name, (model, fallback) in cameras.items()},
    )
    board.until(lambda: board.serves(CPU, camera="said") and board.serves(CPU, camera="unsaid"), "events of two")
    board.until(lambda: severity(board, "accelerator-required/never") == "error", "the condition of the one that waits")
    board.until(lambda: severity(board, "accelerator-fallback/strict") == "warning", "the condition of the model")
    assert "no memory on the device" in text(board, "accelerator-fallback/strict")
    assert "`run_on: npu` was asked for" in text(board, "accelerator-required/never")
    board.until(
        lambda: severity(board, "accelerator-required/waits") == "error", "the condition of who requires all of it"
    )
    assert "fallback to CPU EP has been explicitly disabled" in text(board, "accelerator-required/waits")
    board.until(lambda: board.serves(ep("Partial"), camera="here"), "events of who takes most of it")
    board.stop()
    assert "accelerator-fallback/loose" not in dict(board.all_conditions)
    assert board.providers("never") == board.providers("waits") == []
    (plan,) = (plan for plan in board.plans() if plan.chosen.provider == ep("Partial"))
    assert (plan.requested, plan.fallback) == ("gpu", None)
    assert plan.reason.startswith("`run_on: gpu` was asked for")


def test_objectives_choose_differently_on_the_same_hardware(board: Board) -> None:
    """The fastest alone, the most at a time, and the one that leaves the host asleep are three devices."""
    board.declare(
        device("Quick", 12, cpu_ms=2),
        device("Wide", 28, cpu_ms=0.5, parallel=4, device_type="gpu"),
        device("Calm", 40),
        cpu={"run_ms": 60, "cpu_ms": 15},
    )
    board.try_on((ep("Quick"), "npu"), (ep("Wide"), "gpu"), (ep("Calm"), "npu"))
    bundle = str(board.bundle())
    objectives = {"latency": 1, "throughput": 4, "power": 1}
    board.start(
        models={each: {"bundle": bundle, "objective": each} for each in objectives},
        cameras={
            f"{each}-{number}": board.camera(model=each, pace="own", fps=4)
            for each, cameras in objectives.items()
            for number in range(cameras)
        },
    )
    board.until(lambda: len(board.plans()) == 3, "three plans", within_s=180)
    chosen = {plan.demand.objective: plan.chosen.provider for plan in board.plans()}
    assert chosen == {"latency": ep("Quick"), "throughput": ep("Wide"), "power": ep("Calm")}
    board.stop()
