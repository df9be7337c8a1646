"""Supervision on a virtual clock: what a worker does, and what is done about it."""

from __future__ import annotations

import pytest

from agent.childprocess import exit_text
from agent.errors import BundleError, CandidateError
from agent.health.conditions import ClearCondition, SetCondition
from agent.pipeline.supervision import Kill, Leave, Limits, Start, Supervisor, WakeAt
from simulator.clock import SeededRandom, VirtualClock

DOWN = "worker-down/m"


class Bench:
    """A supervisor and a clock. `actions` are those of the last step, without WakeAt, whose time is in `wake_s`."""

    def __init__(self, **stall_s):
        self.clock = VirtualClock()
        self.supervisor = Supervisor("m", stall_s or {"door": 15.0}, SeededRandom(1), Limits())
        self.wake_s = None
        self.conditions = {}

    def do(self, actions):
        for action in actions:
            match action:
                case WakeAt(at):
                    self.wake_s = at
                case SetCondition(name, severity, text):
                    self.conditions[name] = (severity, text)
                case ClearCondition(name):
                    self.conditions.pop(name)
        return [action for action in actions if isinstance(action, Start | Kill | Leave)]

    def start(self):
        return self.do(self.supervisor.start(self.clock.monotonic()))

    def ready(self):
        return self.do(self.supervisor.ready(self.clock.monotonic()))

    def beat(self, samples, *, source="open", text="", invalid="", name="door", inferring_s=0.0):
        pipeline = {
            "samples": samples, "source": source, "source_text": text, "invalid_text": invalid, "inferring_s": inferring_s,
        }  # fmt: skip
        return self.do(self.supervisor.beat({"pipelines": {name: pipeline}, "rss_bytes": 0}, self.clock.monotonic()))

    def exit(self, status, words=""):
        return self.do(self.supervisor.exited(status, words, self.clock.monotonic()))

    def pass_to_wake(self):
        """Let time pass until the supervisor asked to be woken; return the seconds and what it does then."""
        passed_s = self.wake_s - self.clock.monotonic()
        self.clock.advance(passed_s)
        return passed_s, self.do(self.supervisor.tick(self.clock.monotonic()))

    def run_for(self, seconds, **beat):
        """Beat every second with progress."""
        for second in range(seconds):
            self.clock.advance(1)
            self.beat(1000 * self.supervisor.restarts + second + 1, **beat)


def running(**stall_s):
    bench = Bench(**stall_s)
    assert bench.start() == [Start()]
    bench.ready()
    return bench


def test_crash_is_named_with_signal_and_last_words_and_restarted():
    """The next person must see what the native code said before it died."""
    bench = running()
    assert bench.exit(-11, "starting\nFatal Python error: Segmentation fault\n") == []
    severity, text = bench.conditions[DOWN]
    assert severity == "error"
    assert "SIGSEGV" in text
    assert "Segmentation fault" in text
    delay_s, actions = bench.pass_to_wake()
    assert 0.5 <= delay_s <= 1
    assert actions == [Start()]


def test_repeated_crashes_are_retried_with_growing_delay_up_to_the_limit():
    """A worker that dies at once must not take the whole CPU for dying."""
    bench = running()
    delays = []
    for _ in range(10):
        bench.exit(-6)
        delays.append(bench.pass_to_wake()[0])
        bench.ready()
    assert delays[0] <= 1
    assert delays[3] > 3
    assert all(30 <= delay <= 60 for delay in delays[7:])


def test_stable_time_forgets_the_crashes_and_ends_the_condition():
    """A crash a year is no crash loop."""
    bench = running()
    for _ in range(8):
        bench.exit(-6)
        bench.pass_to_wake()
        bench.ready()
    assert bench.conditions[DOWN][0] == "warning", "running again, but not yet well"
    bench.run_for(61)
    assert bench.conditions == {}
    bench.exit(-6)
    assert bench.pass_to_wake()[0] <= 1


def test_worker_without_a_beat_is_killed_as_hung():
    """Native code that holds the interpreter, or a worker that was stopped."""
    bench = running()
    bench.run_for(5)
    passed_s, actions = bench.pass_to_wake()
    assert passed_s == pytest.approx(10)
    assert isinstance(actions[0], Kill)
    bench.exit(-9)
    assert "hung" in bench.conditions[DOWN][1]
    assert bench.pass_to_wake()[1] == [Start()]


def test_kill_that_did_not_work_is_repeated():
    """A process that hangs in the kernel does not die at once."""
    bench = running()
    bench.pass_to_wake()
    passed_s, actions = bench.pass_to_wake()
    assert passed_s == pytest.approx(5)
    assert isinstance(actions[0], Kill)


