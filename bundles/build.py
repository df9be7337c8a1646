"""Build a bundle: from a recipe's folder, or straight from an .onnx file.

Takes a source and an output folder; gives a built bundle there and a report of what was repaired, what was assumed,
and what each variant lost. The steps are `build`'s lines, in order. A variant that cannot be made, cannot be judged or
misses its gate is left out, with its reason and number in the manifest; fp32 must succeed. The same sources give the
same digest on the same machine. Nothing appears at the output before all of it is there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.bundle.manifest import (
    Accuracy,
    Blob,
    GoldenSample,
    Manifest,
    ModelType,
    RefusedVariant,
    Variant,
    VariantName,
)
from agent.errors import BundleError, CandidateError, OperatorError
from agent.inference import golden
from agent.inference.answers import Answer, Detections
from agent.inference.model import Model
from agent.sources.sample import Frame
from bundles import accuracy, evaluate, quantize, recognise
from bundles.modelfile import ModelFile, location_of, read_model, tensors
from bundles.recipe import FILE_NAME, ImageInputRecipe, Normalise, Recipe, RecipeFolder, open_recipe
from bundles.repair import Repaired, repair
from bundles.samples import SampleFile, list_golden, list_samples, synthetic
from bundles.staging import Staging

if TYPE_CHECKING:
    import onnx

MAX_SHIPPED_GOLDEN = 8
"""All golden samples judge the variants; this many, spread evenly, go to the device for its trial."""

HOLD_OUT_EVERY = 5
HOLD_OUT_FROM = 20
"""A user with one folder of pictures: from this many on, every fifth is held out to judge by."""

_PARITY_SAMPLES = 4

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says over the recipe, or in place of one. None: not said."""

    name: str | None = None
    version: str | None = None
    license: str | None = None
    model_type: ModelType | None = None
    labels: tuple[str, ...] | None = None
    normalise: Normalise | None = None
    calibration: Path | None = None
    golden: Path | None = None
    dimensions: dict[str, int] = field(default_factory=dict)
    max_drop: float | None = None
    variants: tuple[VariantName, ...] | None = None


@dataclass(frozen=True, slots=True)
class VariantReport:
    """What became of one variant."""

    name: str
    size_bytes: int
    is_included: bool
    verdict: str
    accuracy: Accuracy | None = None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """A finished build."""

    folder: Path
    name: str
    version: str
    digest: str
    source_bytes: int
    variants: tuple[VariantReport, ...]
    repairs: tuple[str, ...]
    assumptions: tuple[str, ...]
    golden_count: int
    parity: float
    """Largest difference between the outputs as shipped and as repaired."""


