"""The configured transports as one: each call goes to them in their order until one can answer it.

A repository that has no such file, is not reachable or gives wrong bytes is passed over; what it gave that was right stays.
When none could answer, the error names each one's reason and has the most telling type: wrong content before `not there`
(TUF asks for a root that need not exist: one mirror's word that it does not must count although another is away) before
unavailable.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from agent.errors import UnavailableError
from agent.update.transports.transport import Chunks, NotThereError, StoppedError, Transport, WrongContentError

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class Transports:
    """Tries `members` in this order. Itself a `Transport`; `name` is the one that is being asked or answered last."""

    def __init__(self, members: Sequence[Transport]) -> None:
        self.members = tuple(members)
        self._current = self.members[0].name if self.members else "no transport"

    @property
    def name(self) -> str:
        return self._current

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        return self._ask(path, lambda transport: transport.read(path, limit_bytes, stop))

    def fetch(self, path: str, chunks: Chunks, stop: threading.Event) -> None:
        self._ask(path, lambda transport: transport.fetch(path, chunks, stop))

    def close(self) -> None:
        for transport in self.members:
            transport.close()

    def _ask(self, path: str, call: Callable[[Transport], _Answer]) -> _Answer:
        failures: list[UnavailableError] = []
        for transport in self.members:
            self._current = transport.name
            try:
                return call(transport)
            except StoppedError:
                raise
            except UnavailableError as failure:
                level = logging.WARNING if isinstance(failure, WrongContentError) else logging.INFO
                log.log(level, "%s is passed over for %s: %s", transport.name, path, failure.message)
                failures.append(failure)
        raise _sum_up(path, failures)


def _sum_up(path: str, failures: Sequence[UnavailableError]) -> UnavailableError:
    if len(failures) == 1:
        return failures[0]
    lines = "".join(f"\n  {failure.where or ''}: {failure.message}" for failure in failures) or " there is none"
    message = f"no transport could bring {path}:{lines}"
    for kind in (WrongContentError, NotThereError):
        if any(isinstance(failure, kind) for failure in failures):
            return kind(message)
    return UnavailableError(message)