def test_open_source_without_progress_is_a_stall():
    """The worker beats and nothing comes through: a driver hangs in a read."""
    bench = running(door=15.0)
    bench.run_for(5)
    for second in range(14):
        bench.clock.advance(1)
        assert bench.beat(5) == [], second
        assert bench.do(bench.supervisor.tick(bench.clock.monotonic())) == []
    bench.clock.advance(1)
    bench.beat(5)
    actions = bench.do(bench.supervisor.tick(bench.clock.monotonic()))
    assert isinstance(actions[0], Kill)
    assert "door stalled" in actions[0].reason


@pytest.mark.parametrize("source", ["down", "opening", "finished"])
def test_source_that_is_not_open_does_not_stall(source):
    """A camera that is known to be away is no reason to kill its neighbours."""
    bench = running(door=15.0)
    for _ in range(100):
        bench.clock.advance(1)
        bench.beat(0, source=source, text="gone" if source == "down" else "")
        assert bench.do(bench.supervisor.tick(bench.clock.monotonic())) == []


def test_silent_sensor_does_not_stall():
    """A topic may speak once a day."""
    bench = running(door=None)
    for _ in range(100):
        bench.clock.advance(1)
        bench.beat(0)
        assert bench.do(bench.supervisor.tick(bench.clock.monotonic())) == []


def test_start_that_takes_too_long_is_killed():
    """A provider that compiles for ever."""
    bench = Bench()
    bench.start()
    passed_s, actions = bench.pass_to_wake()
    assert passed_s == pytest.approx(60)
    assert isinstance(actions[0], Kill)


@pytest.mark.parametrize(
    ("exit_code", "is_slow"),
    [
        pytest.param(BundleError.exit_code, True, id="bad model"),
        pytest.param(CandidateError.exit_code, False, id="provider"),
    ],
)
def test_failure_that_a_person_must_mend_is_retried_slowly_with_its_text(exit_code, is_slow):
    """A damaged model does not get better by trying every second; the text says what is wrong with it."""
    bench = Bench()
    bench.start()
    bench.supervisor.failing({"reason": "model.onnx: this is not a whole, valid ONNX model", "exit_code": exit_code})
    bench.exit(exit_code, "noise")
    assert "not a whole, valid ONNX model" in bench.conditions[DOWN][1]
    assert (bench.pass_to_wake()[0] == pytest.approx(60)) is is_slow
    assert bench.supervisor.failed is None, "the next attempt starts without the old reason"


def test_conditions_of_a_source_come_and_go_with_its_state():
    """They are what the status page and the retained status show."""
    bench = running()
    bench.beat(1, source="down", text="the connection was refused")
    assert bench.conditions == {"source-down/door": ("error", "the connection was refused")}
    bench.beat(2, invalid="output 'scores' holds NaN")
    assert list(bench.conditions) == ["invalid-answers/door"]
    bench.beat(3)
    assert bench.conditions == {}
    bench.beat(3, source="finished", text="the video ended after 3 of 9 frames")
    assert list(bench.conditions) == ["source-ended/door"]


def test_crash_of_the_worker_replaces_the_conditions_of_its_sources():
    """Nobody knows any more how the camera is."""
    bench = running()
    bench.beat(1, source="down", text="refused")
    bench.exit(-9)
    assert list(bench.conditions) == [DOWN]


def test_stopped_worker_stays_stopped():
    """Its exit is no failure, and no late tick brings it back."""
    bench = running()
    bench.beat(1, source="down", text="refused")
    bench.do(bench.supervisor.stop())
    assert bench.conditions == {}
    assert bench.supervisor.exited(0, "", 1.0) == []
    assert bench.supervisor.tick(1000.0) == []


def test_beat_of_a_dying_worker_changes_nothing():
    """It may still be in the pipe when the kill is decided."""
    bench = running()
    bench.pass_to_wake()
    assert bench.supervisor.beat({"pipelines": {}, "rss_bytes": 0}, bench.clock.monotonic()) == []
    assert bench.supervisor.state == "dying"


def test_passwords_in_last_words_are_masked():
    """Libraries print URLs."""
    bench = running()
    bench.exit(1, "cannot open rtsp://u:hunter2@cam/1\n")
    assert "hunter2" not in bench.conditions[DOWN][1]
    assert "hunter2" not in bench.supervisor.last_words


DUMP = """driver: lost the device
Fatal Python error: Segmentation fault

Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3/threading.py", line 355 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/opt/holdfast/agent/sources/usb.py", line 80 in read
  File "/opt/holdfast/agent/pipeline/loop.py", line 285 in _deliver_live
  File "/opt/holdfast/agent/pipeline/loop.py", line 240 in _drain

Extension modules: numpy._core._multiarray_umath, numpy.linalg._umath_linalg, cv2 (total: 3)
"""


def test_condition_of_a_native_crash_says_where_it_was():
    """A list of extension modules is the end of such a dump, and says nothing."""
    bench = running()
    bench.exit(-11, DUMP)
    text = bench.conditions[DOWN][1]
    assert "lost the device | Fatal Python error: Segmentation fault" in text
    assert "usb.py" in text and "line 80 in read" in text
    assert "umath" not in text


