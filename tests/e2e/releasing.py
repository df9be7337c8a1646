"""An operator's laptop, a broker and a device whose model follows a channel: what the tests of whole updates stand on."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from agent.clock import SystemClock, SystemRandom
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.paths import StatePaths
from agent.update.history import History, Step
from agent.update.report import read_report
from agent.update.requests import Request, Requests
from bundles.release.creation import create
from bundles.release.serving import Server
from simulator.audit import Audit, Findings
from simulator.badbundles import make_bundle
from simulator.broker import Mosquitto
from simulator.consumer import Consumer

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

MODEL, CHANNEL, CAMERA, DEVICE = "lamp", "stable", "door", "box1"
PATIENCE_S = 90.0
FPS = 12
BRIGHT, DARK = 200, 10
"""Grey of the camera's pictures, in turns of three: `live` faults strike on the bright ones."""


class Releasing:
    """All of it; a context manager. The device runs the operator's own bundle, version 1.0, until the first release.

    Args:
        holdfast: The command.
        broker: A real one.
        transports: The device's `update: transports:`.
        protocol: The device's MQTT.
        is_served: Whether an honest server stands at the broker from the start.
    """

    def __init__(
        self,
        holdfast: Holdfast,
        broker: Mosquitto,
        *,
        transports: Sequence[str] = ("mqtt",),
        protocol: str = "auto",
        is_served: bool = True,
    ) -> None:
        self.holdfast, self.broker = holdfast, broker
        self.paths = StatePaths(holdfast.state)
        self.folder = holdfast.folder
        self.repository, _ = create(self.folder / "repo", self.folder / "keys", self.folder / "online-keys")
        self.consumer = Consumer(broker.port)
        self.server = self._new_server()
        self._is_served = is_served
        self.digests: dict[str, str] = {}
        self.conditions: dict[str, str] = {}
        """As the device publishes them: name → text."""
        self.audit: Audit | None = None
        self._clock, self._never = SystemClock(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._watch = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._watch.on_message = self._take_health
        self._pictures()
        self.config = self._write_config(self.build("1.0"), transports, protocol)

    # -- the operator -----------------------------------------------------------------------------------------------

    def build(self, version: str, *fault: str, **options: Any) -> Path:
        """Build a bundle: a good one, or with a fault and when it strikes."""
        folder = self.folder / "bundles" / version
        sharpness = 6.0 + len(self.digests) / 4
        return make_bundle(folder, *fault, version=version, **{"sharpness": sharpness, **options})  # type: ignore[arg-type]

    def publish(self, version: str, *fault: str, **options: Any) -> int:
        """Build, add and assign a bundle; return the release's number."""
        reference, _ = self.repository.add(self.build(version, *fault, **options))
        self.digests[version] = reference.manifest_sha256
        return self.assign(version)

    def assign(self, version: str, **options: Any) -> int:
        """Assign a bundle that is in the repository; return the release's number. The device asks at once."""
        document, _ = self.repository.publish(CHANNEL, "lamp", version, **options)
        self.check()
        return document.release

    # -- the device -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._is_served:
            self.server.__enter__()
        self.consumer.__enter__()
        self._watch.connect(self.broker.host, self.broker.port)
        self._watch.subscribe(Topics("holdfast", DEVICE).health)
        self._watch.loop_start()
        self.run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._watch.disconnect()
        self._watch.loop_stop()
        self.consumer.__exit__()
        if self._is_served:
            self.server.__exit__(None, None, None)

    def run(self) -> None:
        """Start the agent and wait until events come."""
        count = len(self.consumer.account.ids)
        self._process = self.holdfast.run(self.config)
        assert self.consumer.wait_for(count + 3, PATIENCE_S), self.holdfast.log()[-3000:]

    def stop(self) -> None:
        """End the agent as a service manager does."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)

    @property
    def core(self) -> psutil.Process:
        """The agent's main process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def worker(self) -> psutil.Process | None:
        """The process that runs the model, while there is one."""
        for child in self.core.children():
            try:
                if child.cmdline()[-2:] == ["child", "worker"]:
                    return child
            except psutil.Error:
                continue
        return None

    def check(self) -> None:
        """Let the device ask, as `holdfast update check` does."""
        if self.paths.updates.is_dir():
            Requests(self.paths.updates / "requests").post(Request(verb="check"), SystemRandom())

    @property
    def report(self) -> dict[str, Any]:
        """What the device says of its model's updates."""
        found = read_report(self.paths.updates) or {"models": {MODEL: {}}}
        model: dict[str, Any] = found["models"][MODEL]
        return model

    def steps(self, release: int | None = None) -> list[Step]:
        """Return the history, oldest first; of one release."""
        rows = History(self.paths.updates / "history.db").newest(1000)[::-1]
        return [row for row in rows if release in (None, row.release)]

    def log_of(self, text: str) -> list[tuple[datetime, str]]:
        """Return the lines of the log that hold a text, with their time, which has whole seconds."""
        found = []
        for line in self.holdfast.log().splitlines():
            if text in line and line.startswith("{"):
                entry = json.loads(line)
                found.append((datetime.fromisoformat(entry["time"]), entry["text"]))
        return found

    # -- waiting ----------------------------------------------------------------------------------------------------

    def until(self, is_so: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
        """Wait for a condition."""
        deadline_s = self._clock.monotonic() + within_s
        while not is_so():
            assert self._clock.monotonic() < deadline_s, (
                f"not within {within_s:.0f} s: {what}\n{self.report}\n{self.holdfast.log()[-3000:]}"
            )
            self._clock.wait(self._never, 0.05)

    def until_confirmed(self, version: str) -> None:
        """Wait until a version is confirmed and events name it."""
        self.until(
            lambda: self.report.get("state") == "confirmed" and self.report["version"] == version,
            f"{version} confirmed",
        )
        self.until_speaks(self.digests[version])

    def until_denied(self, release: int, within_s: float = PATIENCE_S) -> str:
        """Wait until a release is denied; return why."""
        self.until(lambda: self._denied(release), f"release {release} denied", within_s)
        return str(self._denied(release))

    def until_speaks(self, digest: str, after: datetime | None = None, within_s: float = PATIENCE_S) -> datetime:
        """Wait for an event of a bundle, captured after a moment; return when it was captured."""
        after = after or datetime.now(UTC)
        found: list[datetime] = []

        def is_there() -> bool:
            events = [each for each in list(self.consumer.account.events)[-400:] if digest_of(each) == digest]
            found[:] = [at for each in events if (at := datetime.fromisoformat(each["time"])) > after]
            return bool(found)

        self.until(is_there, f"an event of bundle {digest[:12]}", within_s)
        return found[0]

    def _denied(self, release: int) -> str | None:
        denied = self.report.get("denied", [])
        return next((each["reason"] for each in denied if each["release"] == release), None)

    # -- the account ------------------------------------------------------------------------------------------------

    def begin_audit(self) -> None:
        """Note in the device's database every event that is recorded. Restarts the agent."""
        self.stop()
        self.audit = Audit(self.paths)
        self.audit.begin()
        self.run()

    def end_audit(self) -> Findings:
        """Let everything leave, end the agent, and return what it recorded."""
        assert self.audit is not None
        self.stop()
        self.consumer.settle(1.0)
        return self.audit.read()

    def require_nothing_lost(self) -> None:
        """End the agent; assert that every event that was recorded came, in order, and names a bundle that was signed."""
        findings, account = self.end_audit(), self.consumer.account
        waiting = {event_id for seq, _, event_id in findings.recorded if seq in findings.waiting}
        assert {event_id for _, _, event_id in findings.recorded} <= account.ids | waiting
        assert findings.lost == 0
        assert account.out_of_order == account.clashes == account.altered == 0
        known = {digest: version for version, digest in self.digests.items()}
        for event in account.events:
            assert known[digest_of(event)] == event["data"]["model"]["version"]

    # -- parts ------------------------------------------------------------------------------------------------------

    def _pictures(self) -> None:
        (self.folder / "pictures").mkdir()
        for number in range(6):
            grey = np.full((64, 64, 3), BRIGHT if number < 3 else DARK, np.uint8)
            cv2.imwrite(str(self.folder / "pictures" / f"{number}.png"), grey)

    def _new_server(self) -> Server:
        settings = MqttSettings(host=self.broker.host, port=self.broker.port)
        return Server(self.folder / "repo", settings, clock=SystemClock(), random=SystemRandom())

    def _write_config(self, factory: Path, transports: Sequence[str], protocol: str) -> Path:
        self.digests["1.0"] = _digest(factory)
        shutil.copytree(factory, self.folder / "factory")
        return self.holdfast.write_config(
            device={"name": DEVICE, "profile": "safe-default"},
            mqtt={"host": self.broker.host, "port": self.broker.port, "protocol": protocol},
            models={MODEL: {"bundle": str(self.folder / "factory"), "channel": CHANNEL}},
            cameras={
                CAMERA: {
                    "source": str(self.folder / "pictures"),
                    "repeat": True,
                    "fps": FPS,
                    "rules": {"light": {"when": "class"}},
                }
            },
            update={
                "root": str(self.folder / "repo" / "metadata" / "1.root.json"),
                "hint_jitter_s": 0.2,
                "transports": list(transports),
                "probation": {"seconds": 5, "samples": 40},
            },
        )

    def _take_health(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        document = json.loads(message.payload)
        self.conditions = {each["name"]: each["text"] for each in document["conditions"]}


def digest_of(event: Mapping[str, Any]) -> str:
    """Return the digest of the bundle that an event is from."""
    return str((event["data"].get("model") or {}).get("digest"))


def disk_bytes(folder: Path) -> int:
    """Return what a folder's files take while they may come and go."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def says(reason: str, texts: str) -> bool:
    """Whether one of the texts, which bars separate, is in a reason."""
    return any(text in reason for text in texts.split("|"))


def _digest(bundle: Path) -> str:
    from agent.bundle.reader import open_bundle

    return open_bundle(bundle).digest
