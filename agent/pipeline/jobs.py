"""From the operator's words to jobs: which pipelines share a model, and so a worker and a session; how patient to be."""

from __future__ import annotations

from collections.abc import Mapping

from agent.bundle.manifest import Manifest
from agent.device.planning.plan import Candidate, Plan
from agent.errors import OperatorError
from agent.pipeline.messages import Job, PipelineJob
from agent.pipeline.settings import CameraSettings, SensorSettings

STALL_LEAST_S = 15.0
"""Opening an RTSP camera takes two seconds and a slow one more: less than this would kill the patient for waiting."""
STALL_FRAMES = 3
"""A camera limited to one frame a minute has stalled after three of them."""
PATIENCE_LEAST_S = 3.0
PATIENCE_P99 = 50
"""So many times its planned p99 is no slow inference any more: a driver or an accelerator hangs."""


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


def stall_times(job: Job) -> dict[str, float | None]:
    """Return by pipeline how long an open source may bring nothing through. Sensors may be silent for ever."""
    return {pipeline.name: _stall_s(pipeline) for pipeline in job.pipelines}


def _stall_s(pipeline: PipelineJob) -> float | None:
    if pipeline.kind == "sensor":
        return None
    settings = pipeline.settings
    waits_s = 3 * float(settings.get("read_timeout_s") or 0)
    frames_s = STALL_FRAMES / float(settings.get("fps") or STALL_FRAMES)
    return max(STALL_LEAST_S, waits_s, frames_s)


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


def patience_s(plan: Plan, candidate: Candidate) -> float:
    """Return how long one inference may take before it has hung.

    There is nothing to go to from the plain CPU provider, and a loaded machine is no hung driver: it gets as long as a source.
    """
    least_s = STALL_LEAST_S if candidate.is_plain_cpu else PATIENCE_LEAST_S
    return max(least_s, PATIENCE_P99 * (planned_p99_ms(plan, candidate) or 0.0) / 1000)


def planned_p99_ms(plan: Plan, candidate: Candidate) -> float | None:
    """Return what the plan measured for a candidate; None where it has no number."""
    measured = (each.measurement for each in plan.outcomes if each.candidate == candidate and each.measurement)
    return next((each.p99_ms for each in measured), None)
