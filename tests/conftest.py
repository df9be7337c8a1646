"""Fixtures for parts that may be missing on a laptop and must be there in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def missing(what: str) -> None:
    """Skip on a laptop, fail in CI: a test that silently never runs is worse than none."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must provide {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture
def need_tool() -> Callable[[str], str]:
    """Return a function that gives the path of a program, or ends the test."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is None:
            missing(f"the program {name}")
        assert path is not None
        return path

    return find


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real models, pictures and video that tests use but the repository does not hold."""
    folder = Path(os.environ.get("HOLDFAST_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        missing(f"the test data folder ({folder}); set HOLDFAST_TEST_DATA")
    return folder


@pytest.fixture
def rtsp_server() -> Iterator[Callable[..., object]]:
    """Return a function that starts real RTSP servers (simulator.rtsp); all are stopped at the end."""
    from simulator import rtsp

    if not rtsp.is_available():
        missing("gst-rtsp-server with the system's Python binding")
    servers: list[rtsp.RtspServer] = []

    def start(**options: object) -> rtsp.RtspServer:
        server = rtsp.RtspServer(**options)  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
