"""A network camera over RTSP, by OpenCV's FFmpeg over TCP.

Takes an `rtsp://` or `rtsps://` URL, gives Frames whose `captured_at` is measured (agent.sources.age): a frame that
lay in a buffer is not "now". Older ones than `max_age_s` are dropped and counted under `stale`. Refuses to believe
`ok`: a stalled stream gives True with an old picture, then blocks; a read that took the whole timeout, or a stream of
nothing but stale frames, ends the source.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from agent.clock import Clock
from agent.errors import SourceError
from agent.log import mask_url
from agent.sources.age import AgeMeter
from agent.sources.capture import Capture, require_cv2
from agent.sources.rtsp_diagnosis import diagnose
from agent.sources.sample import Frame
from agent.sources.settings import CameraSource


def open_rtsp(settings: CameraSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int) -> Rtsp:
    """Open the stream. Blocks for up to `open_timeout_s`, and some two seconds while FFmpeg probes a good one.

    Raises:
        SourceError: nobody answers, the connection is refused, or the camera has no such stream now.
        OperatorError: the camera wants another login or another path.
    """
    require_cv2("an RTSP camera")
    return Rtsp(settings, name=name, clock=clock, stop=stop, first_id=first_id)


class Rtsp:
    """One opened stream. `dropped["stale"]` counts the frames that came too late."""

    is_live = True

    def __init__(
        self, settings: CameraSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int
    ) -> None:
        import cv2

        # FFmpeg would try UDP and lose packets in silence. There is no other way to say so to OpenCV.
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
        self.dropped: Counter[str] = Counter()
        self._where = mask_url(settings.source)
        self._name = name
        self._clock = clock
        self._stop = stop
        self._next_id = first_id
        self._max_age_s = settings.max_age_s
        self._read_timeout_s = settings.read_timeout_s
        self._position_property = cv2.CAP_PROP_POS_MSEC
        opened_s = clock.monotonic()
        self._capture = Capture(
            settings.source,
            cv2.CAP_FFMPEG,
            [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(settings.open_timeout_s * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(settings.read_timeout_s * 1000),
            ],
        )  # fmt: skip
        if not self._capture.is_open:
            waited_s = clock.monotonic() - opened_s
            raise diagnose(settings.source, has_timed_out=waited_s >= settings.open_timeout_s * 0.9)
        self._age = AgeMeter(opened_s)
        self._fresh_s = clock.monotonic()

    def read(self) -> Frame | None:
        """Return the next frame that is young enough; None only when stopped.

        Raises:
            SourceError: the stream broke, stalled, or delivers nothing but old frames.
        """
        while not self._stop.is_set():
            started_s = self._clock.monotonic()
            pixels = self._capture.read()
            arrived_s = self._clock.monotonic()
            if self._stop.is_set():
                break
            if arrived_s - started_s >= self._read_timeout_s:
                raise SourceError(
                    f"the stream stalled: nothing came for {arrived_s - started_s:.1f} s", where=self._where
                )
            if pixels is None:
                raise SourceError("the stream broke off", where=self._where)
            age_s = self._age.age_s(self._capture.get(self._position_property) / 1000, arrived_s)
            if age_s > self._max_age_s:
                self._count_stale(age_s, arrived_s)
                continue
            self._fresh_s = arrived_s
            captured_at = self._clock.now() - timedelta(seconds=age_s)
            frame = Frame(self._name, self._next_id, captured_at, arrived_s - age_s, pixels)
            self._next_id += 1
            return frame
        return None

    def close(self) -> None:
        self._capture.close()

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.read, None)

    def _count_stale(self, age_s: float, arrived_s: float) -> None:
        self.dropped["stale"] += 1
        silence_s = arrived_s - self._fresh_s
        if silence_s > self._max_age_s + self._read_timeout_s:
            what = f"{age_s:.1f} s old" if age_s < float("inf") else "the same one again and again"
            raise SourceError(f"no fresh frame for {silence_s:.1f} s: what comes is {what}", where=self._where)
