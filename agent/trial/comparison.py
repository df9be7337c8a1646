"""Whether a candidate answers right: against the golden answers, or where a bundle has none, against the plain CPU's raw outputs.

Takes an opened model; gives an agreement from 0 to 1 and inputs to measure with. What is enough is said in
`agent.device.planning.judging`.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import ImageInput, SignalInput
from agent.bundle.reader import Bundle
from agent.clock import Clock
from agent.inference import golden
from agent.sources.sample import Frame, Sample, Window

if TYPE_CHECKING:
    from agent.inference.model import Model

Tensors = Mapping[str, NDArray[Any]]

MOST_INPUTS = 16
"""Prepared inputs kept for the benchmark: real content matters, a long list of it only takes memory."""
SEED = 7
"""The same noise in every trial."""
NOISE_SAMPLES = 4
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


def against_golden(
    bundle: Bundle, model: Model, variant: str, clock: Clock
) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the mean agreement with the golden answers, and prepared inputs; None and no inputs without golden samples.

    Raises:
        BundleError: a golden sample or answer is damaged.
        CandidateError: the provider failed, or its outputs are no numbers.
    """
    manifest = bundle.manifest
    tolerance = golden.tolerance_for(variant, manifest.agreement)
    threshold = golden.threshold_of(manifest.decoder)
    total = 0.0
    inputs: list[dict[str, Any]] = []
    for number, entry in enumerate(manifest.golden):
        sample = golden.read_sample(bundle, entry, number, clock)
        prepared = model.prepare(sample)
        found = model.decode(model.infer(prepared), sample)
        expected = golden.from_json(bundle.read_blob(entry.expected))
        total += golden.agreement(expected, found, tolerance, threshold=threshold)
        inputs += [prepared] if len(inputs) < MOST_INPUTS else []
    return (total / len(inputs_of) if (inputs_of := manifest.golden) else None), inputs


def noise_inputs(bundle: Bundle, model: Model, clock: Clock) -> list[dict[str, Any]]:
    """Return prepared inputs of noise, the same in every process: for a bundle without golden samples.

    Noise and not zeros: from zeros many models give the same outputs whatever their weights do.
    """
    chance = np.random.default_rng(SEED)
    spec = bundle.manifest.input
    return [model.prepare(_noise(spec, chance, number, clock)) for number in range(NOISE_SAMPLES)]


def _noise(spec: ImageInput | SignalInput, chance: np.random.Generator, number: int, clock: Clock) -> Sample:
    if isinstance(spec, ImageInput):
        pixels = chance.integers(0, 256, (spec.height, spec.width, 3), np.uint8)
        return Frame("noise", number, clock.now(), clock.monotonic(), pixels)
    values = chance.normal(size=(spec.window_size, len(spec.channels))).astype(np.float32)
    return Window("noise", number, clock.now(), clock.monotonic(), values, spec.rate_hz, missing_share=0.0)


def write_reference(path: Path, outputs: Sequence[Tensors]) -> None:
    """Keep the raw outputs of the plain CPU for the others: whole, or not at all.

    Raises:
        OSError: the disk is full.
    """
    arrays = {f"{number} {name}": array for number, each in enumerate(outputs) for name, array in each.items()}
    beside = path.with_name(f"{path.stem}.part.npz")
    np.savez(beside, allow_pickle=False, **arrays)
    beside.replace(path)


def against_reference(path: Path, outputs: Sequence[Tensors]) -> float | None:
    """Return how far raw outputs agree with those kept: the worst tensor's; None where there are none to compare with."""
    with contextlib.suppress(*_UNREADABLE), np.load(path, allow_pickle=False) as kept:
        return _least(
            _alike(kept[f"{number} {name}"], array)
            for number, each in enumerate(outputs)
            for name, array in each.items()
        )
    return None


def agreement_of(before: Tensors, after: Tensors) -> float:
    """Return how far two outputs for one input agree: the worst tensor's, NaN where one holds NaN or infinity."""
    return _least(_alike(array, after[name]) for name, array in before.items())


def copied(outputs: Tensors) -> Tensors:
    """Return outputs in memory of their own: a provider may write the next ones into the same."""
    return {name: np.array(array) for name, array in outputs.items()}


def _least(shares: Iterable[float]) -> float:
    return min(shares, key=lambda share: -1.0 if np.isnan(share) else share)


def _alike(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Return 1 minus the relative root mean square difference; for what is no float, the share of equal values.

    Another shape agrees with nothing; NaN where an output holds NaN or infinity.
    """
    if expected.shape != found.shape:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.mean(expected == found)) if expected.size else 1.0
    size = _rms(expected)
    difference = _rms(found.astype(np.float64) - expected)
    if not np.isfinite(difference):
        return float("nan")
    return max(0.0, 1.0 - difference / size) if size else float(difference == 0.0)


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64))))) if values.size else 0.0
