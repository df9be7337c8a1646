"""Run staged variants with the agent's own inference, exactly as a device will.

Takes a staging folder and variants in it; gives their inputs and outputs, their answers for samples, and the tensors
that calibration and the parity check need. Everything runs on the CPU provider, the reference for all others.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Manifest
from agent.bundle.reader import Bundle
from agent.device.planning.plan import Candidate
from agent.device.runtimes.providers import CPU_PROVIDER
from agent.errors import BundleError, CandidateError
from agent.inference.answers import Answer
from agent.inference.model import Model, open_model
from agent.inference.session import Session, open_session
from agent.sources.sample import Sample
from bundles.samples import SampleFile

if TYPE_CHECKING:
    import onnx

ATOL, RTOL = 1e-5, 1e-4
"""How far the repaired model may be from the file as shipped: float32 sums in another order, and nothing else."""


def candidate(variant: str) -> Candidate:
    """Return the CPU candidate that stands for a variant on the workbench."""
    return Candidate(CPU_PROVIDER, "cpu", variant, threads=max(1, (os.cpu_count() or 2) // 2))


def load(path: Path, variant: str) -> Session:
    """Open a model file.

    Raises:
        BundleError: ONNX Runtime refuses it.
    """
    try:
        return open_session(path, candidate(variant))
    except CandidateError as error:
        raise BundleError(
            error.message, where=str(path), hint="export the model again, with opset 13 to 17 and standard operators"
        ) from error


def open_staged(folder: Path, manifest: Manifest, variant: str) -> Model:
    """Open one variant of a bundle that is being made; where its shape may vary, run it at both ends.

    Raises:
        CandidateError: the runtime cannot load it, or it fails at an end.
        BundleError: decoder or input do not fit it.
    """
    model = open_model(Bundle(folder, manifest, digest=""), candidate(variant))
    model.run_bounds()
    return model


def feeds(model: Model, samples: Sequence[SampleFile]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Give each sample's input tensors, one at a time."""
    for sample in samples:
        yield model.prepare(sample.read())


def answer(model: Model, sample: Sample, min_score: float | None = None) -> Answer:
    """Answer one sample.

    Raises:
        CandidateError: the outputs are not numbers, or out of range.
    """
    return model.decode(model.infer(model.prepare(sample)), sample, min_score=min_score)


def outputs(model: onnx.ModelProto, samples: Sequence[Mapping[str, NDArray[Any]]]) -> list[list[NDArray[Any]]]:
    """Run a model that is in memory only; return its outputs in the graph's order for each sample.

    Raises:
        CandidateError: ONNX Runtime refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="holdfast-run-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        session = open_session(path, candidate("in memory"))
        return [list(session.run(sample).values()) for sample in samples]


def exposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that gives every intermediate tensor as an output."""
    from onnx import helper

    copied = copy.deepcopy(model)
    given = {each.name for each in copied.graph.output}
    copied.graph.output.extend(
        helper.make_empty_tensor_value_info(name)
        for node in copied.graph.node
        for name in node.output
        if name and name not in given
    )
    return copied


def describe(model: onnx.ModelProto) -> None:
    """Add the types and shapes of tensors that ONNX cannot infer and ONNX Runtime can: behind operators of its own.

    Raises:
        CandidateError: ONNX Runtime refuses the model.
    """
    from onnx import helper

    known = {each.name for each in (*model.graph.value_info, *model.graph.output)}
    if known.issuperset(name for node in model.graph.node for name in node.output if name):
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-describe-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(exposed(model).SerializeToString())
        found = open_session(path, candidate("in memory")).outputs
    model.graph.value_info.extend(
        helper.make_tensor_value_info(
            spec.name,
            helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
            [None if size < 0 else size for size in spec.shape],
        )
        for spec in found
        if spec.name not in known and not spec.dtype.startswith(("seq", "optional", "map"))
    )


def deviation(reference: Model, model: Model, samples: Sequence[Sample]) -> float:
    """Return how far raw outputs differ: the relative root mean square of an output, of all samples and outputs the worst.

    Not the largest difference: in a detector's background one cell of thousands may be off by a sixth of the peak in
    float16, and no object moves. Infinite where an output is not finite or has another shape.
    """
    largest = 0.0
    for sample in samples:
        tensors = reference.prepare(sample)
        expected, found = reference.infer(tensors), model.infer(tensors)
        for name, values in expected.items():
            other = np.asarray(found[name], np.float64)
            if other.shape != values.shape or not np.isfinite(other).all():
                return math.inf
            scale = float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 1.0
            difference = float(np.sqrt(np.square(other - values).mean())) if values.size else 0.0
            largest = max(largest, difference / (scale or 1.0))
    return largest


def require_parity(shipped: Path, model: Model, samples: Sequence[Sample]) -> float:
    """Compare the repaired model's raw outputs with the shipped file's; return the largest difference.

    Raises:
        BundleError: they differ by more than float32 rounding, or are not finite.
    """
    original = load(shipped, "as shipped")
    largest = 0.0
    for sample in samples:
        tensors = model.prepare(sample)
        expected, found = original.run(tensors), model.infer(tensors)
        for name, values in expected.items():
            largest = max(largest, _difference(shipped, name, values, found[name]))
    return largest


def _difference(shipped: Path, name: str, expected: NDArray[Any], found: NDArray[Any]) -> float:
    if not np.issubdtype(expected.dtype, np.floating):
        if not np.array_equal(expected, found):
            raise _broken(shipped, name, "values")
        return 0.0
    if not np.isfinite(expected).all():
        hint = "the model miscalculates on ordinary input: check the export, and the normalisation"
        raise BundleError(
            f"output `{name}` of the file as shipped holds NaN or infinity", where=str(shipped), hint=hint
        )
    if expected.shape != found.shape or not np.allclose(found, expected, atol=ATOL, rtol=RTOL):
        raise _broken(shipped, name, f"by up to {np.abs(found - expected).max():.3g}" if found.size else "shapes")
    return float(np.abs(found - expected).max(initial=0.0))


def _broken(shipped: Path, name: str, how: str) -> BundleError:
    return BundleError(
        f"after its repair output `{name}` differs from the file as shipped ({how})",
        where=str(shipped),
        hint="this is a fault of the builder: report it with the model; exporting with a newer opset may avoid it",
    )
