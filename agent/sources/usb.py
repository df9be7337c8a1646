"""A camera at this machine: `usb:0`, or `/dev/video0` on Linux.

Takes an index or a device file, gives Frames; a frame counts as captured when it arrives, the driver's buffer being
one frame deep. Refuses a device that this user may not open; one that is not there, or that is gone, is a
SourceError, for it may be plugged in again.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from agent.clock import Clock
from agent.errors import HoldfastError, OperatorError, SourceError
from agent.sources.capture import Capture, require_cv2
from agent.sources.sample import Frame
from agent.sources.settings import CameraSource

_ADDRESS = re.compile(r"(?:usb:|/dev/video)(\d+)")


def open_usb(settings: CameraSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int) -> UsbCamera:
    """Open the camera.

    Raises:
        SourceError: there is no such device now, or it does not start.
        OperatorError: the address is no address, or this user may not open the device.
    """
    index = camera_index(settings.source)
    require_cv2("a USB camera")
    if sys.platform.startswith("linux"):
        check_device(Path(f"/dev/video{index}"))
    return UsbCamera(index, where=settings.source, name=name, clock=clock, stop=stop, first_id=first_id)


def camera_index(source: str) -> int:
    """Return the number in `usb:N` or `/dev/videoN`.

    Raises:
        OperatorError: it is neither.
    """
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise OperatorError("this is no camera's address", where=source, hint="write usb:0 or /dev/video0")
    return int(match[1])


def check_device(device: Path) -> None:
    """Refuse a device file that is missing or closed to this user; OpenCV would only say that it failed.

    Raises:
        SourceError: it is missing.
        OperatorError: this user may not open it.
    """
    if not device.exists():
        raise SourceError(
            "there is no such camera", where=str(device), hint="plug it in; `holdfast device show` lists them"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise OperatorError(
            "this user may not open the camera", where=str(device), hint="add the user to the group `video`"
        )


class UsbCamera:
    """One opened camera."""

    is_live = True

    def __init__(
        self, index: int, *, where: str, name: str, clock: Clock, stop: threading.Event, first_id: int
    ) -> None:
        import cv2

        self._where = where
        self._name = name
        self._clock = clock
        self._stop = stop
        self._next_id = first_id
        self._capture = Capture(index, _backend(), [cv2.CAP_PROP_BUFFERSIZE, 1])
        if not self._capture.is_open:
            # Some drivers refuse the buffer size, and OpenCV then refuses the camera.
            self._capture = Capture(index, _backend())
        if not self._capture.is_open:
            raise self._failure()

    def read(self) -> Frame | None:
        """Return the next frame; None only when stopped.

        Raises:
            SourceError: the camera is gone. V4L2 says so at once and for ever: it must be opened again.
        """
        pixels = self._capture.read()
        if self._stop.is_set():
            return None
        if pixels is None:
            raise SourceError("the camera stopped delivering: was it unplugged?", where=self._where)
        frame = Frame(self._name, self._next_id, self._clock.now(), self._clock.monotonic(), pixels)
        self._next_id += 1
        return frame

    def close(self) -> None:
        self._capture.close()

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.read, None)

    def _failure(self) -> HoldfastError:
        return SourceError(
            "the camera did not start",
            where=self._where,
            hint="close other programs that use it; some devices carry no video",
        )


def _backend() -> int:
    import cv2

    match sys.platform:
        case "win32":
            return cv2.CAP_MSMF
        case "darwin":
            return cv2.CAP_AVFOUNDATION
        case _:
            return cv2.CAP_V4L2
