"""Learns what healthy bearings look like and writes model.onnx, the threshold in bundle.yaml and golden/.

    PYTHONPATH=<repository> python bundles/recipes/bearing/train.py

Needs `pip install '.[train,build]'` in a checkout. The model sees no fault: it standardises the features, rotates them to
their principal components (PCA) and divides each by its spread; the score is the root mean square of the result, which
is the Mahalanobis distance over √k. So a healthy window scores about 1 and one at 5 is five times as far out.
Same input, same file: nothing here is random but the seeds named in dataset.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from bundles.recipes.bearing import dataset

OPSET = 17
"""Old enough for every runtime in the field, new enough for every operator used here."""
MARGIN = 1.5
"""The threshold over the most unusual of the validation windows, none of which has a fault."""


def train() -> Pipeline:
    """Fit the model on healthy training windows."""
    healthy = dataset.draw(dataset.TRAINING_SEEDS, dataset.TRAINING_SPEEDS_HZ, ("none",), windows_each=16)
    # "full" is the one solver whose result depends on nothing but the data.
    model = make_pipeline(StandardScaler(), PCA(whiten=True, svd_solver="full"))
    return model.fit(dataset.feature_table(healthy))


def score(model: Pipeline, table: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the anomaly score of each row, as scikit-learn computes it: the reference for the exported model."""
    return np.sqrt(np.mean(model.transform(table.astype(np.float64)) ** 2, axis=1))


def export(model: Pipeline, path: Path) -> None:
    """Write the model as ONNX: input `features` float32 (n, k), output `score` float32 (n, 1)."""
    count = model.n_features_in_
    exported = to_onnx(
        model, np.zeros((1, count), np.float32), target_opset={"": OPSET, "ai.onnx.ml": 3}, name="bearing"
    )
    graph = exported.graph
    whitened = graph.output[0].name
    graph.node.extend(
        [
            helper.make_node("Mul", [whitened, whitened], ["squares"], "square"),
            helper.make_node("ReduceMean", ["squares"], ["mean_square"], "mean", axes=[1], keepdims=1),
            helper.make_node("Sqrt", ["mean_square"], ["score"], "root"),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1]))
    for node in graph.node:
        node.input[:] = ["features" if name == graph.input[0].name else name for name in node.input]
    graph.input[0].name = "features"
    onnx.checker.check_model(exported, full_check=True)
    path.write_bytes(exported.SerializeToString(deterministic=True))


def check_parity(model: Pipeline, path: Path, table: NDArray[np.float32]) -> float:
    """Return the largest relative difference between the exported model and scikit-learn.

    Raises:
        AssertionError: it is above 1e-3, or the exported model answers in another shape.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"features": table})
    expected = score(model, table)
    assert answer.shape == (len(table), 1), answer.shape
    difference = float(np.max(np.abs(answer[:, 0] - expected) / np.maximum(expected, 1.0)))
    assert difference <= 1e-3, f"model.onnx differs from scikit-learn by {difference:.2e}"
    return difference


def write_threshold(threshold: float) -> None:
    """Put the threshold into bundle.yaml, which has comments that a YAML writer would lose."""
    file = dataset.HERE / "bundle.yaml"
    text = file.read_text(encoding="utf-8")
    changed, count = re.subn(r"(anomaly_threshold: )\S+", rf"\g<1>{threshold:.2f}", text)
    assert count == 1
    file.write_text(changed, encoding="utf-8")


def write_golden() -> None:
    """Write one window a kind for each golden seed, float32 (window_size, 1), and truth.json."""
    folder = dataset.HERE / "golden"
    folder.mkdir(exist_ok=True)
    truth = {}
    for seed in dataset.GOLDEN_SEEDS:
        kinds = ("none", dataset.FAULTS[seed % len(dataset.FAULTS)])
        windows = dataset.draw(range(seed, seed + 1), dataset.HELD_OUT_SPEEDS_HZ, kinds, 1, dataset.GOLDEN_SEVERITIES)
        for values, kind in zip(windows.values, windows.kinds, strict=True):
            name = f"{'healthy' if kind == 'none' else kind}-{seed}.npy"
            np.save(folder / name, values[:, None])
            truth[name] = kind != "none"
    (folder / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Train, export, compare with scikit-learn, choose the threshold, write the golden windows."""
    model = train()
    path = dataset.HERE / "model.onnx"
    export(model, path)
    validation = dataset.draw(dataset.VALIDATION_SEEDS, dataset.TRAINING_SPEEDS_HZ, ("none",), windows_each=16)
    table = dataset.feature_table(validation)
    difference = check_parity(model, path, table)
    scores = score(model, table)
    write_threshold(MARGIN * float(scores.max()))
    write_golden()
    print(f"model.onnx: {path.stat().st_size} bytes, differs from scikit-learn by {difference:.1e}")
    print(f"healthy validation windows: median {np.median(scores):.2f}, highest {scores.max():.2f}")


if __name__ == "__main__":
    main()
