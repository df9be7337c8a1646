"""Build a bundle: from a recipe's folder, or straight from an .onnx file.

Takes a source and an output folder; gives a built bundle there and a report of what was repaired, what was assumed,
and what each variant lost. The steps are `build`'s lines, in order. A variant that cannot be made, cannot be judged or
misses its gate is left out, with its reason and number in the manifest; fp32 must succeed. Static INT8 that misses its
gate gets layers back in float until it passes. The same sources give the same digest on the same machine. Nothing
appears at the output before all of it is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.bundle.manifest import (
    Accuracy,
    Blob,
    GoldenSample,
    Manifest,
    RefusedVariant,
    TensorSpec,
    Variant,
    VariantName,
)
from agent.clock import Clock, SystemClock
from agent.errors import BundleError, CandidateError
from agent.inference import golden
from agent.inference.model import Model
from agent.inference.session import Session
from agent.sources.sample import Frame, Sample
from bundles import evaluate, making, quantize, recognise
from bundles.judging import Attempt, Judge
from bundles.modelfile import ModelFile, location_of, read_model, tensors
from bundles.onnxlibrary import dimensions
from bundles.options import Options, open_source
from bundles.recipe import FILE_NAME, Bounds, ImageInputRecipe, RecipeFolder
from bundles.repair import Repaired, repair
from bundles.samples import SampleFile, list_golden, list_samples, synthetic
from bundles.search import Try, search
from bundles.sensitivity import TimeLimit
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
class VariantReport:
    """What became of one variant."""

    name: str
    size_bytes: int
    is_included: bool
    verdict: str
    accuracy: Accuracy | None = None
    float_layers: tuple[str, ...] = ()
    """Static INT8: what was left in float32."""
    tries: tuple[Try, ...] = ()
    """Static INT8: each set of layers that was left in float32, and what came of it; the first is none of them."""


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
    source: Path,
    output: Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> BuildReport:
    """Build a bundle.

    Args:
        source: A folder with bundle.yaml, or an .onnx file.
        output: The bundle's folder; `built` in the recipe, or beside the model with the suffix `.bundle`. A bundle that
            is already there is replaced.
        options: What was said on the command line.
        progress: Called with a sentence when a step begins.
        clock: For the time limit of the search for layers to leave in float.

    Raises:
        ConfigurationError: bundle.yaml has problems.
        BundleError: the model or its samples are refused.
        OperatorError: the `build` extra is missing, or the output cannot be written.
    """
    say = progress or (lambda _step: None)
    recipe = open_source(source, options or Options())
    target = output or _default_output(source)
    say("reading and repairing the model")
    shipped = read_model(recipe.model)
    recognise.require_one_input(shipped)
    repaired = repair(shipped, _sizes(recipe, shipped), _bounds(recipe))
    with Staging(target) as staging:
        work = _Build(recipe, staging, shipped, repaired, say=say, clock=clock or SystemClock())
        work.add_fp32()
        work.add_golden()
        work.add_others()
        return work.publish(target)


class _Build:
    """One build in progress; each step needs those before it."""

    def __init__(
        self,
        recipe: RecipeFolder,
        staging: Staging,
        shipped: ModelFile,
        repaired: Repaired,
        *,
        say: Progress,
        clock: Clock,
    ) -> None:
        self._recipe = recipe
        self._staging = staging
        self._shipped = shipped
        self._repaired = repaired
        self._say = say
        self._clock = clock
        self._kept = making.excluded(recipe, repaired.model)
        self._bounds = _bounds(recipe)
        self._reports: list[VariantReport] = []
        self._refused: list[RefusedVariant] = []
        self._variants: list[Variant] = []
        self._golden: list[SampleFile] = []
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
        self._look_at_outputs()
        self._parity = evaluate.require_parity(self._shipped.path, self._model, self._compared())
        self._reports.append(VariantReport("fp32", variant.model.size_bytes, is_included=True, verdict="the reference"))

    def add_golden(self) -> None:
        """Answer the golden samples with fp32, keep some of them for the device, and say how good fp32 itself is."""
        if self._golden:
            self._say(f"answering {len(self._golden)} golden samples with fp32")
        gate = self._recipe.recipe.gates.max_drop
        self._judge = Judge(
            self._staging.folder,
            lambda variant: self._manifest([variant]),
            self._model,
            decoder=self._semantics.decoder,
            golden=self._golden,
            gate=gate,
        )
        for index in _spread(len(self._golden), MAX_SHIPPED_GOLDEN) if self._golden else ():
            self._shipped_golden.append(self._pin(index))
        if self._judge.has_truth:
            self._reports[0] = replace(self._reports[0], accuracy=self._judge.accuracy_of(self._variants[0]))

    def add_others(self) -> None:
        """Make each other variant that the recipe wants, judge it, and include it or say why not."""
        for name in self._recipe.recipe.wanted:
            if name == "fp32":
                continue
            try:
                self._require_samples(name)
                self._say(f"making {name}")
                if name in quantize.STATIC:
                    self._add_static(name)
                else:
                    self._add_made(name)
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
            assumptions=self._semantics.assumptions + self._held_out + tuple(self._warnings()),
            golden_count=len(self._golden),
            parity=self._parity,
        )

    def _look_at_outputs(self) -> None:
        """Correct what the graph alone does not tell."""
        given = [self._model.infer(self._model.prepare(sample)) for sample in self._compared()]
        outputs = [array for each in given for array in each.values()]
        semantics = recognise.corrected(self._semantics, self._recipe.recipe.decoder, outputs)
        if semantics is not self._semantics:
            self._semantics = semantics
            self._model = self._open_fp32()

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
        if self._shipped.is_external:
            raise CandidateError("models with external data above 2 GB are shipped as they are: fp32 only")
        if quantize.is_quantized(self._repaired.model):
            raise CandidateError("the model is quantized already: it is shipped as it is, under the name fp32")
        if name == "fp32-fused":
            return  # it computes the same, which needs no samples to be proven
        if not self._golden:
            raise CandidateError("there are no golden samples to judge it on; name a folder: `golden`, --golden")
        if name in quantize.STATIC and not self._calibration:
            raise CandidateError("there are no calibration samples; name a folder: `calibration`, --calibration")
        if reason := self._judge.proves_nothing:
            raise CandidateError(reason)

    def _add_made(self, name: VariantName) -> None:
        """Add a variant that is made in one way only."""
        samples = self._compared()
        tensors = [self._model.prepare(sample) for sample in samples]
        made = making.make(name, self._repaired.model, self._recipe.recipe.quantize, self._kept, tensors)
        variant, notes = self._stage(name, made.model), [made.note]
        if made.most_deviation is not None:
            deviation = self._judge.require_near(variant, samples, made.most_deviation)
            notes.append(f"outputs differ by {deviation:.2g} (relative root mean square)")
        attempt = Attempt(variant, None, None)
        if self._golden:
            attempt = self._judged(variant)
            notes.insert(0, "within its gate")
        if attempt.failure is not None:
            self._refuse(name, attempt.failure, attempt.accuracy, attempt.size_bytes)
            return
        verdict = "; ".join(note for note in notes if note)
        self._include(attempt, VariantReport(name, attempt.size_bytes, True, verdict, attempt.accuracy))

    def _add_static(self, name: VariantName) -> None:
        """Add a static INT8 variant, with layers left in float where its gate demands it."""
        settings = self._recipe.recipe.quantize
        samples = list(evaluate.feeds(self._model, self._calibration))
        quantizer = quantize.StaticQuantizer(self._repaired.model, samples, name, settings, self._kept)

        def judged(left: frozenset[str]) -> Attempt:
            return self._judged(self._stage(name, quantizer.quantize(left)))

        found = search(quantizer, samples, judged, TimeLimit(self._clock, settings.search_s), self._say)
        attempt = found.attempt
        if attempt.failure is not None:
            self._refuse(name, attempt.failure + found.text, attempt.accuracy, attempt.size_bytes, found.tries)
            return
        variant = attempt.variant.model_copy(update={"float_layers": found.float_layers})
        verdict, layers = f"within its gate{found.text}", found.float_layers
        report = VariantReport(name, attempt.size_bytes, True, verdict, attempt.accuracy, layers, found.tries)
        self._include(replace(attempt, variant=variant), report)

    def _include(self, attempt: Attempt, report: VariantReport) -> None:
        self._variants.append(attempt.variant.model_copy(update={"accuracy": attempt.accuracy}))
        self._reports.append(report)

    def _judged(self, variant: Variant) -> Attempt:
        self._say(f"judging {variant.name} on {len(self._golden)} golden samples")
        return self._judge.attempt(variant)

    def _compared(self) -> list[Sample]:
        """Samples for numeric comparisons."""
        samples = [sample.read() for sample in (self._golden or self._calibration)[:_PARITY_SAMPLES]]
        return samples or synthetic(self._semantics.input)

    def _open_fp32(self) -> Model:
        try:
            return evaluate.open_staged(self._staging.folder, self._manifest(self._variants), "fp32")
        except (BundleError, CandidateError) as error:
            hint = error.hint if isinstance(error, BundleError) else "export the model again"
            raise BundleError(error.message, where=str(self._shipped.path), hint=hint) from error

    def _stage(self, name: VariantName, model: onnx.ModelProto) -> Variant:
        """Store a model's bytes; inputs and outputs are pinned as the runtime reports them."""
        external = _external_blobs(self._staging, self._shipped, model)
        blob = self._staging.add(model.SerializeToString(deterministic=True))
        session = self._loaded(name, blob)
        symbols = {each.name: dimensions(each) for each in model.graph.input}
        return Variant(
            name=name,
            model=blob,
            external_data=external,
            opset=ModelFile(self._shipped.path, model, {}).opset,
            producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
            inputs=tuple(self._bounded(spec, symbols[spec.name]) for spec in session.inputs),
            outputs=session.outputs,
        )

    def _loaded(self, name: VariantName, blob: Blob) -> Session:
        try:
            return evaluate.load(self._staging.path_of(blob), name)
        except BundleError as error:
            if name == "fp32":
                raise BundleError(error.message, where=str(self._shipped.path), hint=error.hint) from error
            raise CandidateError(f"ONNX Runtime refuses what its own tool made: {error.message}") from error

    def _bounded(self, spec: TensorSpec, sizes: list[int | str]) -> TensorSpec:
        """Add the bounds of the dimensions that stayed open."""
        bounds = {
            axis: (found.min, found.max)
            for axis, size in enumerate(sizes)
            if (found := self._bounds.get(f"{spec.name}.{axis}") or self._bounds.get(str(size))) is not None
        }
        return spec.model_copy(update={"bounds": bounds})

    def _tensors(self, variant: Variant) -> recognise.Tensors:
        return recognise.Tensors(
            inputs=variant.inputs,
            outputs=variant.outputs,
            metadata={each.key: each.value for each in self._shipped.model.metadata_props},
            ends_in_probabilities=recognise.ends_in_probabilities(self._repaired.model),
            where=str(self._shipped.path),
        )

    def _pin(self, index: int) -> GoldenSample:
        sample = self._golden[index]
        read = sample.read()
        size = (read.pixels.shape[1], read.pixels.shape[0]) if isinstance(read, Frame) else None
        document = golden.to_json(self._judge.reference[index], size)
        return GoldenSample(input=self._staging.add(sample.path.read_bytes()), expected=self._staging.add(document))

    def _refuse(
        self, name: str, reason: str, result: Accuracy | None, size_bytes: int, tries: tuple[Try, ...] = ()
    ) -> None:
        self._refused.append(RefusedVariant(name=name, reason=reason, accuracy=result))
        self._reports.append(VariantReport(name, size_bytes, False, reason, result, tries=tries))

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
            agreement=recipe.gates.agreement,
            source_sha256=hashlib.sha256(self._shipped.path.read_bytes()).hexdigest(),
            license=recipe.license,
        )

    def _warnings(self) -> Iterator[str]:
        recipe = self._recipe
        if recipe.calibration and recipe.golden and recipe.calibration.resolve() == recipe.golden.resolve():
            yield "calibration and golden samples are the same folder: INT8 is judged on what it was tuned to"
        if quantize.is_quantized(self._repaired.model):
            yield "the model is quantized already, so `fp32` is a name for the form that it came in"
        if self._judge.is_undecided:
            yield (
                "fp32 is undecided on all golden samples (its best scores lie within 0.1), so near-ties do not count as equal; "
                "is the normalisation that of the training?"
            )
        if (only := self._judge.only_class) is not None:
            yield f"fp32 says `{only}` to all {len(self._golden)} golden samples: a variant that always said so would pass too"


def _default_output(source: Path) -> Path:
    if source.name == FILE_NAME:
        return source.parent / "built"
    return source / "built" if source.is_dir() else source.with_suffix(".bundle")


def _bounds(recipe: RecipeFolder) -> dict[str, Bounds]:
    return {name: size for name, size in recipe.recipe.dimensions.items() if isinstance(size, Bounds)}


def _sizes(recipe: RecipeFolder, shipped: ModelFile) -> dict[str, int]:
    sizes = {name: size for name, size in recipe.recipe.dimensions.items() if isinstance(size, int)}
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
