from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agent.clock import SystemClock
from agent.errors import OperatorError, SourceError
from agent.sources.settings import CameraSource
from simulator.camera import SceneCamera, open_scene, parse_scene_url
from simulator.scenes import ConveyorScene


class SteppingClock:
    """Time that passes only when somebody waits, or when the test says so."""

    def __init__(self) -> None:
        self.monotonic_s = 100.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic_s)

    def monotonic(self) -> float:
        return self.monotonic_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if not event.is_set():
            self.monotonic_s += timeout_s
        return event.is_set()


def camera(
    url: str, *, clock: object = None, stop: threading.Event | None = None, first_id: int = 0, **settings
) -> SceneCamera:
    """Open the camera as the pipeline does."""
    return open_scene(
        CameraSource(source=url, **settings),
        name="belt",
        clock=clock or SteppingClock(),
        stop=stop or threading.Event(),
        first_id=first_id,
    )


def test_frames_are_the_scene_in_order_and_then_end() -> None:
    """The truth of frame n is found by its id, also after a reconnect that counts on."""
    source = camera("scene://conveyor?seed=7&width=320&height=180&frames=5", first_id=40, pace="fast")
    frames = list(source)
    scene = ConveyorScene(7, 320, 180)
    assert [frame.id for frame in frames] == [40, 41, 42, 43, 44]
    assert all(np.array_equal(frame.pixels, scene.frame(index)[0]) for index, frame in enumerate(frames))
    assert source.truth(43) == scene.frame(3)[1]
    assert source.read() is None, "stays at its end"
    assert {frame.source for frame in frames} == {"belt"}
    assert not frames[0].pixels.flags.writeable


def test_repeat_starts_again_at_the_end_with_new_ids() -> None:
    """A demo may run for ever on a short scene."""
    source = camera("scene://conveyor?frames=2", pace="fast", repeat=True)
    frames = list(itertools.islice(source, 5))
    assert [frame.id for frame in frames] == [0, 1, 2, 3, 4]
    assert np.array_equal(frames[0].pixels, frames[4].pixels)


def test_own_pace_is_live_and_delivers_at_the_frame_rate() -> None:
    """Frame age is measured from these moments."""
    source = camera("scene://conveyor?fps=20&frames=4", pace="own")
    frames = list(source)
    assert source.is_live
    assert [round(frame.captured_monotonic_s - 100, 6) for frame in frames] == [0, 0.05, 0.1, 0.15]
    assert frames[3].captured_at - frames[0].captured_at == timedelta(seconds=0.15)


def test_full_pace_is_not_live_and_never_waits() -> None:
    """At full speed every frame counts, so none may be lost or delayed."""
    clock = SteppingClock()
    source = camera("scene://conveyor?frames=3", pace="fast", clock=clock)
    assert len(list(source)) == 3
    assert not source.is_live
    assert clock.monotonic_s == 100.0


def test_late_reader_gets_no_burst_of_old_frames() -> None:
    """After a hiccup the schedule slips; frames that come faster than the rate would not be a camera's."""
    clock = SteppingClock()
    source = camera("scene://conveyor?fps=10", clock=clock)
    source.read()
    clock.monotonic_s += 3.0
    moments = [source.read().captured_monotonic_s for _ in range(3)]
    assert np.allclose(np.diff(moments), 0.1)
    assert moments[0] == 103.0


def test_slightly_late_reader_does_not_slow_the_camera() -> None:
    """Twenty milliseconds of work per frame must not turn 10 fps into 8."""
    clock = SteppingClock()
    source = camera("scene://conveyor?fps=10", clock=clock)
    moments = []
    for _ in range(10):
        moments.append(source.read().captured_monotonic_s)
        clock.monotonic_s += 0.02
    assert moments[-1] - moments[0] == pytest.approx(0.9)


def test_camera_vanishes_at_its_frame_on_every_opening() -> None:
    """Reconnecting is tested with this."""
    for first_id in (0, 2):
        source = camera("scene://conveyor?vanish_at=2", first_id=first_id, pace="fast")
        assert [source.read().id, source.read().id] == [first_id, first_id + 1]
        for _ in range(2):
            with pytest.raises(SourceError, match="vanished at frame 2"):
                source.read()


