"""From the operator's words to jobs: which pipelines share a model, and so a worker and a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from agent.bundle.manifest import Manifest
from agent.errors import BundleError, OperatorError
from agent.pipeline.messages import PipelineJob
from agent.pipeline.settings import CameraSettings, SensorSettings

RELEASABLE = frozenset({"min_score", "labels", "zones", "rules"})
"""What a release may say of a pipeline. Where its samples come from stays the operator's."""


def pipelines_by_model(
    cameras: Mapping[str, CameraSettings], sensors: Mapping[str, SensorSettings], models: list[str]
) -> dict[str, tuple[PipelineJob, ...]]:
    """Return the pipelines of each model that has any.

    A pipeline that names no model has the only one there is (checked when the file is read).
    """
    grouped: dict[str, list[PipelineJob]] = {model: [] for model in models}
    for name, camera in cameras.items():
        job = PipelineJob(name, "camera", camera.model_dump(mode="json"))
        grouped[camera.model or models[0]].append(job)
    for name, sensor in sensors.items():
        job = PipelineJob(name, "sensor", sensor.model_dump(mode="json"))
        grouped[sensor.model or models[0]].append(job)
    return {model: tuple(jobs) for model, jobs in grouped.items() if jobs}


def sensor_topics(sensors: Mapping[str, SensorSettings]) -> dict[str, str]:
    """Return the MQTT topic of each sensor that listens to one (`source: mqtt:<topic>`)."""
    return {
        name: sensor.source.removeprefix("mqtt:")
        for name, sensor in sensors.items()
        if sensor.source.startswith("mqtt:")
    }


def with_overrides(pipelines: Sequence[PipelineJob], overrides: Mapping[str, Any]) -> tuple[PipelineJob, ...]:
    """Return the pipelines with what a signed release says over the operator's file; names it has more are ignored.

    Raises:
        BundleError: what it says fits no pipeline of this kind.
    """
    return tuple(_overridden(pipeline, overrides.get(pipeline.name) or {}) for pipeline in pipelines)


def _overridden(pipeline: PipelineJob, overrides: Mapping[str, Any]) -> PipelineJob:
    said = {key: value for key, value in overrides.items() if key in RELEASABLE and value is not None}
    if not said:
        return pipeline
    kind = CameraSettings if pipeline.kind == "camera" else SensorSettings
    try:
        settings = kind.model_validate({**pipeline.settings, **said})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        raise BundleError(
            f"the release sets {', '.join(said)} of the {pipeline.kind} {pipeline.name}, which is not valid: {problems}",
            hint="publish a release whose settings fit",
        ) from error
    return replace(pipeline, settings=settings.model_dump(mode="json"))


def check_kind(job: PipelineJob, manifest: Manifest) -> None:
    """Refuse a camera with a bundle for signals, and a sensor with one for pictures.

    Raises:
        OperatorError: with both.
    """
    wanted = {"image": "camera", "signal": "sensor"}[manifest.input.kind]
    if job.kind != wanted:
        raise OperatorError(
            f"the {job.kind} {job.name} has a model for {manifest.input.kind}s: {manifest.name} {manifest.version}",
            hint=f"give it another model, or write it under `{wanted}s:`",
        )
