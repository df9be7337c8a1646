"""What takes over when a provider fails: the whole way down and back, without a process."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.device.planning.plan import Candidate
from agent.health.conditions import ClearCondition, SetCondition
from agent.pipeline.degrading import RETRY_FIRST_S, RETRY_LIMIT_S, STABLE_S, Degrading, Try, Use, WakeAt
from simulator.clock import SeededRandom

NPU = Candidate("VendorExecutionProvider", "npu", "int8", 1, runtime="plugin:vendor")
GPU = Candidate("VendorExecutionProvider", "gpu", "fp16", 1, runtime="plugin:vendor")
GPU_FP32 = Candidate("VendorExecutionProvider", "gpu", "fp32", 1, runtime="plugin:vendor")
OTHER_CPU = Candidate("OpenVINOExecutionProvider", "cpu", "fp32", 2, runtime="folder:/x")
CPU = Candidate("CPUExecutionProvider", "cpu", "int8", 2)
CPU_1 = Candidate("CPUExecutionProvider", "cpu", "int8", 1)


def machine(*ranked):
    return Degrading("m", ranked, SeededRandom(1))


def uses(actions):
    return [each.candidate for each in actions if isinstance(each, Use)]


def conditions(actions):
    return [each for each in actions if isinstance(each, SetCondition | ClearCondition)]


def test_failure_of_the_first_choice_is_answered_by_the_next_best_and_said():
    """Within one frame's error, and never in silence."""
    it = machine(NPU, GPU, CPU)
    use, said, wake = it.failed(NPU, "device lost", 100.0)
    assert use == Use(GPU, (CPU,))
    assert (said.name, said.severity) == ("accelerator-degraded/m", "warning")
    assert "device lost" in said.text and GPU.label in said.text
    assert 100 + RETRY_FIRST_S / 2 <= wake.monotonic_s <= 100 + RETRY_FIRST_S
    assert (it.count, it.is_degraded) == (1, True)


def test_another_variant_on_the_device_that_failed_does_not_take_over():
    """A driver that is gone is gone for fp32 too."""
    it = machine(GPU, GPU_FP32, OTHER_CPU, CPU, CPU_1)
    assert uses(it.failed(GPU, "x", 0.0)) == [OTHER_CPU]
    assert uses(it.failed(OTHER_CPU, "x", 1.0)) == [CPU]


def test_another_device_of_the_same_kind_takes_over_by_its_name():
    """One of two cards was pulled out; the other is as good as ever."""
    fast, slow = (replace(GPU, device=name) for name in ("RTX 3060", "UHD 770"))
    it = machine(fast, replace(fast, variant="fp32"), slow, CPU)
    use, said, _ = it.failed(fast, "device lost", 0.0)
    assert use == Use(slow, (CPU,))
    assert "gpu fp16 on RTX 3060 failed" in said.text
    assert "gpu fp16 on UHD 770 runs meanwhile" in said.text


def test_what_is_slower_than_the_plain_cpu_is_no_fallback():
    """The plan measured it: the plain CPU is better, and it is always there."""
    assert machine(NPU, CPU, GPU).fallbacks == (CPU,)


def test_the_plain_cpu_is_the_end_of_the_way():
    """What fails there is the bundle's or the system's fault: the worker is started again, on the same."""
    it = machine(NPU, CPU, CPU_1)
    it.failed(NPU, "x", 0.0)
    assert it.failed(CPU, "x", 1.0) == []
    assert machine(CPU, CPU_1).failed(CPU, "x", 0.0) == []
    assert machine(CPU, CPU_1, GPU).fallbacks == ()


def test_one_failure_that_is_told_twice_is_answered_once():
    """A provider fails, and its worker crashes in the same moment."""
    it = machine(NPU, GPU, CPU)
    it.failed(NPU, "x", 0.0)
    assert it.failed(NPU, "the worker crashed", 0.1) == []
    assert it.used == GPU


def test_where_nothing_else_passed_the_only_one_is_started_again():
    """Nothing to swap to: supervision restarts it and says so."""
    assert machine(NPU).failed(NPU, "x", 0.0) == []


def test_where_the_last_one_fails_and_no_cpu_passed_that_is_an_error():
    it = machine(NPU, GPU)
    it.failed(NPU, "x", 0.0)
    (said,) = it.failed(GPU, "y", 1.0)
    assert said.severity == "error"


def degraded(now_s=0.0):
    it = machine(NPU, GPU, CPU)
    it.failed(NPU, "x", now_s)
    return it


def test_first_choice_is_tried_again_and_comes_back():
    """An accelerator that was unplugged and put back is used again, with nobody's help."""
    it = degraded()
    at_s = it.retry_at_s
    assert it.tick(at_s - 1) == [WakeAt(at_s)]
    assert it.tick(at_s) == [Try(NPU)]
    assert it.tick(at_s + 1) == [], "one trial at a time"
    assert it.tried(None, at_s + 5) == [Use(NPU, (GPU, CPU), is_return=True)]
    assert it.used == GPU, "what runs runs on until the first choice does"
    assert it.returned(at_s + 6) == [ClearCondition("accelerator-degraded/m")]
    assert (it.used, it.is_degraded, it.reason, it.retry_at_s) == (NPU, False, "", None)


