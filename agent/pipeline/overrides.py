"""What a signed release may say over the operator's file: thresholds, labels, zones and rules of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from agent.errors import BundleError
from agent.pipeline.messages import PipelineJob
from agent.pipeline.settings import CameraSettings, SensorSettings

RELEASABLE = frozenset({"min_score", "labels", "zones", "rules"})
"""Where its samples come from stays the operator's."""


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
