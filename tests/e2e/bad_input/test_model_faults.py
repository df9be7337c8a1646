"""Models that are none, that fit no decoder or two, that answer with NaN, eat the memory or never answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from agent.device.planning.plan import Candidate
from agent.device.profiles.profile import Limits
from agent.trial.running import run_trial
from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from tests.e2e.bad_input import models
from tests.e2e.bad_input.conftest import PATIENCE_S, DeviceWatch, broker_at, sigterm

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

BUNDLE_ERROR = 4
CPU = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        pytest.param(None, ("found nothing",), id="missing"),
        pytest.param(b"", ("empty",), id="empty"),
        pytest.param(b"\xa5" * 4096, ("ONNX",), id="garbage"),
        pytest.param(models.two_decoders_fit()[:60_000], ("ONNX",), id="truncated"),
        pytest.param(models.no_decoder_fits(), ("fit no decoder", "what are these outputs?"), id="no-decoder"),
        pytest.param(models.two_decoders_fit(), ("fit 2 decoders", "--model-type"), id="two-decoders"),
    ],
)
def test_builder_refuses_with_the_question_to_answer(
    holdfast: Holdfast, tmp_path: Path, content: bytes | None, texts: tuple[str, ...]
) -> None:
    """A file that somebody has is refused in words that they can act on, and no bundle is left half made."""
    model = tmp_path / "model.onnx"
    if content is not None:
        model.write_bytes(content)
    done = holdfast.call("bundle", "build", model, "--output", tmp_path / "built")
    assert done.returncode == BUNDLE_ERROR, done.stdout + done.stderr
    assert all(text in done.stderr for text in texts), done.stderr
    assert "→" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "built").exists()


def test_bad_models_are_conditions_and_the_good_one_runs(
    planned: Holdfast,
    tmp_path: Path,
    make_tiny_bundle: Callable[..., Path],
    mosquitto: Mosquitto,
    watch: Callable[[int], DeviceWatch],
) -> None:
    """One agent with five bundles that cannot run, one that is ill at times, and one that is well."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        colour = (30, 30, 220) if number < 4 else (0, 0, 0)
        cv2.imwrite(str(pictures / f"{number:02}.png"), np.full((48, 64, 3), colour, np.uint8))
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "manifest.json").write_bytes(bytes(100))
    damaged = make_tiny_bundle()
    blob = max((damaged / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-100])
    bundles = {
        "well": "parcels",
        "garbage": str(tmp_path / "garbage"),
        "damaged": str(damaged),
        "nan": str(make_tiny_bundle({"fp32": models.always_nan()})),
        "shape": str(make_tiny_bundle({"fp32": models.four_classes()})),
        "dark": str(make_tiny_bundle({"fp32": models.nan_in_the_dark()})),
    }
    folder: dict[str, Any] = {"source": str(pictures), "repeat": True, "fps": 2}
    cameras = {name: {**folder, "model": name} for name in bundles if name != "well"}
    cameras["well"] = {"source": "scene://conveyor?fps=10", "model": "well"}
    config = planned.write_config(
        mqtt=broker_at(mosquitto.port),
        models={name: {"bundle": bundle} for name, bundle in bundles.items()},
        cameras=cameras,
    )
    device = watch(mosquitto.port)
    with Consumer(mosquitto.port) as consumer:
        device.agent = core = planned.run(config)
        assert "manifest.json" in device.wait_for_condition("model-unusable/garbage")
        assert str(damaged) in device.wait_for_condition("model-unusable/damaged")
        assert "NaN" in device.wait_for_condition("model-unusable/nan")
        assert "[1, 4]" in device.wait_for_condition("model-unusable/shape")
        assert "NaN" in device.wait_for_condition("invalid-answers/dark")
        device.wait_for(lambda it: "invalid-answers/dark" not in it.conditions, "a bright picture ends it")
        assert consumer.wait_for(5, PATIENCE_S), planned.log()
        sigterm(core).assert_clean(planned.log())
    assert "well" in consumer.account.seqs


def test_model_that_eats_the_memory_is_refused(make_tiny_bundle: Callable[..., Path]) -> None:
    """An edge box without swap would lose every process to it."""
    bundle = make_tiny_bundle({"fp32": models.hungry(3)})
    outcome = run_trial(bundle, CPU, Limits(memory_mb=600, trial_s=30), threading.Event())
    assert outcome.measurement is None
    assert "MiB" in str(outcome.refusal) or "memory" in str(outcome.refusal), outcome.refusal


def test_model_that_never_answers_is_refused(make_tiny_bundle: Callable[..., Path]) -> None:
    """A loop in native code hears no signal of Python's."""
    bundle = make_tiny_bundle({"fp32": models.endless()})
    outcome = run_trial(bundle, CPU, Limits(trial_s=5), threading.Event())
    assert "gave no answer within 5 s and was killed" in str(outcome.refusal), outcome
