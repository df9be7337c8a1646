"""Running agents under faults: what they say at the broker, and how fast and how cleanly they end."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.clock import SystemClock

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

PATIENCE_S = 60.0
"""How long a test waits for what should happen at once: two busy cores are not a failure."""
PROMISED_STOP_S = 2.0
"""The product's word: from SIGTERM to the end of the process, in any state."""


class DeviceWatch:
    """What a device keeps saying of itself at the broker, and every condition text that it ever said."""

    def __init__(self, port: int) -> None:
        self.retained: dict[str, Any] = {}
        self.history: dict[str, list[str]] = {}
        """Every text of each condition, in order, each change once."""
        self.agent: subprocess.Popen[bytes] | None = None
        """Once it has ended, nothing more is waited for."""
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("holdfast/devices/+/+", qos=1)
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port, keepalive=10)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """The conditions of the newest health message, by name."""
        return {each["name"]: each for each in self.retained.get("health", {}).get("conditions", [])}

    def wait_for(self, is_so: Callable[[DeviceWatch], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the device says so; fail with what it said instead."""
        clock = SystemClock()
        deadline_s = clock.monotonic() + timeout_s
        with self._changed:
            while not (happened := is_so(self)) and not self._is_over() and clock.monotonic() < deadline_s:
                self._changed.wait(0.2)
        assert happened, f"{what}: did not happen; the device says {self.retained}, before: {self.history}"

    def wait_for_condition(self, name: str, *, having: str = "", timeout_s: float = PATIENCE_S) -> str:
        """Wait until a condition was published, with `having` in its text; return that text."""

        def texts(watch: DeviceWatch) -> list[str]:
            return [text for text in watch.history.get(name, ()) if having in text]

        self.wait_for(texts, f"condition {name} with {having!r}", timeout_s)
        return texts(self)[-1]

    def _is_over(self) -> bool:
        return self.agent is not None and self.agent.poll() is not None

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        what = message.topic.rsplit("/", 1)[-1]
        with self._changed:
            self.retained[what] = json.loads(message.payload) if message.payload[:1] == b"{" else message.payload
            for name, condition in self.conditions.items():
                texts = self.history.setdefault(name, [])
                if texts[-1:] != [condition["text"]]:
                    texts.append(condition["text"])
            self._changed.notify_all()


@pytest.fixture
def watch() -> Iterator[Callable[[int], DeviceWatch]]:
    """Return a function that watches what devices say at the broker on a port."""
    open_ones: list[DeviceWatch] = []

    def start(port: int) -> DeviceWatch:
        open_ones.append(DeviceWatch(port).__enter__())
        return open_ones[-1]

    yield start
    for each in open_ones:
        each.__exit__()


@dataclass(frozen=True, slots=True)
class Stopped:
    """How an agent ended after SIGTERM."""

    status: int
    took_s: float
    left_behind: list[str]

    def assert_clean(self, log: str) -> None:
        """Exit code 0, within the promised time, no child left."""
        assert (self.status, self.left_behind) == (0, []), log
        assert self.took_s < PROMISED_STOP_S, f"SIGTERM took {self.took_s:.2f} s\n{log}"


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the process's children and theirs."""
    return psutil.Process(process.pid).children(recursive=True)


def sigterm(process: subprocess.Popen[bytes]) -> Stopped:
    """Ask an agent to stop, and look what is left of it."""
    clock = SystemClock()
    children = family(process)
    before = clock.monotonic()
    process.terminate()
    try:
        status = process.wait(20)
    except subprocess.TimeoutExpired:
        status = -1
    took_s = clock.monotonic() - before
    # A child that notices the end of its input is gone a moment after its parent.
    _, alive = psutil.wait_procs(children, timeout=max(0.5, PROMISED_STOP_S - took_s))
    names = [f"{each.pid} {' '.join(each.cmdline())}" for each in alive if each.is_running()]
    for each in alive:
        each.kill()
    return Stopped(status, took_s, names)


def wait_until(is_so: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for something that only polling shows; fail after the time."""
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + timeout_s
    while not is_so():
        assert clock.monotonic() < deadline, f"{what}: did not happen within {timeout_s:.0f} s"
        clock.wait(never, 0.05)


def roles(process: subprocess.Popen[bytes]) -> set[str]:
    """Return the roles of the children that run now."""
    found = set()
    for child in family(process):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "child" in words:
            found.add(words[-1])
    return found


@pytest.fixture(scope="session")
def measured_plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of plans in which `parcels` is measured, so that not every test measures it anew."""
    state = tmp_path_factory.mktemp("measured")
    command = [sys.executable, "-m", "agent", "plan", "measure", "--bundle", "parcels", "--state-dir", str(state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return state / "plans"


@pytest.fixture
def planned(holdfast: Holdfast, measured_plans: Path) -> Holdfast:
    """Return the command with a state in which `parcels` need not be measured any more."""
    shutil.copytree(measured_plans, holdfast.state / "plans")
    return holdfast


def broker_at(port: int) -> dict[str, Any]:
    """The section `mqtt:` for a broker on this machine."""
    return {"host": "127.0.0.1", "port": port}


def waiting_events(state: Path) -> int:
    """Return how many events wait in the outbox of an agent, which may be running; 0 while there is no database."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{state / 'holdfast.db'}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
    except sqlite3.Error:
        return 0
