"""The configured transports as one: each call goes to them in their order until one can answer it.

A repository that has no such file, is not reachable or gives wrong bytes is passed over; what it gave that was right stays.
When none could answer, the error names each one's reason and has the most telling type: wrong content before `not there`
(TUF asks for a root that need not exist: one mirror's word that it does not must count although another is away) before
unavailable.

Who did not answer is asked last from then on, until it is heard again or `close`: waiting for its silence once costs half a
minute, once for each blob of a bundle would cost hours.
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
        self._silent: list[Transport] = []
        self._current = self.members[0].name if self.members else "no transport"

    @property
    def name(self) -> str:
        return self._current

    def read(self, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        return self._ask(path, lambda transport: transport.read(path, limit_bytes, stop))

    def fetch(self, path: str, chunks: Chunks, stop: threading.Event) -> None:
        self._ask(path, lambda transport: transport.fetch(path, chunks, stop))

    def close(self) -> None:
        self._silent.clear()
        for transport in self.members:
            transport.close()

    def read_from(self, member: Transport, path: str, limit_bytes: int, stop: threading.Event) -> bytes:
        """Read from one of `members` alone, and remember whether it answered."""
        return self._ask_one(member, lambda transport: transport.read(path, limit_bytes, stop))

    def _ask(self, path: str, call: Callable[[Transport], _Answer]) -> _Answer:
        failures: list[UnavailableError] = []
        for transport in sorted(self.members, key=self._silent.__contains__):
            self._current = transport.name
            try:
                return self._ask_one(transport, call)
            except StoppedError:
                raise
            except UnavailableError as failure:
                level = logging.WARNING if isinstance(failure, WrongContentError) else logging.INFO
                log.log(level, "%s is passed over for %s: %s", transport.name, path, failure.message)
                failures.append(failure)
        raise _sum_up(path, failures)

    def _ask_one(self, transport: Transport, call: Callable[[Transport], _Answer]) -> _Answer:
        is_silent = False
        try:
            return call(transport)
        except UnavailableError as failure:
            is_silent = not isinstance(failure, NotThereError | WrongContentError | StoppedError)
            raise
        finally:
            self._silent = [each for each in self._silent if each is not transport] + [transport] * is_silent


def _sum_up(path: str, failures: Sequence[UnavailableError]) -> UnavailableError:
    if len(failures) == 1:
        return failures[0]
    lines = "".join(f"\n  {failure.where or ''}: {failure.message}" for failure in failures) or " there is none"
    message = f"no transport could bring {path}:{lines}"
    for kind in (WrongContentError, NotThereError):
        if any(isinstance(failure, kind) for failure in failures):
            return kind(message)
    return UnavailableError(message)
