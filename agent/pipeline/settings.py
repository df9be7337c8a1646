"""The operator's words for a pipeline: a source, a model, zones and rules."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.events.settings import RuleSettings, SensorRuleSettings, ZoneSettings
from agent.sources.settings import CameraSource, SensorSource
from agent.update.settings import ChannelName

Fallback = Literal["require", "prefer", "allow"]
"""When the model cannot run on what was asked for (`run_on`), or on what was chosen, any more: `require`: this pipeline does not
run; `prefer`: it runs on the next best, and a condition says so; `allow`: it runs on the next best."""
RunOn = Annotated[str, Field(pattern=r"^(auto|cpu|gpu|npu|[A-Za-z0-9]+ExecutionProvider)$")]


class CameraSettings(CameraSource):
    """One camera pipeline."""

    model: str | None = None
    """A name under `models:`; may be left out where there is just one."""
    fallback: Fallback = "prefer"
    """When the model cannot run on what was asked for (`run_on`) or chosen: `require` does not run this pipeline until it can
    again, `prefer` runs it on the next best with a warning, `allow` without one."""
    labels: tuple[str, ...] = ()
    """Only these labels become detections; all of the bundle's where none is given."""
    min_score: float | None = None
    """Instead of the bundle's confidence threshold."""
    zones: dict[str, ZoneSettings] = {}
    """By a name of your own; rules name them."""
    rules: dict[str, RuleSettings] = {}
    """Where none is given: one `track` rule."""


class SensorSettings(SensorSource):
    """One sensor pipeline."""

    model: str | None = None
    """A name under `models:`; may be left out where there is just one."""
    fallback: Fallback = "prefer"
    """When the model cannot run on what was asked for (`run_on`) or chosen: `require` does not run this pipeline until it can
    again, `prefer` runs it on the next best with a warning, `allow` without one."""
    rules: dict[str, SensorRuleSettings] = {}
    """Where none is given: one `level` rule at the bundle's threshold."""


class ModelSettings(BaseModel):
    """A model that pipelines share: they get one worker and one session."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str | None = None
    """The folder of a built bundle, or the name of one that ships with Holdfast (`parcels`, `bearing`). With a channel: what
    runs until its first release is there."""
    channel: ChannelName | None = None
    """Follow this channel of the release repository (`update:`): its signed releases say what runs."""

    run_on: RunOn = "auto"
    """Where it must run if anything there passes: `cpu`, `gpu`, `npu`, or a provider such as `OpenVINOExecutionProvider`. `auto`:
    whatever measures best. What happens where nothing there passes, each pipeline's `fallback` says."""
    objective: Literal["latency", "throughput", "power"] | None = None
    """What "best" means: the lowest p99, the most runs a second with all of its pipelines at once, or the least energy a run.
    The device profile's where it is not given."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.bundle is None and self.channel is None:
            raise ValueError("a model needs `bundle:`, or `channel:`, or both")
        return self
