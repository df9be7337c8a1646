"""Brokers to run against: a real mosquitto under full control, and one inside this process for the demo.

Both listen on a loopback port of their own and are context managers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.clock import SystemClock
from agent.errors import UnavailableError
from simulator.certificates import Certificates
from simulator.servicethread import ServiceThread

READY_WITHIN_S = 10.0
_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"


def free_port() -> int:
    """Return a loopback port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_mosquitto() -> str | None:
    """Return mosquitto's path, also where it is not on the user's path (/usr/sbin), or None."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_PLACES)


class Mosquitto:
    """A real mosquitto with a configuration of its own.

    Args:
        folder: Its files: configuration, log, persistence.
        acl: Lines of its ACL file; None lets everybody do everything.
        users: Name → password; None lets everybody in.
        certificates: Speak TLS and ask for client certificates signed by this CA.
        persistence: Keep queues and retained messages over a restart (mosquitto writes them at a clean stop, and each
            second: less than a real broker would promise).
        extra: Further lines of the configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        acl: Sequence[str] | None = None,
        users: dict[str, str] | None = None,
        certificates: Certificates | None = None,
        persistence: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.host = "127.0.0.1"
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} {self.host}", "log_type all", f"allow_anonymous {_word(users is None)}"]
        lines += [] if os.name == "nt" or os.geteuid() else ["user root"]
        lines += self._persistence_lines(persistence) + self._tls_lines(certificates) + self._user_lines(users)
        self._acl = folder / "acl"
        if acl is not None:
            self.write_acl(acl)
            lines.append(f"acl_file {self._acl}")
        self._config.write_text("\n".join([*lines, *extra]) + "\n")

    def start(self) -> None:
        """Start it, on the same port each time, and wait until it answers.

        Raises:
            UnavailableError: mosquitto is not installed, or ends at once; its log is in the message.
        """
        program = find_mosquitto()
        if program is None:
            raise UnavailableError("mosquitto is not installed", hint="install the package `mosquitto`")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, "-c", str(self._config)], stdout=log, stderr=log)
        _wait_for_port(
            self.host, self.port, lambda: self._process is not None and self._process.poll() is None, self.log
        )

    def stop(self) -> None:
        """SIGTERM: it writes what it has to keep, and leaves. No error where it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`: as a crash or a power cut of the broker's machine."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self._signal(signal.SIGCONT)

    def write_acl(self, lines: Sequence[str]) -> None:
        """Replace the ACL; `reload` makes a running broker read it."""
        self._acl.write_text("\n".join(lines) + "\n")
        self._acl.chmod(0o600)

    def reload(self) -> None:
        """Read the ACL and the passwords again, without dropping a connection."""
        self._signal(signal.SIGHUP)

    def log(self) -> str:
        """What it wrote so far."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None, "the broker was never started"
        self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
        self._process.wait(READY_WITHIN_S)
        self._process = None

    def _persistence_lines(self, wanted: bool) -> list[str]:  # noqa: FBT001  a private list of lines
        if not wanted:
            return []
        return [
            "persistence true",
            f"persistence_location {self._folder}/",
            "autosave_interval 1",
            "autosave_on_changes true",
        ]

    def _tls_lines(self, certificates: Certificates | None) -> list[str]:
        if certificates is None:
            return []
        return [
            f"cafile {certificates.ca}",
            f"certfile {certificates.server.cert}",
            f"keyfile {certificates.server.key}",
            "require_certificate true",
            "use_identity_as_username true",
        ]

    def _user_lines(self, users: dict[str, str] | None) -> list[str]:
        if users is None:
            return []
        path = self._folder / "passwords"
        path.write_text("")
        path.chmod(0o600)
        program = shutil.which("mosquitto_passwd") or "mosquitto_passwd"
        for name, password in users.items():
            subprocess.run([program, "-b", str(path), name, password], check=True, capture_output=True)
        return [f"password_file {path}"]


class EmbeddedBroker(ServiceThread):
    """A broker inside this process (amqtt, MQTT 3.1.1 only), for the demo: nothing to install, nothing to trust.

    It does not answer MQTT 5, fires wills after clean disconnects, and keeps nothing. Never a reference for tests.
    """

    def __init__(self) -> None:
        super().__init__("embedded broker", hint="pip install amqtt")
        self.host = "127.0.0.1"
        self.port = free_port()
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    async def serve(self, ready: Callable[[], None], stop_wanted: asyncio.Event) -> None:
        from amqtt.broker import Broker

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # its own clean-up races are not ours to print
        config: dict[str, Any] = {
            "listeners": {"default": {"type": "tcp", "bind": f"{self.host}:{self.port}", "max_connections": 100}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = Broker(config, loop=loop)
        await broker.start()
        ready()
        await stop_wanted.wait()
        await broker.shutdown()


def _word(truth: bool) -> str:  # noqa: FBT001  mosquitto's spelling of a boolean
    return "true" if truth else "false"


def _wait_for_port(host: str, port: int, is_alive: Callable[[], bool], log: Callable[[], str]) -> None:
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + READY_WITHIN_S
    while clock.monotonic() < deadline:
        if not is_alive():
            raise UnavailableError(f"the broker ended at once:\n{log()}")
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((host, port)) == 0:
                return
        clock.wait(never, 0.02)
    raise UnavailableError(f"the broker does not listen on port {port}:\n{log()}")
