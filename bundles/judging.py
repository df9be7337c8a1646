"""Whether a variant is good enough: its answers on the golden samples against fp32's, by the task's metric.

Takes staged variants; gives an `Attempt` for each: what it lost, and why it is refused where it is. fp32 and the
variant answer through the agent's own inference, as on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.bundle.manifest import Accuracy, Decoder, Manifest, Variant
from agent.errors import BundleError, CandidateError
from agent.inference.answers import Answer, Classes, Detections
from agent.inference.model import Model
from agent.sources.sample import Sample
from bundles import accuracy, evaluate
from bundles.samples import SampleFile


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way of making a variant, judged. `failure` says why it is not good enough; None: it is."""

    variant: Variant
    accuracy: Accuracy | None
    failure: str | None

    @property
    def size_bytes(self) -> int:
        """Of the model file."""
        return self.variant.model.size_bytes


class Judge:
    """Compares variants of one bundle with its fp32.

    Args:
        folder: The staged bundle.
        manifest_of: Gives a manifest of the bundle that holds one variant only.
        fp32: The reference.
        decoder: For thresholds and labels.
        golden: The samples, with or without their truth.
        gate: The largest drop of the metric.
    """

    def __init__(
        self,
        folder: Path,
        manifest_of: Callable[[Variant], Manifest],
        fp32: Model,
        *,
        decoder: Decoder,
        golden: Sequence[SampleFile],
        gate: float,
    ) -> None:
        self._folder, self._manifest_of = folder, manifest_of
        self._fp32, self._decoder, self._golden, self._gate = fp32, decoder, golden, gate
        self._truth = [sample.truth for sample in golden]
        self.has_truth = accuracy.uses_truth(self._truth, decoder)
        self.reference = [self._answer(fp32, sample) for sample in golden]
        """What fp32 answers, at the bundle's own threshold."""
        uses_map = self.has_truth and decoder.model_type not in {"classify", "anomaly"}
        self._min_score = accuracy.MAP_MIN_SCORE if uses_map else None
        self._compared = self.reference
        if uses_map:
            self._compared = [self._answer(fp32, sample, self._min_score) for sample in golden]

    @property
    def proves_nothing(self) -> str | None:
        """Why nothing could be lost: there is no truth, and fp32 finds nothing."""
        if self.has_truth or not self.reference:
            return None
        if all(isinstance(answer, Detections) and not len(answer) for answer in self.reference):
            return "fp32 finds nothing in the golden samples, so nothing could be lost; choose others"
        return None

    @property
    def is_undecided(self) -> bool:
        """Whether fp32's classes are all near-ties, so that the metric counts no others as equal."""
        return not self.has_truth and accuracy.is_undecided(self.reference, self._decoder)

    @property
    def only_class(self) -> str | None:
        """The class that fp32 gives for every one of several golden samples; None where they differ, or it is no classifier."""
        best = {int(each.class_ids[0]) for each in self.reference if isinstance(each, Classes) and len(each.class_ids)}
        is_only = (
            len(best) == 1 and len(self.reference) > 1 and all(isinstance(each, Classes) for each in self.reference)
        )
        return self._decoder.labels[best.pop()] if is_only else None

    def accuracy_of(self, variant: Variant) -> Accuracy:
        """Return a variant's result.

        Raises:
            CandidateError: its answers are no answers.
        """
        model = self._open(variant)
        answers = [self._answer(model, sample, self._min_score) for sample in self._golden]
        return accuracy.judge(self._compared, answers, self._truth, self._decoder, self._gate)

    def attempt(self, variant: Variant) -> Attempt:
        """Judge one way of making a variant; answers that are no answers are a failure of this way only."""
        try:
            result = self.accuracy_of(variant)
        except CandidateError as error:
            return Attempt(variant, None, error.message)
        if result.drop <= result.gate:
            return Attempt(variant, result, None)
        return Attempt(
            variant, result, f"{result.metric} drops by {result.drop:.4g}, its gate allows {result.gate:.4g}"
        )

    def require_near(self, variant: Variant, samples: Sequence[Sample], allowed: float) -> float:
        """Compare a variant's raw outputs with fp32's; return the relative root mean square of the difference.

        Raises:
            CandidateError: it is more than `allowed`.
        """
        found = evaluate.deviation(self._fp32, self._open(variant), samples)
        if found > allowed:
            raise CandidateError(
                f"its outputs differ from fp32's by {found:.2g} (relative root mean square); {allowed:g} is allowed"
            )
        return found

    def _open(self, variant: Variant) -> Model:
        return evaluate.open_staged(self._folder, self._manifest_of(variant), variant.name)

    def _answer(self, model: Model, sample: SampleFile, min_score: float | None = None) -> Answer:
        try:
            return evaluate.answer(model, sample.read(), min_score)
        except CandidateError as error:
            if model is not self._fp32:
                raise
            message = f"fp32 cannot answer this golden sample: {error.message}"
            raise BundleError(message, where=str(sample.path), hint=error.hint) from error
