"""One HTTP GET on a thread of its own, so that whoever waits for it can leave within a quarter of a second.

The thread connects, asks and reads into a short queue (256 KiB); the caller takes from the queue, heeds `stop`, and gives up
on silence and on a rate that is kept too low to be honest. Leaving closes the socket, which ends the thread, also one that is
fed its TLS handshake or its headers byte by byte. Standard library only: urllib3 does not let go of a socket before the
headers are complete.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from agent.clock import Clock
from agent.errors import UnavailableError
from agent.update.transports.transport import StoppedError

_LOOK_S = 0.25
_PIECE_BYTES = 64 << 10
_PIECES = 4


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with the other side."""

    connect_s: float = 10.0
    silence_s: float = 20.0
    """Without a byte of the body, or until the headers are complete."""
    least_bytes_s: float = 512.0
    """On average over each `period_s` of waiting: below that, a slow drip would hold a device for weeks."""
    period_s: float = 30.0


class TooSlowError(UnavailableError):
    """Bytes come, but fewer than `Patience.least_bytes_s`."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers (names in lower case)."""

    status: int
    headers: Mapping[str, str]


class Exchange:
    """GET `url` with `headers`. Leaving the block ends it, wherever it is.

    Args:
        url: http or https, with a host and no user.
        name: The same for people, without a password.
        context: For https.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        name: str,
        context: ssl.SSLContext,
        patience: Patience,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        self._url = urlsplit(url)
        self._headers = headers
        self._name = name
        self._context = context
        self._patience = patience
        self._clock = clock
        self._stop = stop
        self._items: queue.Queue[Head | bytes | Exception] = queue.Queue(_PIECES)
        self._is_left = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not SSLSocket's: its thread is in there

    # In the caller's thread

    def head(self) -> Head:
        """Wait for status and headers. Redirects are the caller's business.

        Raises:
            UnavailableError: no connection, a bad certificate, silence, or no HTTP.
            StoppedError: `stop` was set.
        """
        item = self._next()
        assert isinstance(item, Head), "the thread puts the head first"
        return item

    def body(self) -> Iterator[bytes]:
        """Give the body piece by piece, to its end.

        Raises:
            TooSlowError: see `Patience`.
            UnavailableError: cut off or silent.
            StoppedError: `stop` was set.
        """
        waited_s, count = 0.0, 0
        while True:
            begun_s = self._clock.monotonic()
            item = self._next()
            waited_s += self._clock.monotonic() - begun_s
            if not isinstance(item, bytes) or not item:
                return
            count += len(item)
            yield item
            if waited_s >= self._patience.period_s:
                if count < waited_s * self._patience.least_bytes_s:
                    raise TooSlowError(f"too slow: {count} bytes in {waited_s:.0f} s", where=self._name)
                waited_s, count = 0.0, 0

    def _next(self) -> Head | bytes:
        deadline_s = self._clock.monotonic() + self._patience.silence_s
        while not self._stop.is_set():
            try:
                item = self._items.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._clock.monotonic() < deadline_s:
                    continue
                raise UnavailableError(f"silent for {self._patience.silence_s:g} s", where=self._name) from None
            if isinstance(item, Exception):
                raise self._translated(item) from item
            return item
        raise StoppedError("stopped", where=self._name)

    def _translated(self, error: Exception) -> UnavailableError:
        hint = None
        if isinstance(error, ssl.SSLCertVerificationError):
            hint = "check the server's certificate, this device's certificate authorities and its clock"
        what = str(error) or type(error).__name__
        return UnavailableError(f"the exchange failed: {what}", where=self._name, hint=hint)

    # In the exchange's own thread

    def _run(self) -> None:
        try:
            connection = self._connect()
            try:
                self._converse(connection)
            finally:
                connection.close()
        except Exception as error:  # noqa: BLE001  the top of a thread: whatever a hostile server provokes, the caller is told
            self._put(error)

    def _connect(self) -> http.client.HTTPConnection:
        """Connect by hand, so that `_socket` is known, and can be closed, before the handshake begins."""
        host, port, is_tls = self._url.hostname or "", self._url.port, self._url.scheme == "https"
        connection = (
            http.client.HTTPSConnection(host, port, context=self._context)
            if is_tls
            else http.client.HTTPConnection(host, port)
        )
        self._socket = plain = socket.create_connection((connection.host, connection.port), self._patience.connect_s)
        plain.settimeout(self._patience.silence_s)
        if is_tls:
            self._socket = wrapped = self._context.wrap_socket(
                plain, server_hostname=host, do_handshake_on_connect=False
            )
            if not self._is_left.is_set():
                wrapped.do_handshake()
        connection.sock = self._socket
        return connection

    def _converse(self, connection: http.client.HTTPConnection) -> None:
        if self._is_left.is_set():
            return
        target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        connection.request("GET", target, headers={"Connection": "close", **self._headers})
        response = connection.getresponse()
        self._put(Head(response.status, {name.lower(): value for name, value in response.headers.items()}))
        while not self._is_left.is_set():
            piece = response.read1(_PIECE_BYTES)
            if not piece and response.length:
                raise ConnectionError(f"cut off, {response.length} bytes short")
            self._put(piece)
            if not piece:
                return

    def _put(self, item: Head | bytes | Exception) -> None:
        while not self._is_left.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=_LOOK_S)
                return