def build(
    source: Path, output: Path | None = None, options: Options | None = None, progress: Progress | None = None
) -> BuildReport:
    """Build a bundle.

    Args:
        source: A folder with bundle.yaml, or an .onnx file.
        output: The bundle's folder; `built` in the recipe, or beside the model with the suffix `.bundle`. A bundle that
            is already there is replaced.
        options: What was said on the command line.
        progress: Called with a sentence when a step begins.

    Raises:
        ConfigurationError: bundle.yaml has problems.
        BundleError: the model or its samples are refused.
        OperatorError: the `build` extra is missing, or the output cannot be written.
    """
    options = options or Options()
    say = progress or (lambda _step: None)
    recipe = _open(source, options)
    target = output or _default_output(source)
    say("reading and repairing the model")
    shipped = read_model(recipe.model)
    repaired = repair(shipped, _sizes(recipe, shipped))
    with Staging(target) as staging:
        work = _Build(recipe, staging, shipped, repaired, say)
        work.add_fp32()
        work.add_golden()
        work.add_others()
        return work.publish(target)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One way of making a variant, judged. `failure` says why it is not good enough; None: it is."""

    variant: Variant
    accuracy: Accuracy | None
    failure: str | None

    @property
    def drop(self) -> float:
        """What it lost; everything where it could not answer."""
        return self.accuracy.drop if self.accuracy else math.inf


class _Build:
    """One build in progress; each step needs those before it."""

    def __init__(
        self, recipe: RecipeFolder, staging: Staging, shipped: ModelFile, repaired: Repaired, say: Progress
    ) -> None:
        self._recipe = recipe
        self._staging = staging
        self._shipped = shipped
        self._repaired = repaired
        self._say = say
        self._reports: list[VariantReport] = []
        self._refused: list[RefusedVariant] = []
        self._variants: list[Variant] = []
        self._golden: list[SampleFile] = []
        self._reference: list[Answer] = []
        self._shipped_golden: list[GoldenSample] = []
        self._calibration: list[SampleFile] = []
        self._held_out: tuple[str, ...] = ()
        self._parity = 0.0

    def add_fp32(self) -> None:
        """Stage the repaired model, decide what its tensors mean, and prove that it computes what the file did."""
        self._say("comparing it with the file as shipped")
        variant = self._stage("fp32", self._repaired.model)
        self._semantics = recognise.resolve(
            self._tensors(variant), self._recipe.recipe.input, self._recipe.recipe.decoder, self._recipe.labels
        )
        self._variants.append(variant)
        self._collect_samples()
        self._model = self._open_fp32()
        compared = [sample.read() for sample in (self._golden or self._calibration)[:_PARITY_SAMPLES]]
        samples = compared or synthetic(self._semantics.input)
        self._parity = evaluate.require_parity(self._shipped.path, self._model, samples)
        self._reports.append(VariantReport("fp32", variant.model.size_bytes, is_included=True, verdict="the reference"))

    def add_golden(self) -> None:
        """Answer the golden samples with fp32, keep some of them for the device, and say how good fp32 itself is."""
        if not self._golden:
            return
        self._say(f"answering {len(self._golden)} golden samples with fp32")
        self._reference = [self._answer(self._model, sample) for sample in self._golden]
        for index in _spread(len(self._golden), MAX_SHIPPED_GOLDEN):
            self._shipped_golden.append(self._pin(self._golden[index]))
        if self._has_truth:
            self._reports[0] = replace(self._reports[0], accuracy=self._judge(self._variants[0]))

    def add_others(self) -> None:
        """Make each other variant that the recipe wants, judge it, and include it or say why not."""
        for name in self._recipe.recipe.variants:
            if name == "fp32":
                continue
            try:
                self._require_samples(name)
                self._add_quantized(name)
            except CandidateError as error:
                self._refuse(name, error.message, None, 0)

    def publish(self, target: Path) -> BuildReport:
        """Write the manifest and put the bundle in its place."""
        manifest = self._manifest(self._variants)
        digest = self._staging.publish(manifest)
        return BuildReport(
            folder=target,
            name=manifest.name,
            version=manifest.version,
            digest=digest,
            source_bytes=self._shipped.path.stat().st_size,
            variants=tuple(self._reports),
            repairs=self._repaired.repairs,
            assumptions=self._semantics.assumptions + self._held_out + self._warnings(),
            golden_count=len(self._golden),
            parity=self._parity,
        )

    def _collect_samples(self) -> None:
        if self._recipe.golden:
            self._golden = list_golden(self._recipe.golden, self._semantics.input, self._semantics.decoder)
        if self._recipe.calibration:
            self._calibration = list_samples(self._recipe.calibration, self._semantics.input)
        if not self._recipe.golden and len(self._calibration) >= HOLD_OUT_FROM:
            self._golden = self._calibration[::HOLD_OUT_EVERY]
            self._calibration = [each for each in self._calibration if each not in self._golden]
            self._held_out = (
                f"no golden folder was named: {len(self._golden)} of the calibration samples judge the variants instead, "
                "and calibrate nothing",
            )

    def _require_samples(self, name: VariantName) -> None:
        """Say what is missing before minutes are spent."""
        if not self._golden:
            raise CandidateError("there are no golden samples to judge it on; name a folder: `golden`, --golden")
        if name == "int8" and not self._calibration:
            raise CandidateError("there are no calibration samples; name a folder: `calibration`, --calibration")
        if not self._has_truth and all(
            isinstance(answer, Detections) and not len(answer) for answer in self._reference
        ):
            raise CandidateError("fp32 finds nothing in the golden samples, so nothing could be lost; choose others")
        if self._shipped.is_external:
            raise CandidateError("models with external data above 2 GB are not quantized")

    def _add_quantized(self, name: VariantName) -> None:
        """Try the ways of making a variant until one passes its gate; report the best where none does."""
        best: _Attempt | None = None
        for scope in quantize.SCOPES if name == "int8" else ("",):
            self._say(f"making {name}" + (f" of {scope}" if scope else ""))
            attempt = self._attempt(self._stage(name, self._quantized(name, scope)))
            if attempt.failure is None:
                verdict = "within its gate" + (f" ({scope} quantized)" if scope else "")
                size_bytes = attempt.variant.model.size_bytes
                self._variants.append(attempt.variant.model_copy(update={"accuracy": attempt.accuracy}))
                self._reports.append(VariantReport(name, size_bytes, True, verdict, attempt.accuracy))
                return
            best = attempt if best is None or attempt.drop < best.drop else best
        assert best is not None and best.failure is not None, "there is at least one way"
        self._refuse(name, best.failure, best.accuracy, best.variant.model.size_bytes)

    def _attempt(self, variant: Variant) -> _Attempt:
        """Judge one way of making a variant; answers that are no answers are a failure of this way only."""
        try:
            result = self._judge(variant)
        except CandidateError as error:
            return _Attempt(variant, None, error.message)
        if result.drop <= result.gate:
            return _Attempt(variant, result, None)
        return _Attempt(
            variant, result, f"{result.metric} drops by {result.drop:.4g}, its gate allows {result.gate:.4g}"
        )

    @property
    def _has_truth(self) -> bool:
        return accuracy.uses_truth([sample.truth for sample in self._golden], self._semantics.decoder)

    def _quantized(self, name: VariantName, scope: str) -> onnx.ModelProto:
        if name == "int8-dynamic":
            return quantize.dynamic_int8(self._repaired.model)
        samples = list(evaluate.feeds(self._model, self._calibration))
        return quantize.static_int8(self._repaired.model, samples, scope)

    def _judge(self, variant: Variant) -> Accuracy:
        model = evaluate.open_staged(self._staging.folder, self._manifest([variant]), variant.name)
        self._say(f"judging {variant.name} on {len(self._golden)} golden samples")
        truth = [sample.truth for sample in self._golden]
        decoder, gate = self._semantics.decoder, self._recipe.recipe.gates.max_drop
        min_score, reference = None, self._reference
        if self._has_truth and decoder.model_type not in {"classify", "anomaly"}:
            min_score = accuracy.MAP_MIN_SCORE
            reference = [self._answer(self._model, sample, min_score) for sample in self._golden]
        answers = [self._answer(model, sample, min_score) for sample in self._golden]
        return accuracy.judge(reference, answers, truth, decoder, gate)

    def _answer(self, model: Model, sample: SampleFile, min_score: float | None = None) -> Answer:
        try:
            return evaluate.answer(model, sample.read(), min_score)
        except CandidateError as error:
            if model is not self._model:
                raise
            message = f"fp32 cannot answer this golden sample: {error.message}"
            raise BundleError(message, where=str(sample.path), hint=error.hint) from error

    def _open_fp32(self) -> Model:
        try:
            return evaluate.open_staged(self._staging.folder, self._manifest(self._variants), "fp32")
        except CandidateError as error:
            raise BundleError(error.message, where=str(self._shipped.path), hint="export the model again") from error

    def _stage(self, name: VariantName, model: onnx.ModelProto) -> Variant:
        """Store a model's bytes; inputs and outputs are pinned as the runtime reports them."""
        external = _external_blobs(self._staging, self._shipped, model)
        blob = self._staging.add(model.SerializeToString(deterministic=True))
        session = evaluate.load(self._staging.path_of(blob), name)
        return Variant(
            name=name,
            model=blob,
            external_data=external,
            opset=ModelFile(self._shipped.path, model, {}).opset,
            producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
            inputs=session.inputs,
            outputs=session.outputs,
        )

    def _tensors(self, variant: Variant) -> recognise.Tensors:
        return recognise.Tensors(
            inputs=variant.inputs,
            outputs=variant.outputs,
            metadata={each.key: each.value for each in self._shipped.model.metadata_props},
            ends_in_probabilities=recognise.ends_in_probabilities(self._repaired.model),
            where=str(self._shipped.path),
        )

    def _pin(self, sample: SampleFile) -> GoldenSample:
        read = sample.read()
        size = (read.pixels.shape[1], read.pixels.shape[0]) if isinstance(read, Frame) else None
        document = golden.to_json(self._answer(self._model, sample), size)
        return GoldenSample(input=self._staging.add(sample.path.read_bytes()), expected=self._staging.add(document))

    def _refuse(self, name: str, reason: str, result: Accuracy | None, size_bytes: int) -> None:
        self._refused.append(RefusedVariant(name=name, reason=reason, accuracy=result))
        self._reports.append(VariantReport(name, size_bytes, False, reason, result))

    def _manifest(self, variants: list[Variant]) -> Manifest:
        recipe = self._recipe.recipe
        return Manifest(
            name=recipe.name,
            version=recipe.version,
            input=self._semantics.input,
            decoder=self._semantics.decoder,
            variants=tuple(variants),
            refused=tuple(self._refused),
            golden=tuple(self._shipped_golden),
            max_p99_ms=recipe.gates.max_p99_ms,
            source_sha256=hashlib.sha256(self._shipped.path.read_bytes()).hexdigest(),
            license=recipe.license,
        )

    def _warnings(self) -> tuple[str, ...]:
        recipe = self._recipe
        if recipe.calibration and recipe.golden and recipe.calibration.resolve() == recipe.golden.resolve():
            return ("calibration and golden samples are the same folder: INT8 is judged on what it was tuned to",)
        return ()


