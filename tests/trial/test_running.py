"""One trial as core sees it: whatever the child does, there is an outcome and no child is left."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from agent.childprocess import command_line
from agent.clock import SystemClock
from agent.device.planning.plan import Candidate
from agent.device.profiles.profile import Limits
from agent.trial.running import STOPPED, Ask, run_trial

CPU = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Replace the child by a Python script, so that it can crash, hang or lie on cue."""

    def use(body: str) -> None:
        script = tmp_path / "child.py"
        script.write_text("import json, os, sys, time\nrequest = json.loads(sys.stdin.readline())\n" + body)
        monkeypatch.setattr("agent.childprocess.command_line", lambda role: [sys.executable, str(script)])

    return use


NPU = Candidate("XExecutionProvider", "npu", "fp32", 1)
LOADED = "print(json.dumps({'is': 'loaded'}), flush=True)\n"


def trial(
    folder: Path,
    candidate: Candidate = CPU,
    stop: threading.Event | None = None,
    *,
    ask: Ask | None = None,
    loaded: Callable[[], None] = lambda: None,
    **limits: float,
):
    return run_trial(folder, candidate, Limits(**limits), stop or threading.Event(), ask=ask, loaded=loaded)


def test_measures_a_real_bundle_and_agrees_with_its_golden_answers(make_tiny_bundle):
    """The whole way through a real child process: without this the plan is fiction."""
    outcome = trial(make_tiny_bundle())

    assert outcome.refusal is None
    measured = outcome.measurement
    assert measured.golden_agreement == 1.0
    assert measured.runs >= 30
    assert 0 < measured.p50_ms <= measured.p95_ms <= measured.p99_ms
    assert measured.load_ms > 0
    assert measured.cpu_ms_per_run > 0
    assert 20e6 < measured.peak_rss_bytes < 500e6
    assert measured.nodes["CPUExecutionProvider"] >= 3


def test_a_variant_with_other_answers_shows_in_the_agreement(make_tiny_bundle, tiny_classifier):
    """A checker says this model is fine; only the golden samples tell that it is wrong."""
    folder = make_tiny_bundle({"int8": tiny_classifier(gain=-1.0)})

    outcome = trial(folder, Candidate("CPUExecutionProvider", "cpu", "int8", 1))

    assert outcome.measurement.golden_agreement == 0.0


def test_a_bundle_without_golden_samples_is_measured_on_noise(make_tiny_bundle):
    """A bundle made from a bare model file has no golden samples and must still get a plan."""
    outcome = trial(make_tiny_bundle(golden=[]))

    assert outcome.measurement.golden_agreement is None
    assert outcome.measurement.runs >= 30


@pytest.mark.parametrize(
    ("spoilt", "least", "most"),
    [
        pytest.param("error: 0", 0.999, 1.0, id="the same"),
        pytest.param("error: 0.037", 0.9, 0.995, id="bf16"),
        pytest.param("wrong_results: negated", 0.0, 0.0, id="negated"),
        pytest.param("wrong_results: zeros", 0.0, 0.0, id="zeros"),
    ],
)
def test_without_golden_samples_raw_outputs_are_compared_with_the_plain_cpus(
    make_tiny_bundle, tmp_path, spoilt, least, most
):
    """A provider that computes nonsense must not pass because the bundle's maker had no samples."""
    npu = "{provider: VirtualNpuExecutionProvider, name: npu, run_ms: 1, " + spoilt + "}"
    (tmp_path / "hardware.yaml").write_text(f"accelerators: [{npu}]\n")
    candidate = Candidate(
        "VirtualNpuExecutionProvider", "npu", "fp32", 1, runtime=f"virtual:{tmp_path / 'hardware.yaml'}"
    )
    folder, ask = make_tiny_bundle(golden=[]), Ask(runs=5, reference=tmp_path / "fp32.npz")

    assert trial(folder, ask=ask).measurement.cpu_agreement is None  # it writes what the others are compared with
    assert least <= trial(folder, candidate, ask=ask).measurement.cpu_agreement <= most


def test_answers_that_turn_wrong_after_a_while_are_a_refusal(make_tiny_bundle, tmp_path):
    """The golden samples come first; a device that gets hot, or streams that share a buffer, err only later."""
    npu = "{provider: VirtualNpuExecutionProvider, name: npu, run_ms: 1, wrong_results: negated, wrong_after: 20}"
    (tmp_path / "hardware.yaml").write_text(f"accelerators: [{npu}]\n")
    candidate = Candidate(
        "VirtualNpuExecutionProvider", "npu", "fp32", 1, runtime=f"virtual:{tmp_path / 'hardware.yaml'}"
    )

    outcome = trial(make_tiny_bundle(), candidate, ask=Ask(runs=30))

    assert "gives other outputs for the same input after a while: they agree by 0.0" in (outcome.refusal or "")


