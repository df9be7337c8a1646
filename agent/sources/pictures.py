"""Still pictures as a source: a folder, or a glob such as `shots/*.jpg`, sorted by name.

Takes JPEG, PNG, BMP and WebP files; gives one Frame each and then None. Every picture counts, so none is lost to a
slow model. A damaged one is skipped, logged and counted under `damaged`. Refuses a folder without pictures.
"""

from __future__ import annotations

import glob
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.clock import Clock
from agent.errors import OperatorError, SourceError
from agent.sources.capture import Pixels, require_cv2
from agent.sources.sample import Frame
from agent.sources.settings import CameraSource

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
OWN_PACE_FPS = 1.0
"""A picture has no speed of its own: with `pace: own` one a second, or `fps` of them."""


def open_pictures(settings: CameraSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int) -> Pictures:
    """Open the folder or glob that `settings.source` names.

    Raises:
        OperatorError: nothing there is a picture, or the folder cannot be read.
    """
    require_cv2("a folder of pictures")
    interval_s = 1.0 / (settings.fps or OWN_PACE_FPS) if settings.pace == "own" else 0.0
    paths = find_pictures(settings.source)
    return Pictures(
        paths, name=name, clock=clock, stop=stop, first_id=first_id, interval_s=interval_s, repeat=settings.repeat
    )


def find_pictures(source: str) -> list[Path]:
    """Return the pictures of a folder or glob, sorted by name.

    Raises:
        OperatorError: there is none, or the folder cannot be read.
    """
    root = Path(source).expanduser()
    try:
        # glob.glob, not Path.glob: the operator's pattern may be absolute.
        found = list(root.iterdir()) if root.is_dir() else [Path(path) for path in glob.glob(str(root))]  # noqa: PTH207
    except OSError as error:
        raise OperatorError(
            f"the folder cannot be read: {error.strerror}", where=source, hint="check its permissions"
        ) from error
    pictures = sorted(path for path in found if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise OperatorError(
            "there is no picture here (.jpg, .jpeg, .png, .bmp, .webp)",
            where=source,
            hint="check the path in `source:`",
        )
    return pictures


class Pictures:
    """A list of picture files, read one by one."""

    is_live = False

    def __init__(
        self,
        paths: list[Path],
        *,
        name: str,
        clock: Clock,
        stop: threading.Event,
        first_id: int,
        interval_s: float,
        repeat: bool,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._paths = paths
        self._name = name
        self._clock = clock
        self._stop = stop
        self._next_id = first_id
        self._interval_s = interval_s
        self._repeat = repeat
        self._position = 0
        self._readable_in_round = 0
        self._due_s = clock.monotonic()

    def read(self) -> Frame | None:
        """Return the next readable picture, or None after the last.

        Raises:
            SourceError: not one picture could be read.
        """
        while not self._stop.is_set():
            if self._position == len(self._paths) and not self._start_again():
                return None
            path = self._paths[self._position]
            self._position += 1
            captured_at, captured_s = self._clock.now(), self._clock.monotonic()
            pixels = self._load(path)
            if pixels is None:
                continue
            self._readable_in_round += 1
            if self._interval_s:
                captured_s = self._wait_until_due()
                captured_at = self._clock.now()
            frame = Frame(self._name, self._next_id, captured_at, captured_s, pixels)
            self._next_id += 1
            return frame
        return None

    def close(self) -> None:
        """Nothing stays open between two pictures."""

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.read, None)

    def _start_again(self) -> bool:
        if not self._readable_in_round:
            raise SourceError("not one of the pictures can be read", where=str(self._paths[0].parent))
        self._position = self._readable_in_round = 0
        return self._repeat

    def _load(self, path: Path) -> Pixels | None:
        import cv2

        try:
            # imdecode, not imread: imread knows no names outside of the code page on Windows.
            encoded = np.fromfile(path, dtype=np.uint8)
            pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
        except (OSError, cv2.error) as error:
            log.debug("%s: %s", path, error)
            pixels = None
        if pixels is None:
            self.dropped["damaged"] += 1
            log.warning("%s: this picture cannot be decoded and is left out", path)
        return pixels  # type: ignore[return-value]

    def _wait_until_due(self) -> float:
        due_s, now_s = self._due_s, self._clock.monotonic()
        if now_s < due_s:
            self._clock.wait(self._stop, due_s - now_s)
        self._due_s = max(due_s, now_s - self._interval_s) + self._interval_s
        return max(due_s, now_s)
