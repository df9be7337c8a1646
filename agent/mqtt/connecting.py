"""A connection on demand, for those who need one for a while: a transfer, a release server.

Unlike the link it keeps no connection alive and says nothing of its own. Which protocol the broker speaks is remembered
from one `open` to the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count

from agent.clock import Clock
from agent.errors import StoppedError
from agent.mqtt.failure import ConnectError
from agent.mqtt.messages import LinkMessage
from agent.mqtt.protocol import ProtocolChoice
from agent.mqtt.session import LARGEST_PACKET_BYTES, Session
from agent.mqtt.settings import MqttSettings

LOOK_AT_STOP_S = 0.1


class Connector:
    """Opens one session at a time. `post` is called from the session's thread and must only hand over."""

    def __init__(
        self,
        settings: MqttSettings,
        clock: Clock,
        *,
        client_id: str,
        post: Callable[[LinkMessage], None],
        largest_packet_bytes: int = LARGEST_PACKET_BYTES,
        answer_timeout_s: float = 5.0,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._client_id = client_id
        self._post = post
        self._largest_packet_bytes = largest_packet_bytes
        self._answer_timeout_s = answer_timeout_s
        self._choice = ProtocolChoice(settings.protocol, clock)
        self._numbers = count(1)

    def open(self, stop: threading.Event) -> Session:
        """Return a session that is connected.

        Raises:
            ConnectError: with the kind of failure and advice.
            StoppedError: `stop` was set meanwhile.
        """
        while True:
            attempt = _Attempt(self._session(), self._answer_timeout_s)
            try:
                attempt.wait(stop, self._clock)
            except ConnectError as error:
                if not self._choice.failed(error.kind):
                    raise
            else:
                self._choice.worked()
                return attempt.session

    def _session(self) -> Session:
        return Session(
            next(self._numbers),
            self._choice.next(),
            self._settings,
            client_id=self._client_id,
            post=self._post,
            largest_packet_bytes=self._largest_packet_bytes,
        )


class _Attempt:
    """One connect, in a thread of its own: a name look-up that hangs cannot be interrupted, only left behind."""

    def __init__(self, session: Session, answer_timeout_s: float) -> None:
        self.session = session
        self._answer_timeout_s = answer_timeout_s
        self._error: Exception | None = None
        self._is_over = threading.Event()
        self._is_left = threading.Event()
        threading.Thread(target=self._run, name="mqtt-connect", daemon=True).start()

    def wait(self, stop: threading.Event, clock: Clock) -> None:
        """Wait for the connection."""
        while not clock.wait(self._is_over, LOOK_AT_STOP_S):
            if stop.is_set():
                self._is_left.set()
                self.session.abort()
                raise StoppedError("stopped while connecting to the broker")
        if self._error is not None:
            self.session.close()
            raise self._error

    def _run(self) -> None:
        try:
            self.session.connect(self._answer_timeout_s)
        except Exception as error:  # noqa: BLE001  the top of a thread: handed to who waits
            self._error = error
        self._is_over.set()
        if self._is_left.is_set():
            self.session.close()
