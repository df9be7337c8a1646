"""A release repository behind a real HTTP server that can misbehave: what a bad, broken or hostile mirror does.

Faults are switched while it runs, as in `mirror.faults = Misbehaviour(status=500)`, and hold for every request until changed.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from simulator.certificates import KeyPair

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_PIECE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """What is wrong with a mirror. The default is an honest one."""

    knows_ranges: bool = True
    status: int | None = None
    """Answered to everything, with no body."""
    cut_after_bytes: int | None = None
    """The connection is closed after so many bytes of a body, which had been announced whole."""
    is_endless: bool = False
    """The body never ends, and no length is announced."""
    drip_s: float | None = None
    """A byte at a time, with this pause."""
    drips_headers: bool = False
    """With `drip_s`: from the first byte of the headers on."""
    flips: bool = False
    """A byte in the middle of each piece is another."""
    redirect: str | None = None
    """Everything is redirected there; `{path}` stands for the path that was asked for."""
    answers_range_from: int | None = None
    """A partial answer begins there, whatever was asked for."""
    coding: str | None = None
    """Says that the body is compressed."""
    is_silent: bool = False
    """Takes the request and says nothing."""


class Mirror:
    """Serves `folder` on a loopback port, with TLS where a key pair is given."""

    def __init__(self, folder: Path, *, tls: KeyPair | None = None) -> None:
        self.folder = folder
        self.sent_bytes = 0
        """Of bodies, as far as the system took them."""
        self.requests: list[str] = []
        """Paths, in the order in which they were asked for."""
        self.authorizations: list[str | None] = []
        self.faults = Misbehaviour()
        self.stopped = threading.Event()
        self._server = _Server(self)
        self._scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.cert, tls.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="mirror", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Address of the repository."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        super().__init__(("127.0.0.1", 0), _Handler)
        # Small, so that `sent_bytes` is what went over the wire and not what waited here.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that leave in the middle are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        mirror, faults = self.server.mirror, self.server.mirror.faults
        mirror.requests.append(self.path)
        mirror.authorizations.append(self.headers.get("Authorization"))
        self.close_connection = True
        if faults.is_silent:
            mirror.stopped.wait()
        elif faults.drip_s and faults.drips_headers:
            self._drip(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: " + b"x" * 60_000)
        elif faults.status is not None:
            self._say(faults.status, {"Content-Length": "0"})
        elif faults.redirect is not None:
            self._say(302, {"Location": faults.redirect.format(path=self.path), "Content-Length": "0"})
        elif (path := mirror.folder / self.path.lstrip("/")).is_file():
            self._give(path.read_bytes(), faults)
        else:
            self._say(404, {"Content-Length": "0"})

    def _give(self, content: bytes, faults: Misbehaviour) -> None:
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        headers = {"Content-Encoding": faults.coding} if faults.coding else {}
        if faults.is_endless:
            self._say(200, headers)
            self._send(_endless(content), faults)
        elif asked and faults.knows_ranges:
            start, end = int(asked[1]), int(asked[2])
            if start >= len(content):
                self._say(416, {"Content-Length": "0"})
                return
            if faults.answers_range_from is not None:
                start, end = faults.answers_range_from, end - start + faults.answers_range_from
            part = content[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            self._say(206, {**headers, "Content-Length": str(len(part))})
            self._send(_pieces(part), faults)
        else:
            self._say(200, {**headers, "Content-Length": str(len(content))})
            self._send(_pieces(content), faults)

    def _send(self, pieces: Iterator[bytes], faults: Misbehaviour) -> None:
        left = faults.cut_after_bytes
        for each in pieces:
            piece = each if left is None else each[:left]
            if faults.flips and piece:
                middle = len(piece) // 2
                piece = piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
            if faults.drip_s:
                self._drip(piece)
            else:
                self.wfile.write(piece)
            self.server.mirror.sent_bytes += len(piece)
            if left is not None and (left := left - len(piece)) <= 0:
                return
            if self.server.mirror.stopped.is_set():
                return

    def _drip(self, content: bytes) -> None:
        for value in content:
            self.wfile.write(bytes([value]))
            if self.server.mirror.stopped.wait(self.server.mirror.faults.drip_s):
                return

    def _say(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name there
        """Stay quiet."""


def _pieces(content: bytes) -> Iterator[bytes]:
    return (content[start : start + _PIECE_BYTES] for start in range(0, len(content), _PIECE_BYTES))


def _endless(content: bytes) -> Iterator[bytes]:
    while True:
        yield content or b"\0"
