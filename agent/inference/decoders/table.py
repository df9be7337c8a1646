"""Every decoder there is, by the manifest's `model_type`, and the question whether one fits a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent.bundle.manifest import Decoder, ImageInput, Manifest, ModelType, TensorSpec
from agent.errors import BundleError
from agent.inference.answers import Answer, Detections
from agent.inference.decoders import anomaly, classify, ssd, ultraface, yolo, yolox
from agent.inference.decoders.anomaly import decode_anomaly
from agent.inference.decoders.outputs import Outputs, refuse
from agent.inference.decoders.selection import Selection
from agent.inference.placement import Placement


class Detector(Protocol):
    """A decoder of objects in pictures."""

    def __init__(
        self, decoder: Decoder, image: ImageInput, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None: ...

    def decode(self, outputs: Outputs, selection: Selection, placement: Placement) -> Detections: ...


Decode = Callable[[Outputs, Selection, Placement | None], Answer]
"""A decoder at work. The placement is None for a signal."""

Misfit = Callable[[Sequence[TensorSpec], Sequence[TensorSpec], int | None], str | None]

DETECTORS: Mapping[str, type[Detector]] = {
    "yolox": yolox.YoloxDecoder,
    "ultraface": ultraface.UltraFaceDecoder,
    "yolo": yolo.YoloDecoder,
    "ssd": ssd.SsdDecoder,
}

MISFITS: Mapping[ModelType, Misfit] = {
    "yolox": yolox.misfit,
    "ultraface": ultraface.misfit,
    "yolo": yolo.misfit,
    "ssd": ssd.misfit,
    "classify": classify.misfit,
    "anomaly": anomaly.misfit,
}


def misfit(
    model_type: ModelType,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    labels_count: int | None = None,
) -> str | None:
    """Return why a decoder does not fit a model, or None where it does. `labels_count` None: not known."""
    return MISFITS[model_type](inputs, outputs, labels_count)


def fits(
    model_type: ModelType,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    labels_count: int | None = None,
) -> bool:
    """Whether a decoder fits a model; `misfit` gives the reason."""
    return misfit(model_type, inputs, outputs, labels_count) is None


def make_decode(manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Decode:
    """Return the decoder that the manifest names, made for a model's inputs and outputs.

    Raises:
        BundleError: it does not fit the model, or needs pictures where the bundle takes signals.
    """
    decoder = manifest.decoder
    if decoder.model_type == "anomaly":
        refuse("anomaly", anomaly.misfit(inputs, outputs, None))
        return lambda results, _selection, _placement: decode_anomaly(results)
    if decoder.model_type == "classify":
        classifier = classify.ClassifyDecoder(decoder, inputs, outputs)
        return lambda results, selection, _placement: classifier.decode(results, selection)
    return _make_detect(manifest, inputs, outputs)


def _make_detect(manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Decode:
    model_type = manifest.decoder.model_type
    if not isinstance(manifest.input, ImageInput):
        raise BundleError(f"decoder {model_type} needs pictures, but the bundle's input is a signal")
    detector = DETECTORS[model_type](manifest.decoder, manifest.input, inputs, outputs)

    def detect(results: Outputs, selection: Selection, placement: Placement | None) -> Answer:
        assert placement is not None, "a detector's samples are pictures"
        return detector.decode(results, selection, placement)

    return detect
