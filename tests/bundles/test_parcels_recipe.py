from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnxruntime
import pytest
import yaml

from simulator.scenes import LABELS, TruthBox

RECIPE = Path(__file__).resolve().parents[2] / "bundles" / "recipes" / "parcels"


@pytest.fixture(scope="module")
def evaluation() -> Iterator[ModuleType]:
    """Load evaluate.py, a script beside the model and no module of the package."""
    spec = importlib.util.spec_from_file_location("parcels_evaluate", RECIPE / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_committed_model_finds_parcels_and_damage_on_held_out_pictures(evaluation: ModuleType) -> None:
    """The demo shows this model; the promise is mAP@0.5 of 0.90 or more on pictures it was not trained on."""
    precisions = evaluation.evaluate(RECIPE / "model.onnx", frames=150)
    assert precisions["map50"] >= 0.90, precisions
    assert min(precisions.values()) >= 0.85, precisions


def test_average_precision_counts_misses_doubles_wrong_labels_and_spares_the_hidden(evaluation: ModuleType) -> None:
    """A measure that cannot fall proves nothing."""
    left, right, hidden = (0.0, 0.0, 100.0, 50.0), (200.0, 0.0, 300.0, 50.0), (400.0, 0.0, 410.0, 50.0)
    truth = (TruthBox(left, "parcel", 1, 1.0), TruthBox(right, "parcel", 2, 1.0), TruthBox(hidden, "damaged", 3, 0.1))

    def precision(*found: tuple[tuple[float, ...], float, int]) -> float:
        boxes, scores, labels = zip(*found, strict=True)
        detections = evaluation.Found(np.array(boxes, np.float32), np.array(scores), np.array(labels))
        return evaluation.average_precision([(detections, truth)], 0)

    assert precision((left, 0.9, 0), (right, 0.8, 0)) == 1.0
    assert precision((left, 0.9, 0), (right, 0.8, 0), (hidden, 0.99, 0)) == 1.0, "hidden ones are not asked for"
    assert precision((left, 0.9, 0)) == 0.5, "a miss"
    assert precision((left, 0.9, 0), (right, 0.8, 1)) == 0.5, "a wrong label"
    assert precision((left, 0.9, 0), (left, 0.85, 0), (right, 0.8, 0)) == pytest.approx((1 + 2 / 3) / 2), "a double"
    assert precision((left, 0.9, 0), ((260.0, 0.0, 360.0, 50.0), 0.8, 0)) == 0.5, "too far off"


def test_model_has_the_pinned_layout_and_size() -> None:
    """Decoder `yolo` reads 4 box values and one score a label; the file must stay small enough to ship."""
    session = onnxruntime.InferenceSession(RECIPE / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape, each.type) for each in session.get_inputs()] == [
        ("images", [1, 3, 192, 320], "tensor(float)")
    ]
    assert [each.shape for each in session.get_outputs()] == [[1, 4 + len(LABELS), 960]]
    assert (RECIPE / "model.onnx").stat().st_size <= 1.5e6
    (output,) = session.run(None, {"images": np.zeros((1, 3, 192, 320), np.float32)})
    assert np.isfinite(output).all()
    assert 0 <= output[0, 4:].min() <= output[0, 4:].max() <= 1


def test_recipe_names_what_is_there() -> None:
    """The builder reads this file and nothing else."""
    recipe = yaml.safe_load((RECIPE / "bundle.yaml").read_text("utf-8"))
    assert recipe["decoder"]["labels"] == list(LABELS)
    assert (RECIPE / recipe["model"]).is_file()
    assert len(list((RECIPE / recipe["calibration"]).glob("*.jpg"))) == 100
    assert len(list((RECIPE / recipe["golden"]).glob("*.jpg"))) == 24


def test_golden_truth_belongs_to_the_golden_pictures_and_the_model_agrees(evaluation: ModuleType) -> None:
    """Variants of the model are judged against these boxes."""
    truth = json.loads((RECIPE / "golden" / "truth.json").read_text("utf-8"))
    assert sorted(truth) == sorted(path.name for path in (RECIPE / "golden").glob("*.jpg"))
    session = onnxruntime.InferenceSession(RECIPE / "model.onnx", providers=["CPUExecutionProvider"])
    found = total = 0
    for name, entries in truth.items():
        pixels = cv2.imread(str(RECIPE / "golden" / name))
        assert pixels.shape == (180, 320, 3)
        detections = evaluation.detect(session, pixels, least_score=0.4)
        for entry in entries:
            x0, y0, x1, y1 = entry["xyxy_px"]
            assert 0 <= x0 < x1 <= 320
            assert 0 <= y0 < y1 <= 180
            same = detections.boxes[detections.labels == LABELS.index(entry["label"])]
            total += 1
            found += bool(len(same)) and bool(evaluation.iou(np.array(entry["xyxy_px"], np.float32), same).max() > 0.5)
    assert total >= 72
    assert found / total >= 0.9


def test_export_answers_as_pytorch_does(tmp_path: Path) -> None:
    """Exporting must change no answer; the recipe's own check, on a network of random weights. Needs torch."""
    torch = pytest.importorskip("torch", reason="torch is for those who train; it is too large for every test run")
    spec = importlib.util.spec_from_file_location("parcels_train", RECIPE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    detector = module.Detector()
    module.export(detector, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    pictures = np.random.default_rng(1).random((1, 3, module.HEIGHT, module.WIDTH), np.float32)
    with torch.no_grad():
        expected = detector.eval()(torch.from_numpy(pictures)).numpy()
    np.testing.assert_allclose(session.run(None, {"images": pictures})[0], expected, rtol=1e-4, atol=1e-4)
