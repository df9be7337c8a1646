"""The operator's file as typed values. Each package owns its section's type; reading the file is `agent.config.file`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.mqtt.settings import MqttSettings
from agent.outbox.settings import OutboxSettings
from agent.pipeline.settings import CameraSettings, ModelSettings, SensorSettings
from agent.update.settings import UpdateSettings

PipelineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class DeviceSettings(BaseModel):
    """Who this device is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)] | None = None
    """The id in topics and events; made at the first start and kept where it is not given."""
    profile: str | None = None
    """A device profile's name, instead of the best match."""
    profiles: Path | None = None
    """A folder with device profiles of your own; one of the same name replaces a shipped one."""
    runtimes: tuple[str, ...] = ()
    """Runtimes beside those that are found by themselves: `folder:<path>` (another ONNX Runtime wheel, installed into a folder of
    its own), `plugin:<path of an execution provider's library>`, or `virtual:<file>` of the simulator, or one of its examples by
    name."""


class Settings(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    """Of this format."""
    device: DeviceSettings = DeviceSettings()
    state_dir: Path | None = None
    """Where the outbox and the plans are kept; the platform's state folder where it is not given."""
    mqtt: MqttSettings | None = None
    outbox: OutboxSettings = OutboxSettings()
    update: UpdateSettings | None = None
    """Where signed releases come from; without it a device runs what is on it."""
    models: dict[PipelineName, ModelSettings] = {}
    """By a name of your own."""
    cameras: dict[PipelineName, CameraSettings] = {}
    """By a name of your own, which is also the pipeline's name in topics and events."""
    sensors: dict[PipelineName, SensorSettings] = {}
    """By a name of your own, which is also the pipeline's name in topics and events."""
