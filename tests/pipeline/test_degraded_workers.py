"""Workers whose accelerator fails while it runs: real processes, declared hardware, real answers."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import yaml

from agent.device.planning.plan import Candidate
from agent.pipeline.supervision import Limits
from simulator.hardware import set_trouble

CPU = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
COLOURS = [(30, 30, 220), (30, 220, 30), (220, 30, 30)]
FRAMES = 300


@pytest.fixture
def colours(tmp_path):
    """A recording whose colour changes with every frame, and a rule that speaks at every change: one event a frame."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "colours.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(FRAMES):
        writer.write(np.full((48, 64, 3), COLOURS[number % 3], np.uint8))
    writer.release()
    return {"source": str(path), "pace": "fast", "rules": {"colour": {"when": "class"}}}


@pytest.fixture
def hardware(tmp_path):
    """Return a function that declares accelerators by name; it returns the candidate of each."""

    def declare(**accelerators):
        path = tmp_path / "board.yaml"
        listed = [
            {"provider": f"{name}ExecutionProvider", "name": name, "run_ms": 0, **more}
            for name, more in accelerators.items()
        ]
        path.write_text(yaml.safe_dump({"accelerators": listed}))
        return path, *(
            Candidate(f"{name}ExecutionProvider", "npu", "fp32", 1, runtime=f"virtual:{path}") for name in accelerators
        )

    return declare


def frames(it, camera="door"):
    """Return the frame of each event but the last, which ends what the recording's end left open."""
    return [event["frame"]["id"] for name, event, _ in it.events if name == camera and event["phase"] != "end"]


def has_finished(it, camera="door"):
    return (beat := it.beat(camera)) and beat["source"] == "finished"


def test_session_that_dies_after_so_many_runs_is_left_and_a_recording_loses_nothing(
    core, make_tiny_bundle, colours, hardware, eventually
):
    """The whole point: the sample at hand is kept, and what failed and what took over are told by every event."""
    _, npu = hardware(Frail={"dies_after": 100})
    it = core(make_tiny_bundle(), of_job={"candidate": npu, "fallbacks": (CPU,)}, door=colours)
    eventually(lambda: (it.turn(), it.troubles)[1])
    ((candidate, reason),) = it.troubles
    assert candidate == npu
    assert "does not answer any more" in reason
    it.degrade(CPU)
    eventually(lambda: has_finished(it))
    assert it.swaps == [("m", None)]
    assert frames(it) == list(range(FRAMES))
    makers = [made_by["ep"] for made_by in it.made_by]
    assert makers == sorted(makers, key=[npu.provider, CPU.provider].index)
    assert it.beat("door")["dropped"] == {}
    assert len(it.troubles) == 1
    assert it.status.restarts == 0
    ready = it.status.ready
    assert (ready["provider"], ready["runtime"], ready["variant"], ready["threads"]) == (
        CPU.provider, "built-in", "fp32", 1,
    )  # fmt: skip
    assert sum(ready["nodes"].values()) > 0
    assert ready["opset"] > 0
    assert list(ready["inputs"].values()) == [[1, 3, 32, 32]]


def test_session_that_dies_with_its_first_sample_after_a_swap_is_left_as_well(
    core, make_tiny_bundle, colours, hardware, eventually
):
    """The failure is told before the swap is: both are about the same job, and the sample waits for an answer."""
    _, npu = hardware(Frail={"dies_after": 3})  # two runs are the warm-up
    it = core(make_tiny_bundle(), door=colours)
    eventually(lambda: (it.turn(), it.events)[1])
    it.workers.swap(replace(it.job, candidate=npu, fallbacks=(CPU,)), "candidate")
    eventually(lambda: (it.turn(), it.troubles)[1], within_s=8)
    assert it.swaps == [("m", None)]
    assert it.troubles[0][0] == npu
    it.degrade(CPU)
    eventually(lambda: has_finished(it))
    assert frames(it) == list(range(FRAMES))
    assert {made_by["ep"] for made_by in it.made_by} == {CPU.provider}


def test_two_pipelines_of_one_session_tell_of_its_failure_once(core, make_tiny_bundle, colours, hardware, eventually):
    """One failure, one answer."""
    _, npu = hardware(Frail={"dies_after": 50})
    job = {"candidate": npu, "fallbacks": (CPU,)}
    it = core(make_tiny_bundle(), of_job=job, door=colours, yard=colours)
    eventually(lambda: (it.turn(), it.troubles)[1])
    it.degrade(CPU)
    eventually(lambda: has_finished(it, "door") and has_finished(it, "yard"))
    assert len(it.troubles) == 1
    assert frames(it, "door") == frames(it, "yard") == list(range(FRAMES))


