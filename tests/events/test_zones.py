"""Zones: who stands where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.events.settings import ZoneSettings
from agent.events.tracker import Track
from agent.events.zones import Polygon, Zones


def track(box: tuple[float, float, float, float]) -> Track:
    return Track(1, 0, 0.9, 0.9, box, 0.0, 0.0, 3)


def zones(**corners) -> Zones:
    return Zones({name: ZoneSettings(coordinates=points) for name, points in corners.items()})


LOWER = ((0, 0.5), (1, 0.5), (1, 1), (0, 1))
UPPER = ((0, 0), (1, 0), (1, 0.5), (0, 0.5))


def test_object_stands_where_its_feet_are_not_where_its_middle_is():
    """A tall person at the door has the head in another zone."""
    found = zones(lower=LOWER, upper=UPPER).containing([track((100, 0, 200, 600))], (1000, 1000))
    assert found == [("lower",)]


def test_object_cut_off_by_the_frame_is_in_the_zone_that_reaches_its_edge():
    """At the lower edge the ground point is exactly 1.0: a half-open test would lose everyone near the camera."""
    found = zones(lower=LOWER).containing([track((900, 800, 1100, 1000)), track((-50, 800, 50, 1000))], (1000, 1000))
    assert found == [("lower",), ("lower",)]


def test_zones_hold_at_any_resolution():
    """Coordinates are relative."""
    for scale in (0.1, 1, 3.84):
        boxes = [track(tuple(scale * n for n in (100, 100, 200, 600)))]
        assert zones(lower=LOWER).containing(boxes, (int(1000 * scale), int(1000 * scale))) == [("lower",)]


def test_concave_zone_does_not_contain_its_notch():
    """People draw L and U shapes."""
    u_shape = Polygon([[0, 0], [0.3, 0], [0.3, 0.7], [0.7, 0.7], [0.7, 0], [1, 0], [1, 1], [0, 1]])
    points = np.array([[0.5, 0.3], [0.1, 0.3], [0.9, 0.3], [0.5, 0.9]])
    assert u_shape.contains(points).tolist() == [False, True, True, True]


@pytest.mark.parametrize("corners", [((0, 0), (0.5, 0.5), (1, 1)), ((0.2, 0.2),) * 3])
def test_zone_without_area_is_refused(corners):
    """It would never contain anything, and nobody would know why."""
    with pytest.raises(ValidationError, match="no area"):
        zones(line=corners)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_contains_agrees_with_a_plain_loop(corners, point):
    """The vectorised form against the textbook's."""
    x, y = point
    inside = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * ((x2 - x1) / (y2 - y1)):
            inside = not inside
    assert Polygon(corners).contains(np.array([point])).tolist() == [inside]
