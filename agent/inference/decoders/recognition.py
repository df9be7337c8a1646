"""Which family a model belongs to, from what its file says: for the builder, which asks when there are none or two.

Ultralytics writes the task and the class names into the file; that decides. Otherwise names and shapes do. Two
families that could both have made a shape are both returned: a wrong guess shows boxes in wrong places, or none.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.bundle.manifest import ModelType, TensorSpec
from agent.inference.decoders.grid import cells_count, picture_size
from agent.inference.decoders.outputs import text
from agent.inference.decoders.table import MISFITS, fits
from agent.inference.decoders.yolo import is_transposed

_COCO_CLASSES = 80


@dataclass(frozen=True, slots=True)
class Recognised:
    """A family that a model may belong to."""

    model_type: ModelType
    labels_count: int | None
    """How many labels the bundle must have; None where the file does not tell."""
    why: str
    labels: tuple[str, ...] = ()
    """The class names, where the file carries them."""


def recognise(
    outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> list[Recognised]:
    """Return every family that fits a model; one is an answer, none or two are a question to the user.

    Args:
        outputs: The model's outputs; a dimension that may vary is -1.
        inputs: The model's inputs, without weights.
        metadata: The file's `metadata_props`.
    """
    if "task" in metadata and "names" in metadata:
        return _from_ultralytics(outputs, inputs, metadata)
    found = [
        Recognised(model_type, _labels_count(model_type, outputs), _why(model_type, outputs))
        for model_type in MISFITS
        if fits(model_type, inputs, outputs) and _has_all_cells(model_type, outputs, inputs)
    ]
    return _without_coco_twin(found, inputs)


def _from_ultralytics(
    outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> list[Recognised]:
    """Believe the file: detect and classify have a decoder; segment, pose, obb and end2end exports have none."""
    model_type: ModelType | None = {"detect": "yolo", "classify": "classify"}.get(metadata["task"])  # type: ignore[assignment]
    if model_type is None or metadata.get("end2end", "False").lower() == "true":
        return []
    labels = _names(metadata["names"])
    if not labels or not fits(model_type, inputs, outputs, len(labels)):
        return []
    why = f"the file says: Ultralytics, task {metadata['task']}, {len(labels)} classes"
    return [Recognised(model_type, len(labels), why, labels)]


def _names(literal: str) -> tuple[str, ...]:
    """Return the class names of `{0: 'person', 1: 'bicycle'}`; none where the numbers are not 0, 1, 2 and so on."""
    try:
        names = ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or set(names) != set(range(len(names))):
        return ()
    return tuple(str(names[index]) for index in range(len(names)))


def _has_all_cells(model_type: ModelType, outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec]) -> bool:
    """Whether a YOLO has as many boxes as its input has cells; anchor-based relatives have three times as many.

    Of an input whose size varies the number of cells varies too: what is fixed then counts something else.
    """
    if model_type not in ("yolo", "yolox"):
        return True
    size, shape = picture_size(inputs), outputs[0].shape
    found = shape[1 if model_type == "yolox" or is_transposed(shape, None) else 2]
    return found == -1 if size is None else found in (-1, cells_count(*size))


def _without_coco_twin(found: list[Recognised], inputs: Sequence[TensorSpec]) -> list[Recognised]:
    """Tell YOLOX from a transposed YOLO where one of them would have COCO's 80 classes and the other not.

    With another number of columns, or where the input's size varies so that the number of cells proves nothing,
    both stay.
    """
    types = [candidate.model_type for candidate in found]
    if types != ["yolox", "yolo"] or picture_size(inputs) is None:
        return found
    coco = [candidate for candidate in found if candidate.labels_count == _COCO_CLASSES]
    return coco or found


def _labels_count(model_type: ModelType, outputs: Sequence[TensorSpec]) -> int | None:
    shape = outputs[0].shape
    if model_type == "yolox":
        return _known(shape[2], 5)
    if model_type == "yolo":
        return _known(shape[2] if is_transposed(shape, None) else shape[1], 4)
    if model_type == "classify":
        return _known(shape[1], 0)
    return {"ultraface": 1, "anomaly": 0}.get(model_type)


def _known(columns: int, others: int) -> int | None:
    return columns - others if columns > 0 else None


def _why(model_type: ModelType, outputs: Sequence[TensorSpec]) -> str:
    shapes = " and ".join(text(spec.shape) for spec in outputs)
    reasons = {
        "yolox": "is a row of 5 + classes for each cell of strides 8, 16, 32",
        "yolo": "is 4 + classes for each cell, without an object score",
        "ultraface": "are background and face scores with a box each",
        "ssd": "are boxes with a class and a score each, already suppressed",
        "classify": "is one number for each class",
        "anomaly": "is one number",
    }
    return f"{shapes} {reasons[model_type]}"