def test_failure_counts_as_a_crash_of_the_bundle(core, make_tiny_bundle, colours, hardware, eventually):
    """In probation the release is the first to run here with this candidate; what took over does not wash it away."""
    _, npu = hardware(Frail={"dies_after": 50})
    it = core(make_tiny_bundle(), of_job={"candidate": npu, "fallbacks": (CPU,)}, door={**colours, "repeat": True})
    eventually(lambda: (it.turn(), it.troubles)[1])
    assert it.workers.health("m").crashes == 1
    it.degrade(CPU)
    eventually(it.has_swapped)
    eventually(lambda: (it.turn(), it.workers.health("m").samples > 100)[1])
    assert it.workers.health("m").crashes == 1


def test_inference_that_hangs_is_left_after_its_patience_and_not_after_the_stall(
    core, make_tiny_bundle, colours, hardware, eventually
):
    """The worker beats on: only the inference under way tells that the device hangs."""
    _, npu = hardware(Stuck={"hangs_after": 50})
    job = {"candidate": npu, "fallbacks": (CPU,), "patience_s": 0.5}
    it = core(make_tiny_bundle(), of_job=job, door={**colours, "repeat": True})
    eventually(lambda: (it.turn(), it.troubles)[1])
    assert "an inference for door takes longer than 0.5 s" in it.troubles[0][1]
    assert it.workers.health("m").is_stalled
    it.degrade(CPU)
    eventually(it.has_swapped)
    seen = len(it.events)
    eventually(lambda: (it.turn(), len(it.events) > seen)[1])
    assert it.made_by[-1]["ep"] == CPU.provider
    ids = frames(it)
    assert ids == sorted(set(ids)), "the ids go on in the new process"


def test_driver_that_takes_the_process_along_is_trouble_too(core, make_tiny_bundle, colours, hardware, eventually):
    """A new process starts at once on the next, whatever the delay after a crash would have been."""
    path, npu = hardware(Swift={"run_ms": 1})
    slow = Limits(restart_first_s=100, restart_limit_s=100)
    job = {"candidate": npu, "fallbacks": (CPU,)}
    it = core(make_tiny_bundle(), limits=slow, of_job=job, door={**colours, "repeat": True})
    eventually(lambda: (it.turn(), it.events)[1])
    set_trouble(path, "Swift", "crashes")
    eventually(lambda: (it.turn(), it.troubles)[1])
    it.degrade(CPU)
    eventually(it.has_swapped)
    assert it.swaps == [("m", None)]
    assert "SIGABRT" in it.status.last_failure


def test_fallback_that_does_not_load_is_told_and_the_next_gets_the_same_sample(
    core, make_tiny_bundle, colours, hardware, eventually
):
    """Two devices on one bus die together."""
    _, npu, dead = hardware(Frail={"dies_after": 50}, Dead={"fails_on_compile": "no memory", "spares_small": False})
    it = core(make_tiny_bundle(), of_job={"candidate": npu, "fallbacks": (dead, CPU)}, door=colours)
    eventually(lambda: (it.turn(), it.troubles)[1])
    it.degrade(dead, fallbacks=(CPU,))
    eventually(it.has_swapped)
    assert "no memory" in it.swaps[0][1]
    it.degrade(CPU)
    eventually(lambda: has_finished(it))
    assert it.swaps[1:] == [("m", None)]
    assert frames(it) == list(range(FRAMES))


def test_configuration_that_no_candidate_mends_is_no_trouble_of_the_accelerator(
    core, make_tiny_bundle, colours, hardware, eventually
):
    """An unknown label fails on the plain CPU too: to leave the accelerator for it would only hide the reason."""
    _, npu = hardware(Swift={})
    it = core(make_tiny_bundle(), of_job={"candidate": npu, "fallbacks": (CPU,)}, door={**colours, "labels": ["x"]})
    eventually(lambda: it.condition("worker-down/m"))
    assert it.troubles == []


def test_worker_that_does_not_leave_when_it_is_no_longer_wanted_is_killed(core, make_tiny_bundle, colours, eventually):
    """A model that nothing runs any more must not keep a camera and a session."""
    it = core(make_tiny_bundle(), limits=Limits(kill_s=0.3), door={**colours, "repeat": True})
    eventually(it.is_running)
    pid = it.status.pid
    os.kill(pid, signal.SIGSTOP)
    it.workers.end("m")
    eventually(lambda: (it.turn(), it.workers.have_ended)[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert it.status.restarts == 0