def test_trial_that_is_refused_is_held_again_ever_more_seldom_and_its_reason_is_said():
    """From a minute to a day: a driver that was reset is soon back, one that needs a person is not."""
    it, delays = degraded(), []
    for _ in range(16):
        now_s = it.retry_at_s
        it.tick(now_s)
        wake, said = it.tried("still gone", now_s)
        delays.append(wake.monotonic_s - now_s)
        assert "still gone" in said.text
    assert all(delay <= RETRY_LIMIT_S for delay in delays)
    assert delays[0] < 2 * RETRY_FIRST_S
    assert delays[-1] >= RETRY_LIMIT_S / 2


def test_first_choice_that_passes_and_does_not_start_leaves_what_runs_alone():
    it = degraded()
    it.tick(it.retry_at_s)
    it.tried(None, 70.0)
    wake, said = it.not_returned("no memory", 71.0)
    assert wake.monotonic_s > 71.0 + RETRY_FIRST_S / 2
    assert "no memory" in said.text
    assert it.used == GPU
    assert it.returned(72.0) == [], "a late word of it does not matter"


def back(now_s):
    it = degraded()
    it.tick(now_s)
    it.tried(None, now_s)
    it.returned(now_s)
    return it


def test_delay_goes_on_growing_where_the_first_choice_fails_soon_after_it_came_back():
    """Else a flapping accelerator would cost a trial and two swaps a minute, for ever."""
    it = back(100.0)
    it.failed(NPU, "again", 110.0)
    assert it.retry_at_s - 110.0 >= RETRY_FIRST_S
    it = back(100.0)
    it.failed(NPU, "again", 100.0 + STABLE_S)
    assert it.retry_at_s - 100.0 - STABLE_S <= RETRY_FIRST_S


def test_what_takes_over_may_fail_while_the_first_choice_is_tried_or_comes_back():
    """Everything at once: a bus that dies takes two devices with it. Nothing may be forgotten."""
    it = degraded()
    it.tick(it.retry_at_s)
    assert uses(it.failed(GPU, "y", 61.0)) == [CPU]
    assert uses(it.tried(None, 62.0)) == [NPU]
    it = degraded()
    it.tick(it.retry_at_s)
    it.tried(None, 62.0)
    assert uses(it.failed(GPU, "y", 63.0)) == [CPU]
    assert it.retry_at_s is not None, "the first choice is not forgotten"


WORDS = st.sampled_from(["failed", "late", "failed first", "tick", "passed", "refused", "returned", "not returned"])
RANKED = st.permutations([NPU, GPU, GPU_FP32, OTHER_CPU, CPU, CPU_1]).flatmap(
    lambda order: st.integers(1, len(order)).map(lambda count: tuple(order[:count]))
)


@settings(max_examples=300, deadline=None)
@given(ranked=RANKED, words=st.lists(WORDS, max_size=30))
def test_whatever_happens_in_any_order_something_that_passed_is_used(ranked, words):
    """Never stuck without the plain CPU where it passed; never two answers to one failure; never a way back forgotten."""
    it, now_s, before = Degrading("m", ranked, SeededRandom(2)), 0.0, None
    for word in words:
        now_s += 37.0
        used = it.used
        match word:
            case "failed":
                actions = it.failed(used, "x", now_s)
                if actions and uses(actions):
                    assert it.failed(used, "told twice", now_s) == [], "two answers to one failure"
            case "late":
                actions = it.failed(before, "x", now_s) if before not in (None, used) else []
                assert not uses(actions)
            case "failed first":
                actions = it.failed(it.first, "x", now_s)
            case "tick":
                actions = it.tick(now_s)
            case "passed" | "refused":
                actions = it.tried(None if word == "passed" else "still gone", now_s)
            case "returned":
                actions = it.returned(now_s)
            case _:
                actions = it.not_returned("z", now_s)
        if it.used != used:
            before = used
        assert len(uses(actions)) <= 1
        assert it.used in ranked
        if used.is_plain_cpu and word == "failed":
            assert it.used == used
        if word == "failed" and not used.is_plain_cpu and any(each.is_plain_cpu for each in ranked):
            assert it.used != used, "stuck on what failed, though the plain CPU passed"
            assert it.used.place != used.place
        if it.is_degraded:
            assert it.retry_at_s is not None or it._is_trying or it._is_returning, "the first choice was forgotten"
            assert it.reason
    if any(each.is_plain_cpu for each in ranked):
        for _ in ranked:
            it.failed(it.used, "x", now_s)
        assert it.used.is_plain_cpu


@pytest.mark.parametrize("ranked", [(NPU, GPU, CPU), (CPU,)], ids=["accelerator", "cpu"])
def test_words_that_answer_nothing_change_nothing(ranked):
    it = machine(*ranked)
    assert it.tick(0.0) == it.tried(None, 0.0) == it.returned(0.0) == it.not_returned("x", 0.0) == []
    assert it.used == ranked[0]
