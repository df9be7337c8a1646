"""How old is a frame that a network camera sent? A pure measurement: stream positions and arrival times in, ages out.

A stream says when a frame was taken *relative to others* (its position), never when on our clock. The frame that came
with the least delay ties the two together: its arrival minus its position is the anchor, and any other frame is as
old as it came later than anchor + position. Three things spoil the plain minimum, and each has its rule here:

- Opening delivers what piled up while FFmpeg probed the stream, and the pile's own minimum is no anchor. Until frames
  come no faster than they were taken, a frame counts from the moment the opening began, before which the camera sent
  nothing.
- The camera's quartz is not ours. The anchor may drift by `DRIFT` a second, as far as two cheap quartzes differ (±100
  ppm each), so that a slow camera does not grow old over the days, and a real delay of seconds still shows for hours.
- A camera that repeats a position sends nothing new. One repetition is allowed: OpenCV rounds positions to the
  announced frame rate, and a camera that is a little faster than it announces has two frames in one step.
"""

from __future__ import annotations

import math

DRIFT = 2e-4
PACED_SHARE = 0.5
"""Frames that arrive at less than this share of the time between their positions come out of a pile."""


class AgeMeter:
    """The age of each frame of one opened stream.

    Args:
        opened_s: Monotonic time when the opening began.
    """

    def __init__(self, opened_s: float) -> None:
        self._anchor_s = opened_s
        self._is_caught_up = False
        self._position_s = -math.inf
        self._arrived_s = opened_s
        self._repeats = 0

    def age_s(self, position_s: float, arrived_s: float) -> float:
        """Return how long before `arrived_s` the frame at `position_s` was taken; infinite for a repeated frame."""
        advanced_s = position_s - self._position_s
        waited_s = arrived_s - self._arrived_s
        self._position_s, self._arrived_s = position_s, arrived_s
        self._repeats = self._repeats + 1 if advanced_s == 0 else 0
        offset_s = arrived_s - position_s
        if self._is_caught_up:
            self._anchor_s = min(self._anchor_s + DRIFT * waited_s, offset_s)
        elif 0 < advanced_s < math.inf and waited_s >= PACED_SHARE * advanced_s:
            self._is_caught_up = True
            self._anchor_s = offset_s
        return math.inf if self._repeats > 1 else max(0.0, offset_s - self._anchor_s)
