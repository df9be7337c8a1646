"""From a job to the parts of its pipelines: the model, opened and warm, and what each loop works with.

Takes a job; gives values, and touches no camera. Refuses settings that do not fit the bundle, before anything of them
runs: the same way for a worker's first bundle and for one that takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agent.clock import Clock
from agent.errors import OperatorError
from agent.pipeline.active import Active
from agent.pipeline.active import Judge as JudgeOfLoop
from agent.pipeline.loop import LoopSettings
from agent.pipeline.messages import Job, MadeBy, PipelineJob, SessionFacts
from agent.pipeline.settings import CameraSettings, SensorSettings
from agent.sources.sample import Sample

if TYPE_CHECKING:
    from agent.bundle.manifest import Manifest
    from agent.bundle.reader import Bundle
    from agent.events.judge import AnswerKind, Judge
    from agent.inference.model import Model

PER_SAMPLE = frozenset({"min_score", "labels", "zones", "rules", "model", "fallback"})
"""A pipeline's settings that its open source has no part in."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A bundle and its warm session, as a job asks for."""

    bundle: Bundle
    model: Model
    made_by: MadeBy
    has_fallbacks: bool

    def session_facts(self) -> SessionFacts:
        """Return what the session really is, as `ready` and `swapped` say it."""
        session, candidate = self.model.session, self.model.session.candidate
        variant = self.bundle.manifest.variant(candidate.variant)
        return SessionFacts(
            provider=candidate.provider,
            device_type=candidate.device_type,
            device=candidate.device,
            runtime=candidate.runtime,
            variant=candidate.variant,
            threads=candidate.threads,
            opset=variant.opset if variant else 0,
            inputs={spec.name: list(spec.shape) for spec in session.inputs},
            nodes=dict(session.nodes),
            partitions=dict(session.assignment.partitions),
            was_prepared=session.was_prepared,
            load_ms=round(session.load_ms, 1),
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What a judge judges by. Judges with equal terms are interchangeable: one may go on in the other's place."""

    labels: tuple[str, ...]
    zones: Mapping[str, Any]
    rules: Mapping[str, Any]
    anomaly_threshold: float | None
    answers: AnswerKind


def load(job: Job, clock: Clock) -> Loaded:
    """Open a job's bundle, every byte checked, and warm its session.

    Raises:
        BundleError: it is damaged, or not what a job may name.
        CandidateError: the provider cannot run it.
    """
    from agent.bundle.reader import open_bundle
    from agent.inference.model import open_model

    bundle = open_bundle(Path(job.bundle), verify=False)
    bundle.verify({job.candidate.variant}, golden=False)
    prepared = Path(job.prepared) if job.prepared is not None else None
    model = open_model(bundle, job.candidate, clock, prepared=prepared)
    model.warm_up()
    manifest, candidate = bundle.manifest, job.candidate
    made_by = MadeBy(
        name=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        variant=candidate.variant,
        ep=candidate.provider,
    )
    return Loaded(bundle, model, made_by, has_fallbacks=bool(job.fallbacks))


def pipeline_settings(job: PipelineJob) -> CameraSettings | SensorSettings:
    """Return the typed settings of a pipeline."""
    settings_type = CameraSettings if job.kind == "camera" else SensorSettings
    return settings_type.model_validate(job.settings)


def make_terms(settings: CameraSettings | SensorSettings, manifest: Manifest) -> Terms:
    """Return what the operator's words and the bundle say together."""
    decoder = manifest.decoder
    kinds: Mapping[str, AnswerKind] = {"anomaly": "score", "classify": "classes"}
    zones = settings.zones if isinstance(settings, CameraSettings) else {}
    answers = kinds.get(decoder.model_type, "detections")
    return Terms(decoder.labels, zones, settings.rules, decoder.anomaly_threshold, answers)


def make_judge(pipeline: str, terms: Terms) -> Judge:
    """Return the judge of one pipeline.

    Raises:
        ConfigurationError: zones, labels or rules that do not fit the bundle.
    """
    from agent.events.judge import Judge

    return Judge(pipeline, terms.labels, terms.zones, terms.rules, terms.anomaly_threshold, answers=terms.answers)


def make_active(
    job: PipelineJob, settings: CameraSettings | SensorSettings, loaded: Loaded, judge: JudgeOfLoop[Any]
) -> Active[Sample]:
    """Return what a loop works with.

    Raises:
        OperatorError: a label that the bundle does not know.
    """
    made_by = cast("Mapping[str, str]", loaded.made_by)
    if isinstance(settings, SensorSettings):
        return Active(loaded.model, judge, made_by=made_by, has_fallbacks=loaded.has_fallbacks)
    labels = loaded.bundle.manifest.decoder.labels
    if unknown := [label for label in settings.labels if label not in labels]:
        raise OperatorError(
            f"camera {job.name}: the bundle has no label {', '.join(unknown)}", hint=f"it has: {', '.join(labels)}"
        )
    class_ids = frozenset(labels.index(label) for label in settings.labels) or None
    return Active(loaded.model, judge, settings.min_score, class_ids, made_by, loaded.has_fallbacks)


def loop_settings(job: PipelineJob, settings: CameraSettings | SensorSettings) -> LoopSettings:
    """Return what the loop needs of the operator's words, whatever the bundle is."""
    return LoopSettings(
        fps=settings.fps if isinstance(settings, CameraSettings) else None,
        reconnect_first_s=settings.reconnect_first_s,
        reconnect_limit_s=settings.reconnect_limit_s,
        first_sample_id=job.first_sample_id,
    )


def wants_other_sources(old: Job, new: Job) -> bool:
    """Whether a job's sources are not those that another has opened."""
    return _sources(old) != _sources(new)


def wants_other_samples(old: Manifest, new: Manifest) -> bool:
    """Whether a bundle wants windows cut in another way. A picture is fitted to the model anew for each sample."""
    return new.input.kind == "signal" and _window(old) != _window(new)


def _sources(job: Job) -> dict[str, Any]:
    return {
        each.name: (each.kind, {key: value for key, value in each.settings.items() if key not in PER_SAMPLE})
        for each in job.pipelines
    }


def _window(manifest: Manifest) -> Mapping[str, Any]:
    return manifest.input.model_dump(exclude={"features"})
