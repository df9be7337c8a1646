"""A part of the desk that lives in an asyncio loop in a thread of its own, and is started and stopped like any other."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from agent.errors import UnavailableError

READY_WITHIN_S = 10.0


class ServiceThread(abc.ABC):
    """Runs `serve` until `stop`; a context manager. It may be started again after it was stopped."""

    def __init__(self, name: str, *, hint: str | None = None) -> None:
        self._name = name
        self._hint = hint
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._stop_wanted = asyncio.Event()

    @abc.abstractmethod
    async def serve(self, ready: Callable[[], None], stop_wanted: asyncio.Event) -> None:
        """Open what is to be opened, call `ready`, and close everything once `stop_wanted` is set."""

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            UnavailableError: it could not be opened.
        """
        self._failure = None
        self._ready.clear()
        self._stop_wanted = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        self._ready.wait(READY_WITHIN_S)
        if self._failure is not None:
            raise UnavailableError(
                f"the {self._name} did not start: {self._failure}", hint=self._hint
            ) from self._failure

    def stop(self) -> None:
        """Stop it; no error where it does not run."""
        if self._thread is None:
            return
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._stop_wanted.set)
        self._thread.join(READY_WITHIN_S)
        self._thread = None

    def call(self, change: Callable[[], None]) -> None:
        """Run `change` in the service's thread and wait for it."""
        assert self._loop is not None, f"the {self._name} was never started"
        done = threading.Event()

        def run() -> None:
            change()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  the top of a thread: told to whoever started it
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.serve(self._ready.set, self._stop_wanted)