def test_frozen_camera_blocks_until_it_is_closed() -> None:
    """A hung driver returns nothing and raises nothing; only closing ends it, and that is not the scene's end."""
    source = camera("scene://conveyor?freeze_at=1", pace="fast", clock=SystemClock())
    assert source.read() is not None
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.append(source.read())
        except SourceError as error:
            outcome.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    source.close()
    reader.join(5)
    assert not reader.is_alive()
    assert isinstance(outcome[0], SourceError)


@pytest.mark.parametrize("url", ["scene://conveyor?freeze_at=0", "scene://conveyor?fps=0.01"], ids=["frozen", "slow"])
def test_stop_ends_a_blocked_read(url: str) -> None:
    """The agent stops within two seconds, whatever the camera does."""
    stop = threading.Event()
    source = camera(url, clock=SystemClock(), stop=stop)
    outcome: list[object] = []
    reader = threading.Thread(target=lambda: outcome.extend(list(source)[1:] or [None]), daemon=True)
    reader.start()
    stop.set()
    reader.join(5)
    assert not reader.is_alive()
    assert outcome == [None]


def test_closed_camera_raises() -> None:
    """A read after close is no end of the scene."""
    source = camera("scene://conveyor", pace="fast")
    source.close()
    with pytest.raises(SourceError, match="closed"):
        source.read()


def test_resolution_changes_on_cue() -> None:
    """Cameras do change resolution at run time; the truth changes with it."""
    source = camera("scene://conveyor?resize_at=2", pace="fast")
    shapes = [source.read().pixels.shape for _ in range(4)]
    assert shapes == [(360, 640, 3)] * 2 + [(180, 320, 3)] * 2
    assert all(box.xyxy_px[2] <= 320 for box in source.truth(3))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGABRT status")
def test_crash_on_cue_ends_the_process_without_a_python_error() -> None:
    """Native code may crash; supervision is tested with this."""
    program = (
        "import threading; from agent.clock import SystemClock; from simulator.camera import *\n"
        "source = SceneCamera(parse_scene_url('scene://conveyor?crash_at=1&fps=100'), name='belt',"
        " clock=SystemClock(), stop=threading.Event())\n"
        "print(source.read().id, flush=True); source.read()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGABRT
    assert ended.stdout == "0\n"
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("url", "text", "hint"),
    [
        pytest.param("scene://conveyor?sed=1", "no key 'sed'", "did you mean 'seed'?", id="misspelt key"),
        pytest.param("scene://conveyor?zoom=1", "no key 'zoom'", "use one of seed, fps", id="unknown key"),
        pytest.param("scene://convoyer", "no scene 'convoyer'", "did you mean 'conveyor'?", id="misspelt scene"),
        pytest.param("scene://conveyor?seed=1&seed=2", "seed is given twice", "leave one seed", id="key twice"),
        pytest.param("scene://conveyor?seed=", "seed is ''", "correct seed", id="empty value"),
        pytest.param("scene://conveyor?frames=1.5", "frames is '1.5'", "correct frames", id="fraction"),
        pytest.param("scene://conveyor?fps=nan", "fps is 'nan'", "correct fps", id="not a number"),
        pytest.param("scene://conveyor?width=100000", "width is '100000'", "correct width", id="too large"),
        pytest.param("file://conveyor", "no generated scene", "scene://conveyor", id="other scheme"),
        pytest.param("scene://[oops", "no generated scene", "scene://conveyor", id="broken URL"),
    ],
)
def test_wrong_url_is_refused_with_advice(url: str, text: str, hint: str) -> None:
    """A typing error must not run a different scene than the one meant."""
    with pytest.raises(OperatorError) as caught:
        parse_scene_url(url)
    assert text in str(caught.value)
    assert hint in str(caught.value.hint)


def test_url_without_keys_has_the_defaults() -> None:
    """`scene://conveyor` alone is enough for a first look."""
    settings = parse_scene_url("scene://conveyor")
    assert (settings.seed, settings.fps, settings.width, settings.height, settings.frames) == (0, 15, 640, 360, None)
