"""A laptop, a server, boxes and a broker, each with a folder of its own, and a page's commands run on them.

The words of the page are used as they stand, except for places: `broker.lan`, `server:`, `/srv/releases`, `/etc/holdfast`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from agent.clock import SystemClock
from agent.update.report import read_report
from simulator.broker import Mosquitto
from simulator.certificates import Certificates

REPOSITORY = Path(__file__).resolve().parents[2]
PEOPLE = ("release-server", "alice", "consumer")
"""The names in the ACL of docs/releases.md that are no boxes."""


class Page:
    """One section of a page: its commands and its YAML."""

    def __init__(self, path: Path, title: str) -> None:
        text = path.read_text("utf-8")
        section = text[text.index(f"\n## {title}\n") + 1 :]
        self.text = section[: section.find("\n## ")]
        self.commands = [
            shlex.split(line, comments=True) for line in re.findall(r"^    (\S.*)$", self.text, re.MULTILINE)
        ]
        self.used: set[int] = set()

    def command(self, *beginning: str) -> list[str]:
        """Return the one command that begins like this; it counts as used."""
        (number,) = (n for n, words in enumerate(self.commands) if words[: len(beginning)] == list(beginning))
        self.used.add(number)
        return list(self.commands[number])

    def block(self, kind: str) -> str:
        """Return the fenced block of this kind, the only one."""
        (block,) = re.findall(rf"^```{kind}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return str(block)

    @property
    def unused(self) -> list[str]:
        """The commands that nobody asked for."""
        return [shlex.join(words) for n, words in enumerate(self.commands) if n not in self.used]


class Machine:
    """A folder, and commands that run in it."""

    def __init__(self, folder: Path, places: Callable[[Sequence[str]], list[str]], **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._places = places
        self._environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **environment}
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, words: Sequence[str], *more: str, code: int = 0) -> str:
        """Run a command of the page to its end; return what it printed."""
        done = subprocess.run(
            [*self._program(self._places(words)), *more],
            cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, words: Sequence[str]) -> Any:
        """Run a command with `--json`."""
        return json.loads(self.run(words, "--json"))

    def start(self, words: Sequence[str], log: str = "log") -> subprocess.Popen[bytes]:
        """Run a command of the page in the background."""
        command = self._program(self._places(words))
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=file, stderr=file)
        self._processes.append(process)
        return process

    def log(self, name: str = "log") -> str:
        """What was said in the background."""
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End what runs, in peace."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
            process.wait(20)

    def end(self) -> None:
        """Leave nothing running."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(10)

    def _program(self, words: list[str]) -> list[str]:
        if words[0] == "holdfast":
            return [sys.executable, "-P", "-m", "agent", *words[1:]]
        if words[0] == "rsync" and shutil.which("rsync") is None:
            return [sys.executable, str(Path(__file__).with_name("rsync.py")), *words[1:]]
        return words


class Box(Machine):
    """A device: `holdfast.yaml`, its certificate, `root.json`, and the state that the agent makes."""

    def __init__(
        self, name: str, folder: Path, places: Callable[[Sequence[str]], list[str]], **environment: str
    ) -> None:
        super().__init__(folder, places, STATE_DIRECTORY=str(folder / "state"), **environment)
        self.name = name

    def document(self) -> dict[str, Any]:
        """What its agent last said of its updates."""
        return read_report(self.folder / "state" / "updates") or {"models": {}, "trust": None}

    def report(self) -> dict[str, Any]:
        """What it last said of its one model."""
        nothing = {"state": None, "version": None, "progress": None}
        return next(iter(self.document()["models"].values()), nothing)

    def timestamp(self) -> int:
        """The repository's version that it trusts."""
        return int((self.document()["trust"] or {"timestamp": 0})["timestamp"])

    def stands_at(self, state: str, version: str | None) -> bool:
        """Whether it runs this, in this state."""
        report = self.report()
        return (report["state"], report["version"]) == (state, version)


class Site:
    """Everything. A context manager: at its end nothing runs any more."""

    def __init__(self, folder: Path, acl: str) -> None:
        self.folder = folder
        self.certificates = Certificates(folder / "ca")
        self.broker = Mosquitto(folder / "broker", acl=acl.splitlines(), certificates=self.certificates)
        self._machines: list[Machine] = []
        self.laptop = self._add(Machine(folder / "laptop", self.places))
        self.server = self._add(Machine(folder / "server", self.places))
        (folder / "server" / "etc" / "holdfast").mkdir(parents=True)
        (folder / "server" / "srv" / "releases").mkdir(parents=True)
        for machine, name, as_ in ((self.laptop, "alice", "me"), (self.server, "release-server", "server")):
            self.certify(machine, name, as_)

    def places(self, words: Sequence[str]) -> list[str]:
        """Put this machine's places for the page's."""
        port = ["--port", str(self.broker.port)] if "broker.lan" in words else []
        words = [word.removeprefix("server:").replace("broker.lan", "127.0.0.1") for word in words]
        on_server = re.compile(r"^(?=/(srv/releases|etc/holdfast)(/|$))")
        return [on_server.sub(str(self.folder / "server"), word) for word in words] + port

    def box(self, name: str, text: str, sections: Mapping[str, Any], **environment: str) -> Box:
        """Set up a device by the page's YAML, with further sections."""
        box = Box(name, self.folder / name, self.places, HOLDFAST__MQTT__PORT=str(self.broker.port), **environment)
        self._add(box)
        self.certify(box, name, name)
        shutil.copy(self.laptop.folder / "releases" / "metadata" / "1.root.json", box.folder / "root.json")
        settings = yaml.safe_load(text.replace("line3-box1", name).replace("broker.lan", "127.0.0.1"))
        (box.folder / "holdfast.yaml").write_text(yaml.safe_dump({"version": 1, **settings, **sections}))
        return box

    def certify(self, machine: Machine, name: str, as_: str) -> None:
        """Give a machine the CA, and a certificate in a name."""
        pair = self.certificates.issue(name)
        shutil.copy(self.certificates.ca, machine.folder / "ca.pem")
        shutil.copy(pair.cert, machine.folder / f"{as_}.pem")
        shutil.copy(pair.key, machine.folder / f"{as_}.key")

    def __enter__(self) -> Self:
        self.broker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self._machines:
            machine.end()
        self.broker.kill()

    def _add(self, machine: Any) -> Any:
        self._machines.append(machine)
        return machine


def wait(condition: Callable[[], bool], within_s: float, explain: Callable[[], object]) -> None:
    """Wait until something holds."""
    clock, never = SystemClock(), threading.Event()
    until_s = clock.monotonic() + within_s
    while not condition():
        assert clock.monotonic() < until_s, explain()
        clock.wait(never, 0.1)
