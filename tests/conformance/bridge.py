"""The suite's HTTP server, published to an MQTT broker by the release server that ships.

The device asks for a whole URL where it would name a file of the repository, since the suite's address differs from test to
test; everything else on the way is what devices and servers say to each other in the field.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from tuf_client import read_http

from agent.clock import SystemClock, SystemRandom
from agent.errors import NotThereError, UnavailableError
from agent.mqtt.settings import MqttSettings
from bundles.release.serving import Server
from simulator.broker import Mosquitto

PREFIX = "conformance"
SUITE = "http://127.0.0.1:"
"""The bridge is no way to anywhere else."""
MAX_FILE_BYTES = 32_000_000
"""A longer one appears one byte longer than this, which is more than the client takes."""
CONNECTED_WITHIN_S = 30.0


class HttpFiles:
    """Gives files by URL. Implements `bundles.release.publicfiles.Files`.

    The suite counts requests, and what a URL gives changes within a test: so each file is got once, when its first piece
    is asked for, and the pieces after it are of the same content.
    """

    def __init__(self) -> None:
        self._url = ""
        self._content = b""

    def read(self, path: str, offset: int, room: Callable[[int, int], memoryview], most: int) -> bool:
        if not path.startswith(SUITE):
            return False
        if offset == 0 or path != self._url:
            try:
                self._content = read_http(path, MAX_FILE_BYTES)
            except NotThereError:
                return False
            self._url = path
        piece = self._content[offset : offset + most]
        if not piece and (offset or self._content):
            return False
        room(len(piece), len(self._content))[:] = piece
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open."""


@contextlib.contextmanager
def bridge(folder: Path) -> Iterator[str]:
    """Start a broker and the bridge behind it; give what HOLDFAST_TUF_VIA has to say.

    Raises:
        UnavailableError: mosquitto is not installed, or the bridge does not get through to it.
    """
    (folder / "metadata").mkdir(parents=True)
    # Some tests have the suite's server break connections: the client gets no answer then, which is no news.
    logging.getLogger("bundles.release.serving").setLevel(logging.CRITICAL)
    clock = SystemClock()
    with Mosquitto(folder / "broker") as broker:
        settings = MqttSettings(host=broker.host, port=broker.port, topic_prefix=PREFIX)
        with Server(folder, settings, clock=clock, random=SystemRandom(), files=HttpFiles()) as server:
            deadline_s = clock.monotonic() + CONNECTED_WITHIN_S
            while not server.is_connected:
                if clock.monotonic() > deadline_s:
                    raise UnavailableError("the bridge is not connected", where=f"{broker.host}:{broker.port}")
                clock.wait(Event(), 0.05)
            yield f"mqtt://{broker.host}:{broker.port}/{PREFIX}"
