"""Files of the release repository over MQTT: the device's side. `pieces.py` has the words of both sides.

Takes a path and a place for chunks; gives every missing chunk to it, in any order. A transfer has a connection of its own, so
that events' acknowledgements never wait behind it, and closes it when it has been idle for a while. Pieces are asked for at
QoS 0, a window of them at a time (`window.py`); what does not come is asked for again (`transfer.py`). A lost connection is
opened again within the same call, as long as something comes in between.

Nothing that arrives is believed: the chunk's hash decides. What is malformed, belongs to another request or comes twice is
ignored; what is wrong is counted; whoever is too slow is given up. Memory is bounded, whatever is sent.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator

from agent.backoff import Backoff
from agent.clock import Clock, Random
from agent.errors import StoppedError
from agent.mqtt.assembly import Chunks
from agent.mqtt.connecting import Connector
from agent.mqtt.failure import ConnectError
from agent.mqtt.messages import LinkMessage, MessageArrived
from agent.mqtt.session import Session
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.mqtt.transfer import PIECE_BYTES, LostConnectionError, Patience, SmallFile, Transfer
from agent.mqtt.window import MAX_PIECES

LARGEST_PACKET_BYTES = PIECE_BYTES + 1024
MAX_RECONNECTS = 5
"""In a row without a piece in between."""
IDLE_S = 10.0
log = logging.getLogger(__name__)


class MqttTransport:
    """One device's way to the repository's MQTT servers. Implements `agent.update.transports.transport.Transport`.

    Args:
        settings: The operator's words for the broker.
        topics: This device's names.
        clock: Time.
        random: Request numbers, jitter between reconnects.
        pace: Counts so many more bytes as asked for and returns the seconds to wait before that; None: no limit.
        patience: When to give up.
        idle_s: The connection is closed when it was not needed for so long.
    """

    name = "mqtt"

    def __init__(
        self,
        settings: MqttSettings,
        topics: Topics,
        clock: Clock,
        random: Random,
        *,
        pace: Callable[[int], float] | None = None,
        patience: Patience | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self._topics = topics
        self._clock = clock
        self._random = random
        self._pace = pace
        self._patience = patience or Patience()
        self._idle_s = idle_s
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._connector = Connector(
            settings,
            clock,
            client_id=f"{settings.client_id or topics.device_id}-fetch",
            post=self._post,
            largest_packet_bytes=LARGEST_PACKET_BYTES,
        )
        self._lock = threading.Lock()
        """Guards the two fields below: the idle timer has a thread of its own."""
        self._session: Session | None = None
        """Open and not in use."""
        self._idle_timer: threading.Timer | None = None
        self.peak_held_bytes = 0
        """The most memory that pieces took so far, for the benchmark."""

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        """Return a small file, whole. Its size is known with its first piece.

        Raises:
            NotThereError: the repository has no such file.
            StoppedError: `stop` was set.
            UnavailableError: no connection, silence, too slow, or more than `limit_bytes`.
        """
        found = self._transfer(path, limit_bytes, stop)
        assert isinstance(found, SmallFile)
        return found.joined()

    def fetch(self, path: str, chunks: Chunks, stop: threading.Event) -> None:
        """Bring every missing chunk.

        Raises:
            NotThereError: the repository has no such file.
            WrongContentError: what comes is wrong again and again.
            StoppedError: `stop` was set.
            UnavailableError: no connection, silence, or too slow.
        """
        if chunks.missing():
            self._transfer(path, chunks, stop)

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if (session := self._free_session()) is not None:
            session.disconnect()

    def _transfer(self, path: str, goal: Chunks | int, stop: threading.Event) -> Chunks | None:
        transfer = Transfer(
            path,
            goal,
            self._inbox,
            topics=self._topics,
            clock=self._clock,
            first_id=int.from_bytes(self._random.bytes(4), "big"),
            stop=stop,
            pace=self._pace,
            patience=self._patience,
        )
        backoff = Backoff(self._random, first_s=0.25, limit_s=8.0)
        while True:
            before = transfer.received_bytes
            try:
                with self._connection(stop) as session:
                    transfer.run(session)
                    return transfer.chunks
            except (ConnectError, LostConnectionError) as error:
                if transfer.received_bytes > before:
                    backoff.reset()
                is_first = isinstance(error, ConnectError) and not transfer.received_bytes
                if is_first or backoff.attempts >= MAX_RECONNECTS:  # the updater has a back-off of its own
                    raise
                log.info("a transfer's connection broke and is opened again: %s", error.message)
            finally:
                self.peak_held_bytes = max(self.peak_held_bytes, transfer.peak_held_bytes)
            if self._clock.wait(stop, backoff.next_delay_s()):
                raise StoppedError("stopped", where=path)

    @contextlib.contextmanager
    def _connection(self, stop: threading.Event) -> Iterator[Session]:
        """Open a connection, or take the one that is open; keep it open for a while afterwards."""
        session = self._free_session()
        if session is None or session.is_over:
            if session is not None:
                session.close()
            session = self._connector.open(stop)
            session.subscribe((self._topics.fetch_reply,), qos=0)
        while not self._inbox.empty():  # what came since is nobody's
            with contextlib.suppress(queue.Empty):
                self._inbox.get_nowait()
        try:
            yield session
        finally:
            self._keep(session)

    def _keep(self, session: Session) -> None:
        timer = threading.Timer(self._idle_s, self.close)
        timer.daemon = True
        with self._lock:
            self._session, self._idle_timer = session, timer
        timer.start()

    def _free_session(self) -> Session | None:
        with self._lock:
            session, self._session = self._session, None
            timer, self._idle_timer = self._idle_timer, None
        if timer is not None:
            timer.cancel()
        return session

    def _post(self, message: LinkMessage) -> None:
        """In the session's thread: keep what may be an answer, as much of it as may have been asked for."""
        if (
            isinstance(message, MessageArrived)
            and message.topic == self._topics.fetch_reply
            and self._inbox.qsize() < MAX_PIECES
        ):
            self._inbox.put(message.payload)
