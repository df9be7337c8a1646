"""The vendors' own providers that run on this machine, as their users meet them: from a command to events at the broker.

The classic OpenVINO runs on any x86-64 processor, in a folder beside our ONNX Runtime or in its place. OpenVINO's plugin loads
and offers nothing on a processor of somebody else. Qualcomm's plugin runs its NPU in software, some hundred times slower.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil
import pytest
import yaml

from agent.device.hardware.gathering import gather
from agent.device.runtimes.prepared import INDEX, read_whole
from agent.paths import StatePaths
from simulator import disk
from simulator.broker import Mosquitto
from tests.conftest import missing
from tests.e2e import reference
from tests.e2e.accelerated import CAMERA, CPU, MODEL, Board, ep
from tests.e2e.test_real_input import assert_same, build

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

Printer = Callable[..., None]
REPOSITORY = Path(__file__).resolve().parents[2]
OPENVINO, QNN = ep("OpenVINO"), ep("QNN")
FACES = 30
"""Events that are compared: the video has them in its first 340 pictures."""
EXACT = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}


@pytest.fixture
def board(holdfast: Holdfast, mosquitto: Mosquitto) -> Iterator[Board]:
    """Return this machine, which needs no declared hardware, with profiles of its own that take little time."""
    with Board(holdfast, mosquitto) as board:
        board.runtimes = []
        yield board


def profile(board: Board, name: str, *candidates: dict[str, Any], **more: Any) -> None:
    """Write a profile and use it; an accelerator's is used beside those before."""
    folder = board.folder / "profiles"
    folder.mkdir(exist_ok=True)
    listed = [{"threads": [1], "variants": ["fp32"], **each} for each in candidates]
    document = {"name": name, "description": "a test", "candidates": listed, **more}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
    board.profile = f"{board.profile}+{name}" if "accelerator" in more else name


def quick(board: Board) -> None:
    """The plain CPU with one thread; what was asked for is tried first, and nothing else where it passes."""
    profile(board, "quick", {"provider": CPU}, tune={"mode": "as-listed"}, limits={"memory_mb": 2048})


def measuring(board: Board) -> None:
    """Let everything be measured, for a few seconds."""
    path = board.folder / "profiles" / "quick.yaml"
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "tune": {"mode": "measured", "budget_s": 6}}))


@pytest.fixture
def openvino(accelerators: Path, board: Board) -> str:
    """Name the classic OpenVINO's folder in the operator's file, with a profile of two candidates; return the runtime."""
    board.runtimes.append(f"folder:{accelerators / 'openvino'}")
    quick(board)
    profile(board, "exact", {"provider": OPENVINO, "options": EXACT}, accelerator=OPENVINO, limits={"memory_mb": 2048})
    return board.runtimes[0]


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put a folder's packages before the environment's, for every process from now on."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(REPOSITORY)]))


