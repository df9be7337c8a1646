"""OpenCV's VideoCapture as the other sources use it: opened once, read by one thread, closed from any.

Takes what cv2 opens, gives pixels (uint8, (height, width, 3), BGR) or None. `release` while another thread is inside
`read` crashes inside FFmpeg, so `close` during a read leaves the release to the reader.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent.errors import OperatorError

if TYPE_CHECKING:
    import cv2

Pixels = NDArray[np.uint8]


def require_cv2(wanted_for: str) -> None:
    """Check that OpenCV is there before a source needs it.

    Raises:
        OperatorError: there is no OpenCV on this platform (Windows on ARM has no wheel), with what works instead.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise OperatorError(
            f"OpenCV is not installed, so {wanted_for} cannot be read: {error}",
            hint="install opencv-python-headless; Windows on ARM has none: sensors work there, cameras do not",
        ) from error


def limit_opencv(threads: int) -> None:
    """Let OpenCV's own functions, such as resize, use at most so many threads in this process."""
    import cv2

    cv2.setNumThreads(threads)


class Capture:
    """One opened VideoCapture, or one that failed to open (`is_open` is False then)."""

    def __init__(self, target: str | int, backend: int, parameters: Sequence[int] = ()) -> None:
        import cv2

        self._capture: cv2.VideoCapture = cv2.VideoCapture(target, backend, list(parameters))
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed."""
        return not self._is_closed and self._capture.isOpened()

    def read(self) -> Pixels | None:
        """Return the next picture, or None: the end, a failure, or closed meanwhile. May block for the read timeout."""
        with self._lock:
            if self._is_closed:
                return None
            ok, pixels = self._capture.read()
            if self._is_closed:
                self._capture.release()
                return None
        return pixels if ok else None  # type: ignore[return-value]

    def get(self, number: int) -> float:
        """Return a property by its cv2 number, 0.0 once closed. For the reading thread only."""
        return 0.0 if self._is_closed else self._capture.get(number)

    def close(self) -> None:
        """Release the device; while a read blocks, the reader does so as soon as it is back."""
        self._is_closed = True
        if self._lock.acquire(blocking=False):
            try:
                self._capture.release()
            finally:
                self._lock.release()
