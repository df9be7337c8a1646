"""Prints how well model.onnx tells broken bearings from healthy ones, on signals it was not made with.

    PYTHONPATH=<repository> python bundles/recipes/bearing/evaluate.py

Needs the agent's own dependencies only. Exits with 1 where the AUROC is below 0.95.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import yaml
from numpy.typing import NDArray

from bundles.recipes.bearing import dataset

LEAST_AUROC = 0.95


def auroc(unusual: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """Area under the ROC curve: how often an unusual window scores above a healthy one, ties counting half.

    By ranks, as Mann and Whitney's U (J. A. Hanley, B. J. McNeil, Radiology 143, 1982).
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(unusual.sum()), int((~unusual).sum())
    return float((ranks[unusual].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def held_out_scores(seeds: range = dataset.HELD_OUT_SEEDS) -> tuple[dataset.Windows, NDArray[np.float32]]:
    """Return held-out windows (speeds, seeds and severities of their own) and the exported model's scores."""
    windows = dataset.draw(seeds, dataset.HELD_OUT_SPEEDS_HZ, ("none", *dataset.FAULTS), windows_each=4)
    session = onnxruntime.InferenceSession(str(dataset.HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"features": dataset.feature_table(windows)})
    return windows, scores[:, 0]


def main() -> int:
    """Print the table; return the exit code."""
    windows, scores = held_out_scores()
    recipe = yaml.safe_load((dataset.HERE / "bundle.yaml").read_text(encoding="utf-8"))
    threshold = recipe["decoder"]["anomaly_threshold"]
    kinds = np.array(windows.kinds)
    healthy = kinds == "none"
    print(f"{'fault':<11}{'windows':>8}{'AUROC':>8}{'median':>8}{'above threshold':>17}")
    print(f"{'healthy':<11}{healthy.sum():>8}{'':>8}{np.median(scores[healthy]):>8.2f}", end="")
    print(f"{np.mean(scores[healthy] > threshold):>17.1%}")
    for kind in dataset.FAULTS:
        of_kind = kinds == kind
        both = healthy | of_kind
        area = auroc(of_kind[both], scores[both])
        print(f"{kind:<11}{of_kind.sum():>8}{area:>8.4f}{np.median(scores[of_kind]):>8.2f}", end="")
        print(f"{np.mean(scores[of_kind] > threshold):>17.1%}")
    area = auroc(windows.unusual, scores)
    print(f"{'all':<11}{len(scores):>8}{area:>8.4f}    (threshold {threshold}, at least {LEAST_AUROC} asked)")
    return 0 if area >= LEAST_AUROC else 1


if __name__ == "__main__":
    sys.exit(main())
