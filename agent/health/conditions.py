"""Named conditions: raised once, kept until they are over, shown everywhere. A condition is not a log line.

Names are stable and documented in docs/conditions.md: `source-down/door`, `event-loss`, `broker-unreachable`, …
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from agent.clock import Clock

Severity = Literal["info", "warning", "error"]
_LEVELS: dict[Severity, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Condition:
    """One named ill."""

    name: str
    severity: Severity
    text: str
    """What is wrong, and what to do about it."""
    since: datetime


@dataclass(frozen=True, slots=True)
class SetCondition:
    """What a state machine answers to raise or update a condition."""

    name: str
    severity: Severity
    text: str


@dataclass(frozen=True, slots=True)
class ClearCondition:
    """What a state machine answers to end a condition; one that does not hold is no error."""

    name: str


class Conditions:
    """The conditions that hold now. Not thread-safe: it belongs to core's thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._active: dict[str, Condition] = {}

    def set(self, name: str, severity: Severity, text: str) -> bool:
        """Raise or update a condition; `since` stays that of the first raise. Return whether anything changed."""
        old = self._active.get(name)
        if old and (old.severity, old.text) == (severity, text):
            return False
        if old is None or old.severity != severity:
            log.log(_LEVELS[severity], "condition %s: %s", name, text, extra={"fields": {"condition": name}})
        self._active[name] = Condition(name, severity, text, old.since if old else self._clock.now())
        return True

    def clear(self, name: str) -> bool:
        """End a condition. Return whether it held."""
        if self._active.pop(name, None) is None:
            return False
        log.info("condition %s is over", name, extra={"fields": {"condition": name}})
        return True

    def apply(self, action: SetCondition | ClearCondition) -> bool:
        """Do what a state machine answered. Return whether anything changed."""
        if isinstance(action, SetCondition):
            return self.set(action.name, action.severity, action.text)
        return self.clear(action.name)

    def __iter__(self) -> Iterator[Condition]:
        return iter(sorted(self._active.values(), key=lambda condition: condition.name))

    def __len__(self) -> int:
        return len(self._active)
