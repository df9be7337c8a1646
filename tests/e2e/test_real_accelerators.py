"""The vendors' own providers that run on this machine, as their users meet them: from a command to events at the broker.

The classic OpenVINO runs on any x86-64 processor, in a folder beside our ONNX Runtime or in its place. OpenVINO's plugin loads
and offers nothing on a processor of somebody else. Qualcomm's plugin runs its NPU in software, some hundred times slower.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent.device.hardware.gathering import gather
from simulator.broker import Mosquitto
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
    """The plain CPU with one thread, and seconds to measure in."""
    profile(board, "quick", {"provider": CPU}, tune={"budget_s": 6}, limits={"memory_mb": 2048})


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
    board.start(
        models={"intel": {"bundle": bundle, "run_on": OPENVINO}, "plain": {"bundle": bundle, "run_on": CPU}},
        cameras={
            "intel": {**camera, "model": "intel", "fallback": "require"},
            "plain": {**camera, "model": "plain"},
        },
    )
    board.until(lambda: all(board.frames(name)[FACES:] for name in ("intel", "plain")), "events of both")
    board.until(lambda: all(board.model(name).get("actual") for name in ("intel", "plain")), "word of both sessions")
    board.stop()

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
    config = board.configure(models={MODEL: {"bundle": bundle}})

    said(board.holdfast, "plan", "measure", "--config", config, "--bundle", bundle)
    plan = board.plan()
    board.start(models={MODEL: {"bundle": bundle, "run_on": OPENVINO}})
    board.until(lambda: board.serves(OPENVINO), "events of OpenVINO")
    board.until(lambda: bool(board.model().get("actual")), "word of the session")
    board.stop()

    version = str(next((accelerators / "openvino").glob("*.dist-info")).stem.rpartition("-")[2])
    assert plan.runtime_version == version
    assert {each.candidate.provider for each in plan.outcomes if each.measurement} == {CPU, OPENVINO}
    assert {each.candidate.runtime for each in plan.outcomes} == {"built-in"}
    assert board.model()["actual"]["runtime"] == "built-in"
    assert set(board.model()["nodes"]) == {OPENVINO}


# -- OpenVINO's plugin, where nothing is for it --------------------------------------------------------------------------------


def test_plugin_without_a_device_says_so_everywhere_and_what_to_do_instead(
    accelerators: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody installs `holdfast[openvino]` on an AMD machine and wonders."""
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
