"""The operator's words for cameras and sensors: where they are, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]


class SourceSettings(BaseModel):
    """What cameras and sensors have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, Field(min_length=1)]
    """Camera: `rtsp://…`, a video file, a folder of pictures, `usb:0` or `/dev/video0`, `scene://conveyor?seed=1`.
    Sensor: a .csv file, `mqtt:<topic>`, `signal://bearing?seed=1`."""
    pace: Literal["own", "fast"] = "own"
    """A file plays at its own speed (and the latest frame wins), or as fast as it goes (and every frame counts)."""
    repeat: bool = False
    """A file starts again at its end."""
    open_timeout_s: Seconds = 5.0
    """Opening that takes longer has failed."""
    read_timeout_s: Seconds = 5.0
    """A source that gives nothing for so long is stalled, and is opened anew."""
    reconnect_first_s: Seconds = 1.0
    """The wait before the first new attempt; it doubles with each …"""
    reconnect_limit_s: Seconds = 30.0
    """… up to this."""


class CameraSource(SourceSettings):
    """A camera's source."""

    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    """At most this many frames a second go to the model; those left out are counted under `rate`."""
    max_age_s: Seconds = 2.0
    """An older frame is not "now": it is dropped and counted under `stale`."""


class SensorSource(SourceSettings):
    """A sensor's source."""

    rate_hz: Annotated[float, Field(gt=0)] | None = None
    """Values per second of a .csv file or topic without timestamps; the bundle's rate where it is not given."""
    columns: tuple[str, ...] = ()
    """Columns of a .csv file, or keys of a JSON payload, in the order of the bundle's channels."""
