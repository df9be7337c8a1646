"""A repository behind any HTTP(S) server, CDN or object store that gives out its files as they are.

Takes the repository's paths; asks for what is missing by ranges, bears with a server that knows none, and checks nothing
but the shape: whoever asked checks the bytes. Refuses: more than was asked for, compression, redirects to anything but
http(s), from https to http (a mirror must not send a device to the plain pages of its own network) or without end.
Certificates are always verified.
"""

from __future__ import annotations

import base64
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from agent import __version__
from agent.clock import Clock
from agent.errors import OperatorError, UnavailableError
from agent.log import mask_url
from agent.update.transports.exchange import Exchange, Head, Patience, TooSlowError
from agent.update.transports.pacing import Pace
from agent.update.transports.transport import Chunks, NotThereError, WrongContentError

MOST_REDIRECTS: Final = 5
MOST_WRONG: Final = 3
"""Wrong chunks in one fetch: one may be an accident, the third is not."""
AGAIN_S: Final = 0.5
"""Between a cut and the next request, as long as each one brings something."""
_REDIRECTS = {301, 302, 303, 307, 308}
_ABSENT = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.FORBIDDEN}  # object stores say 403 where one may not list
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")


class HttpTransport:
    """The repository at `url` (a user and password in it are sent to its own host only).

    Args:
        url: Where `metadata/`, `targets/` and `blobs/` lie.
        clock: For deadlines.
        pace: The operator's rate limit.
        ca_file: Certificate authorities, PEM; None: the system's.

    Raises:
        OperatorError: this is no address.
    """

    def __init__(
        self, url: str, clock: Clock, pace: Pace, *, ca_file: str | None = None, patience: Patience | None = None
    ) -> None:
        self.name = mask_url(url.rstrip("/"))
        self._base = _without_user(url.rstrip("/"), self.name)
        self._authorization = _authorization(url)
        self._clock = clock
        self._pace = pace
        self._ca_file = ca_file
        self._patience = patience or Patience()
        self._context: ssl.SSLContext | None = None

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        content = bytearray()
        with self._get(path, {}, stop) as (head, pieces):
            self._require(head, {HTTPStatus.OK}, path)
            for piece in pieces:
                content += piece
                if len(content) > limit_bytes:
                    raise UnavailableError(f"{path} has more than the {limit_bytes} bytes allowed", where=self.name)
        return bytes(content)

    def fetch(self, path: str, chunks: Chunks, stop: threading.Event) -> None:
        wrong = 0
        while missing := chunks.missing():
            try:
                wrong = self._fetch_run(path, chunks, _first_run(missing), stop, wrong)
            except (NotThereError, WrongContentError, TooSlowError):
                raise
            except UnavailableError:
                if stop.is_set() or len(chunks.missing()) == len(missing):
                    raise
                self._clock.wait(stop, AGAIN_S)

    def close(self) -> None:
        """Nothing stays open: each request has its own connection."""

    def _fetch_run(self, path: str, chunks: Chunks, run: range, stop: threading.Event, wrong: int) -> int:
        """Ask for one stretch of chunks and hand them over; return how many were wrong so far."""
        last_byte = min(run.stop * chunks.chunk_bytes, chunks.size_bytes) - 1
        wanted = {"Range": f"bytes={run.start * chunks.chunk_bytes}-{last_byte}"}
        with self._get(path, wanted, stop) as (head, pieces):
            if head.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise WrongContentError(f"{path} is shorter than what was signed", where=self.name)
            self._require(head, {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}, path)
            start = self._begins_at(head, path)
            if start not in {0, run.start * chunks.chunk_bytes}:
                raise UnavailableError(f"{path}: the server answers another range", where=self.name)
            for index, data in _cut(pieces, chunks, range(start // chunks.chunk_bytes, run.stop)):
                if not chunks.take(index, data):
                    wrong += 1
                if wrong >= MOST_WRONG:
                    raise WrongContentError(f"{path} is not what was signed", where=self.name)
                if index == run.stop - 1:
                    return wrong
        raise UnavailableError(f"{path} was cut off", where=self.name)

    @contextmanager
    def _get(self, path: str, headers: dict[str, str], stop: threading.Event) -> Iterator[tuple[Head, Iterator[bytes]]]:
        """GET a file of the repository, through redirects; give its head and its body at the operator's rate."""
        url = f"{self._base}/{quote(path, safe='/')}"
        for _ in range(MOST_REDIRECTS + 1):
            with self._exchange(url, headers, stop) as exchange:
                head = exchange.head()
                if head.status not in _REDIRECTS or "location" not in head.headers:
                    yield head, self._paced(exchange.body(), stop)
                    return
            url = self._redirected(url, head.headers["location"])
        raise UnavailableError(f"{path}: more than {MOST_REDIRECTS} redirects", where=self.name)

    def _exchange(self, url: str, headers: dict[str, str], stop: threading.Event) -> Exchange:
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._ca_file)
        headers = {**headers, "Accept-Encoding": "identity", "User-Agent": f"holdfast/{__version__}"}
        if self._authorization and urlsplit(url)[:2] == urlsplit(self._base)[:2]:
            headers["Authorization"] = self._authorization
        return Exchange(
            url,
            headers,
            name=self.name,
            context=self._context,
            patience=self._patience,
            clock=self._clock,
            stop=stop,
        )

    def _paced(self, pieces: Iterator[bytes], stop: threading.Event) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            if delay_s := self._pace.delay_s(len(piece)):
                self._clock.wait(stop, delay_s)

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = urlsplit(urljoin(url, location))
            schemes = {"https"} if urlsplit(url).scheme == "https" else {"http", "https"}
            if target.scheme in schemes and target.hostname and target.port != 0:
                return urlunsplit(target._replace(netloc=target.netloc.rpartition("@")[2], fragment=""))
        except ValueError:
            pass
        raise UnavailableError(f"redirects to {mask_url(location[:200])!r}: refused", where=self.name)

    def _require(self, head: Head, statuses: set[int], path: str) -> None:
        if head.status in _ABSENT:
            raise NotThereError(f"{path}: HTTP {head.status}", where=self.name)
        if head.status not in statuses:
            raise UnavailableError(f"{path}: HTTP {head.status}", where=self.name)
        if (coding := head.headers.get("content-encoding", "identity")) != "identity":
            raise UnavailableError(f"{path}: sent as {coding[:40]!r} although identity was asked for", where=self.name)

    def _begins_at(self, head: Head, path: str) -> int:
        if head.status == HTTPStatus.OK:
            return 0
        if found := _CONTENT_RANGE.fullmatch(head.headers.get("content-range", "")):
            return int(found[1])
        raise UnavailableError(f"{path}: a partial answer that does not say which part", where=self.name)


def _cut(pieces: Iterator[bytes], chunks: Chunks, run: range) -> Iterator[tuple[int, bytes]]:
    """Cut a body that begins with the first chunk of `run` into that run's chunks."""
    buffer = bytearray()
    indices = iter(run)
    index = next(indices)
    for piece in pieces:
        buffer += piece
        while len(buffer) >= (length := min(chunks.chunk_bytes, chunks.size_bytes - index * chunks.chunk_bytes)):
            yield index, bytes(buffer[:length])
            del buffer[:length]
            if (following := next(indices, None)) is None:
                return
            index = following


def _first_run(missing: Sequence[int]) -> range:
    """Return the first stretch of neighbours in `missing`."""
    last = missing[0]
    for index in missing[1:]:
        if index != last + 1:
            break
        last = index
    return range(missing[0], last + 1)


def _without_user(url: str, name: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and not parts.query:
            return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    except ValueError:
        pass
    raise OperatorError("this is no address of a repository", where=name, hint="write https://host/folder")


def _authorization(url: str) -> str | None:
    parts = urlsplit(url)
    if parts.username is None:
        return None
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(login.encode()).decode("ascii")
