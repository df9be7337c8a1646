"""The bearing recipe: the promise in its README, held by the files that are in the repository."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from agent.clock import SystemClock
from agent.inference.decoders.anomaly import decode_anomaly
from agent.inference.features import signal_tensor
from agent.sources.settings import SensorSource
from agent.sources.windows import Windows
from bundles.recipes.bearing import dataset, evaluate
from simulator.sensor import open_signal

RECIPE = Path(dataset.__file__).parent


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(RECIPE / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def threshold() -> float:
    return yaml.safe_load((RECIPE / "bundle.yaml").read_text(encoding="utf-8"))["decoder"]["anomaly_threshold"]


def test_auroc_on_held_out_signals_is_at_least_0_95(threshold):
    """Seeds, speeds and severities that training never saw; and healthy machines are left in peace."""
    windows, scores = evaluate.held_out_scores(range(300_000, 300_024))
    assert evaluate.auroc(windows.unusual, scores) >= 0.95
    assert (scores[~windows.unusual] > threshold).mean() <= 0.01


def test_auroc_agrees_with_counting_pairs():
    """The number in the README is only as good as the function that makes it."""
    chance = np.random.default_rng(1)
    unusual = chance.random(60) < 0.4
    scores = chance.integers(0, 8, 60).astype(np.float32)  # many ties
    pairs = scores[unusual][:, None] - scores[~unusual][None, :]
    assert evaluate.auroc(unusual, scores) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_no_machine_is_both_trained_on_and_held_out():
    """Else the AUROC is a memory test."""
    seeds = [dataset.TRAINING_SEEDS, dataset.VALIDATION_SEEDS, dataset.HELD_OUT_SEEDS, dataset.GOLDEN_SEEDS]
    assert len(set().union(*seeds)) == sum(map(len, seeds))
    for low, high in dataset.HELD_OUT_SPEEDS_HZ:
        assert all(high <= start or end <= low for start, end in dataset.TRAINING_SPEEDS_HZ)


def test_golden_windows_are_of_the_bundles_shape_and_judged_right(session, threshold):
    """A device refuses a bundle whose own samples it cannot answer."""
    signal = dataset.read_input()
    truth = json.loads((RECIPE / "golden" / "truth.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in (RECIPE / "golden").glob("*.npy"))
    assert files == sorted(truth)
    assert set(truth.values()) == {True, False}
    for name in files:
        values = np.load(RECIPE / "golden" / name, allow_pickle=False)
        assert (values.shape, values.dtype) == ((signal.window_size, 1), np.float32)
        (answer,) = session.run(None, {"features": dataset.feature_table(_single(values))})
        assert (answer[0, 0] > threshold) == truth[name], name


def _single(values: np.ndarray) -> dataset.Windows:
    return dataset.Windows(values[:, 0][None], ("none",), np.zeros(1))


@pytest.mark.parametrize("kind", ["outer", "inner", "imbalance", "looseness"])
def test_the_whole_sensor_flow_finds_the_fault_when_it_begins_and_not_before(session, threshold, kind):
    """Source, windows with lost packets, features, model, decoder: the parts as the pipeline uses them."""
    url = f"signal://bearing?seed=11&kind={kind}&fault_at=5&growth=4&seconds=12&missing=0.01"
    source = open_signal(
        SensorSource(source=url, pace="fast"), name="motor", clock=SystemClock(), stop=threading.Event(), first_id=0
    )
    signal = dataset.read_input()
    windows = Windows(source, signal)
    scores = {}
    for window in windows:
        outputs = session.run(None, {"features": signal_tensor(window, signal)})
        end_s = (window.id * signal.hop_size + signal.window_size) / signal.rate_hz
        scores[end_s] = decode_anomaly({"score": outputs[0]}).value
    assert max(score for end_s, score in scores.items() if end_s <= 5) < threshold
    assert min(score for end_s, score in scores.items() if end_s >= 9) > threshold
    assert windows.dropped["missing"] < 0.2 * len(scores)


def test_model_is_small_and_of_the_pinned_opset():
    """It travels over thin links, and an old runtime must load it."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(RECIPE / "model.onnx")
    assert (RECIPE / "model.onnx").stat().st_size < 100_000
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 17
    assert [output.name for output in model.graph.output] == ["score"]


def test_training_gives_the_same_model_again_and_equal_to_scikit_learn(tmp_path, session):
    """The file in the repository is the script's, and the export changes no answer."""
    pytest.importorskip("sklearn")
    pytest.importorskip("skl2onnx")
    from bundles.recipes.bearing import train

    model = train.train()
    train.export(model, tmp_path / "model.onnx")
    table = dataset.feature_table(evaluate.held_out_scores(range(300_000, 300_003))[0])
    assert train.check_parity(model, tmp_path / "model.onnx", table) <= 1e-3
    (committed,) = session.run(None, {"features": table})
    # Another LAPACK may round differently; anything beyond rounding is another model.
    np.testing.assert_allclose(committed[:, 0], train.score(model, table), rtol=1e-3)
