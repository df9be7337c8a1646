"""The pictures or signals that a recipe names: for calibration, and as golden samples with or without their truth.

Takes a folder; gives its samples in the order of their names, as the agent's own sources would deliver them. Refuses
files that are no pictures (or no float32 arrays of the right shape), and a truth that does not fit samples or labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictBool, TypeAdapter, ValidationError

from agent.bundle.manifest import Decoder, ImageInput, SignalInput
from agent.errors import BundleError
from agent.sources.sample import Frame, Sample, Window

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
SIGNALS = frozenset({".npy"})
TRUTH = "truth.json"
MAX_SAMPLES = 2000
"""In one folder: a wrong path, such as a photo library, would otherwise take hours."""

# Samples carry a time; the model does not look at it, and a build must not depend on the day.
_MOMENT = datetime(2000, 1, 1, tzinfo=UTC)


class TrueObject(BaseModel):
    """One object that is in the picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    xyxy_px: tuple[float, float, float, float]


TrueAnswer = tuple[TrueObject, ...] | str | bool
"""The objects in a picture; or its class; or whether a window is unusual."""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A sample that is read when it is needed: a few hundred pictures need not be in memory together."""

    path: Path
    input: ImageInput | SignalInput
    truth: TrueAnswer | None = None

    def read(self) -> Sample:
        """Return the sample.

        Raises:
            BundleError: the file is no picture, or no array of the right type and shape.
        """
        if isinstance(self.input, SignalInput):
            return as_window(_read_signal(self.path, self.input), self.input)
        return as_frame(_read_picture(self.path))


def as_frame(pixels: NDArray[np.uint8]) -> Frame:
    """Wrap BGR pixels, uint8 (height, width, 3)."""
    return Frame(source="build", id=0, captured_at=_MOMENT, captured_monotonic_s=0.0, pixels=pixels)


def as_window(values: NDArray[np.float32], signal: SignalInput) -> Window:
    """Wrap values, float32 (window_size, channels)."""
    return Window(
        source="build",
        id=0,
        captured_at=_MOMENT,
        captured_monotonic_s=0.0,
        values=values,
        rate_hz=signal.rate_hz,
        missing_share=0.0,
    )


def list_samples(folder: Path, of: ImageInput | SignalInput) -> list[SampleFile]:
    """Return the folder's samples, sorted by name.

    Raises:
        BundleError: there are none, or far too many.
    """
    wanted = SIGNALS if isinstance(of, SignalInput) else PICTURES
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in wanted and path.is_file())
    except OSError as error:
        raise BundleError(
            f"cannot be read: {error.strerror or error}", where=str(folder), hint="check the path"
        ) from error
    if not 0 < len(paths) <= MAX_SAMPLES:
        kinds = ", ".join(sorted(wanted))
        hint = "put 100 to 500 typical samples there" if not paths else f"choose at most {MAX_SAMPLES}"
        raise BundleError(f"expected samples ({kinds}), found {len(paths)}", where=str(folder), hint=hint)
    return [SampleFile(path, of) for path in paths]


def list_golden(folder: Path, of: ImageInput | SignalInput, decoder: Decoder) -> list[SampleFile]:
    """Return the folder's samples, with their truth where `truth.json` is there.

    Raises:
        BundleError: as `list_samples`, or the truth does not fit the samples, the decoder or the labels.
    """
    samples = list_samples(folder, of)
    truth = _read_truth(folder / TRUTH, decoder)
    if truth is None:
        return samples
    names = {sample.path.name for sample in samples}
    if names != set(truth):
        odd = ", ".join(sorted(names ^ set(truth))[:5])
        message = f"samples and truth do not match one to one: {odd}"
        raise BundleError(message, where=str(folder / TRUTH), hint="give every sample its truth, and no others")
    return [SampleFile(sample.path, sample.input, truth[sample.path.name]) for sample in samples]


def synthetic(of: ImageInput | SignalInput) -> list[Sample]:
    """Return samples for a numeric comparison where the recipe has none: smooth gradients, and waves."""
    if isinstance(of, SignalInput):
        phase = np.arange(of.window_size, dtype=np.float32)[:, None] / 7 + np.arange(len(of.channels), dtype=np.float32)
        return [as_window(np.sin(phase * factor).astype(np.float32), of) for factor in (1.0, 3.0)]
    rows, columns = np.mgrid[0 : of.height, 0 : of.width]
    ramp = np.stack([rows * 255 // of.height, columns * 255 // of.width, (rows * 5 + columns * 3) % 256], axis=-1)
    return [as_frame(np.ascontiguousarray(pixels)) for pixels in (ramp.astype(np.uint8), 255 - ramp.astype(np.uint8))]


def _read_picture(path: Path) -> NDArray[np.uint8]:
    import cv2

    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except (OSError, cv2.error) as error:
        raise BundleError(f"cannot be read: {error}", where=str(path), hint="replace or remove the picture") from error
    if pixels is None:
        raise BundleError("is no whole picture", where=str(path), hint="replace or remove it")
    return np.asarray(pixels, np.uint8)


def _read_signal(path: Path, signal: SignalInput) -> NDArray[np.float32]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        message = f"is no numpy array without pickles: {error}"
        raise BundleError(message, where=str(path), hint="save it with numpy.save(…, allow_pickle=False)") from error
    expected = (signal.window_size, len(signal.channels))
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != expected:
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise BundleError(
            f"expected float32 {expected}, found {found}", where=str(path), hint="save one window per file"
        )
    if not np.isfinite(values).all():
        raise BundleError("holds NaN or infinity", where=str(path), hint="a golden window has no missing values")
    return np.asarray(values, np.float32)


def _read_truth(path: Path, decoder: Decoder) -> dict[str, TrueAnswer] | None:
    if not path.is_file():
        return None
    kind: Any = tuple[TrueObject, ...]
    if decoder.model_type == "classify":
        kind = Annotated[str, Field(strict=True)]
    elif decoder.model_type == "anomaly":
        kind = StrictBool
    try:
        document = json.loads(path.read_bytes())
        truth: dict[str, TrueAnswer] = TypeAdapter(dict[str, kind]).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise BundleError(
            message, where=str(path), hint=f"see the truth for {decoder.model_type} models in the docs"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"is no JSON: {error}", where=str(path), hint="correct the file") from error
    unknown = _labels_in(truth) - set(decoder.labels)
    if unknown:
        message = f"these labels are not the model's: {', '.join(sorted(unknown)[:5])}"
        raise BundleError(message, where=str(path), hint=f"the model's are: {', '.join(decoder.labels[:10])}")
    return truth


def _labels_in(truth: dict[str, TrueAnswer]) -> set[str]:
    labels: set[str] = set()
    for answer in truth.values():
        if isinstance(answer, str):
            labels.add(answer)
        elif isinstance(answer, tuple):
            labels |= {each.label for each in answer}
    return labels
