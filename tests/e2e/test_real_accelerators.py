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

from simulator.broker import Mosquitto
from tests.e2e.accelerated import CPU, DEVICE, MODEL, Board, ep
from tests.e2e.test_real_input import assert_same, build

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

Printer = Callable[..., None]
REPOSITORY = Path(__file__).resolve().parents[2]
OPENVINO, QNN = ep("OpenVINO"), ep("QNN")
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
        models={"intel": {"bundle": bundle, "run_on": OPENVINO}, "plain": {"bundle": bundle, "run_on": "cpu"}},
        cameras={
            "intel": {**camera, "model": "intel", "fallback": "require"},
            "plain": {**camera, "model": "plain", "repeat": True},
        },
    )
    board.until(lambda: all(board.model(name).get("actual") for name in ("intel", "plain")), "word of the sessions")
    intel, plain = board.model("intel"), board.model("plain")
    printer(json.dumps(intel, indent=1)[:3000])
    assert intel["requested"]["run_on"] == OPENVINO
    board.stop()
