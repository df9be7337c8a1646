"""A bad line to a broker or a camera: a TCP proxy whose faults are switched while it runs.

The vocabulary is toxiproxy's where it has a word: `latency_s` and `rate_bytes_s` for each direction (`up`: towards the
server), `stalled` (data waits), and for the line as a whole `reset` (RST on every connection), `partitioned` (a
black hole: connections open and nothing ever comes through, as behind a dead mobile link) and `refusing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from simulator.servicethread import ServiceThread

CHUNK_BYTES = 4096
"""Small, so that a rate limit is smooth."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with zero seconds: close() sends RST (socket(7))."""


@dataclass(frozen=True, slots=True)
class Direction:
    """The faults of one direction."""

    latency_s: float = 0.0
    rate_bytes_s: float | None = None
    stalled: bool = False


class FaultyLink(ServiceThread):
    """A proxy on a loopback port in front of `host:port`.

    The switches may be turned from any thread at any time; data already on its way keeps the faults it met.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__("faulty link")
        self._target = (host, port)
        self.host = "127.0.0.1"
        self.port = 0
        self.passed_bytes = {"up": 0, "down": 0}
        """Bytes that came through, by direction: a test proves with it that a fault fired."""
        self.connections = 0
        """Connections ever opened to the proxy."""
        self._directions = {"up": Direction(), "down": Direction()}
        self._partitioned = False
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def set(self, direction: str, **faults: object) -> None:
        """Change faults of `up` or `down`, as in `set("up", latency_s=0.3)`; the others stay."""

        def change() -> None:
            self._directions[direction] = replace(self._directions[direction], **faults)  # type: ignore[arg-type]

        self._call(change)

    def partition(self) -> None:
        """Become a black hole: bytes vanish in both directions, connections stay open, new ones open and stay mute."""
        self._call(lambda: setattr(self, "_partitioned", True))

    def heal(self) -> None:
        """End every fault. Connections from the time of a partition have lost bytes, so they are reset."""

        def change() -> None:
            was_partitioned, self._partitioned = self._partitioned, False
            self._directions = {"up": Direction(), "down": Direction()}
            if was_partitioned:
                self._reset_all()

        self._call(change)

    def reset(self) -> None:
        """Break every connection with RST, once."""
        self._call(self._reset_all)

    # -- the proxy's own thread ---------------------------------------------------------------------------------

    def _call(self, change: Callable[[], None]) -> None:
        """Make a change that holds when the caller goes on, and wake whoever waits for one."""

        def run() -> None:
            change()
            self._changed.set()
            self._changed = asyncio.Event()

        self.call(run)

    async def serve(self, ready: Callable[[], None], stop_wanted: asyncio.Event) -> None:
        server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready()
        await stop_wanted.wait()
        server.close()
        self._reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        while self._partitioned:
            await self._changed.wait()
            if writer.is_closing():
                return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            self._reset(writer)
            return
        self._writers.add(far_writer)
        with contextlib.suppress(asyncio.CancelledError):  # asyncio's server would print it
            await asyncio.gather(
                self._pump("up", reader, far_writer), self._pump("down", far_reader, writer), return_exceptions=True
            )
        for end in (writer, far_writer):
            self._writers.discard(end)
            end.close()

    async def _pump(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes one way. Latency is kept by a queue of due times, so that it does not cut the rate."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)
        delivering = asyncio.create_task(self._deliver(name, queue, writer))
        try:
            while data := await reader.read(CHUNK_BYTES):
                if not self._partitioned:
                    await queue.put((loop.time() + self._directions[name].latency_s, data))
            await queue.put((loop.time() + self._directions[name].latency_s, b""))
            await delivering
        except OSError:
            self._reset(writer)  # an end that died passes on as a reset, or the other one would wait for ever
        finally:
            delivering.cancel()

    async def _deliver(
        self, name: str, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            while self._directions[name].stalled and not self._partitioned:
                await self._changed.wait()
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            if self._partitioned:
                continue
            writer.write(data)
            await writer.drain()
            self.passed_bytes[name] += len(data)
            if rate := self._directions[name].rate_bytes_s:
                await asyncio.sleep(len(data) / rate)

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        sock = writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
