from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle.manifest import ImageInput
from agent.inference.placement import place

SIDES = st.integers(1, 4000)
SHARES = st.tuples(*[st.floats(0, 1, width=32)] * 4)
TYPES = st.sampled_from(["standard", "fit_to_window", "fit_to_window_letterbox", "crop"])


@given(SIDES, SIDES, SIDES, SIDES, TYPES, SHARES)
def test_boxes_come_back_to_where_they_were(
    width: int, height: int, input_width: int, input_height: int, resize_type: str, shares: tuple[float, ...]
) -> None:
    """Every zone and every event box rests on this inverse."""
    placement = place(width, height, ImageInput(width=input_width, height=input_height, resize_type=resize_type))  # type: ignore[arg-type]
    xs, ys = sorted(shares[:2]), sorted(shares[2:])
    box = np.array([[xs[0] * width, ys[0] * height, xs[1] * width, ys[1] * height]], np.float32)
    back = placement.to_frame(placement.to_input(box))
    # float32 carries 24 bits; an input pixel may stand for thousands of frame pixels.
    tolerance = 1e-5 * max(width, height, input_width / placement.scale[0], input_height / placement.scale[1]) + 1e-3
    np.testing.assert_allclose(back, box, atol=tolerance)


@given(SIDES, SIDES, SIDES, SIDES, TYPES)
def test_the_picture_lies_within_the_input(
    width: int, height: int, input_width: int, input_height: int, resize_type: str
) -> None:
    """A picture that sticks out of the tensor by a rounding would crash on one camera in a thousand."""
    placement = place(width, height, ImageInput(width=input_width, height=input_height, resize_type=resize_type))  # type: ignore[arg-type]
    left, top, right, bottom = placement.region
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    x, y = placement.origin
    assert x >= 0 and y >= 0
    assert 1 <= placement.size[0] <= input_width - x
    assert 1 <= placement.size[1] <= input_height - y


@given(SIDES, SIDES, TYPES, st.tuples(*[st.floats(-1e5, 1e5, width=32)] * 4))
def test_boxes_are_clipped_to_the_frame(
    width: int, height: int, resize_type: str, box: tuple[float, float, float, float]
) -> None:
    placement = place(width, height, ImageInput(width=416, height=416, resize_type=resize_type))  # type: ignore[arg-type]
    (clipped,) = placement.to_frame(np.array([box], np.float32))
    assert (clipped >= 0).all()
    assert (clipped <= np.array([width, height, width, height], np.float32)).all()


@pytest.mark.parametrize(
    ("resize_type", "size", "origin", "region"),
    [
        pytest.param("standard", (416, 416), (0, 0), (0, 0, 768, 432), id="stretched"),
        pytest.param("fit_to_window", (416, 233), (0, 0), (0, 0, 768, 432), id="left top, rounded down"),
        pytest.param("fit_to_window_letterbox", (416, 234), (0, 91), (0, 0, 768, 432), id="centred"),
        pytest.param("crop", (416, 416), (0, 0), (168, 0, 600, 432), id="cut"),
    ],
)
def test_a_wide_frame_in_a_square_input(
    resize_type: str, size: tuple[int, int], origin: tuple[int, int], region: tuple[int, ...]
) -> None:
    placement = place(768, 432, ImageInput(width=416, height=416, resize_type=resize_type))  # type: ignore[arg-type]
    assert (placement.size, placement.origin, placement.region) == (size, origin, region)
