"""An HTTP mirror that cannot be trusted: answers GET with ranges, honestly or with mischief on cue (`simulator.mischief`)."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from agent.clock import Clock, SystemClock
from simulator.mischief import GIANT_BYTES, Cues, Mischief, Shelf, turn_a_bit

DRIP_S = 0.2
_BLOCK = bytes(1 << 16)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class HostileMirror:
    """A server on a loopback port of its own; a context manager. Honest until `cues.play`.

    Args:
        honest: The repository's folder.
        other: An older state of it, or another release, for `replay` and `mix`.
        clock: For the slow drip.
    """

    def __init__(self, honest: Path, other: Path | None = None, *, clock: Clock | None = None) -> None:
        self.cues = Cues()
        self.sent_bytes = 0
        """Of bodies, for tests that count what a transfer costs."""
        self.asked: list[str] = []
        self.stopping = threading.Event()
        self.clock = clock or SystemClock()
        self.shelf = Shelf(honest, other)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.mirror = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, sent: int) -> None:
        """Add bytes to `sent_bytes`."""
        with self._lock:
            self.sent_bytes += sent

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    mirror: HostileMirror

    def handle_error(self, request: object, client_address: object) -> None:
        """A device that goes away in the middle is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        pass

    def do_GET(self) -> None:
        mirror = self.server.mirror
        path = unquote(urlsplit(self.path).path).lstrip("/")
        mirror.asked.append(path)
        mischief = mirror.cues.next(path)
        self.close_connection = True
        if mischief == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = mirror.shelf.instead(path) if mischief in {"replay", "mix"} else mirror.shelf.read(path)
        if content is None or mischief == "not there":
            self._head(404, 0)
            return
        start, body = self._part(content)
        if start > len(content):
            self._head(416, 0)
            return
        is_part = "Range" in self.headers
        place = f"bytes {start}-{start + len(body) - 1}/{len(content)}" if is_part else None
        with contextlib.suppress(OSError):
            self._answer(206 if is_part else 200, place, body, mischief)

    def _part(self, content: bytes) -> tuple[int, bytes]:
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        end = int(wanted[2]) + 1 if wanted and wanted[2] else len(content)
        return start, content[start:end]

    def _head(self, status: int, length: int | None, place: str | None = None) -> None:
        self.send_response(status)
        if place:
            self.send_header("Content-Range", place)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def _answer(self, status: int, place: str | None, body: bytes, mischief: Mischief | None) -> None:
        lengths: dict[Mischief | None, int | None] = {"endless": None, "giant": GIANT_BYTES, "duplicate": 2 * len(body)}
        self._head(status, lengths.get(mischief, len(body)), place)
        for block in self._blocks(body, mischief):
            self.wfile.write(block)
            self.server.mirror.count(len(block))

    def _blocks(self, body: bytes, mischief: Mischief | None) -> Iterator[bytes]:
        mirror = self.server.mirror
        half = len(body) // 2
        match mischief:
            case "wrong bytes":
                yield turn_a_bit(body)
            case "truncated":
                yield body[:half]
            case "reorder":
                yield body[half:] + body[:half]
            case "duplicate":
                yield body + body
            case "slow drip":
                for number in range(len(body)):
                    yield body[number : number + 1]
                    if mirror.clock.wait(mirror.stopping, DRIP_S):
                        return
            case "endless" | "giant":
                yield body
                while not mirror.stopping.is_set():
                    yield _BLOCK
            case _:
                yield body
