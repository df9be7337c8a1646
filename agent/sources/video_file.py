"""A video file as a source: played at its own speed as a camera would, or as fast as it can be decoded.

Takes a path, gives Frames; at its end None, or the first frame again with `repeat`. Refuses what FFmpeg cannot open
or that holds no picture. A file that ends long before the number of frames it announces is damaged: the frames are
delivered and the end is an error.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from agent.clock import Clock
from agent.errors import OperatorError
from agent.sources.capture import Capture, Pixels, require_cv2
from agent.sources.sample import Frame
from agent.sources.settings import CameraSource

log = logging.getLogger(__name__)

DEFAULT_FPS = 25.0
"""Where a file does not say: elementary streams carry no rate."""
CATCH_UP_S = 1.0
"""A player that is later than this (the machine slept, or decodes too slowly) goes on from now instead of rushing."""
TRUNCATED_SHARE = 0.9
"""Containers round their frame count; a file that gives less than this share of it was cut."""


def open_video_file(
    settings: CameraSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int
) -> VideoFile:
    """Open the file that `settings.source` names.

    Raises:
        OperatorError: it does not exist, cannot be read, is empty, or holds no video that FFmpeg can decode.
    """
    require_cv2("a video file")
    return VideoFile(
        Path(settings.source).expanduser(),
        name=name,
        clock=clock,
        stop=stop,
        first_id=first_id,
        is_live=settings.pace == "own",
        repeat=settings.repeat,
    )


class VideoFile:
    """One file being played.

    A frame is captured when it is due at the file's own speed, at full speed too: rules and trackers then see the
    seconds of the recording, however fast it goes by.
    """

    def __init__(
        self, path: Path, *, name: str, clock: Clock, stop: threading.Event, first_id: int, is_live: bool, repeat: bool
    ) -> None:
        self.is_live = is_live
        self._path = path
        self._name = name
        self._clock = clock
        self._stop = stop
        self._repeat = repeat
        self._next_id = first_id
        self._is_closed = False
        self._delivered = 0
        check_file(path)
        self._open()
        # A file that opens may still hold no picture; better said now than as an end after nothing.
        self._first: Pixels | None = self._capture.read()
        if self._first is None:
            self.close()
            raise _no_video(path)
        self._due_s = clock.monotonic()

    def read(self) -> Frame | None:
        """Return the next frame, at full speed or when it is due; None at the end.

        Raises:
            OperatorError: the file ended long before the number of frames it announces.
        """
        if self._stop.is_set() or self._is_closed:
            return None
        pixels = self._next_pixels()
        if pixels is None:
            return None
        due_s = self._wait_until_due() if self.is_live else self._due_s
        self._due_s = due_s + self._interval_s
        captured_at = self._clock.now() - timedelta(seconds=self._clock.monotonic() - due_s)
        frame = Frame(self._name, self._next_id, captured_at, due_s, pixels)
        self._next_id += 1
        return frame

    def close(self) -> None:
        self._is_closed = True
        self._capture.close()

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.read, None)

    def _open(self) -> None:
        import cv2

        self._capture = Capture(str(self._path), cv2.CAP_FFMPEG)
        if not self._capture.is_open:
            raise _no_video(self._path)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._interval_s = 1.0 / fps if 0 < fps <= 1000 else 1.0 / DEFAULT_FPS
        self._announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def _next_pixels(self) -> Pixels | None:
        pixels, self._first = self._first, None
        if pixels is None:
            pixels = self._capture.read()
        if pixels is None and not self._is_closed:
            self._check_end()
            if self._repeat:
                pixels = self._again()
        if pixels is not None:
            self._delivered += 1
        return pixels

    def _check_end(self) -> None:
        if self._delivered >= self._announced * TRUNCATED_SHARE:
            return
        text = f"the video ended after {self._delivered} of {self._announced} frames: it is cut off or damaged"
        if not self._repeat:
            raise OperatorError(text, where=str(self._path), hint="copy the file again")
        log.warning("%s: %s", self._path, text)

    def _again(self) -> Pixels | None:
        self._capture.close()
        self._open()
        self._delivered = 0
        return self._capture.read()

    def _wait_until_due(self) -> float:
        due_s, now_s = self._due_s, self._clock.monotonic()
        if now_s < due_s:
            self._clock.wait(self._stop, due_s - now_s)
        elif now_s - due_s > CATCH_UP_S:
            return now_s
        return due_s


def check_file(path: Path) -> None:
    """Refuse a path that cannot hold anything to play.

    Raises:
        OperatorError: it is missing, unreadable, a folder, or empty.
    """
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except FileNotFoundError as error:
        raise OperatorError("there is no such file", where=str(path), hint="check the path in `source:`") from error
    except OSError as error:
        raise OperatorError(
            f"the file cannot be read: {error.strerror}", where=str(path), hint="check the path and its permissions"
        ) from error
    if is_empty:
        raise OperatorError("the file is empty (0 bytes)", where=str(path), hint="copy the file again")


def _no_video(path: Path) -> OperatorError:
    return OperatorError(
        "this is no video that FFmpeg can decode: the format is unknown, or the file is cut off or damaged",
        where=str(path),
        hint="play it with another program; a cut-off .mp4 has lost its index and must be copied again",
    )