def said(holdfast: Holdfast, *arguments: str | Path) -> str:
    """Run a command; return what it printed, with its lines joined where a narrow terminal broke them."""
    done = holdfast.call(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\s+", " ", done.stdout)


# -- the classic OpenVINO ------------------------------------------------------------------------------------------------------


def test_both_providers_are_measured_and_the_reason_is_told(accelerators: Path, board: Board) -> None:
    """An operator names the folder, measures, and reads why: what is not here is absent, and no fallback."""
    holdfast, bundle = board.holdfast, board.bundle()
    board.runtimes = [f"folder:{accelerators / 'openvino'}"]
    config = board.configure(models={MODEL: {"bundle": str(bundle)}})
    said(holdfast, "plan", "measure", "--config", config, "--bundle", bundle)

    text = said(holdfast, "plan", "explain", "--config", config, "--bundle", bundle)
    plan = board.plan()

    measured = {each.candidate.provider for each in plan.outcomes if each.measurement}
    assert measured == {CPU, OPENVINO}
    assert plan.reason in text
    assert re.match(r"(CPU|OpenVINO) fp32 ×.* (p99|median).*\d ms", plan.reason), plan.reason
    assert plan.fallback is None
    assert "Fallback" not in text
    for kind in ("npu", "gpu"):
        assert f"no {kind} device of {OPENVINO} here" in text
    assert "Unusable" not in said(holdfast, "device", "show", "--config", config)
    doctor = said(holdfast, "doctor", "--config", config)
    assert "warn accelerator" not in doctor
    assert "accelerator-" not in doctor


def test_real_video_gives_the_same_events_on_openvino_as_on_the_cpu(
    openvino: str, board: Board, shared_data: Path, printer: Printer
) -> None:
    """Two ONNX Runtimes of two versions in one agent, a worker each, one of them on a provider that it must use."""
    video = shared_data / "video" / "one-by-one-person-detection.mp4"
    model = shared_data / "models" / "ultraface-version-RFB-320.onnx"
    bundle = str(build(board.holdfast, model, "--labels", "face", "--variants", "fp32"))
    camera = {"source": str(video), "pace": "fast", "rules": {"all": {"when": "detect"}}}
    models = {"intel": {"bundle": bundle, "run_on": OPENVINO}, "plain": {"bundle": bundle, "run_on": CPU}}
    cameras = {
        "intel": {**camera, "model": "intel", "fallback": "require"},
        "plain": {**camera, "model": "plain"},
    }
    start(board, models, cameras, FACES)

    intel, plain = board.model("intel"), board.model("plain")
    assert (intel["requested"]["run_on"], plain["requested"]["run_on"]) == (OPENVINO, CPU)
    assert (intel["actual"]["provider"], intel["actual"]["runtime"]) == (OPENVINO, openvino)
    assert (plain["actual"]["provider"], plain["actual"]["runtime"]) == (CPU, "built-in")
    assert list(intel["nodes"]) == [OPENVINO]
    assert intel["nodes"][OPENVINO] > 100
    assert (intel["fallback"], plain["fallback"]) == (None, None)
    assert set(board.providers("intel")) == {OPENVINO}
    assert set(board.providers("plain")) == {CPU}
    assert not [name for name, _ in board.all_conditions if name.startswith("accelerator")]
    found, expected = events_by_frame(board, "intel"), events_by_frame(board, "plain")
    both = min(max(found), max(expected))
    for frame in sorted({*found, *expected}):
        if frame < both:
            boxes = [reference.Box(0, each["score"], tuple(each["box"])) for each in expected[frame]]
            assert_same(found[frame], boxes, ["face"], f"frame {frame}")


def events_by_frame(board: Board, camera: str) -> defaultdict[int, list[dict[str, Any]]]:
    """Return what the events of a camera say, by the number of the picture."""
    by_frame: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in board.consumer.account.events:
        if event["source"].endswith(f"/{camera}"):
            by_frame[event["data"]["frame"]["id"]].append(event["data"])
    return by_frame


def test_wheel_that_took_the_place_of_ours_is_the_built_in_runtime(
    accelerators: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install onnxruntime-openvino` over onnxruntime: an older ONNX Runtime, with both providers in one library."""
    install(monkeypatch, accelerators / "openvino")
    quick(board)
    profile(board, "exact", {"provider": OPENVINO, "options": EXACT}, accelerator=OPENVINO, limits={"memory_mb": 2048})
    bundle = str(board.bundle())
    measuring(board)
    models = {MODEL: {"bundle": bundle, "run_on": OPENVINO}}

    said(board.holdfast, "plan", "measure", "--config", board.configure(models=models))
    plan = board.plan()
    board.start(models=models)
    board.until(lambda: board.serves(OPENVINO), "events of OpenVINO")
    board.until(lambda: bool(board.model().get("actual")), "word of the session")
    board.stop()

    version = str(next((accelerators / "openvino").glob("*.dist-info")).stem.rpartition("-")[2])
    assert plan.runtime_version == version
    assert {each.candidate.provider for each in plan.outcomes if each.measurement} == {CPU, OPENVINO}
    assert {each.candidate.runtime for each in plan.outcomes} == {"built-in"}
    assert board.plans() == [plan], "what was measured by hand is what runs"
    assert board.model()["actual"]["runtime"] == "built-in"
    assert board.model()["nodes"] == {OPENVINO: 4, CPU: 1}, "it has no ReduceMean over these axes"
    assert set(board.model()["time_share"]) == {OPENVINO, CPU}


# -- OpenVINO's plugin, where nothing is for it --------------------------------------------------------------------------------


def test_plugin_without_a_device_says_so_everywhere_and_what_to_do_instead(
    accelerators: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody installs the extra `openvino` on an AMD machine and wonders."""
    if gather().cpu.vendor == "Intel":
        pytest.skip("on Intel's processors the plugin has something to offer")
    install(monkeypatch, accelerators / "plugins")
    quick(board)
    bundle = str(board.bundle())
    config = board.configure(models={MODEL: {"bundle": bundle}})

    texts = [
        said(board.holdfast, "plan", "measure", "--config", config, "--bundle", bundle),
        said(board.holdfast, "plan", "explain", "--config", config, "--bundle", bundle),
        said(board.holdfast, "device", "show", "--config", config),
        said(board.holdfast, "doctor", "--config", config),
    ]

    for text in texts:
        assert "plugin:onnxruntime_ep_openvino: it is registered and offers no device here" in text
        assert "pip install --no-deps --target FOLDER onnxruntime-openvino" in text
        assert "`folder:FOLDER` under `device: {runtimes: […]}`" in text
    assert board.plan().fallback is None


def test_npus_that_are_listed_and_cannot_be_used_are_said_to_be_so(accelerators: Path, board: Board) -> None:
    """Registered under a name that ends in `.virtual`, the plugin lists four NPUs: present, and unusable with its own words."""
    package = accelerators / "plugins" / "onnxruntime_ep_openvino"
    for library in package.glob("lib*.so*"):  # the loader looks beside the name that it was given
        (board.folder / library.name).symlink_to(library)
    virtual = board.folder / "openvino.virtual.so"
    virtual.symlink_to(package / "libonnxruntime_providers_openvino_plugin.so")
    board.runtimes = [f"plugin:{virtual}"]
    quick(board)
    profile(board, "npus", {"provider": OPENVINO, "device_type": "npu"}, accelerator=OPENVINO)
    bundle = str(board.bundle())

    board.start(
        models={MODEL: {"bundle": bundle, "run_on": "npu"}},
        cameras={CAMERA: board.camera(), "strict": board.camera(fallback="require")},
    )
    board.until(lambda: board.serves(CPU), "events of the processor")
    board.until(lambda: "accelerator-required/strict" in board.conditions, "the condition of the one that waits")
    board.stop()

    npus = [each for each in board.info["device"]["ep_devices"] if each["device_type"] == "npu"]
    assert [each["provider"] for each in npus] == [OPENVINO] * 4
    assert all("compiler" in each["unusable"] for each in npus)
    said_of = {name: condition["text"] for name, condition in board.conditions.items()}
    assert "present but unusable" in said_of["accelerator-required/strict"]
    assert "compiler" in said_of[f"accelerator-unusable/{OPENVINO}-npu"]
    assert "`run_on: npu` was asked for" in said_of[f"accelerator-fallback/{MODEL}"]
    assert board.providers("strict") == []


# -- Qualcomm's NPU in software ------------------------------------------------------------------------------------------------


@pytest.fixture
def qnn(
    accelerators: Path, board: Board, tiny_classifier: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Install Qualcomm's plugin and a profile of the operator's own for it; return a model for it, made by our builder."""
    install(monkeypatch, accelerators / "plugins")
    quick(board)
    htp = {"provider": QNN, "variants": ["int8-qnn"], "options": {"backend_type": "htp"}}
    profile(board, "htp", htp, accelerator=QNN, match={"architecture": "x86_64"}, limits={"memory_mb": 2048})
    (board.folder / "model.onnx").write_bytes(tiny_classifier())
    classes = ("--model-type", "classify", "--labels", "red,green,blue", "--normalise", "unit")
    samples = ("--calibration", coloured(board, 12, seed=0), "--golden", coloured(board, 6, seed=1))
    bundle = build(board.holdfast, board.folder / "model.onnx", *classes, *samples, "--variants", "fp32,int8-qnn")
    return {"bundle": str(bundle), "run_on": QNN}


def coloured(board: Board, count: int, seed: int) -> Path:
    """Write pictures of red, green and blue in turns, with noise: each changes the class, so each makes an event."""
    folder = board.folder / f"coloured-{seed}"
    folder.mkdir()
    chance = np.random.default_rng(seed)
    for number in range(count):
        colour = np.where(np.arange(3) == number % 3, 220, 40)
        pixels = np.clip(colour + chance.normal(0, 20, (48, 64, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:03d}.png"), pixels)
    return folder


def camera(board: Board, **more: Any) -> dict[str, Any]:
    """Return a camera that speaks for every coloured picture, at a pace that leaves Qualcomm's simulator a processor."""
    source = {"source": str(board.folder / "coloured-0"), "fps": 10, "repeat": True}
    return {**source, "rules": {"each": {"when": "class"}}, **more}


def test_npu_slower_than_the_processor_is_measured_and_refused_with_both_numbers(
    board: Board, qnn: dict[str, Any]
) -> None:
    """A vendor's part is not chosen for its name."""
    measuring(board)
    config = board.configure(models={MODEL: {"bundle": qnn["bundle"]}})
    text = said(board.holdfast, "plan", "measure", "--config", config, "--bundle", qnn["bundle"])

    outcome = board.outcome(QNN)
    assert outcome.measurement is not None
    assert outcome.cause == "slow"
    assert re.search(r"worse than the CPU: (p99|median) [\d.]+ ms, where CPU fp32 ×1 has [\d.]+ ms", text)
    assert board.plan().chosen.provider == CPU
    assert board.plan().fallback is None


def test_npu_serves_from_what_its_trial_prepared_and_prepares_again_what_is_damaged(
    board: Board, qnn: dict[str, Any], printer: Printer
) -> None:
    """Compiled once, by the trial; read by the worker and by later starts; and never trusted without its digest."""
    models = {"npu": qnn, "cpu": {**qnn, "run_on": CPU}}
    cameras = {"npu": camera(board, model="npu"), "cpu": camera(board, model="cpu")}
    first_s = start(board, models, cameras)
    actual = board.model("npu")["actual"]
    assert actual["was_prepared"] is True
    assert actual["nodes"][QNN] > actual["nodes"].get(CPU, 0)
    expected = {each["data"]["frame"]["id"]: each["data"] for each in events(board, "cpu")}
    compared = [each["data"] for each in events(board, "npu") if each["data"]["frame"]["id"] in expected]
    for found in compared:
        wanted = expected[found["frame"]["id"]]
        assert found["label"] == wanted["label"]
        assert abs(found["score"] - wanted["score"]) <= 0.02
    assert len(compared) > 5

    second_s = start(board, models, cameras)
    printer(f"events after {first_s:.2f} s with planning and compiling, {second_s:.2f} s with both stored")
    assert board.model("npu")["actual"]["was_prepared"] is True

    (compiled,) = StatePaths(board.holdfast.state).prepared.glob("*/int8-qnn-*/model_qnn.bin")
    compiled.write_bytes(compiled.read_bytes()[:-1] + b"\xff")
    start(board, models, cameras)
    assert "is damaged (model_qnn.bin) and is made again" in board.log()
    assert is_whole(compiled.parent)
    assert board.model("npu")["actual"]["was_prepared"] is False


def start(board: Board, models: dict[str, Any], cameras: dict[str, Any], count: int = 8) -> float:
    """Start the agent, wait for so many new events of every camera and for word of every session, stop.

    Return the seconds from the start to the first new events of all.
    """
    before = {name: len(board.frames(name)) for name in cameras}
    board.start(models=models, cameras=cameras)
    took_s = board.until(lambda: all(board.frames(name)[seen:] for name, seen in before.items()), "new events")
    board.until(lambda: all(board.frames(name)[seen + count :] for name, seen in before.items()), "more events")
    board.until(lambda: all(board.model(name).get("actual") for name in models), "word of the sessions")
    board.stop()
    return took_s


def events(board: Board, camera: str) -> list[dict[str, Any]]:
    """Return the events of a camera so far."""
    return [each for each in board.consumer.account.events if each["source"].endswith(f"/{camera}")]


# -- power cuts and full disks -------------------------------------------------------------------------------------------------


def test_cut_while_planning_while_compiling_or_while_loading_leaves_nothing_half_made(
    board: Board, qnn: dict[str, Any]
) -> None:
    """`kill -9` of everything, at each step on the way to a session: the next start goes on, and believes only what is whole."""
    paths = StatePaths(board.holdfast.state)
    models, cameras = {MODEL: qnn}, {CAMERA: camera(board)}

    def is_compiling() -> bool:
        return any(paths.prepared.glob("*/*int8-qnn-*"))

    def is_loading() -> bool:
        return any("libonnxruntime_providers_qnn" in maps(each) for each in children(board, "worker"))

    for moment, what in (
        (lambda: bool(children(board, "trial")), "a trial"),
        (is_compiling, "a workshop"),
        (is_loading, "a worker that loads"),
    ):
        board.start(models=models, cameras=cameras)
        board.until(moment, what)
        board.cut()
        assert board.providers() == []
        for folder in paths.prepared.glob("*/[!.]*"):
            assert is_whole(folder), folder
    assert len(board.plans()) == 1, "made before the worker began to load, and whole"
    made_at = board.plan().made_at

    start(board, models, cameras)
    assert board.model()["actual"]["provider"] == QNN
    assert board.model()["actual"]["was_prepared"] is True
    assert board.plan().made_at == made_at
    assert not list(paths.prepared.glob("*/.*")), "what a killed trial left is swept"
    assert "damaged" not in board.log()


def is_whole(folder: Path) -> bool:
    """Return whether what was prepared is as it was written. It has its name only once it is."""
    made_of = json.loads((folder / INDEX).read_text())["made_of"]
    return read_whole(folder, made_of) is not None


def children(board: Board, role: str) -> list[psutil.Process]:
    """Return the agent's children of a role."""
    found = []
    for each in psutil.Process(board.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [each] if each.cmdline()[-2:] == ["child", role] else []
    return found


def maps(process: psutil.Process) -> str:
    """Return which libraries a process has loaded; empty when it is gone."""
    try:
        return Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return ""


def test_full_disk_while_planning_costs_the_next_start_its_time_and_nobody_an_event(
    board: Board, qnn: dict[str, Any], tmp_path: Path
) -> None:
    """Neither the plan nor what was compiled can be kept: the agent runs all the same and says so."""
    if reason := disk.why_not():
        missing(reason)
    with disk.SmallDisk(tmp_path / "state", 16 << 20) as small:
        for folder in (paths := StatePaths(tmp_path / "state")).plans, paths.prepared:
            folder.mkdir(parents=True)
        board.start(models={MODEL: qnn}, cameras={CAMERA: camera(board)})
        board.until(lambda: bool(children(board, "trial")), "a trial")
        small.fill()
        board.until(lambda: "agent.pipeline.workers" in board.log(), "a session")
        board.until(lambda: bool(board.model().get("actual")), "word of the session")
        assert board.model()["actual"]["provider"] == QNN
        log = board.log()
        assert "the plan cannot be stored and is measured again at the next start" in log
        assert "nothing can be kept in" in log or "its disk has 0 MiB free" in log
        small.free()
        board.until(lambda: board.serves(QNN), "events")
        board.stop()
