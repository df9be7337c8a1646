"""A bundle on a candidate: prepare a sample, run the model, decode the answer.

Takes a built bundle and a candidate of the plan; gives a `Model` whose three steps may run in three threads, and
for several pipelines at once: nothing in it changes after it was opened. Refuses a file whose inputs and outputs are
not those that the manifest pins. Whether samples are pictures or signals is decided here, by the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import ImageInput, Manifest, SignalInput, TensorSpec, Variant
from agent.bundle.reader import Bundle
from agent.clock import Clock
from agent.device.planning.plan import Candidate
from agent.errors import BundleError, CandidateError, OperatorError
from agent.inference.answers import Answer
from agent.inference.decoders.outputs import agrees, listing, text
from agent.inference.decoders.selection import Selection
from agent.inference.decoders.table import make_decode
from agent.inference.placement import Placement
from agent.inference.session import Session, open_session
from agent.sources.sample import Frame, Sample, Window

LARGEST_OPTIMIZED_BYTES = 1 << 30


class Preprocessor(Protocol):
    """How samples become tensors, and where a frame lies in one."""

    def tensor(self, sample: Sample) -> NDArray[Any]: ...

    def place(self, sample: Sample) -> Placement | None: ...

    def example(self, spec: TensorSpec) -> NDArray[Any]:
        """Return a tensor of zeros as the model wants it."""
        ...


class Model:
    """An opened model. `prepare`, `infer` and `decode` are pure and may be called from any thread."""

    def __init__(
        self,
        manifest: Manifest,
        session: Session,
        preprocessor: Preprocessor,
        bounds: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        self.manifest = manifest
        self._bounds = bounds or {}
        self.session = session
        self._preprocessor = preprocessor
        self._input = session.inputs[0]
        self._selection = Selection.of(manifest.decoder)
        self._decode = make_decode(manifest, session.inputs, session.outputs)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the class ids of an answer stand for."""
        return self.manifest.decoder.labels

    def prepare(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return the input tensor for a sample, by the input's name.

        Raises:
            SourceError: a frame is no BGR picture.
            OperatorError: a picture came to a model of signals, or the other way round.
        """
        return {self._input.name: self._preprocessor.tensor(sample)}

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model.

        Raises:
            CandidateError: the provider failed.
        """
        return self.session.run(inputs)

    def decode(
        self,
        outputs: Mapping[str, NDArray[Any]],
        sample: Sample,
        *,
        min_score: float | None = None,
        class_ids: frozenset[int] | None = None,
    ) -> Answer:
        """Return the answer for a sample.

        Args:
            outputs: What `infer` gave for it.
            sample: The sample itself, for the frame's size.
            min_score: Used in place of the bundle's `confidence_threshold`; a score counts when it is equal or higher.
            class_ids: Only these classes; None: all.

        Raises:
            CandidateError: the outputs hold NaN or infinity, have another shape, or are out of range.
        """
        selection = self._selection
        if min_score is not None or class_ids is not None:
            wanted = selection.min_score if min_score is None else min_score
            selection = replace(selection, min_score=wanted, class_ids=class_ids)
        return self._decode(outputs, selection, self._preprocessor.place(sample))

    def warm_up(self, runs: int = 2) -> None:
        """Run on zeros, so that the first sample does not pay for what a provider allocates or compiles late.

        Raises:
            CandidateError: the provider failed.
        """
        inputs = {self._input.name: self._preprocessor.example(self._input)}
        for _ in range(runs):
            self.infer(inputs)

    def run_bounds(self) -> None:
        """Run on zeros of the smallest and of the largest shape that the bundle allows; nothing where it has one shape.

        Raises:
            CandidateError: the provider failed.
        """
        if not self._bounds:
            return
        example = self._preprocessor.example(self._input)
        for end in (0, 1):
            shape = [
                self._bounds[axis][end] if axis in self._bounds else size for axis, size in enumerate(example.shape)
            ]
            self.infer({self._input.name: np.zeros(shape, example.dtype)})


def open_model(
    bundle: Bundle,
    candidate: Candidate,
    clock: Clock | None = None,
    *,
    prepared: Path | None = None,
    trace: Path | None = None,
) -> Model:
    """Open the candidate's variant of a bundle.

    Args:
        bundle: An opened bundle.
        candidate: How to run it.
        clock: For the time that loading takes.
        prepared: The plan's folder of prepared models; None: load what the bundle has, and keep nothing.
        trace: Where a Chrome trace is written, a path without suffix; None: none.

    Raises:
        BundleError: there is no such variant, its file is damaged, or its decoder or preprocessing does not fit it.
        CandidateError: the provider cannot load it, or the file's inputs and outputs are not the manifest's.
    """
    variant = bundle.manifest.variant(candidate.variant)
    if variant is None:
        names = ", ".join(variant.name for variant in bundle.manifest.variants)
        raise BundleError(
            f"the bundle has no variant {candidate.variant}; it has {names or 'none'}", where=str(bundle.folder)
        )
    model_path = bundle.model_path(candidate.variant)
    own = prepared_folder(prepared, candidate, variant)
    session = open_session(model_path, candidate, clock, prepared=own, trace=trace)
    check_pinned(session, variant)
    return Model(bundle.manifest, session, _make_preprocessor(bundle.manifest, session), variant.inputs[0].bounds)


def prepared_folder(prepared: Path | None, candidate: Candidate, variant: Variant) -> Path | None:
    """Return the candidate's own folder; None where a second copy on disk is more than it is worth.

    The plain CPU's copy holds every weight again, and of a large model reading takes the time, not optimizing.
    """
    if prepared is None or (candidate.is_plain_cpu and _size_bytes(variant) > LARGEST_OPTIMIZED_BYTES):
        return None
    return prepared / candidate.prepared_name


def _size_bytes(variant: Variant) -> int:
    return variant.model.size_bytes + sum(blob.size_bytes for blob in variant.external_data.values())


def check_pinned(session: Session, variant: Variant) -> None:
    """Compare a file's inputs and outputs with what the manifest pins.

    Raises:
        CandidateError: with both.
    """
    pairs: Sequence[tuple[str, Sequence[TensorSpec], Sequence[TensorSpec]]] = (
        ("inputs", variant.inputs, session.inputs),
        ("outputs", variant.outputs, session.outputs),
    )
    for what, pinned, found in pairs:
        if [_key(spec) for spec in pinned] != [_key(spec) for spec in found]:
            raise CandidateError(
                f"{what} of variant {variant.name}: the manifest pins {listing(pinned)}, the file has {listing(found)}",
                where=str(session.model_path),
                hint="build the bundle again from this model",
            )


def _key(spec: TensorSpec) -> tuple[str, str, tuple[int, ...]]:
    return spec.name, spec.dtype, spec.shape


class _Pictures:
    """Frames become tensors."""

    def __init__(self, image: ImageInput) -> None:
        # Here, so that a worker of sensors only never loads OpenCV; some systems have no wheel of it.
        try:
            from agent.inference.images import ImagePreprocessor
        except ImportError as error:
            raise OperatorError(
                f"pictures need OpenCV, which cannot be imported here: {error}",
                hint="install opencv-python-headless; where it has no wheel (Windows on Arm) only sensors can be used",
            ) from error

        self._images = ImagePreprocessor(image)
        self.shape = self._images.shape

    def tensor(self, sample: Sample) -> NDArray[Any]:
        return self._images.tensor(_as_frame(sample).pixels)

    def place(self, sample: Sample) -> Placement:
        return self._images.place(_as_frame(sample).pixels)

    def example(self, spec: TensorSpec) -> NDArray[Any]:
        return np.zeros(self.shape, spec.dtype)


class _Signals:
    """Windows become tensors."""

    def __init__(self, signal: SignalInput) -> None:
        from agent.inference.features import signal_tensor

        self._signal = signal
        self._signal_tensor = signal_tensor
        self.shape: tuple[int, ...]
        size, channels = signal.window_size, len(signal.channels)
        self.shape = (1, size, channels) if signal.layout == "NWC" else (1, channels, size)
        if signal.features:
            self.shape = (1, channels * len(signal.features))

    def tensor(self, sample: Sample) -> NDArray[Any]:
        return self._signal_tensor(_as_window(sample), self._signal)

    def place(self, sample: Sample) -> None:  # noqa: ARG002 - a window has no place in a picture
        return None

    def example(self, spec: TensorSpec) -> NDArray[Any]:
        return np.zeros(self.shape, spec.dtype)


def _as_frame(sample: Sample) -> Frame:
    if not isinstance(sample, Frame):
        raise OperatorError(
            f"this bundle's model takes pictures, but {sample.source} delivers {type(sample).__name__.lower()}s",
            hint="name a camera as the pipeline's source, or a bundle for signals",
        )
    return sample


def _as_window(sample: Sample) -> Window:
    if not isinstance(sample, Window):
        raise OperatorError(
            f"this bundle's model takes signals, but {sample.source} delivers {type(sample).__name__.lower()}s",
            hint="name a sensor as the pipeline's source, or a bundle for pictures",
        )
    return sample


def _make_preprocessor(manifest: Manifest, session: Session) -> Preprocessor:
    """Return the preprocessing that the manifest describes, checked against the model's one input."""
    where = str(session.model_path)
    if len(session.inputs) != 1:
        raise BundleError(f"expected a model with one input, found {listing(session.inputs)}", where=where)
    spec = session.inputs[0]
    if isinstance(manifest.input, SignalInput):
        signals = _Signals(manifest.input)
        if not agrees(spec.shape, signals.shape) or spec.dtype != "float32":
            raise BundleError(
                f"the manifest makes windows of float32 {text(signals.shape)}, the model takes {spec.dtype} {text(spec.shape)}",
                where=where,
                hint="correct window_size, channels or features under `input`: a window is (1, window_size, channels), or "
                "(1, channels, window_size) with `layout: NCW`; its features are (1, channels × features)",
            )
        return signals
    pictures = _Pictures(manifest.input)
    if not agrees(spec.shape, pictures.shape) or spec.dtype != manifest.input.dtype:
        raise BundleError(
            f"the manifest makes pictures of {manifest.input.dtype} {text(pictures.shape)}, "
            f"the model takes {spec.dtype} {text(spec.shape)}",
            where=where,
            hint="correct width, height, layout or dtype in bundle.yaml",
        )
    return pictures
