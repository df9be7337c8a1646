"""The operator's words for zones and rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MIN_AREA = 1e-6
"""Share of the frame below which a zone is a slip of the pen: three points on a line."""

Relative = Annotated[float, Field(ge=0, le=1)]
Corners = tuple[tuple[Relative, Relative], ...]
Labels = tuple[str, ...]


class _Strict(BaseModel):
    """Files that people edit reject unknown keys: a typo is likelier than an invention."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ZoneSettings(_Strict):
    """A polygon in relative coordinates: 0,0 is the top left of the frame and 1,1 the bottom right."""

    coordinates: Annotated[Corners, Field(json_schema_extra={"minItems": 3})]
    """The corners, `[x, y]` each, in order round the zone."""

    @field_validator("coordinates")
    @classmethod
    def _encloses_an_area(cls, corners: Corners) -> Corners:
        if len(corners) < 3:
            raise ValueError("a zone needs at least three corners")
        edges = [(x - corners[0][0], y - corners[0][1]) for x, y in corners]
        if max(abs(x1 * y2 - x2 * y1) / 2 for x1, y1 in edges for x2, y2 in edges) < MIN_AREA:
            raise ValueError("the corners lie in a line: the zone has no area and would never contain anything")
        return corners


class _TrackRule(_Strict):
    zone: str | None = None
    """The zone it watches; the whole frame where none is given."""
    labels: Labels = ()
    """Only these labels; all where none is given."""
    min_score: Relative = 0.0
    """The object's best score so far must have reached this."""


class DetectRule(_Strict):
    """Speaks for every detection in every frame: for consumers that want the raw stream."""

    when: Literal["detect"]
    labels: Labels = ()
    """Only these labels; all where none is given."""
    min_score: Relative = 0.0
    """Only detections that score at least this."""


class TrackRule(_TrackRule):
    """Speaks when a tracked object appears (new), enters another zone (update), and is gone (end). The default."""

    when: Literal["track"]


class EnterRule(_TrackRule):
    """Speaks once when a tracked object comes into the zone and stays for `for_s`."""

    when: Literal["enter"]
    for_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that it must stay without a break."""


class LeaveRule(_TrackRule):
    """Speaks once when a tracked object that was in the zone is out of it (or gone) for `for_s`."""

    when: Literal["leave"]
    for_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that it must stay out."""


class DwellRule(_TrackRule):
    """Speaks when a tracked object has been in the zone for `for_s` (new), and when it leaves (end)."""

    when: Literal["dwell"]
    for_s: Annotated[float, Field(gt=0)]
    """Seconds that it must have been there."""


class CountRule(_TrackRule):
    """Speaks when the number of tracked objects in the zone (`value`) changed and stayed so for `for_s`."""

    when: Literal["count"]
    for_s: Annotated[float, Field(ge=0)] = 0.5
    """Seconds that the new number must last."""


class LevelRule(_Strict):
    """Speaks when a score rises to `above` for `for_s` (new), and when it is back below `below` for `for_s` (end).

    Without `above`, the bundle's own threshold. `below` defaults to 0.9 × `above`: a hysteresis, so that a value at the
    border does not chatter.
    """

    when: Literal["level"]
    above: float | None = None
    """In the model's unit; the bundle's threshold where it is not given."""
    below: float | None = None
    """In the model's unit; a tenth under `above` where it is not given."""
    for_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that it must last, in both directions."""


class ClassRule(_Strict):
    """Speaks when the likeliest class of the sample changed and stayed so for `for_s`."""

    when: Literal["class"]
    labels: Labels = ()
    """Only these classes; any other is no class at all."""
    min_score: Relative = 0.0
    """A sample whose likeliest class scores less has no class."""
    for_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that it must last."""


RuleSettings = Annotated[
    DetectRule | TrackRule | EnterRule | LeaveRule | DwellRule | CountRule | LevelRule | ClassRule,
    Field(discriminator="when"),
]
SensorRuleSettings = Annotated[LevelRule | ClassRule, Field(discriminator="when")]
"""The rules that need no picture."""
