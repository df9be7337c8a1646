"""From the operator's words to jobs: which pipelines share a model, and so a worker and a session; what its plan is to be made
for; how patient to be.

Several models share the processor by plan, not by luck: each may use its part of the usable physical cores by the number of its
pipelines, rounded down, and at least one. A single model may use all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.bundle.manifest import Manifest
from agent.device.facts import Facts
from agent.device.hardware.cpu import usable_cores
from agent.device.plan import Candidate, Demand, Objective, Plan
from agent.device.profile import Profile
from agent.errors import OperatorError
from agent.pipeline.messages import Job, PipelineJob
from agent.pipeline.settings import CameraSettings, ModelSettings, SensorSettings

STALL_LEAST_S = 15.0
"""Opening an RTSP camera takes two seconds and a slow one more: less than this would kill the patient for waiting."""
STALL_FRAMES = 3
"""A camera limited to one frame a minute has stalled after three of them."""
PATIENCE_LEAST_S = 3.0
PATIENCE_P99 = 50
"""So many times its planned p99 is no slow inference any more: a driver or an accelerator hangs."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the operator's file says of one model, as far as its plan is concerned."""

    objective: Objective | None = None
    run_on: str = "auto"
    streams: int = 1
    """Its own pipelines."""
    all_streams: int = 1
    """Those of all models."""
    is_required: bool = False

    def demand(self, facts: Facts, profile: Profile) -> Demand:
        """Return what a plan is to be made for on this device."""
        share = usable_cores(facts.cpu) * self.streams // self.all_streams
        return Demand(
            objective=self.objective or profile.tune.objective,
            streams=self.streams,
            cores=None if self.streams == self.all_streams else max(1, share),
            run_on=self.run_on,
            is_required=self.is_required,
        )


def asked_by_model(
    models: Mapping[str, ModelSettings], pipelines: Mapping[str, Sequence[PipelineJob]]
) -> dict[str, Asked]:
    """Return what is asked for each model that has pipelines."""
    all_streams = sum(len(jobs) for jobs in pipelines.values())
    return {
        name: Asked(
            objective=models[name].objective,
            run_on=models[name].run_on,
            streams=len(jobs),
            all_streams=all_streams,
            is_required=any(job.settings["fallback"] == "require" for job in jobs),
        )
        for name, jobs in pipelines.items()
    }


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
