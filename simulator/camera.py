"""A camera whose pictures are generated: `scene://conveyor?seed=7&fps=15` → Frame, with faults on cue.

    seed=0            decides the whole scene
    fps=15 width=640 height=360
    frames=300        ends after so many; endless without it
    vanish_at=N       SourceError in place of frame N, again after every opening
    freeze_at=N       reading frame N blocks until the source is closed or the agent stops
    resize_at=N       from frame N on the picture has half the width and height (not below 160×120)
    crash_at=N        the process aborts in place of frame N, as a native driver does when it crashes

N counts from 0 at each opening. An unknown scene or key, or a value that is none, is refused with OperatorError.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit

from agent.clock import Clock
from agent.errors import OperatorError, SourceError
from agent.sources.sample import Frame
from agent.sources.settings import CameraSource
from simulator.scenes import LEAST_HEIGHT, LEAST_WIDTH, ConveyorScene, TruthBox

SCENES = ("conveyor",)
LIMITS = {"fps": (0.01, 1000), "width": (LEAST_WIDTH, 8192), "height": (LEAST_HEIGHT, 8192)}
FROZEN_LOOK_S = 0.1
"""How often a frozen camera looks whether the agent stops; closing wakes it at once."""


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """What a `scene://` URL says. Field names are the URL's keys."""

    seed: int = 0
    fps: float = 15.0
    width: int = 640
    height: int = 360
    frames: int | None = None
    vanish_at: int | None = None
    freeze_at: int | None = None
    resize_at: int | None = None
    crash_at: int | None = None

    def scene(self) -> ConveyorScene:
        """Return the scene, for whoever wants its truth: the n-th frame after opening is `scene().frame(n)`."""
        return ConveyorScene(self.seed, self.width, self.height, self.fps)


def parse_scene_url(url: str) -> SceneSettings:
    """Read a `scene://` URL.

    Raises:
        OperatorError: not a scene, an unknown key or scene (the nearest is named), or a value out of range.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # unbalanced brackets
        parts = urlsplit("")
    if parts.scheme != "scene" or parts.path not in {"", "/"}:
        raise OperatorError("this is no generated scene", where=url, hint="write it as scene://conveyor?seed=1&fps=15")
    if parts.netloc not in SCENES:
        raise OperatorError(f"there is no scene {parts.netloc!r}", where=url, hint=_nearest(parts.netloc, SCENES))
    numbers: dict[str, Any] = {}
    keys = [field.name for field in fields(SceneSettings)]
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key not in keys:
            raise OperatorError(f"a scene has no key {key!r}", where=url, hint=_nearest(key, keys))
        if key in numbers:
            raise OperatorError(f"{key} is given twice", where=url, hint=f"leave one {key} in the URL")
        numbers[key] = _number(key, text, url)
    return SceneSettings(**numbers)


def _number(key: str, text: str, url: str) -> float:
    """Return the value of `key`; whole except for fps."""
    low, high = LIMITS.get(key, (0, 2**53))
    try:
        value = float(text) if key == "fps" else int(text)
    except ValueError:
        value = -1
    if not low <= value <= high:
        kind = "number" if key == "fps" else "whole number"
        raise OperatorError(
            f"{key} is {text!r}, not a {kind} from {low} to {high}", where=url, hint=f"correct {key} in the URL"
        )
    return value


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return advice that names the nearest known word first."""
    choices = tuple(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(choices)}"


def open_scene(settings: CameraSource, *, name: str, clock: Clock, stop: threading.Event, first_id: int) -> SceneCamera:
    """Open the generated camera that `settings.source` names, as `Source[Frame]`.

    Args:
        settings: `pace: own` delivers in the scene's rate, and is live; `pace: fast` as fast as it is read.
            With `repeat` a scene with `frames` starts again at its end.
        name: The source's name in each Frame.
        clock: Paces and dates the frames.
        stop: When set, a blocked read returns None.
        first_id: The id of the first frame; the next ones count on.

    Raises:
        OperatorError: the URL cannot be understood.
    """
    return SceneCamera(
        parse_scene_url(settings.source),
        name=name,
        clock=clock,
        stop=stop,
        first_id=first_id,
        is_live=settings.pace == "own",
        repeats=settings.repeat,
    )


