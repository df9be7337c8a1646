"""Where a frame lies in the model's input: computed from the frame's size, undone for boxes.

Takes a frame size and a manifest's image input; gives a `Placement`. Pixel coordinates are edges, not centres:
a box over the whole frame is (0, 0, width, height), and `x_input = x_frame * scale + offset` holds for edges
because `cv2.resize` maps edge to edge (it aligns pixel centres with a half-pixel shift).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import ImageInput


@dataclass(frozen=True, slots=True)
class Placement:
    """How a frame was put into the input: first cut to `region`, then resized to `size`, then put at `origin`."""

    frame_size: tuple[int, int]
    """Width, height of the frame in pixels."""
    region: tuple[int, int, int, int]
    """Left, top, right, bottom of the part of the frame that was used, in frame pixels."""
    size: tuple[int, int]
    """Width, height of that part in the input."""
    origin: tuple[int, int]
    """Left, top of that part in the input."""

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels for one frame pixel, along x and y."""
        left, top, right, bottom = self.region
        return self.size[0] / (right - left), self.size[1] / (bottom - top)

    @property
    def offset(self) -> tuple[float, float]:
        """Where the frame's left top corner lies in the input, in input pixels."""
        scale_x, scale_y = self.scale
        return self.origin[0] - self.region[0] * scale_x, self.origin[1] - self.region[1] * scale_y

    def to_frame(self, xyxy_px: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes from input pixels to frame pixels, clipped to the frame.

        Args:
            xyxy_px: (n, 4) left, top, right, bottom in pixels of the input.

        Returns:
            float32 (n, 4) in pixels of the frame, a new array.
        """
        boxes = (xyxy_px - np.array(self.offset * 2, np.float32)) / np.array(self.scale * 2, np.float32)
        limits = np.array(self.frame_size * 2, np.float32)
        return np.minimum(np.maximum(boxes, np.float32(0), out=boxes), limits, out=boxes)

    def to_input(self, xyxy_px: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes (n, 4) from frame pixels to input pixels; the inverse of `to_frame` inside the frame."""
        boxes = xyxy_px * np.array(self.scale * 2, np.float32) + np.array(self.offset * 2, np.float32)
        return np.asarray(boxes, dtype=np.float32)


def place(frame_width: int, frame_height: int, image: ImageInput) -> Placement:
    """Return where a frame of that size goes.

    `fit_to_window` rounds the resized picture down and puts it at the left top, as YOLOX's `preproc` does
    (also where 432 × 416/768 comes out as 233.99…: the model was trained on that);
    `fit_to_window_letterbox` rounds to nearest and centres it, as Ultralytics' `LetterBox` does.
    """
    size = (frame_width, frame_height)
    whole = (0, 0, frame_width, frame_height)
    if image.resize_type == "standard":
        return Placement(size, whole, (image.width, image.height), (0, 0))
    if image.resize_type == "crop":
        return Placement(size, _centre_region(size, image), (image.width, image.height), (0, 0))
    ratio = min(image.width / frame_width, image.height / frame_height)
    if image.resize_type == "fit_to_window":
        fitted = (_at_least_one(int(frame_width * ratio)), _at_least_one(int(frame_height * ratio)))
        return Placement(size, whole, fitted, (0, 0))
    fitted = (_at_least_one(round(frame_width * ratio)), _at_least_one(round(frame_height * ratio)))
    origin = (round((image.width - fitted[0]) / 2 - 0.1), round((image.height - fitted[1]) / 2 - 0.1))
    return Placement(size, whole, fitted, origin)


def _centre_region(size: tuple[int, int], image: ImageInput) -> tuple[int, int, int, int]:
    """Return the largest centred part of the frame that has the input's aspect."""
    width, height = size
    ratio = min(width / image.width, height / image.height)
    part_width = min(width, _at_least_one(round(image.width * ratio)))
    part_height = min(height, _at_least_one(round(image.height * ratio)))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height


def _at_least_one(pixels: int) -> int:
    return max(1, pixels)
