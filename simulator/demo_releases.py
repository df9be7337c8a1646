"""The demo's second half: a better bundle, a bad one and a way back, all signed, all over the demo's broker.

Makes a release repository with keys of its own, serves it, and publishes one release after another when the device is
ready for it. Takes what the device reports of its updates; gives the story so far, and at the end what went wrong with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.bundle.manifest import Manifest
from agent.clock import Clock, SystemRandom
from agent.mqtt.settings import MqttSettings
from agent.paths import StatePaths
from agent.update.report import read_report
from bundles.release.creation import create
from bundles.release.serving import Server

CHANNEL = "stable"
MODEL = "camera-model"
GIVE_UP_S = 120.0
"""A step that takes longer is a broken promise."""


class ReleaseStory:
    """The releases of the demo. A context manager; `go_on` is called a few times a second.

    Args:
        bundle: The bundle that the device runs, which ships with Holdfast.
        broker_port: Where the repository is served.
        paths: The device's state, where it reports.
        scratch: For the repository and its keys.
    """

    def __init__(self, bundle: Path, broker_port: int, paths: StatePaths, scratch: Path, clock: Clock) -> None:
        self._bundle = bundle
        self._paths = paths
        self._scratch = scratch
        self._clock = clock
        self._repository, _ = create(scratch / "releases", scratch / "keys" / "offline", scratch / "keys" / "online")
        settings = MqttSettings(host="127.0.0.1", port=broker_port, protocol="3.1.1")
        self._server = Server(scratch / "releases", settings, clock=clock, random=SystemRandom())
        self._steps = self._story()
        self._since_s = float("inf")
        self.lines: list[str] = []
        """What has happened, a sentence each."""
        self.is_over = False
        self.broken = ""
        """The promise that did not hold, if one did not."""

    @property
    def root(self) -> Path:
        """The root.json to provision the device with."""
        return self._scratch / "releases" / "metadata" / "1.root.json"

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def go_on(self) -> None:
        """Take the next step if the device is ready for it."""
        if self.is_over:
            return
        now_s = self._clock.monotonic()
        self._since_s = min(self._since_s, now_s)
        if next(self._steps, True):
            self.is_over = True
        elif now_s - self._since_s > GIVE_UP_S:
            self.is_over, self.broken = True, f"the device did not follow: {self.lines[-1]}"

    def _story(self) -> Iterator[bool]:
        """Yield False while the device is at work."""
        shipped = self._repository.add(self._bundle)[0]
        self._publish("2.0", "a retuned threshold", decoder={"confidence_threshold": 0.45})
        while not self._runs("2.0"):
            yield False
        self._tell("2.0 was tried, switched to between two frames, watched, and confirmed")
        self._publish("3.0", "somebody forgot to scale the pixels", input={"scale_values": [1.0, 1.0, 1.0]})
        while not (reason := self._refusal()):
            yield False
        self._tell(f"3.0 was refused, 2.0 never stopped: {reason}")
        self._repository.rollback(CHANNEL, shipped.version, "2.0 misses small parcels")
        self._tell(f"the operator signs a way back to {shipped.version}: nothing to fetch, it is on the device")
        while not self._runs(shipped.version):
            yield False
        self._tell(f"{shipped.version} runs again")

    def _publish(self, version: str, what: str, **changes: Mapping[str, Any]) -> None:
        folder = self._scratch / version
        rewrite(self._bundle, folder, version, changes)
        reference = self._repository.add(folder)[0]
        document, _ = self._repository.publish(CHANNEL, reference.name, version)
        self._tell(f"release {document.release} is signed: {reference.name} {version}, {what}")

    def _tell(self, line: str) -> None:
        self.lines.append(line)
        self._since_s = self._clock.monotonic()

    def _report(self) -> Mapping[str, Any]:
        report = read_report(self._paths.updates)
        return report["models"].get(MODEL, {}) if report else {}

    def _runs(self, version: str) -> bool:
        report = self._report()
        return report.get("state") == "confirmed" and report.get("version") == version

    def _refusal(self) -> str:
        report = self._report()
        if report.get("state") not in {"refused", "rolled_back"}:
            return ""
        return " ".join(line.strip() for line in str(report["reason"]).splitlines()[:2])


def rewrite(bundle: Path, folder: Path, version: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a bundle that differs from `bundle` in its version and in keys of some sections of its manifest."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["version"] = version
    for section, values in changes.items():
        manifest[section] |= values
    Manifest.model_validate(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")), "utf-8")