@pytest.mark.parametrize(
    ("status", "text"),
    [(-9, "was ended by SIGKILL"), (3, "exited with 3"), (0xC0000005, "crashed with 0xC0000005"), (-250, "signal 250")],
)
def test_exit_status_is_said_in_words(status, text):
    """Nobody knows -11 by heart."""
    assert text in exit_text(status)


def test_swap_has_as_long_as_a_start_although_the_worker_beats():
    """The old bundle runs well, and would hide a loading that hangs for ever."""
    bench = running()
    bench.do(bench.supervisor.swapping(bench.clock.monotonic()))
    bench.run_for(59)
    passed_s, actions = bench.pass_to_wake()
    assert passed_s == 1
    assert actions == [Kill("it did not load the new bundle within 60 s")]
    assert not bench.supervisor.has_stalled


def test_swap_that_was_answered_has_no_deadline():
    """Neither the next hour nor the next process may be killed for it."""
    bench = running()
    bench.do(bench.supervisor.swapping(bench.clock.monotonic()))
    bench.supervisor.swapped(bench.clock.monotonic())
    bench.run_for(120)
    assert bench.supervisor.state == "running"
    bench.do(bench.supervisor.swapping(bench.clock.monotonic()))
    bench.exit(-9)
    bench.pass_to_wake()
    bench.ready()
    bench.run_for(120)
    assert bench.supervisor.state == "running"


def test_worker_that_is_replaced_leaves_and_starts_again_without_an_ill():
    """A restart on purpose is no failure: no condition, no delay, no count."""
    bench = running()
    assert bench.do(bench.supervisor.replace(bench.clock.monotonic())) == [Leave()]
    assert bench.exit(0) == [Start()]
    bench.ready()
    assert (bench.supervisor.state, bench.supervisor.restarts, bench.conditions) == ("running", 0, {})
    assert bench.exit(-9) == [], "the next exit is one that nobody asked for"
    assert DOWN in bench.conditions


def test_worker_that_does_not_make_room_is_killed():
    """A camera's driver may hang; the new bundle does not wait for it."""
    bench = running()
    bench.do(bench.supervisor.replace(bench.clock.monotonic()))
    passed_s, actions = bench.pass_to_wake()
    assert passed_s == Limits().kill_s
    assert [type(action) for action in actions] == [Kill]
    assert bench.exit(-9) == [Start()]


def test_worker_that_still_loads_is_not_asked_but_killed_to_make_room():
    """It reads no word of ours before its session is there."""
    bench = Bench()
    bench.start()
    assert bench.do(bench.supervisor.replace(bench.clock.monotonic())) == [Kill("another job takes its place")]
    assert bench.exit(-9) == [Start()]


def test_worker_that_waits_or_was_stopped_has_nothing_to_make_room():
    """One starts at once; the other stays where it is."""
    bench = running()
    bench.exit(-9)
    assert bench.do(bench.supervisor.replace(bench.clock.monotonic())) == [Start()]
    bench.do(bench.supervisor.stop())
    assert bench.do(bench.supervisor.replace(bench.clock.monotonic())) == []


def test_inference_that_takes_too_long_is_a_hang_though_the_worker_beats():
    """A hung accelerator blocks one thread; the beat's goes on. It is left after seconds, not after the stall's fifteen."""
    bench = running()
    bench.supervisor.patience_s = 3.0
    assert bench.beat(1, inferring_s=2.9) == []
    (kill,) = bench.beat(1, inferring_s=3.9)
    assert "an inference for door takes longer than 3.0 s" in kill.reason
    assert bench.supervisor.has_stalled


def test_nothing_need_come_through_while_another_session_is_loaded():
    """A provider that failed lets nothing through until another has taken over: that is no stall, then or just after it."""
    bench = running()
    bench.beat(1)
    bench.do(bench.supervisor.swapping(bench.clock.monotonic()))
    for _ in range(30):
        bench.clock.advance(1)
        bench.beat(1)
        assert bench.do(bench.supervisor.tick(bench.clock.monotonic())) == []
    bench.supervisor.swapped(bench.clock.monotonic())
    bench.clock.advance(1)
    bench.beat(1)
    assert bench.do(bench.supervisor.tick(bench.clock.monotonic())) == []
    assert bench.supervisor.state == "running"


def test_failure_for_people_is_told_apart_from_one_of_the_candidate():
    """Another accelerator does not mend an unknown label."""
    bench = running()
    bench.supervisor.failing({"reason": "no label dragon", "exit_code": BundleError.exit_code})
    assert bench.supervisor.is_for_people
    bench.supervisor.failing({"reason": "the device is gone", "exit_code": CandidateError.exit_code})
    assert not bench.supervisor.is_for_people
