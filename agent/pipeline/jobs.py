"""From the operator's words to jobs: which pipelines share a model, and so a worker and a session."""

from __future__ import annotations

from collections.abc import Mapping

from agent.pipeline.messages import PipelineJob
from agent.pipeline.settings import CameraSettings, SensorSettings


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
