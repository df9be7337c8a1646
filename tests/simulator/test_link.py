"""The faulty link does what it says: a fault that does not fire proves nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from agent.clock import SystemClock
from simulator.link import FaultyLink


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(connection: socket.socket) -> None:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass
            connection.close()

        def accept() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def line(echo: int) -> Iterator[FaultyLink]:
    with FaultyLink("127.0.0.1", echo) as line:
        yield line


def connect(line: FaultyLink, timeout_s: float = 10.0) -> socket.socket:
    return socket.create_connection((line.host, line.port), timeout=timeout_s)


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := sock.recv(65536)):
        data += more
    return data


def test_good_line_carries_everything(line: FaultyLink) -> None:
    payload = bytes(range(256)) * 2000
    with connect(line) as sock:
        threading.Thread(target=sock.sendall, args=(payload,), daemon=True).start()
        assert receive(sock, len(payload)) == payload
    clock, never = SystemClock(), threading.Event()
    deadline_s = clock.monotonic() + 5  # it counts what it has passed on, after the receiver has it
    while line.passed_bytes["down"] < len(payload) and clock.monotonic() < deadline_s:
        clock.wait(never, 0.01)
    assert line.passed_bytes == {"up": len(payload), "down": len(payload)}


def test_latency_adds_up_over_both_directions(line: FaultyLink) -> None:
    line.set("up", latency_s=0.1)
    line.set("down", latency_s=0.15)
    clock = SystemClock()
    with connect(line) as sock:
        began = clock.monotonic()
        sock.sendall(b"x")
        receive(sock, 1)
        assert clock.monotonic() - began >= 0.25


def test_rate_is_kept(line: FaultyLink) -> None:
    line.set("up", rate_bytes_s=100_000)
    clock = SystemClock()
    with connect(line) as sock:
        began = clock.monotonic()
        sock.sendall(bytes(40_000))
        receive(sock, 40_000)
        assert clock.monotonic() - began >= 0.3


def test_stall_holds_data_back_and_heal_lets_it_go(line: FaultyLink) -> None:
    line.set("down", stalled=True)
    with connect(line, timeout_s=0.2) as sock:
        sock.sendall(b"held")
        with pytest.raises(TimeoutError):
            sock.recv(10)
        line.heal()
        sock.settimeout(10)
        assert receive(sock, 4) == b"held"


def test_reset_breaks_connections_once(line: FaultyLink) -> None:
    with connect(line) as sock:
        sock.sendall(b"x")
        receive(sock, 1)
        line.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
    with connect(line) as sock:
        sock.sendall(b"y")
        assert receive(sock, 1) == b"y"


def test_partition_is_a_black_hole_for_old_and_new_connections(line: FaultyLink) -> None:
    with connect(line, timeout_s=0.2) as old:
        line.partition()
        old.sendall(b"lost")
        with pytest.raises(TimeoutError):
            old.recv(10)
        with connect(line, timeout_s=0.2) as new:
            new.sendall(b"lost")
            with pytest.raises(TimeoutError):
                new.recv(10)
        assert line.passed_bytes["up"] == 0
        line.heal()
    with connect(line) as sock:
        sock.sendall(b"z")
        assert receive(sock, 1) == b"z"


def test_server_that_is_gone_resets_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with FaultyLink("127.0.0.1", port) as line, pytest.raises(ConnectionResetError), connect(line) as sock:
        sock.recv(1)
