"""Waiting on conditions with a deadline, and a real bundle made of the real UltraFace file."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.clock import SystemClock

CLOCK = SystemClock()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Return a function that waits until a condition holds, or fails after its deadline."""

    def wait(condition: Callable[[], object], within_s: float = 30.0) -> None:
        never = threading.Event()
        deadline_s = CLOCK.monotonic() + within_s
        while not condition():
            assert CLOCK.monotonic() < deadline_s, "the condition did not come to hold in time"
            never.wait(0.01)

    return wait


@pytest.fixture
def ultraface_bundle(shared_data: Path, tmp_path: Path) -> Path:
    """A built bundle of the face detector as its authors ship it: one variant, no golden samples."""
    content = (shared_data / "models" / "ultraface-version-RFB-320.onnx").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "bundle"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / digest).write_bytes(content)
    tensor = {"dtype": "float32"}
    manifest = {
        "name": "ultraface",
        "version": "1",
        "input": {
            "kind": "image", "width": 320, "height": 240, "reverse_input_channels": True,
            "mean_values": [127, 127, 127], "scale_values": [128, 128, 128],
        },
        "decoder": {
            "model_type": "ultraface", "labels": ["face"], "confidence_threshold": 0.6, "iou_threshold": 0.3,
        },
        "variants": [
            {
                "name": "fp32", "opset": 9, "model": {"sha256": digest, "size_bytes": len(content)},
                "inputs": [{"name": "input", "shape": [1, 3, 240, 320], **tensor}],
                "outputs": [
                    {"name": "scores", "shape": [1, 4420, 2], **tensor},
                    {"name": "boxes", "shape": [1, 4420, 4], **tensor},
                ],
            }
        ],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
