"""`holdfast release serve`: gives the repository's public files to devices that ask for them over MQTT.

Takes requests on `<prefix>/devices/<id>/fetch/request`, answers on that device's reply topic: the topic on which a request
came says who asked (the broker's ACL vouches for it), never the payload. Keeps nothing about anybody, so that several servers
may run side by side: over MQTT 5 each request reaches one of them; over MQTT 3.1.1 start one only, since each would answer.
Says on `<prefix>/releases/timestamp` which version of timestamp.json there is.

Signs nothing and needs no key; `refresh` is where the command line brings the online keys in. Never ends by itself: a broken
connection is opened again, a request that cannot be served now is dropped or answered with `BUSY`, and nothing is queued
without a bound.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.backoff import Backoff
from agent.clock import Clock, Random
from agent.errors import OperatorError, StoppedError
from agent.mqtt.connecting import Connector
from agent.mqtt.failure import ConnectError
from agent.mqtt.messages import LinkMessage, MessageArrived, PublishAcknowledged
from agent.mqtt.pieces import (
    MIN_PIECE_BYTES,
    REPLY_HEAD_BYTES,
    PieceError,
    Reply,
    Request,
    Status,
    decode_request,
    encode_reply,
    pack_reply_head,
    reply_overhead,
)
from agent.mqtt.session import Session
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics, fetch_requests, release_hint
from bundles.release.publicfiles import Files, PublicFiles
from bundles.release.turns import Turns

MAX_OUT = 32
"""Replies that paho holds and has not written: 2 MiB of 64 KiB pieces."""
WATCH_S = 1.0
STEADY_AFTER_S = 10.0
LARGEST_PACKET_BYTES = 4096
"""Requests are much smaller."""
MAX_TIMESTAMP_BYTES = 1 << 20
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Served:
    """Counters since the start, for people."""

    pieces: int = 0
    piece_bytes: int = 0
    refused: int = 0
    """Not there, bad, or too large."""
    busy: int = 0


class Server:
    """One server, in threads of its own; a context manager.

    Args:
        repository: The folder with `metadata`, `targets` and `blobs`.
        mqtt: How to reach the broker.
        prefix: What every topic begins with; the settings' own where it is not given.
        clock: Time.
        random: The client id where the settings give none, jitter between reconnects.
        refresh: Called every `refresh_every_s`, from a thread of the server's: signs a new timestamp before the old one expires.
        files: Gives the content; the repository's public files where it is not given.

    Raises:
        OperatorError: on entering: there is no repository.
    """

    def __init__(
        self,
        repository: Path,
        mqtt: MqttSettings,
        *,
        prefix: str | None = None,
        clock: Clock,
        random: Random,
        refresh: Callable[[], None] | None = None,
        refresh_every_s: float = 3600.0,
        files: Files | None = None,
    ) -> None:
        self._repository = repository
        self._files = files or PublicFiles(repository)
        self._prefix = prefix or mqtt.topic_prefix
        self._clock = clock
        self._refresh = refresh
        self._refresh_every_s = refresh_every_s
        self._refreshed_s = clock.monotonic()
        self._backoff = Backoff(random)
        client_id = mqtt.client_id or f"holdfast-release-{random.bytes(6).hex()}"
        self._connector = Connector(
            mqtt, clock, client_id=client_id, post=self._post, largest_packet_bytes=LARGEST_PACKET_BYTES
        )
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name="release-serve", daemon=True),
            threading.Thread(target=self._stay_connected, name="release-link", daemon=True),
        ]
        self._work = threading.Condition()
        """Guards the fields below; notified when there is something to do."""
        self._turns = Turns()
        self._session: Session | None = None
        self._out = 0
        self.served = Served()

    def __enter__(self) -> Self:
        if not (self._repository / "metadata").is_dir():
            raise OperatorError(
                "there is no release repository", where=str(self._repository), hint="make one: holdfast release init"
            )
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with self._work:
            self._work.notify_all()
        for thread in self._threads:
            thread.join(2.0)

    @property
    def is_connected(self) -> bool:
        """Whether devices can reach it at this moment."""
        return self._session is not None and self._session.is_subscribed

    # -- the session's thread: only hands over ---------------------------------------------------------------------

    def _post(self, message: LinkMessage) -> None:
        if isinstance(message, MessageArrived):
            self._take_request(message)
        elif isinstance(message, PublishAcknowledged):
            with self._work:
                if self._session is not None and message.session == self._session.number:
                    self._out -= 1
                    self._work.notify()

    def _take_request(self, message: MessageArrived) -> None:
        device = self._device(message.topic)
        if device is None or message.retain:
            return
        try:
            request = decode_request(message.payload)
        except PieceError as error:
            log.debug("%s: %s", message.topic, error)
            self.served.refused += 1
            return
        with self._work:
            is_taken = self._turns.add(device, request)
            self._work.notify()
        if not is_taken:
            self.served.busy += 1
            self._answer(device, encode_reply(Reply(Status.BUSY, request.request_id)))

    def _device(self, topic: str) -> str | None:
        """Return whose request topic it is."""
        parts = topic.removeprefix(f"{self._prefix}/devices/").split("/")
        is_request = len(parts) == 3 and topic == Topics(self._prefix, parts[0]).fetch_request
        return parts[0] if is_request else None

    # -- the serving thread ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with self._files as files:
            while (turn := self._next_turn()) is not None:
                device, request, piece = turn
                try:
                    self._answer_piece(files, device, request, piece)
                except Exception:  # the top of a thread: one request must not end the server
                    log.exception("a piece of %s cannot be given out", request.path)

    def _next_turn(self) -> tuple[str, Request, int] | None:
        """Wait for a piece to give out, and for room to do it; None when the server stops."""
        with self._work:
            while not self._stopping.is_set():
                if self._out < MAX_OUT and (turn := self._turns.next()) is not None:
                    return turn
                self._work.wait()
        return None

    def _answer_piece(self, files: Files, device: str, request: Request, piece: int) -> None:
        message = bytearray()

        def room(count: int, size_bytes: int) -> memoryview:
            message.extend(bytes(REPLY_HEAD_BYTES + count))
            pack_reply_head(message, request.request_id, piece, size_bytes)
            return memoryview(message)[REPLY_HEAD_BYTES:]

        if not files.read(request.path, piece * request.piece_bytes, room, request.piece_bytes):
            self._refuse(device, request, Reply(Status.NOT_THERE, request.request_id, piece))
            return
        fits = self._fits(device)
        if fits is not None and len(message) - REPLY_HEAD_BYTES > fits:
            self._refuse(device, request, Reply(Status.TOO_LARGE, request.request_id, piece, max(0, fits)))
            return
        self.served.pieces += 1
        self.served.piece_bytes += len(message) - REPLY_HEAD_BYTES
        self._answer(device, message)

    def _refuse(self, device: str, request: Request, reply: Reply) -> None:
        """Answer once, not once a piece."""
        with self._work:
            self._turns.drop(device, request)
        self.served.refused += 1
        self._answer(device, encode_reply(reply))

    def _fits(self, device: str) -> int | None:
        """Return how large a piece the broker lets through; None where it did not say."""
        session = self._session
        if session is None or session.maximum_packet_bytes is None:
            return None
        fits = session.maximum_packet_bytes - reply_overhead(Topics(self._prefix, device).fetch_reply)
        return fits if fits >= MIN_PIECE_BYTES else 0

    def _answer(self, device: str, message: bytes | bytearray) -> None:
        with self._work:
            session = self._session
            if session is None or self._out >= 2 * MAX_OUT:  # the device asks again
                return
            self._out += 1
        topic = Topics(self._prefix, device).fetch_reply
        if not session.publish(topic, message, qos=0, retain=False, token=0, content_type=None):
            with self._work:
                self._out -= session is self._session

    # -- the link's thread -----------------------------------------------------------------------------------------

    def _stay_connected(self) -> None:
        while not self._stopping.is_set():
            try:
                session = self._connector.open(self._stopping)
            except StoppedError:
                return
            except ConnectError as error:
                delay_s = self._backoff.next_delay_s()
                log.warning("%s It is tried again in %.0f s.", error.reason, delay_s)
                self._clock.wait(self._stopping, delay_s)
                continue
            connected_s = self._clock.monotonic()
            try:
                self._attend(session)
            except Exception:  # the top of a thread: whatever it was, devices must be served again
                log.exception("the release server's connection failed")
            finally:
                self._use(None)
                session.disconnect()
            if self._clock.monotonic() - connected_s >= STEADY_AFTER_S:
                self._backoff.reset()
            self._clock.wait(self._stopping, self._backoff.next_delay_s())

    def _attend(self, session: Session) -> None:
        """Serve on one connection until it is over."""
        session.subscribe((fetch_requests(self._prefix, is_shared=session.protocol == "5"),), qos=0)
        self._use(session)
        log.info("serving %s over MQTT %s", self._repository, session.protocol)
        said: int | None = None
        while not (session.is_over or self._stopping.is_set()):
            if (version := self._timestamp_version()) is not None and version != said:
                session.publish(
                    release_hint(self._prefix), str(version).encode(), qos=1, retain=True, content_type=None
                )
                said = version
            if self._clock.monotonic() - self._refreshed_s >= self._refresh_every_s:
                self._refreshed_s = self._clock.monotonic()
                self._refresh_now()
            self._clock.wait(self._stopping, WATCH_S)
        if not self._stopping.is_set():
            log.warning("the release server's connection is over: %s", session.reason)

    def _use(self, session: Session | None) -> None:
        with self._work:
            self._session, self._out = session, 0
            self._turns.clear()
            self._work.notify_all()

    def _refresh_now(self) -> None:
        try:
            if self._refresh is not None:
                self._refresh()
        except Exception:
            log.exception("the timestamp was not refreshed; devices refuse it once it has expired")

    def _timestamp_version(self) -> int | None:
        """Return the version in timestamp.json; None where it cannot be read now."""
        path = self._repository / "metadata" / "timestamp.json"
        try:
            with path.open("rb") as file:
                version = json.loads(file.read(MAX_TIMESTAMP_BYTES))["signed"]["version"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return version if isinstance(version, int) and version > 0 else None


def serve(
    repository: Path,
    mqtt: MqttSettings,
    *,
    clock: Clock,
    random: Random,
    stop: threading.Event,
    refresh: Callable[[], None] | None = None,
    refresh_every_s: float = 3600.0,
) -> Served:
    """Serve until `stop` is set, for the command line; return the counters.

    Raises:
        OperatorError: there is no repository.
    """
    server = Server(repository, mqtt, clock=clock, random=random, refresh=refresh, refresh_every_s=refresh_every_s)
    with server:
        stop.wait()
    return server.served
