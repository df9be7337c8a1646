"""Every way in which an accelerator can fail while it is used, and come back, through the real agent: worker, policy, degrading.

The hardware is declared (simulator/hardware.py), everything else is what runs on a device. Each camera speaks for every picture,
and pictures are numbered: an event that is lost, or made twice, leaves a gap or a repetition.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

from simulator.hardware import plug, set_trouble, unplug
from tests.e2e.accelerated import (
    CAMERA,
    CPU,
    MODEL,
    SPARE,
    SWIFT,
    Board,
    device,
    ep,
    nothing_is_lost,
    severity,
    swift_and_spare,
    text,
)

if TYPE_CHECKING:
    pass

Printer = Callable[..., None]
SERVING_WITHIN_S = 5.0
PAIR = ep("Pair")


def test_unplugged_device_is_left_at_once_and_taken_back_later(board: Board, printer: Printer) -> None:
    """The next best serves within seconds, no event is lost, somebody is told; and when it is back, it is used again.

    They are two GPUs of one provider, the slower listed first: both are measured, and who requires a GPU is content with either.
    """
    pair = [device("Spare", 12, device_type="gpu"), device("Swift", device_type="gpu")]
    board.declare(*({**each, "provider": PAIR} for each in pair))
    board.try_on((PAIR, "gpu"))
    board.start(cameras={CAMERA: board.camera(fallback="require")})
    board.until(lambda: on_device(board) == "Swift" and board.serves(PAIR), "events of the choice")
    assert re.match("Pair gpu fp32 on Swift has the lowest .* next is Pair gpu fp32 on Spare with", board.plan().reason)
    unplug(board.hardware, "Swift")
    took_s = board.until(lambda: on_device(board) == "Spare", "word of the next best")
    printer(f"accelerator removed: next candidate serving after {took_s:.2f} s (promised: {SERVING_WITHIN_S:g} s)")
    degraded = f"accelerator-degraded/{MODEL}"
    board.until(lambda: "Pair gpu fp32 on Swift failed" in text(board, degraded), "the condition")
    before = len(board.providers())
    board.until(lambda: len(board.providers()) > before, "events of the next best")
    plug(board.hardware, "Swift")
    board.until(lambda: on_device(board) == "Swift", "word of the first choice again")
    board.until(lambda: not severity(board, degraded), "the condition's end")
    nothing_is_lost(board)
    assert any("does not answer any more" in said for name, said in board.all_conditions if name == degraded)
    printer(f"events: {len(board.providers())}, lost: 0")
    assert set(board.providers()) == {PAIR}, "the next best was there: there was no need for the processor"


def on_device(board: Board) -> str:
    """Return which of several devices of one kind the session is on."""
    actual = board.model().get("actual") or {}
    return str(actual.get("device", ""))


def test_required_pipeline_waits_for_its_device_and_goes_on_when_it_is_back(board: Board) -> None:
    """It must not run elsewhere for a minute either, though its neighbour on the same model does.

    What runs in the worker changes, so it is started anew: the neighbour's recording begins again, and nothing is said of gaps.
    """
    board.declare(device("Swift"))
    board.try_on((SWIFT, "npu"))
    board.start(cameras={"strict": board.camera(fallback="require"), "loose": board.camera(fallback="prefer")})
    board.until(lambda: board.serves(SWIFT, camera="strict") and board.serves(SWIFT, camera="loose"), "events of both")
    before = len(board.providers("loose"))
    unplug(board.hardware, "Swift")
    board.until(lambda: severity(board, "accelerator-required/strict") == "error", "the condition")
    board.until(lambda: board.serves(CPU, after=before, camera="loose"), "events of its neighbour")
    before = len(board.providers("strict"))
    plug(board.hardware, "Swift")
    board.until(lambda: board.serves(SWIFT, after=before, camera="strict"), "its events again")
    assert set(board.providers("strict")) == {SWIFT}
    board.stop()


def test_each_way_to_fail_leads_to_the_next_best(board: Board, printer: Printer) -> None:
    """One dies in use, the next one's driver crashes, the third one's hangs: what passed its trial is remembered for this."""
    board.declare(device("Swift", dies_after=500), device("Spare", 12, device_type="gpu"), device("Third", 18))
    board.try_on((SWIFT, "npu"), (SPARE, "gpu"), (ep("Third"), "npu"))
    board.start()
    board.until(lambda: board.serves(SPARE), "events of the second")
    assert board.frames() == list(range(len(board.frames()))), "a device that dies costs no event"
    set_trouble(board.hardware, "Spare", "crashes")
    crash_s = board.until(lambda: board.serves(ep("Third")), "events of the third")
    before = len(board.providers())
    set_trouble(board.hardware, "Third", "hangs")
    hang_s = board.until(lambda: board.serves(CPU, after=before), "events of the processor")
    printer(f"driver crashed: next serving after {crash_s:.2f} s; driver hung: after {hang_s:.2f} s")
    assert "it hung: an inference for door" in board.holdfast.log(), "what saw it was the watch over whole sources"
    order = [provider for provider, _ in groupby(board.providers())]
    assert order[-4:] == [SWIFT, SPARE, ep("Third"), CPU]
    degraded = f"accelerator-degraded/{MODEL}"
    board.until(lambda: "CPU fp32" in text(board, degraded), "the condition")
    assert "Swift npu fp32 failed" in text(board, degraded)
    board.stop()


def test_device_that_becomes_slow_is_measured_again(board: Board) -> None:
    """Throttled to an eighth of its speed it is worse than what it was chosen over; the live p99 is what tells."""
    swift_and_spare(board, slow_factor=8)
    board.start()
    board.until(lambda: board.serves(SWIFT), "events of the choice")
    set_trouble(board.hardware, "Swift", "slow")
    board.until(lambda: f"slower-than-planned/{MODEL}" in dict(board.all_conditions), "the condition")
    board.until(lambda: board.serves(SPARE), "events of what is faster now")
    nothing_is_lost(board)
    assert board.plan().chosen.provider == SPARE


def test_device_that_could_not_be_used_is_found_when_it_can(board: Board) -> None:
    """A driver that is repaired, or a stick plugged in, days after the start: nobody is there to start the agent again."""
    board.declare(device("Swift"))
    board.try_on((SWIFT, "npu"))
    unplug(board.hardware, "Swift")
    board.start(
        models={MODEL: {"bundle": str(board.bundle()), "run_on": "npu"}},
        cameras={CAMERA: board.camera(), "strict": board.camera(fallback="require")},
    )
    board.until(lambda: board.serves(CPU), "events of the processor")
    board.until(lambda: severity(board, "accelerator-required/strict") == "error", "the condition")
    plug(board.hardware, "Swift")
    board.until(lambda: board.serves(SWIFT) and board.serves(SWIFT, camera="strict"), "events of what was asked for")
    board.until(
        lambda: not {"accelerator-required/strict", f"accelerator-fallback/{MODEL}"} & set(board.conditions), "the end"
    )
    board.stop()