def test_what_the_first_trial_prepared_the_next_ones_read(make_tiny_bundle, tmp_path):
    """Each round of the plan, and the worker, would else compile again: minutes on some accelerators."""
    folder, ask = make_tiny_bundle(), Ask(runs=20, prepared=tmp_path)

    first, second = trial(folder, ask=ask).measurement, trial(folder, ask=ask).measurement

    assert first.compile_ms == first.load_ms
    assert second.compile_ms is None
    assert second.golden_agreement == 1.0


def test_streams_share_the_session_and_give_its_throughput(make_tiny_bundle, tiny_classifier):
    """Several cameras share a model: what counts is how many frames they get done together."""
    folder = make_tiny_bundle({"fp32": tiny_classifier(pooling_rounds=20)})

    assert trial(folder, ask=Ask(runs=20, seconds=0.2, streams=2)).measurement.runs_per_s > 0
    assert trial(folder, ask=Ask(runs=20, seconds=0.2)).measurement.runs_per_s is None


def test_a_traced_trial_tells_the_share_of_time_by_provider(make_tiny_bundle, tmp_path):
    """Nine of ten nodes on the accelerator may still be half of the time."""
    measured = trial(make_tiny_bundle(), ask=Ask(runs=20, trace=tmp_path / "trace")).measurement

    assert measured.time_share == {"CPUExecutionProvider": pytest.approx(1.0)}


def test_short_rounds_are_short(make_tiny_bundle, tiny_classifier):
    """Successive halving lives on it; and a slow model ends its runs by the clock."""
    assert trial(make_tiny_bundle(), ask=Ask(runs=20, seconds=10)).measurement.runs == 20
    slow = make_tiny_bundle({"fp32": tiny_classifier(pooling_rounds=200)})
    assert trial(slow, ask=Ask(runs=20, seconds=0.0)).measurement.runs == 5


@pytest.mark.parametrize(("smallest", "is_refused"), [(2, True), (8, False)])
def test_an_open_shape_is_run_at_both_its_ends(make_tiny_bundle, tiny_classifier, smallest, is_refused):
    """A provider that compiles for the usual size may fail on the others, which the golden samples never have."""
    import onnx

    model = onnx.load_from_string(tiny_classifier())
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    del model.graph.node[0].attribute[:]  # no padding: the 3×3 kernel does not fit a picture of 2×2
    folder = make_tiny_bundle({"fp32": model.SerializeToString()})
    manifest = json.loads((folder / "manifest.json").read_text())
    bounds = {"2": [smallest, 64], "3": [smallest, 64]}
    manifest["variants"][0]["inputs"] = [
        {"name": "image", "dtype": "float32", "shape": [1, 3, -1, -1], "bounds": bounds},
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))

    outcome = trial(folder)

    assert (outcome.refusal is not None) is is_refused, outcome.refusal


def test_a_damaged_model_is_a_refusal_with_its_path(make_tiny_bundle):
    """Half a download must not become a traceback."""
    folder = make_tiny_bundle({"fp32": b"\x08\x08 this is no model"})

    outcome = trial(folder)

    assert "not a whole, valid ONNX model" in outcome.refusal
    assert str(folder) in outcome.refusal


def test_a_provider_that_is_not_there_is_a_refusal(make_tiny_bundle):
    """Silent fallback to the CPU is what the trial exists to prevent."""
    outcome = trial(make_tiny_bundle(), Candidate("CUDAExecutionProvider", "gpu", "fp32", 1))

    assert "CUDAExecutionProvider is not available" in outcome.refusal


def test_a_crash_is_a_refusal_with_last_words(pretend, tmp_path):
    """A vendor's driver that segfaults must cost one candidate, not the agent."""
    pretend("print('driver: bad register 0x17', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)")

    outcome = trial(tmp_path)

    assert "SIGSEGV" in outcome.refusal
    assert "bad register 0x17" in outcome.refusal
    assert outcome.cause == "failed"


