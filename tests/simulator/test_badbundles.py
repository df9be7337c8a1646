"""Each bad bundle is bad in its own way, in a real trial; and those made for probation pass the trial first."""

from __future__ import annotations

import hashlib
import platform
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from agent.bundle.reader import open_bundle
from agent.clock import SystemClock
from agent.device.planning.plan import Candidate, Outcome
from agent.device.profiles.profile import Limits
from agent.errors import CandidateError
from agent.inference.model import Model, open_model
from agent.sources.sample import Frame
from agent.trial.running import run_trial
from simulator.badbundles import (
    LIVE_BRIGHTNESS,
    MAX_P99_MS,
    NOT_BY_PICTURE,
    Fault,
    When,
    decompression_bomb,
    expected_scores,
    make_bundle,
)
from simulator.scenes import ConveyorScene

CPU = Candidate(provider="CPUExecutionProvider", device_type="cpu", variant="fp32", threads=1)
ON_X86 = platform.machine().lower() in {"x86_64", "amd64"}
BY_PICTURE = [fault for fault in get_args(Fault) if fault not in NOT_BY_PICTURE]


def trial(folder: Path, *, trial_s: float = 30.0) -> Outcome:
    return run_trial(folder, CPU, Limits(memory_mb=600, trial_s=trial_s), threading.Event())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("crash at load", "SIGSEGV", marks=pytest.mark.skipif(not ON_X86, reason="tried on x86 only")),
        pytest.param("crash", "SIGFPE", marks=pytest.mark.skipif(not ON_X86, reason="other processors answer")),
        ("nan", "NaN"),
        ("wrong shape", "expected shape [1, 2], found [1, 4]"),
        ("other shape", "the manifest pins classes float32 [1, 2]"),
        ("memory", "failed while running"),
        ("missing blob", "expected a file, found nothing"),
    ],
)
def test_fault_shows_in_a_real_trial(tmp_path: Path, fault: Fault, words: str) -> None:
    """A suite that attacks with bundles that do not do what they say would prove nothing."""
    assert words in (trial(make_bundle(tmp_path / "bundle", fault)).refusal or "")


def test_hang_is_one(tmp_path: Path) -> None:
    """Only a time limit ends it."""
    assert "no answer within 3 s" in (trial(make_bundle(tmp_path / "bundle", "hang"), trial_s=3).refusal or "")


def test_slow_bundle_misses_its_own_gate(tmp_path: Path) -> None:
    """By enough that the machine's mood does not decide."""
    outcome = trial(make_bundle(tmp_path / "bundle", "slow"))
    assert outcome.measurement is not None
    assert outcome.measurement.p50_ms > MAX_P99_MS


def test_wrong_answers_are_not_the_models(tmp_path: Path) -> None:
    """The signature is right, the golden answers are another model's."""
    outcome = trial(make_bundle(tmp_path / "bundle", "wrong answers"))
    assert outcome.measurement is not None
    assert outcome.measurement.golden_agreement == 0.0


@pytest.mark.parametrize("when", ["live", "some"])
@pytest.mark.parametrize("fault", BY_PICTURE)
def test_bundle_made_for_probation_passes_its_trial(tmp_path: Path, fault: Fault, when: When) -> None:
    """Else the trial would catch it and probation would never be put to the test."""
    outcome = trial(make_bundle(tmp_path / "bundle", fault, when))
    assert outcome.measurement is not None, outcome.refusal
    assert outcome.measurement.golden_agreement == 1.0


def opened(folder: Path) -> Model:
    return open_model(open_bundle(folder), CPU)


def frame(pixels: np.ndarray) -> Frame:
    clock = SystemClock()
    return Frame("scene", 0, clock.now(), clock.monotonic(), pixels)


@pytest.mark.parametrize("fault", ["nan", "wrong shape"])
def test_scene_sets_a_live_fault_off(tmp_path: Path, fault: Fault) -> None:
    """Every frame of a generated camera does it; the zeros of a warm-up do not."""
    model = opened(make_bundle(tmp_path / "bundle", fault, "live"))
    model.warm_up()
    picture = frame(ConveyorScene(seed=1).frame(0)[0])
    with pytest.raises(CandidateError):
        model.decode(model.infer(model.prepare(picture)), picture)


def test_some_fault_spares_most_frames(tmp_path: Path) -> None:
    """One frame in eight or so: an error rate, not an outage."""
    model = opened(make_bundle(tmp_path / "bundle", "nan", "some"))
    scene = ConveyorScene(seed=3)
    outputs = [model.infer(model.prepare(frame(scene.frame(number)[0])))["classes"] for number in range(120)]
    struck = sum(bool(np.isnan(output).any()) for output in outputs)
    assert 1 <= struck <= 60


@pytest.mark.parametrize("seed", range(20))
def test_every_scene_is_bright_enough(seed: int) -> None:
    """Whatever seed a test picks, its camera sets live faults off."""
    assert ConveyorScene(seed=seed).frame(seed * 7)[0].mean() / 255 > LIVE_BRIGHTNESS


def test_good_bundle_says_what_it_should(tmp_path: Path) -> None:
    """The good ones are what a device goes back to."""
    model = opened(make_bundle(tmp_path / "bundle"))
    found = model.infer({"image": np.full((1, 3, 64, 64), 0.6, np.float32)})["classes"][0]
    assert found == pytest.approx(expected_scores(0.6), abs=1e-4)


def test_second_good_bundle_shares_its_golden_pictures_only(tmp_path: Path) -> None:
    """v2 is another model, so that a test can see which one runs; and a device fetches only what it lacks."""
    first = make_bundle(tmp_path / "1", version="1")
    second = make_bundle(tmp_path / "2", version="2", sharpness=12.0)
    models = [open_bundle(folder).manifest.variants[0].model.sha256 for folder in (first, second)]
    shared = {path.name for path in (first / "blobs").iterdir()} & {path.name for path in (second / "blobs").iterdir()}
    assert models[0] != models[1]
    assert len(shared) == 3


def test_same_arguments_make_the_same_bytes(tmp_path: Path) -> None:
    """Digests in a failing test's log mean something in the next run."""
    one, two = (make_bundle(tmp_path / name, "slow", "live", ballast_bytes=10_000) for name in "12")
    assert open_bundle(one).digest == open_bundle(two).digest


def test_ballast_makes_a_download_of_that_size(tmp_path: Path) -> None:
    """The tests of resumption need 100 MB that still are a model that works."""
    folder = make_bundle(tmp_path / "bundle", ballast_bytes=3_000_000)
    assert 3_000_000 < open_bundle(folder).manifest.variants[0].model.size_bytes < 3_010_000
    assert trial(folder).measurement is not None


def test_bomb_is_small_until_it_is_unpacked(tmp_path: Path) -> None:
    """A device that unpacks before it counts fills its memory or its disk."""
    bomb = decompression_bomb(200_000_000)
    assert len(bomb) < 50_000
    assert hashlib.sha256(bomb).hexdigest() == hashlib.sha256(decompression_bomb(200_000_000)).hexdigest()


def test_fault_of_the_bundle_has_no_picture(tmp_path: Path) -> None:
    """A test that asks for a crash at load on live pictures only would wait for nothing."""
    with pytest.raises(ValueError, match="does not depend"):
        make_bundle(tmp_path / "bundle", "crash at load", "live")
