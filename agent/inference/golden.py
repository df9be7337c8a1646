"""Golden answers: what fp32 said about a bundle's golden samples, as JSON, and how close another answer comes to it.

Takes a bundle's golden samples and a model's answers; gives samples, documents, and how far two answers agree. It runs
no model. The builder writes these documents and uses the same comparison for its task metric, so that a variant that
passed on the workbench is judged alike on the device.

The documents, one a golden sample:

    {"kind": "detections", "boxes": [[x1, y1, x2, y2], …], "scores": […], "class_ids": […], "frame": {"w": 640, "h": 9}}
    {"kind": "classes", "scores": […], "class_ids": […]}
    {"kind": "score", "value": 0.31}
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agent.bundle.manifest import Agreement, Decoder, GoldenSample, ImageInput, SignalInput
from agent.bundle.reader import Bundle
from agent.clock import Clock
from agent.errors import BundleError
from agent.inference.answers import Answer, Classes, Detections, Score
from agent.sources.sample import Frame, Window


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an answer may be from the golden one and still count as the same."""

    iou: float
    """Two boxes of one class are the same object from this overlap on."""
    score: float
    """Largest difference of two scores, which run from 0 to 1."""
    relative: float
    """Largest difference of two `Score` values as a share of the larger of the golden value and the threshold."""
    has_top_score: bool
    """Whether `score` holds for a classifier's best class too: INT8 that keeps the class moves its score by more."""


EXACT = Tolerance(iou=0.95, score=0.02, relative=0.01, has_top_score=True)
"""For fp32 on any device, unless the bundle says otherwise: only the order of floating-point additions differs."""
QUANTIZED = Tolerance(iou=0.5, score=0.1, relative=0.1, has_top_score=False)
"""For every other variant: the same objects, at COCO's loosest overlap; the share of them that is lost is gated."""


def tolerance_for(variant: str, given: Agreement | None = None) -> Tolerance:
    """Return the tolerance for a variant by its name in the manifest, whose own word on fp32 is `given`."""
    if variant not in {"fp32", "fp32-fused"}:
        return QUANTIZED
    if given is None:
        return EXACT
    changes = {key: getattr(given, key) for key in ("iou", "score", "relative")}
    return replace(EXACT, **{key: value for key, value in changes.items() if value is not None})


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _FrameSize(_Document):
    w: int
    h: int


class _DetectionsDocument(_Document):
    kind: Literal["detections"] = "detections"
    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    class_ids: tuple[int, ...]
    frame: _FrameSize | None = None


class _ClassesDocument(_Document):
    kind: Literal["classes"] = "classes"
    scores: tuple[float, ...]
    class_ids: tuple[int, ...]


class _ScoreDocument(_Document):
    kind: Literal["score"] = "score"
    value: float


_document: TypeAdapter[_DetectionsDocument | _ClassesDocument | _ScoreDocument] = TypeAdapter(
    Annotated[_DetectionsDocument | _ClassesDocument | _ScoreDocument, Field(discriminator="kind")]
)


