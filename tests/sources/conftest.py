"""Small videos and pictures made on the spot, and the real RTSP server."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.clock import SystemClock
from agent.sources.settings import CameraSource

cv2 = pytest.importorskip("cv2")


def _missing(what: str) -> None:
    conftest = Path(__file__).parent.parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("root_conftest", conftest)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.missing(what)


@pytest.fixture
def short_video(tmp_path: Path) -> Path:
    """Six frames at 10 fps; frame n is a grey of 40·n."""
    path = tmp_path / "short.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    assert writer.isOpened()
    for number in range(6):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png, b.jpg and c.png, and a text file that is no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("b.jpg", "a.png", "c.png")):
        cv2.imwrite(str(folder / name), np.full((8, 10 + number, 3), 100, np.uint8))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def open_with() -> Callable[..., object]:
    """Return a function that opens a source with a system clock and a stop event that nobody sets."""

    def open_it(opener: Callable[..., object], source: object, **settings: object) -> object:
        clock = settings.pop("clock", SystemClock())
        stop = settings.pop("stop", threading.Event())
        first_id = settings.pop("first_id", 0)
        return opener(
            CameraSource(source=str(source), **settings), name="cam", clock=clock, stop=stop, first_id=first_id
        )

    return open_it


@pytest.fixture
def rtsp_server() -> Iterator[Callable[..., object]]:
    """Return a function that starts real RTSP servers; all are stopped at the end."""
    from simulator import rtsp

    if not rtsp.is_available():
        _missing("gst-rtsp-server with the system's Python binding")
    servers: list[rtsp.RtspServer] = []

    def start(**options: object) -> rtsp.RtspServer:
        server = rtsp.RtspServer(**options)  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