class SceneCamera:
    """A generated camera. Frame `first_id + n` shows the scene's frame n (modulo `frames` where it repeats).

    A live one delivers frame n at n / fps seconds after the first. Whoever reads later than the next frame is due
    makes the schedule slip, where a real camera would lose frames: so the pictures of a seed never depend on load.
    """

    def __init__(
        self,
        settings: SceneSettings,
        *,
        name: str,
        clock: Clock,
        stop: threading.Event,
        first_id: int = 0,
        is_live: bool = True,
        repeats: bool = False,
    ) -> None:
        self.is_live = is_live
        self._settings, self._name, self._clock, self._stop = settings, name, clock, stop
        self._first_id, self._repeats = first_id, repeats
        self._closed = threading.Event()
        self._scene = settings.scene()
        self._resized: ConveyorScene | None = None
        self._read = 0
        self._due_s: float | None = None

    def read(self) -> Frame | None:
        """Return the next frame; None at the scene's end or when the agent stops.

        Raises:
            SourceError: the camera vanished on cue, or was closed.
        """
        number, frames = self._read, self._settings.frames
        if frames is not None and number >= frames and not (self._repeats and frames):
            return None
        self._fail_on_cue(number)
        if self._stop.is_set():
            return None
        if self._closed.is_set():
            raise SourceError("the generated camera is closed", where=self._name, hint="open it again")
        pixels, _ = self._scene_of(number).frame(self._scene_index(number))
        pixels.flags.writeable = False
        if not self._wait_until_due():
            return None
        self._read += 1
        return Frame(self._name, self._first_id + number, self._clock.now(), self._clock.monotonic(), pixels)

    def truth(self, frame_id: int) -> tuple[TruthBox, ...]:
        """Return what can be seen in the frame of that id."""
        number = frame_id - self._first_id
        return self._scene_of(number).frame(self._scene_index(number))[1]

    def close(self) -> None:
        self._closed.set()

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def _scene_index(self, number: int) -> int:
        return number % self._settings.frames if self._settings.frames else number

    def _scene_of(self, number: int) -> ConveyorScene:
        """Return the scene at the resolution that the camera has at that frame."""
        settings = self._settings
        if settings.resize_at is None or number < settings.resize_at:
            return self._scene
        if self._resized is None:
            width, height = max(LEAST_WIDTH, settings.width // 2), max(LEAST_HEIGHT, settings.height // 2)
            half = replace(settings, width=width, height=height)
            self._resized = half.scene()
        return self._resized

    def _fail_on_cue(self, number: int) -> None:
        """Do what the URL ordered for this frame."""
        if number == self._settings.crash_at:
            os.abort()
        if number == self._settings.vanish_at:
            self._vanish(number)
        if number == self._settings.freeze_at:
            while not (self._stop.is_set() or self._closed.is_set()):
                self._clock.wait(self._closed, FROZEN_LOOK_S)

    def _vanish(self, number: int) -> NoReturn:
        raise SourceError(
            f"the generated camera vanished at frame {number}", where=self._name, hint="it is tried again by itself"
        )

    def _wait_until_due(self) -> bool:
        """Wait for the frame's moment; return whether it may be delivered."""
        if not self.is_live:
            return True
        period, now = 1 / self._settings.fps, self._clock.monotonic()
        due = now if self._due_s is None else self._due_s + period
        if due + period < now:  # a whole frame late: slip, no burst
            due = now
        self._due_s = due
        while (left := due - self._clock.monotonic()) > 0:
            if self._clock.wait(self._stop, left):
                return False
        return True
