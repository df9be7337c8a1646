"""Writes the calibration and golden pictures of this recipe, and golden/truth.json.

    PYTHONPATH=<repository> python bundles/recipes/parcels/pictures.py

All are generated, from seeds that neither training nor evaluation uses, halved to 320×180 and saved as JPEG.
Golden pictures show no parcel that is mostly hidden, so that each has one right answer.
truth.json: {file: [{"label": …, "xyxy_px": [left, top, right, bottom]}]}, in pixels of the JPEG.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from simulator.scenes import ConveyorScene, TruthBox

WIDTH, HEIGHT, QUALITY = 320, 180, 85
CALIBRATION_SEEDS = range(60_000, 60_100)
GOLDEN_SEEDS = range(70_000, 70_024)
CLEARLY_VISIBLE = 0.6
HERE = Path(__file__).resolve().parent


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a frame at half its size."""
    small = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    if not cv2.imwrite(str(path), small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
        raise OSError(f"cannot write {path}")


def clear_frame(scene: ConveyorScene, first: int) -> tuple[NDArray[np.uint8], tuple[TruthBox, ...]]:
    """Return the scene's next frame with three parcels or more, all clearly visible."""
    for index in range(first, first + 3000):
        pixels, truth = scene.frame(index)
        if len(truth) >= 3 and all(box.visible_share >= CLEARLY_VISIBLE for box in truth):
            return pixels, truth
    raise LookupError(f"scene {scene.seed} has no clear frame from {first} on")


def truth_document(truth: dict[str, tuple[TruthBox, ...]]) -> str:
    """Return truth.json's text, one picture a line."""
    lines = []
    for name, boxes in truth.items():
        entries = [{"label": box.label, "xyxy_px": [value / 2 for value in box.xyxy_px]} for box in boxes]
        lines.append(f"{json.dumps(name)}: {json.dumps(entries)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Write both folders."""
    for folder in ("calibration", "golden"):
        (HERE / folder).mkdir(exist_ok=True)
    for number, seed in enumerate(CALIBRATION_SEEDS):
        write_picture(HERE / "calibration" / f"{number:03}.jpg", ConveyorScene(seed).frame(37 * number % 450)[0])
    truth = {}
    for number, seed in enumerate(GOLDEN_SEEDS):
        pixels, truth[f"{number:03}.jpg"] = clear_frame(ConveyorScene(seed), 17 * number)
        write_picture(HERE / "golden" / f"{number:03}.jpg", pixels)
    (HERE / "golden" / "truth.json").write_text(truth_document(truth), encoding="utf-8")


if __name__ == "__main__":
    main()