def to_json(answer: Answer, frame_size: tuple[int, int] | None = None) -> bytes:
    """Return `answer` as a golden document: canonical JSON (sorted keys, no spaces): it hashes alike everywhere.

    `frame_size` is (width, height) of the picture that the boxes belong to. Floats are rounded to six digits: more
    would pin noise. Raises ValueError for NaN or infinity, which no golden answer may hold.
    """
    return json.dumps(_as_values(answer, frame_size), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _as_values(answer: Answer, frame_size: tuple[int, int] | None) -> dict[str, Any]:
    match answer:
        case Detections():
            values: dict[str, Any] = {
                "kind": "detections",
                "boxes": [_rounded(box) for box in answer.xyxy_px],
                "scores": _rounded(answer.scores),
                "class_ids": answer.class_ids.tolist(),
            }
            return values if frame_size is None else {**values, "frame": {"w": frame_size[0], "h": frame_size[1]}}
        case Classes():
            return {"kind": "classes", "scores": _rounded(answer.scores), "class_ids": answer.class_ids.tolist()}
        case Score():
            return {"kind": "score", "value": round(float(answer.value), 6)}


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [round(float(value), 6) for value in values]


def from_json(text: bytes | str) -> Answer:
    """Read a golden document.

    Raises:
        BundleError: the text is no golden document, or its lists differ in length.
    """
    try:
        document = _document.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise BundleError(f"no golden answer: {key}: {first['msg']}", hint="build the bundle again") from error
    if isinstance(document, _ScoreDocument):
        return Score(document.value)
    scores, class_ids = np.array(document.scores, np.float32), np.array(document.class_ids, np.int64)
    boxes = np.array(document.boxes, np.float32).reshape(-1, 4) if isinstance(document, _DetectionsDocument) else None
    if len(scores) != len(class_ids) or (boxes is not None and len(boxes) != len(scores)):
        raise BundleError("no golden answer: its lists differ in length", hint="build the bundle again")
    return Classes(scores, class_ids) if boxes is None else Detections(boxes, scores, class_ids)


def agreement(expected: Answer, actual: Answer, tolerance: Tolerance, *, threshold: float = 0.0) -> float:
    """Return how far `actual` says the same as the golden answer, from 0 (nothing) to 1 (all of it).

    Detections: the F1 of one-to-one matches (same class, IoU and score within tolerance). Classes: 1 for the same top
    class, for fp32 with its score within tolerance. Score: 1 within the relative tolerance. NaN and another kind of answer
    agree with nothing.

    `threshold` is the decoder's confidence threshold: an unmatched box whose score is within tolerance of it is not
    held against either side, since it may fall on either. For a Score it is the anomaly threshold: its scale.
    """
    match expected, actual:
        case Detections(), Detections():
            return _detection_f1(expected, actual, tolerance, threshold)
        case Classes(), Classes():
            return float(_same_top_class(expected, actual, tolerance, threshold))
        case Score(), Score():
            scale = max(abs(expected.value), abs(threshold))
            return float(abs(actual.value - expected.value) <= tolerance.relative * scale)  # False for NaN
        case _:
            return 0.0


def _detection_f1(expected: Detections, actual: Detections, tolerance: Tolerance, threshold: float) -> float:
    if not (np.isfinite(actual.scores).all() and np.isfinite(actual.xyxy_px).all()):
        return 0.0
    pairs = match_boxes(expected, actual, tolerance)
    borderline = threshold + tolerance.score
    missed = _unmatched_above(expected.scores, {i for i, _ in pairs}, borderline)
    invented = _unmatched_above(actual.scores, {j for _, j in pairs}, borderline)
    if not pairs:
        return 1.0 if missed + invented == 0 else 0.0
    return 2 * len(pairs) / (2 * len(pairs) + missed + invented)


def _unmatched_above(scores: NDArray[np.float32], matched: set[int], borderline: float) -> int:
    return sum(1 for index, score in enumerate(scores) if index not in matched and score > borderline)


def match_boxes(expected: Detections, actual: Detections, tolerance: Tolerance) -> list[tuple[int, int]]:
    """Pair boxes of one class, best overlap first, IoU and score within tolerance. Gives (expected, actual) indices."""
    if not len(expected) or not len(actual):
        return []
    overlap = iou(expected.xyxy_px, actual.xyxy_px)
    overlap[expected.class_ids[:, None] != actual.class_ids[None, :]] = 0.0
    overlap[np.abs(expected.scores[:, None] - actual.scores[None, :]) > tolerance.score] = 0.0
    pairs: list[tuple[int, int]] = []
    while overlap.max() >= tolerance.iou:
        row, column = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
        pairs.append((row, column))
        overlap[row, :] = overlap[:, column] = 0.0
    return pairs


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the intersection over union of boxes (n, 4) and (m, 4), x1 y1 x2 y2, as (n, m); 0 for two points."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    union = area_a[:, None] + area_b[None, :] - intersection
    shares: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return shares


def _same_top_class(expected: Classes, actual: Classes, tolerance: Tolerance, threshold: float) -> bool:
    """Whether the top class is the golden one, or one whose golden score is as good within the tolerance."""
    if not np.isfinite(actual.scores).all():
        return False
    if not len(expected.scores) or not len(actual.scores):
        # One of them, or both, found nothing above the threshold: alike when the other's best is hardly above it.
        return all(score <= threshold + tolerance.score for score in (*expected.scores[:1], *actual.scores[:1]))
    if tolerance.has_top_score and abs(actual.scores[0] - expected.scores[0]) > tolerance.score:
        return False
    as_good = expected.class_ids[expected.scores >= expected.scores[0] - tolerance.score]
    return bool(actual.class_ids[0] in as_good)


def threshold_of(decoder: Decoder) -> float:
    """Return what `agreement` calls the threshold, for this decoder."""
    if decoder.model_type == "anomaly":
        return decoder.anomaly_threshold or 0.0
    return decoder.confidence_threshold


def read_sample(bundle: Bundle, golden: GoldenSample, number: int, clock: Clock) -> Frame | Window:
    """Read one golden sample's input from the bundle: a picture becomes a Frame, an array a Window.

    Raises:
        BundleError: the blob is damaged, or is no picture (JPEG or PNG) or no .npy file of the right shape.
    """
    content = bundle.read_blob(golden.input)
    where = str(bundle.blob_path(golden.input))
    try:
        return sample_from(bundle.manifest.input, content, number, clock)
    except BundleError as error:
        raise BundleError(error.message, where=where, hint="build the bundle again") from error


def sample_from(spec: ImageInput | SignalInput, content: bytes, number: int, clock: Clock) -> Frame | Window:
    """Make a sample from a picture's bytes (JPEG, PNG) or those of a .npy file of float32 (window_size, channels).

    Raises:
        BundleError: the content is neither.
    """
    if isinstance(spec, ImageInput):
        return Frame("golden", number, clock.now(), clock.monotonic(), _read_picture(content))
    return _window(spec, _read_array(content, (spec.window_size, len(spec.channels))), number, clock)


def blank_sample(spec: ImageInput | SignalInput, clock: Clock) -> Frame | Window:
    """Return a black picture of the input's own size, or a window of zeros: for a bundle without golden samples."""
    if isinstance(spec, ImageInput):
        return Frame("blank", 0, clock.now(), clock.monotonic(), np.zeros((spec.height, spec.width, 3), np.uint8))
    return _window(spec, np.zeros((spec.window_size, len(spec.channels)), np.float32), 0, clock)


def _window(spec: SignalInput, values: NDArray[np.float32], number: int, clock: Clock) -> Window:
    return Window("golden", number, clock.now(), clock.monotonic(), values, spec.rate_hz, missing_share=0.0)


def _read_picture(content: bytes) -> NDArray[np.uint8]:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if pixels is None:
        raise BundleError("a golden sample is no picture that can be read")
    return pixels.astype(np.uint8, copy=False)


def _read_array(content: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(f"a golden sample is no .npy file: {error}") from error
    if getattr(values, "shape", None) != shape or values.dtype != np.float32:
        found = f"{getattr(values, 'dtype', type(values).__name__)} {getattr(values, 'shape', '')}"
        raise BundleError(f"a golden sample has the wrong form: expected float32 {shape}, found {found}")
    return np.asarray(values, np.float32)