def _open(source: Path, options: Options) -> RecipeFolder:
    """Read the recipe, or make one for a bare model, and lay the command line's words over it."""
    if source.name == FILE_NAME:
        folder = open_recipe(source.parent)
    elif source.is_dir():
        folder = open_recipe(source)
    else:
        name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in source.stem.lower())
        folder = RecipeFolder(
            Recipe(name=name.lstrip("._-")[:64] or "model", model=source.name), source, (), None, None
        )
    said: dict[str, Any] = {
        key: value for key in ("name", "version", "license", "variants") if (value := getattr(options, key)) is not None
    }
    recipe = folder.recipe
    if options.model_type:
        said["decoder"] = recipe.decoder.model_copy(update={"model_type": options.model_type})
    if options.normalise and isinstance(recipe.input, ImageInputRecipe):
        said["input"] = recipe.input.model_copy(update={"normalise": options.normalise})
    if options.max_drop is not None:
        said["gates"] = recipe.gates.model_copy(update={"max_drop": options.max_drop})
    said["dimensions"] = {**recipe.dimensions, **options.dimensions}
    return replace(
        folder,
        recipe=_checked(recipe.model_copy(update=said), source),
        labels=folder.labels if options.labels is None else options.labels,
        calibration=options.calibration or folder.calibration,
        golden=options.golden or folder.golden,
    )


