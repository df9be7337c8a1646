"""The operator's words for updates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

TimeWindow = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]
"""`22:00-04:30`, UTC; may cross midnight."""
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
ChannelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]


class ProbationSettings(BaseModel):
    """How long a new bundle is watched before it counts as good: until both are reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(gt=0)] = 300.0
    """Of time in which samples came through."""
    samples: Annotated[int, Field(ge=0)] = 500
    """Frames or windows that went through the new model, in each pipeline that has samples at all."""


class UpdateSettings(BaseModel):
    """Where releases come from and when they may be taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    """The `root.json` that this device was provisioned with: who may sign releases."""
    transports: Annotated[tuple[str, ...], Field(min_length=1)] = ("mqtt",)
    """Tried in this order: `mqtt`, an `https://…` (or `http://…`) address of the repository, or a folder (a USB stick)."""
    groups: tuple[GroupName, ...] = ()
    """Which groups of a rollout this device belongs to."""
    check_every_s: Annotated[float, Field(ge=1)] = 86400.0
    """A check without a hint, now and then, with jitter."""
    hint_jitter_s: Annotated[float, Field(ge=0)] = 5.0
    """After a hint each device waits a random time up to this, so that a fleet does not ask at once."""
    rate_limit_kib_s: Annotated[int, Field(ge=1)] | None = None
    """At most so many KiB a second are fetched."""
    window: TimeWindow | None = None
    """UTC. Fetching and switching happen inside it only; a release's own window narrows it further."""
    probation: ProbationSettings = ProbationSettings()
