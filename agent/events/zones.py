"""Which objects stand in which zones: points in, zone names out.

An object stands where the middle of its box's lower edge is, its *ground point* (as in Frigate): for a camera that
looks down at an angle that is where the feet or the wheels are, while the box's centre floats above another place.
Coordinates are relative to the frame, so zones survive a change of resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.events.settings import ZoneSettings
from agent.events.tracker import Track

FloatArray = NDArray[np.float64]

EDGE = 1e-6
"""Ground points are kept this far inside the frame: an object cut off by the lower edge stands *at* 1.0, and a zone
that reaches down to the edge must contain it."""


class Zones:
    """The zones of one camera, by name, in the order of the operator's file."""

    def __init__(self, settings: Mapping[str, ZoneSettings]) -> None:
        self._polygons = {name: Polygon(zone.coordinates) for name, zone in settings.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._polygons)

    def containing(self, tracks: Sequence[Track], frame_size: tuple[int, int]) -> list[tuple[str, ...]]:
        """Return, for each track, the zones that it stands in."""
        if not tracks or not self._polygons:
            return [()] * len(tracks)
        points = ground_points(tracks, frame_size)
        inside = [(name, polygon.contains(points).tolist()) for name, polygon in self._polygons.items()]
        return [tuple(name for name, is_inside in inside if is_inside[index]) for index in range(len(tracks))]


def ground_points(tracks: Sequence[Track], frame_size: tuple[int, int]) -> FloatArray:
    """Return the ground points (n, 2) of tracks, relative to the frame of `frame_size` (width, height)."""
    boxes = np.array([track.xyxy_px for track in tracks], dtype=np.float64).reshape(-1, 4)
    points = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]], axis=1) / frame_size
    return np.minimum(np.maximum(points, EDGE), 1 - EDGE)


class Polygon:
    """A polygon with its edges worked out once. It may be concave; where it crosses itself the even-odd rule holds."""

    def __init__(self, corners: Sequence[Sequence[float]]) -> None:
        begins = np.array(corners, dtype=np.float64)
        ends = np.roll(begins, -1, axis=0)
        run, rise = (ends - begins).T
        self._x, self._begin_y = begins.T
        self._end_y = ends[:, 1]
        self._slope = run / np.where(rise == 0, 1.0, rise)  # a level edge is never crossed

    def contains(self, points: FloatArray) -> NDArray[np.bool_]:
        """Return for points (n, 2) whether they lie inside.

        A ray to the right of the point crosses the border an odd number of times (Shimrat 1962, Algorithm 112). Edges
        are half open, so a ray through a corner counts once.
        """
        x, y = points[:, 0:1], points[:, 1:2]
        straddles = (self._begin_y > y) != (self._end_y > y)
        crosses = straddles & (x < self._x + (y - self._begin_y) * self._slope)
        return np.asarray(np.logical_xor.reduce(crosses, axis=1))