def _default_output(source: Path) -> Path:
    if source.name == FILE_NAME:
        return source.parent / "built"
    return source / "built" if source.is_dir() else source.with_suffix(".bundle")


def _checked(recipe: Recipe, source: Path) -> Recipe:
    """`model_copy` checks nothing; a name from the command line must obey the same rules as one in the file."""
    from pydantic import ValidationError

    try:
        return Recipe.model_validate(recipe.model_dump(by_alias=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + next(str(part) for part in reversed(first["loc"]) if isinstance(part, str)).replace("_", "-")
        raise OperatorError(f"{option}: {first['msg']}", where=str(source), hint="correct the option") from error


def _sizes(recipe: RecipeFolder, shipped: ModelFile) -> dict[str, int]:
    sizes = dict(recipe.recipe.dimensions)
    if isinstance(recipe.recipe.input, ImageInputRecipe):
        sizes |= recognise.input_sizes(shipped.model, recipe.recipe.input)
    return sizes


def _external_blobs(staging: Staging, shipped: ModelFile, model: onnx.ModelProto) -> dict[str, Blob]:
    """Store the data files and write their SHA-256 into the model as their location: they need no other name."""
    blobs = {location: staging.add_file(path) for location, path in shipped.external_data.items()}
    if blobs:
        for tensor in tensors(model):
            for entry in tensor.external_data:
                if entry.key == "location" and location_of(tensor) in blobs:
                    entry.value = blobs[entry.value].sha256
    return {blob.sha256: blob for blob in blobs.values()}


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` indices below `count`, evenly spread."""
    return sorted({index * count // min(count, most) for index in range(min(count, most))})
