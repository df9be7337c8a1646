"""Which version of MQTT the next attempt to connect speaks: 5 first, 3.1.1 where a broker knows nothing else."""

from __future__ import annotations

from agent.clock import Clock
from agent.mqtt.messages import FailureKind, Protocol

PROBE_5_AGAIN_S = 3600.0
"""A broker that was silent at MQTT 5 may have been out of order: it is asked again now and then."""


class ProtocolChoice:
    """Takes how attempts went, gives what the next one speaks."""

    def __init__(self, wish: str, clock: Clock) -> None:
        self._clock = clock
        self._may_change = wish == "auto"
        self._current: Protocol = "3.1.1" if wish == "3.1.1" else "5"
        self._has_worked: Protocol | None = None
        self._is_refused = False
        """The broker said that it does not speak MQTT 5, in so many words."""
        self._worked_at = 0.0

    def next(self) -> Protocol:
        """Return what to speak now."""
        is_stale = self._clock.monotonic() - self._worked_at > PROBE_5_AGAIN_S
        if self._may_change and self._has_worked == "3.1.1" and is_stale and not self._is_refused:
            self._current = "5"
        return self._current

    def worked(self) -> None:
        """Remember the protocol that got in."""
        self._has_worked, self._worked_at = self._current, self._clock.monotonic()

    def failed(self, kind: FailureKind) -> bool:
        """Take a failure; return whether another protocol is to be tried at once."""
        if not self._may_change:
            return False
        if self._current == "3.1.1":
            if self._has_worked is None and not self._is_refused:
                self._current = "5"  # it was no better, so nothing is known: begin again with 5, after a pause
            return False
        is_old = kind == "protocol" or (kind == "silent" and self._has_worked != "5")  # else it is ill, not old
        if is_old:
            self._current, self._is_refused = "3.1.1", kind == "protocol"
        return is_old
