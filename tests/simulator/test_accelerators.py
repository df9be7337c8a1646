"""Virtual accelerators: each does what its hardware file declares, so that a test of the agent rests on something."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from agent.bundle.reader import open_bundle
from agent.device.planning.plan import Candidate
from agent.device.runtimes.runtime import Opening
from agent.errors import CandidateError, ConfigurationError
from agent.usage import cpu_seconds
from simulator.accelerators import VirtualRuntime, VirtualSession, open_runtime
from simulator.badbundles import make_bundle
from simulator.clock import VirtualClock
from simulator.hardware import Accelerator, Hardware, VirtualCpu, load_hardware, plug, set_trouble, unplug

NPU = "VirtualNpuExecutionProvider"
CPU = "CPUExecutionProvider"
PICTURE = {"image": np.full((1, 3, 64, 64), 0.9, np.float32)}
STICK = "A stick"


class HangsError(Exception):
    """Somebody began to wait for a day."""


class ImpatientClock(VirtualClock):
    """Turns a wait that never ends into an exception."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if timeout_s > 3600:
            raise HangsError
        return super().wait(event, timeout_s)


@pytest.fixture
def clock() -> ImpatientClock:
    return ImpatientClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hardware.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of five nodes: ReduceMean, Mul, Add, Softmax and one that the optimiser leaves."""
    return open_bundle(make_bundle(tmp_path_factory.mktemp("lamp"))).model_path("fp32")


@pytest.fixture
def runtime(file: Path, clock: ImpatientClock) -> Callable[..., VirtualRuntime]:
    """Return a function that writes a file of one NPU with these keys, and opens it."""

    def make(text: str = "", *, cpu: str = "") -> VirtualRuntime:
        device = f"{{provider: {NPU}, vendor: Acme, name: {STICK}, run_ms: 10, {text}}}"
        file.write_text(f"{cpu}\naccelerators:\n  - {device}\n")
        return VirtualRuntime(file, load_hardware(file), clock)

    return make


def opening(model: Path, prepared: Path | None = None, trace: Path | None = None, **candidate: object) -> Opening:
    values: dict[str, object] = {"provider": NPU, "device_type": "npu", "variant": "fp32", "threads": 1, **candidate}
    return Opening(model, Candidate(**values), prepared, trace)  # type: ignore[arg-type]


def answers(session: VirtualSession) -> np.ndarray:
    return session.run(PICTURE)["classes"]


# -- the file ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        pytest.param("accelerators:\n  - {provider: XExecutionProvider, name: x, run_ms: -1}", ":2:45", "greater", id="time"),
        pytest.param("cpu: {run_ms: 5, run_sm: 6}", ":1:18", "unknown key", id="typo"),
        pytest.param("cpu: {run_ms: {}}", ":1:7", "at least 1", id="no variant"),
        pytest.param(
            "accelerators:\n"
            "  - {provider: XExecutionProvider, name: 'a b', run_ms: 1}\n"
            "  - {provider: YExecutionProvider, name: A-B, run_ms: 1}\n",
            "",
            "nothing would tell which is meant",
            id="one name twice",
        ),
        pytest.param(
            "accelerators: [{provider: CPUExecutionProvider, device_type: cpu, name: x, run_ms: 1}]",
            "",
            "stands under `cpu:`",
            id="cpu among them",
        ),
    ],
)  # fmt: skip
def test_file_that_cannot_be_meant_is_refused_with_its_line(file, text, where, message):
    """A device that is silently not there would make a test pass for the wrong reason."""
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        open_runtime(str(file))
    assert any(f"{file}{where}" in problem.where and message in problem.message for problem in caught.value.problems), (
        str(caught.value)
    )


def test_every_example_opens():
    """They are what a reader tries first."""
    files = sorted((Path(__file__).resolve().parents[2] / "simulator" / "hardware").glob("*.yaml"))
    assert len(files) >= 4
    assert all(open_runtime(str(file)).devices() for file in files)
    assert all(open_runtime(file.stem).devices() for file in files), (
        "by name: an installed one has no path that one knows"
    )
    with pytest.raises(ConfigurationError, match=r"known: intel-laptop, jetson"):
        open_runtime("intel-labtop")


def test_page_has_every_key_and_its_example_is_valid(file):
    """A key that nobody reads about is not used."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "simulation.md").read_text()
    keys = {*Hardware.model_fields, *Accelerator.model_fields, *VirtualCpu.model_fields}
    assert not [key for key in sorted(keys) if not re.search(rf"`{key}\b|^ +{key}:", page, re.MULTILINE)]
    (example,) = re.findall(r"^(    version:.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    file.write_text(textwrap.dedent(example))
    assert len(open_runtime(str(file)).devices()) == 2


# -- devices -------------------------------------------------------------------------------------------------------------


def test_devices_are_listed_as_the_file_declares_them(runtime, file):
    """Everything the plan knows of a device comes from here, and the id is enough for another process to open it."""
    cpu, npu = runtime("driver_version: '2.1'", cpu="cpu: {run_ms: 40}").devices()
    assert (cpu.provider, cpu.device_type, cpu.metadata) == (CPU, "cpu", (("replaces", "built-in"),))
    assert (npu.provider, npu.device_type, npu.vendor, npu.name) == (NPU, "npu", "Acme", STICK)
    assert (npu.driver_version, npu.library_version, npu.unusable) == ("2.1", "1.0", None)
    assert open_runtime(npu.runtime.removeprefix("virtual:")).devices() == (cpu, npu)


def test_unplugged_device_is_gone_until_it_is_plugged_in(runtime, file, model):
    """From the list, for new sessions, and for the session that runs; and then it is all there again."""
    here = runtime()
    session = here.open(opening(model))
    unplug(file, STICK)
    assert here.devices() == ()
    with pytest.raises(CandidateError, match="no npu device"):
        here.open(opening(model))
    with pytest.raises(CandidateError, match="does not answer any more"):
        session.run(PICTURE)
    plug(file, STICK)
    assert len(here.devices()) == 1
    assert answers(session).shape == (1, 2)


def test_one_of_several_devices_is_opened_by_its_name(file, model, clock):
    """Its speed is its own, and one that is unplugged is not its neighbour."""
    device = f"provider: {NPU}, run_ms: 10"
    file.write_text(f"accelerators:\n  - {{{device}, name: left}}\n  - {{{device}, name: right, dies_after: 1}}\n")
    here = VirtualRuntime(file, load_hardware(file), clock)
    assert answers(here.open(opening(model, device="left"))).shape == (1, 2)
    with pytest.raises(CandidateError, match="right"):
        here.open(opening(model, device="right")).run(PICTURE)
    with pytest.raises(CandidateError, match=f"no npu right of {NPU} here; this runtime offers {NPU} .npu. left"):
        here.open(opening(model, device="right"))
    assert answers(here.open(opening(model, device="left"))).shape == (1, 2)


def test_other_devices_candidate_is_refused(runtime, model):
    """A runtime that ran it all the same would be the silent fallback that nothing may do."""
    for wrong in (
        {"provider": "OtherExecutionProvider"},
        {"device_type": "gpu"},
        {"provider": CPU, "device_type": "cpu"},
    ):
        with pytest.raises(CandidateError, match=f"this runtime offers {NPU}"):
            runtime().open(opening(model, **wrong))


@pytest.mark.parametrize("trouble", ["crash_on_register", "crash_on_compile"])
def test_crash_ends_the_process_with_the_drivers_words(runtime, file, model, trouble):
    """As native code does: no exception that anybody could catch."""
    runtime(f"{trouble}: true")
    script = (
        "import sys; from pathlib import Path; from simulator.accelerators import open_runtime\n"
        "from agent.device.planning.plan import Candidate; from agent.device.runtimes.runtime import Opening\n"
        f"opening = Opening(Path(sys.argv[2]), Candidate({NPU!r}, 'npu', 'fp32', 1))\n"
        "try:\n    open_runtime(sys.argv[1]).open(opening)\nexcept BaseException: pass\nprint('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, file, model], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "alive" not in done.stdout
    assert f"{STICK}: the " in done.stderr


def test_hang_on_register_never_ends(runtime):
    with pytest.raises(HangsError):
        runtime("hang_on_register: true").register()


# -- sessions ------------------------------------------------------------------------------------------------------------


def test_answers_are_real_and_take_the_declared_time(runtime, model, clock):
    """10 ms on the device, 4 for another variant, 40 on the processor that it is compared with."""
    here = runtime("", cpu="cpu: {run_ms: {fp32: 40, int8: 20}}")
    on_npu = here.open(opening(model))
    on_cpu = here.open(opening(model, provider=CPU, device_type="cpu"))
    began_s = clock.monotonic()
    assert answers(on_npu)[0, 1] == pytest.approx(0.961, abs=0.001)
    assert clock.monotonic() - began_s == pytest.approx(0.010)
    np.testing.assert_array_equal(answers(on_npu), answers(on_cpu))
    assert clock.monotonic() - began_s == pytest.approx(0.060)
    here.open(opening(model, provider=CPU, device_type="cpu", variant="int8")).run(PICTURE)
    assert clock.monotonic() - began_s == pytest.approx(0.080)


class CountingClock(VirtualClock):
    """Counts who waits for a run's end at the same time; each waits until `together` do."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self._barrier = threading.Barrier(together, timeout=30)
        self._waiting, self.most = 0, 0
        self._lock = threading.Lock()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if not timeout_s:  # nothing to compile
            return False
        with self._lock:
            self._waiting += 1
            self.most = max(self.most, self._waiting)
        self._barrier.wait()
        event.wait(0.05)  # room for one too many
        with self._lock:
            self._waiting -= 1
        return event.is_set()


@pytest.mark.parametrize("parallel", [1, 4])
def test_so_many_runs_overlap_as_declared(file, model, parallel):
    """What the objective `throughput` is about."""
    file.write_text(f"accelerators: [{{provider: {NPU}, name: x, run_ms: 60, parallel: {parallel}}}]")
    clock = CountingClock(together=parallel)
    session = VirtualRuntime(file, load_hardware(file), clock).open(opening(model))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(session.run, [PICTURE] * 4))
    assert clock.most == parallel


def test_host_pays_for_a_driver_that_polls(file, model):
    """What the objective `power` looks at, where nothing measures energy."""
    file.write_text(f"accelerators: [{{provider: {NPU}, name: x, run_ms: 1, cpu_ms: 20}}]")
    session = open_runtime(str(file)).open(opening(model))
    began_s = cpu_seconds()
    for _ in range(5):
        session.run(PICTURE)
    assert cpu_seconds() - began_s >= 0.1


def test_nodes_go_where_the_operators_allow(runtime, model):
    """Real nodes of a real model: two of the five are refused by type, and each of them cuts the graph."""
    everything = runtime().open(opening(model)).assignment
    assert (everything.nodes, everything.partitions) == ({NPU: 5}, {NPU: 1})
    some = runtime("unsupported_ops: [Softmax, ReduceMean]").open(opening(model)).assignment
    assert (some.nodes, some.partitions) == ({NPU: 3, CPU: 2}, {NPU: 3, CPU: 2})
    assert some.operators[CPU] == {"Softmax": 1, "ReduceMean": 1}
    few = runtime("supported_ops: [Softmax]").open(opening(model)).assignment
    assert (few.nodes, few.partitions) == ({NPU: 1, CPU: 4}, {NPU: 1, CPU: 4})
    with pytest.raises(CandidateError, match="runs none of this model"):
        runtime("supported_ops: [Nothing]").open(opening(model))


def test_trace_names_the_device_at_its_nodes(runtime, model, tmp_path):
    """Whoever adds up the time by provider finds both."""
    session = runtime("unsupported_ops: [Softmax]").open(opening(model, trace=tmp_path / "trace"))
    session.run(PICTURE)
    path = session.end_trace()
    events = [event["args"] for event in json.loads(path.read_text()) if event.get("args", {}).get("op_name")]
    providers = {event["op_name"]: event["provider"] for event in events if "provider" in event}
    assert (providers["Softmax"], providers["ReduceMean"]) == (CPU, NPU)
    assert runtime().open(opening(model)).end_trace() is None


def test_partial_placement_is_refused_where_fallback_is_disabled(runtime, model):
    """As ONNX Runtime does with session.disable_cpu_ep_fallback: that is what `fallback: require` rests on."""
    strict = opening(model, session_options=(("session.disable_cpu_ep_fallback", "1"),))
    assert runtime().open(strict).assignment.nodes == {NPU: 5}
    with pytest.raises(CandidateError, match="1 graph nodes .* fallback to CPU EP has been explicitly disabled"):
        runtime("unsupported_ops: [Softmax]").open(strict)


def test_compiling_takes_its_time_once(runtime, model, clock, tmp_path):
    """The second opening reads what the first left; another driver, or a damaged file, compiles anew."""
    kept = tmp_path / "prepared"
    for driver, expected_s in (("1", 30.0), ("1", 0.0), ("2", 30.0), ("2", 0.0)):
        before_s = clock.monotonic()
        session = runtime(f"compile_s: 30, driver_version: '{driver}'").open(opening(model, kept))
        assert clock.monotonic() - before_s == expected_s
        assert session.was_prepared == (expected_s == 0)
    (file,) = kept.iterdir()
    file.write_bytes(b"damaged")
    assert not runtime("compile_s: 30, driver_version: '2'").open(opening(model, kept)).was_prepared
    assert not runtime("compile_s: 30, driver_version: '2'").open(opening(model)).was_prepared


@pytest.mark.parametrize(
    ("trouble", "error", "text"),
    [
        ("absent_driver: libacme.so is missing", CandidateError, "libacme.so is missing"),
        ("fails_on_compile: no memory on the device", CandidateError, "no memory on the device"),
        ("hang_on_compile: true", HangsError, None),
    ],
)
def test_device_that_makes_no_session_is_listed_all_the_same(runtime, model, trouble, error, text):
    """The list says what is there; only trying says what works."""
    here = runtime(trouble)
    assert len(here.devices()) == 1
    with pytest.raises(error, match=text):
        here.open(opening(model))


def test_smallest_model_is_spared_unless_the_file_says_otherwise(runtime, smallest):
    """The probe tries a device with one; that a real model hangs its compiler must be left for the trial to find."""
    x = {"x": np.ones(1, np.float32)}
    for trouble in ("hang_on_compile: true, compile_s: 50", "wrong_results: zeros"):
        assert runtime(trouble).open(opening(smallest)).run(x)["y"] == [1]
    with pytest.raises(HangsError):
        runtime("hang_on_compile: true, spares_small: false").open(opening(smallest))
    assert runtime("wrong_results: zeros, spares_small: false").open(opening(smallest)).run(x)["y"] == [0]


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "tiny", value[:1], value[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_error_is_noise_of_the_declared_size_and_repeats(runtime, model):
    """Relative to each number; the same file gives the same noise."""
    exact = answers(runtime().open(opening(model)))
    noisy = [answers(runtime("error: 0.05").open(opening(model))) for _ in range(2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert noisy[0].dtype == np.float32
    session = runtime("error: 0.05").open(opening(model))
    spread = np.std([answers(session) - exact for _ in range(300)])
    assert spread == pytest.approx(0.05 * np.sqrt(np.mean(exact**2)), rel=0.15)


def test_wrong_results_are_wrong(runtime, model):
    """Nothing says so but the numbers: what the golden samples are for."""
    exact = answers(runtime().open(opening(model)))
    assert np.allclose(answers(runtime("wrong_results: negated").open(opening(model))), exact[:, ::-1], atol=1e-6)
    assert not answers(runtime("wrong_results: zeros").open(opening(model))).any()
    assert np.isnan(answers(runtime("wrong_results: nan").open(opening(model)))).all()


def test_device_that_dies_stays_dead_until_it_is_plugged_in(runtime, file, model):
    """In every process: it has fallen off its bus."""
    here = runtime("dies_after: 3")
    session = here.open(opening(model))
    for _ in range(2):
        session.run(PICTURE)
    for _ in range(2):
        with pytest.raises(CandidateError, match="does not answer"):
            session.run(PICTURE)
    with pytest.raises(CandidateError):
        here.open(opening(model))
    plug(file, STICK)
    answers(here.open(opening(model)))


def test_hanging_run_never_ends(runtime, file, model):
    """By its number in a session, or because somebody set it for all of them."""
    session = runtime("hangs_after: 2").open(opening(model))
    session.run(PICTURE)
    with pytest.raises(HangsError):
        session.run(PICTURE)
    other = runtime().open(opening(model))
    other.run(PICTURE)
    set_trouble(file, STICK, "hangs")
    with pytest.raises(HangsError):
        other.run(PICTURE)


def test_heat_makes_it_slow(runtime, file, model, clock):
    """From a run on, or from the moment that somebody set it; three times as slow unless the file says otherwise."""
    session = runtime("slows_after: 2").open(opening(model))
    began_s = clock.monotonic()
    session.run(PICTURE)
    session.run(PICTURE)
    assert clock.monotonic() - began_s == pytest.approx(0.040)
    other = runtime("slow_factor: 5").open(opening(model))
    set_trouble(file, STICK, "slow")
    began_s = clock.monotonic()
    other.run(PICTURE)
    assert clock.monotonic() - began_s == pytest.approx(0.050)


MEMORY_CHILD = """
import sys
from pathlib import Path
import numpy as np, psutil
from agent.device.planning.plan import Candidate
from agent.device.runtimes.runtime import Opening
from simulator.accelerators import open_runtime

taken = psutil.Process().memory_info
runtime = open_runtime(sys.argv[1])
candidate = Candidate("VirtualNpuExecutionProvider", "npu", "fp32", threads=1)
before = taken().rss
session = runtime.open(Opening(Path(sys.argv[2]), candidate))
opened = taken().rss
for _ in range(4):
    session.run({"image": np.zeros((1, 3, 64, 64), np.float32)})
print((opened - before) >> 20, (taken().rss - opened) >> 20)
"""


def test_memory_is_taken_and_leaked(runtime, file, model):
    """Pages that are really there: a limit on memory must see them. In a process that has none to spare."""
    runtime("memory_mb: 64, leaks_mb: 8")

    done = subprocess.run([sys.executable, "-c", MEMORY_CHILD, file, model], capture_output=True, text=True, check=True)

    taken_mib, leaked_mib = map(int, done.stdout.split())
    assert taken_mib >= 64
    assert 32 <= leaked_mib < 64
