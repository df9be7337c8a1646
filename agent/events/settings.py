"""The operator's words for zones and rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Relative = Annotated[float, Field(ge=0, le=1)]
Labels = tuple[str, ...]


class _Strict(BaseModel):
    """Files that people edit reject unknown keys: a typo is likelier than an invention."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ZoneSettings(_Strict):
    """A polygon in relative coordinates: 0,0 is the top left of the frame and 1,1 the bottom right."""

    coordinates: Annotated[tuple[tuple[Relative, Relative], ...], Field(min_length=3)]


class _TrackRule(_Strict):
    zone: str | None = None
    """The zone it watches; the whole frame where none is given."""
    labels: Labels = ()
    """Only these labels; all where none is given."""
    min_score: Relative = 0.0


class DetectRule(_Strict):
    """Speaks for every detection in every frame: for consumers that want the raw stream."""

    when: Literal["detect"]
    labels: Labels = ()
    min_score: Relative = 0.0


class TrackRule(_TrackRule):
    """Speaks when a tracked object appears (new), enters another zone (update), and is gone (end). The default."""

    when: Literal["track"]


class EnterRule(_TrackRule):
    """Speaks once when a tracked object comes into the zone and stays for `for_s`."""

    when: Literal["enter"]
    for_s: Annotated[float, Field(ge=0)] = 0.0


class LeaveRule(_TrackRule):
    """Speaks once when a tracked object that was in the zone is out of it (or gone) for `for_s`."""

    when: Literal["leave"]
    for_s: Annotated[float, Field(ge=0)] = 0.0


class DwellRule(_TrackRule):
    """Speaks when a tracked object has been in the zone for `for_s` (new), and when it leaves (end)."""

    when: Literal["dwell"]
    for_s: Annotated[float, Field(gt=0)]


class CountRule(_TrackRule):
    """Speaks when the number of tracked objects in the zone (`value`) changed and stayed so for `for_s`."""

    when: Literal["count"]
    for_s: Annotated[float, Field(ge=0)] = 0.5


class LevelRule(_Strict):
    """Speaks when a score rises to `above` for `for_s` (new), and when it is back below `below` for `for_s` (end).

    Without `above`, the bundle's own threshold. `below` defaults to 0.9 × `above`: a hysteresis, so that a value at the
    border does not chatter.
    """

    when: Literal["level"]
    above: float | None = None
    below: float | None = None
    for_s: Annotated[float, Field(ge=0)] = 0.0


class ClassRule(_Strict):
    """Speaks when the likeliest class of the sample changed and stayed so for `for_s`."""

    when: Literal["class"]
    labels: Labels = ()
    min_score: Relative = 0.0
    for_s: Annotated[float, Field(ge=0)] = 0.0


RuleSettings = Annotated[
    DetectRule | TrackRule | EnterRule | LeaveRule | DwellRule | CountRule | LevelRule | ClassRule,
    Field(discriminator="when"),
]