def test_a_hang_is_killed_after_the_time_limit(pretend, tmp_path):
    """An NPU that never answers must not stop the agent from starting."""
    pretend(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")

    outcome = trial(tmp_path, trial_s=0.5)

    assert "no answer within 0.5 s" in outcome.refusal
    assert outcome.cause == "failed"
    assert_gone(int((tmp_path / "pid").read_text()))


def test_compiling_has_a_limit_of_its_own(pretend, tmp_path):
    """An accelerator may compile for minutes and answer in milliseconds; a driver may also never come back from it."""
    pretend("time.sleep(60)")
    assert "was not loaded and compiled within 0.5 s and was killed" in trial(tmp_path, NPU, compile_s=0.5).refusal

    pretend(f"time.sleep(0.6)\n{LOADED}time.sleep(60)")
    assert "gave no answer within 0.4 s" in trial(tmp_path, NPU, compile_s=30, trial_s=0.4).refusal


def test_the_end_of_loading_is_told(pretend, tmp_path):
    """`compiling 43 s` and `measuring` are two things to whoever waits."""
    pretend(f"{LOADED}print(json.dumps({{'is': 'refused', 'reason': 'enough'}}))")
    told: list[str] = []

    assert trial(tmp_path, NPU, loaded=lambda: told.append("loaded")).refusal == "enough"
    assert told == ["loaded"]


def test_too_much_memory_is_killed(pretend, tmp_path):
    """A model built to eat memory must not take the device down."""
    pretend("held = bytearray(300 << 20); time.sleep(60)")

    outcome = trial(tmp_path, memory_mb=128)

    assert "the limit is 128 MiB" in outcome.refusal
    assert outcome.cause == "memory"


def test_stop_ends_a_trial_at_once(pretend, tmp_path):
    """SIGTERM during the first plan must be obeyed within two seconds."""
    pretend(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    stop = threading.Event()

    def stop_when_running() -> None:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        stop.set()

    threading.Thread(target=stop_when_running, daemon=True).start()
    outcome = trial(tmp_path, stop=stop)

    assert outcome.refusal == STOPPED
    assert_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param("sys.exit(3)", "exited with 3", id="exit"),
        pytest.param("print('hello')", "exited with 0", id="no-json"),
        pytest.param(
            f"print({json.dumps(json.dumps({'is': 'measured', 'measurement': {'runs': 'x'}}))})",
            "no measurement",
            id="lie",
        ),
    ],
)
def test_nonsense_from_a_child_is_a_refusal(pretend, tmp_path, body, text):
    """Nothing that a broken child says may be taken for a measurement."""
    pretend(body)

    assert text in trial(tmp_path).refusal


FAST = {
    "runs": 200, "mean_ms": 1.0, "p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0, "load_ms": 1.0, "cpu_ms_per_run": 1.0,
    "peak_rss_bytes": 1, "nodes": {CPU.provider: 9}, "golden_agreement": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"p99_ms": float("nan")}, {"mean_ms": float("inf")}, {"cpu_ms_per_run": -1.0}, {"runs": 0},
        {"golden_agreement": 1.5}, {"cpu_agreement": -0.1}, {"nodes": {CPU.provider: -1}}, {"energy_mj_per_run": -5.0},
        {"celsius": float("nan")}, {"peak_rss_bytes": -1}, {"runs_per_s": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_cannot_be_are_a_refusal(pretend, tmp_path, lie):
    """A negative time would win, and a NaN would make every comparison false."""
    message = json.dumps({"is": "measured", "measurement": {**FAST, **lie}})
    pretend(f"print({message!r})")

    assert "no measurement" in trial(tmp_path).refusal


def test_an_endless_reason_is_cut(pretend, tmp_path):
    """It is stored in the plan, sent over MQTT and printed: some compilers print their whole input, and in colour."""
    pretend("print(json.dumps({'is': 'refused', 'reason': '\\x1b[2J' + 'x' * 3_000_000}))")

    assert len(refusal := trial(tmp_path).refusal) <= 1000
    assert refusal.startswith("\\x1b[2Jxx")


def test_last_words_do_not_steer_the_terminal(pretend, tmp_path):
    """What a driver printed is shown in tables and conditions."""
    pretend("print('\\x1b[2Jgone', file=sys.stderr); sys.exit(3)")

    assert "its last words: \\x1b[2Jgone" in trial(tmp_path).refusal


def assert_gone(pid: int) -> None:
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    clock = SystemClock()
    deadline_s = clock.monotonic() + timeout_s
    while not condition():
        assert clock.monotonic() < deadline_s
        clock.wait(threading.Event(), 0.02)


def test_a_real_trial_is_held_to_its_memory(make_tiny_bundle):
    """The same watch on the real child: loading the runtime alone takes more than 40 MiB."""
    outcome = trial(make_tiny_bundle(), memory_mb=40)

    assert "MiB of memory and was killed; the limit is 40 MiB" in outcome.refusal


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits private memory")
def test_the_fence_stops_what_grows_faster_than_the_watch():
    """A model may ask for gigabytes in one call, between two looks of the parent."""
    code = (
        "from agent.usage import fence_memory\nfence_memory(10 << 20)\n"
        "held = bytearray(100 << 20)\n"
        "try:\n    bytearray(600 << 20)\nexcept MemoryError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "refused\n"


def test_a_child_whose_parent_is_gone_ends(make_tiny_bundle, tiny_classifier, tmp_path):
    """`kill -9` of core must not leave trials behind that eat the processor."""
    slow = make_tiny_bundle({"fp32": tiny_classifier(pooling_rounds=2000)})
    request = {"is": "trial", "bundle": str(slow), "candidate": asdict(CPU), "memory_bytes": 1 << 30}
    child = subprocess.Popen(command_line("trial"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdin.write(json.dumps(request) + "\n")
    child.stdin.flush()
    wait_until(lambda: psutil.Process(child.pid).num_threads() > 1)

    child.stdin.close()

    assert child.wait(timeout=20) == 1
    child.stdout.close()
