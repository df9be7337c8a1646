"""The real parts that the figures are measured on: the shared models and video, bundles built from them, the machine.

What is missing here (a video, a broker) is said in the table instead of failing the run.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from agent.bundle.reader import Bundle, open_bundle
from benchmarks.networks import CLASSES, resnet50, squeezenet
from simulator.broker import find_mosquitto

REPOSITORY = Path(__file__).resolve().parent.parent
VIDEO = Path("video", "one-by-one-person-detection.mp4")
ULTRAFACE = Path("models", "ultraface-version-RFB-320.onnx")
YOLOX = Path("models", "yolox_nano_coco.onnx")
CALIBRATION_FRAMES = 100
GOLDEN_FRAMES = frozenset({287, 291, 323, 328, 333, 338, 366, 369, 686, 689, 768, 857})
"""Where a face looks into the camera and somebody walks: both models have something to lose."""
SIDE = 224


class MissingPartError(Exception):
    """Something that this machine does not have; the text goes into the table."""


@dataclass(frozen=True)
class Parts:
    """Where everything is. `folder` is this run's own; `is_quick` asks for fewer rounds and frames."""

    folder: Path
    is_quick: bool
    say: Callable[[str], None]

    @cached_property
    def data(self) -> Path:
        """The shared test data."""
        folder = Path(os.environ.get("HOLDFAST_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
        if not folder.is_dir():
            raise MissingPartError("no test data here; set HOLDFAST_TEST_DATA")
        return folder

    @property
    def video(self) -> Path:
        """Real H.264, 768×432, 10 frames a second, 1,394 frames."""
        return self._existing(VIDEO)

    @cached_property
    def ultraface(self) -> Bundle:
        """UltraFace, repaired, fp32 only."""
        return self._build(ULTRAFACE, "ultraface", labels=("face",), variants=("fp32",))

    @cached_property
    def ultraface_variants(self) -> Bundle:
        """UltraFace with all variants, under a gate wide enough for every one: the plan needs a choice."""
        return self._build(ULTRAFACE, "ultraface-variants", labels=("face",), **self._samples)

    @cached_property
    def yolox_variants(self) -> Bundle:
        """YOLOX-Nano with all variants."""
        from bundles.labels import NAMED_LABELS

        return self._build(YOLOX, "yolox-variants", labels=NAMED_LABELS["coco"], **self._samples)

    @cached_property
    def yolox_gated(self) -> Bundle:
        """YOLOX-Nano as an operator would build it: INT8 that loses more than the builder allows is not in it."""
        from bundles.labels import NAMED_LABELS

        return self._build(YOLOX, "yolox-gated", labels=NAMED_LABELS["coco"], **{**self._samples, "max_drop": None})

    @cached_property
    def squeezenet_variants(self) -> Bundle:
        """SqueezeNet 1.1 with random weights and all variants: small and dense."""
        return self._build_network("squeezenet", squeezenet(seed=1, side=SIDE))

    @cached_property
    def resnet_variants(self) -> Bundle:
        """ResNet-50 with random weights and all variants: large and dense, 102 MB."""
        return self._build_network("resnet50", resnet50(seed=1, side=SIDE))

    @cached_property
    def _samples(self) -> dict[str, object]:
        """Frames of the video as PNG files: every tenth to calibrate INT8 with, and others, with faces, to judge it on."""
        import cv2

        folders = {"calibration": self.folder / "calibration", "golden": self.folder / "golden"}
        for folder in folders.values():
            folder.mkdir()
        capture = cv2.VideoCapture(str(self.video))
        for number in range(10 * CALIBRATION_FRAMES):
            ok, frame = capture.read()
            name = "golden" if number in GOLDEN_FRAMES else "calibration" if number % 10 == 0 else ""
            if ok and name:
                cv2.imwrite(str(folders[name] / f"{number:04}.png"), frame)
        return {**folders, "max_drop": 1.0}

    @cached_property
    def mosquitto(self) -> str:
        """The real broker's path."""
        path = find_mosquitto()
        if path is None:
            raise MissingPartError("mosquitto is not installed")
        return path

    def shipped(self, model: Path) -> Path:
        """A model file as its authors published it."""
        return self._existing(model)

    def _existing(self, path: Path) -> Path:
        if not (self.data / path).is_file():
            raise MissingPartError(f"no {path} in the test data")
        return self.data / path

    def _build_network(self, name: str, content: bytes) -> Bundle:
        source = self.folder / f"{name}.onnx"
        source.write_bytes(content)
        labels = tuple(f"class {number}" for number in range(CLASSES))
        return self._build(source, f"{name}-variants", labels=labels, normalise="imagenet", **self._samples)

    def _build(self, model: Path, name: str, **options: object) -> Bundle:
        from bundles.build import build
        from bundles.options import Options

        self.say(f"building {name}")
        output = self.folder / name
        build(self._existing(model), output, Options(name=name, **options), lambda _: None)  # type: ignore[arg-type]
        return open_bundle(output)


def machine() -> str:
    """Return what the figures were measured on, in one line."""
    import cv2
    import numpy as np
    import onnxruntime as ort
    import psutil

    from agent.device.hardware.cpu import read_cpu, usable_cores
    from agent.device.hardware.gathering import this_system
    from agent.device.hardware.sysfiles import SYSTEM_ROOT

    cpu = read_cpu(SYSTEM_ROOT, this_system())
    return (
        f"{cpu.model}, {usable_cores(cpu)} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.machine()}; Python {sys.version.split()[0]}, onnxruntime {ort.__version__}, "
        f"OpenCV {cv2.__version__}, numpy {np.__version__}"
    )


def load() -> str:
    """Return how many processes wanted a core over the last minute: more than there are cores means noise."""
    import psutil

    return f"{psutil.getloadavg()[0]:.1f}"
