"""A repository with its keys, small bundles to release, and the real agent that follows them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.bundle.reader import open_bundle
from agent.clock import SystemClock
from bundles.release.creation import create
from simulator.badbundles import make_bundle
from simulator.broker import Mosquitto
from simulator.powercut import cut_power

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

MODEL, CHANNEL, VARIANT = "lamp", "stable", "fp32"
WITHIN_S = 90.0


class Releases:
    """A repository in `<folder>/repo`: bundles of the simulator's lamp, one a version, all of them good."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.repository, _ = create(folder / "repo", folder / "keys" / "offline", folder / "keys" / "online")
        self.folder = folder / "repo"
        self.root = self.folder / "metadata" / "1.root.json"
        self.digests: dict[str, str] = {}
        """Of the manifests, by version."""
        self.offered: list[str] = []
        """The version of each release number, from 1."""

    def bundle(self, version: str) -> Path:
        """Where the bundle of a version was built."""
        return self._folder / f"lamp-{version}"

    def add(self, version: str, **options: Any) -> str:
        """Build a bundle and add it; return its digest. `options` are those of simulator.badbundles.make_bundle."""
        options = {"sharpness": 8.0 + len(self.digests), **options}
        folder = make_bundle(self.bundle(version), name=MODEL, version=version, **options)
        self.digests[version] = open_bundle(folder).digest
        self.repository.add(folder)
        return self.digests[version]

    def publish(self, version: str) -> int:
        """Sign a release of this version for everybody; return its number."""
        document, _ = self.repository.publish(CHANNEL, MODEL, version)
        self.offered.append(version)
        return document.release


class Follower:
    """A device whose model follows the channel. `transports` and so on: keys of the operator's `update:`."""

    def __init__(
        self,
        holdfast: Holdfast,
        releases: Releases,
        *,
        broker: Mosquitto | None = None,
        factory: str | None = None,
        **update: Any,
    ) -> None:
        self._holdfast, self._clock = holdfast, SystemClock()
        self.state = holdfast.state
        self.process: subprocess.Popen[bytes] | None = None
        self._log_began = 0
        model = {"channel": CHANNEL, **({"bundle": str(releases.bundle(factory))} if factory else {})}
        update = {"root": str(releases.root), "hint_jitter_s": 0, "probation": {"seconds": 0.3, "samples": 3}, **update}
        self.config = holdfast.write_config(
            device={"name": "follower"},
            models={MODEL: model},
            cameras={"yard": {"source": "scene://conveyor?seed=7&fps=15", "model": MODEL}},
            update=update,
            **({"mqtt": {"host": broker.host, "port": broker.port}} if broker else {}),
        )

    def start(self) -> None:
        """Start the agent."""
        self._log_began = len(self.log())
        self.process = self._holdfast.run(self.config)

    def stop(self) -> None:
        """Stop it politely."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log()[-3000:]

    def cut_power(self) -> int:
        """End all of its processes at one moment; return how many there were."""
        assert self.process is not None
        count = cut_power(self.process.pid)
        self.process.wait(10)
        return count

    def record(self) -> Mapping[str, Any]:
        """Return the model's record, as it is on disk; empty where there is none, or a damaged one."""
        try:
            content = (self.state / "updates" / f"{MODEL}.json").read_bytes()
            record: dict[str, Any] = json.loads(content)["record"]
        except (FileNotFoundError, ValueError):
            return {}
        return record

    def standing(self) -> tuple[str, str]:
        """Return the state and the active version; of the factory bundle an empty one."""
        record = self.record()
        return record.get("state", ""), (record.get("active") or {}).get("version", "")

    def wait_for(self, state: str, version: str, within_s: float = WITHIN_S) -> None:
        """Wait until the record says so."""
        self.wait_until(lambda: self.standing() == (state, version), f"{state} {version}", within_s)

    def wait_until_it_runs(self) -> None:
        """Wait until this start has a bundle that it verified, and gave to a worker."""
        self.wait_until(lambda: f'"model {MODEL}: ' in self.log_of_this_start(), "a bundle")

    def wait_until(self, is_so: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
        """Wait for something while the agent runs."""
        deadline_s = self._clock.monotonic() + within_s
        while not is_so():
            assert self.process is not None
            status = self.process.poll()
            assert status is None, f"the agent ended by itself with {status}:\n{self.log()[-5000:]}"
            assert self._clock.monotonic() < deadline_s, (
                f"{self.standing()}, not {what} within {within_s:g} s: {self.record()}\n{self.log()[-5000:]}"
            )
            self._clock.wait(threading.Event(), 0.02)

    def update_to(self, version: str) -> None:
        """Run until this version is confirmed, then stop."""
        self.start()
        self.wait_until_it_runs()
        self.wait_for("confirmed", version)
        self.stop()

    def log(self) -> str:
        """What every start so far wrote."""
        return self._holdfast.log()

    def log_of_this_start(self) -> str:
        """What the last start wrote."""
        return self.log()[self._log_began :]
