"""A device under attack, and the operator whose releases it follows: the parts of `tests/update/test_attacks.py`.

Everything that stands between a release and the store is the product's own: trust, transports, staging, state machine, its
thread, records and conditions, put together by `agent.updating`. A trial here only verifies every byte of the bundle, and
the worker is said to be well: what bundles do is the matter of `tests/e2e/test_bad_bundles.py`.
"""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from agent.bundle.reader import open_bundle
from agent.clock import SystemClock, SystemRandom
from agent.health.conditions import Conditions
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.mqtt.transfer import Patience as MqttPatience
from agent.pipeline.workers import Workers
from agent.preparation import Preparer
from agent.update.fetching.store import BundleStore
from agent.update.notes import Checked, CheckFailed, FetchFailed, Health, TrialRefused, Tried, WorkNote
from agent.update.record import Slot
from agent.update.selection import Device as Asker
from agent.update.settings import ProbationSettings, UpdateSettings
from agent.update.transports.exchange import Patience as HttpPatience
from agent.update.transports.http import HttpTransport
from agent.update.transports.pacing import Pace
from agent.update.transports.transport import Transport
from agent.update.transports.trying import Transports
from agent.update.updater import Updater
from agent.update.work import Work
from agent.updatesteps import UpdateSteps
from agent.updating import Updating
from bundles.release.creation import create
from bundles.release.repository import Repository
from simulator.badbundles import make_bundle

MODEL, CHANNEL, BUNDLE = "lamp", "stable", "lamp"
BALLAST_BYTES = 200_000
"""Three chunks and a half of each version's weights, which do not compress."""
NOTE_WITHIN_S = 60.0
BETWEEN_CHECKS_S = 3600.0
SILENCE_S = 0.4
"""What tests wait for an answer that does not come, in place of half a minute."""


class LeapingClock(SystemClock):
    """The system's clock, which may leap forward: an hour between two checks takes no time, a transfer's patience does."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self._ahead_s)

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead_s

    def leap(self, seconds: float) -> None:
        """Be later."""
        self._ahead_s += seconds


class Operator:
    """A release repository with all of its keys, and the releases that came from it."""

    def __init__(self, folder: Path, clock: LeapingClock) -> None:
        self.folder = folder / "repository"
        self.repository, _ = create(self.folder, folder / "keys", folder / "online-keys", clock=clock)
        self._bundles = folder / "bundles"
        self.digests: dict[str, str] = {}
        """By version: what may ever run."""

    @property
    def root(self) -> Path:
        """What devices are provisioned with."""
        return self.folder / "metadata" / "1.root.json"

    def publish(self, version: str, repository: Repository | None = None) -> str:
        """Build, add and assign a version; return its manifest's digest."""
        place = self._bundles / version
        if not place.exists():
            number = len(self.digests) + 1
            make_bundle(
                place, version=version, sharpness=4.0 + number, ballast_bytes=BALLAST_BYTES, ballast_seed=number
            )
            self.digests[version] = hashlib.sha256((place / "manifest.json").read_bytes()).hexdigest()
        repository = repository or self.repository
        repository.add(place)
        repository.publish(CHANNEL, BUNDLE, version)
        return self.digests[version]

    def copy(self, name: str) -> Path:
        """Keep the repository as it is now: an older state of it, later."""
        place = self.folder.with_name(name)
        shutil.copytree(self.folder, place)
        return place


class _Well:
    """What core would hear of a worker that is well."""

    def __init__(self) -> None:
        self._samples = 0

    def health(self, _model: str) -> Health:
        self._samples += 100
        return Health(100.0, self._samples, 0, "", 0, None, None)


class Device:
    """A device of the channel; a context manager. `check` lets an hour pass and does everything that comes of it.

    Args:
        folder: Its state.
        root: What it was provisioned with.
        transports: In this order.
        preparer: What this machine is, probed once.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        transports: Sequence[Transport],
        *,
        preparer: Preparer,
        clock: LeapingClock,
        name: str = "box1",
    ) -> None:
        self.folder, self.clock, self.name = folder, clock, name
        self._root, self._transports, self._preparer = root, tuple(transports), preparer
        self.ran: list[str] = []
        """Digests, in the order in which the worker was given them."""
        self.boot()

    def boot(self) -> None:
        """Start the agent: what is known is what is on disk."""
        self.notes: queue.SimpleQueue[WorkNote] = queue.SimpleQueue()
        self.conditions = Conditions(self.clock)
        self.store = BundleStore(self.folder / "bundles")
        channels = {MODEL: CHANNEL}
        steps = UpdateSteps(
            self.folder / "updates" / "trust",
            self._root,
            Asker(self.name),
            channels,
            pipelines={MODEL: ()},
            preparer=self._preparer,
            store=self.store,
            transports=Transports(self._transports),
            elsewhere=(),
            clock=self.clock,
        )
        probation = ProbationSettings(seconds=1, samples=1)
        settings = UpdateSettings(root=self._root, hint_jitter_s=0, check_every_s=600, probation=probation)
        self._work = Work(
            check=steps.check, fetch=steps.fetch, try_=self._try, collect=steps.collect, post=self.notes.put
        )
        self._updater = Updater(
            channels,
            settings,
            self.folder / "updates",
            factories=[MODEL],
            random=SystemRandom(),
            clock=self.clock,
            conditions=self.conditions,
            work=self._work,
            switch=self._switch,
        )
        topics = Topics("holdfast", self.name)
        self._updating = Updating(
            self._updater,
            self.store,
            channels,
            folder=self.folder / "updates",
            topics=topics,
            conditions=self.conditions,
            clock=self.clock,
        )
        self._worker = cast("Workers", _Well())
        self._updating.start()

    def reboot(self) -> None:
        """Lose everything but the disk."""
        self._work.stop()
        self._work.join(10.0)
        self.boot()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.stop()
        self._work.join(10.0)
        for transport in self._transports:
            transport.close()

    @property
    def runs(self) -> str | None:
        """The digest of what a start of the agent would run now."""
        slot = self._updating.active(MODEL)
        return slot.digest if slot else None

    @property
    def report(self) -> dict[str, Any]:
        """What people are told of the model."""
        document: dict[str, Any] = self._updater.document()["models"][MODEL]
        return document

    @property
    def ills(self) -> dict[str, str]:
        """Conditions that hold: name → text."""
        self._updating.look(self._worker, None)
        return {condition.name: condition.text for condition in self.conditions}

    def hint(self, payload: bytes) -> None:
        """Something came on the hint's topic."""
        self._updating.hint(payload)

    def check(self, after_s: float = BETWEEN_CHECKS_S) -> str:
        """Let time pass and check; go as far as it goes. Return how the last step that failed did, or nothing."""
        self.clock.leap(after_s)
        self._updating.tick()
        reason = ""
        while True:
            note = self.notes.get(timeout=NOTE_WITHIN_S)
            self._updating.deal_with(note)
            if isinstance(note, CheckFailed | FetchFailed | TrialRefused):
                reason = note.reason
            if isinstance(note, FetchFailed):
                return reason
            if isinstance(note, Checked | CheckFailed | Tried | TrialRefused) and not self._is_busy():
                break
        for _ in range(3):  # probation
            self.clock.leap(2.0)
            self._updating.look(self._worker, None)
        return reason

    def pass_by(self, seconds: float) -> None:
        """Let time pass; check where something made that due."""
        self.clock.leap(seconds)
        self._updating.tick()
        while self.report["state"] == "checking":
            self._updating.deal_with(self.notes.get(timeout=NOTE_WITHIN_S))

    def _is_busy(self) -> bool:
        return self.report["state"] in {"fetching", "staged", "trying"}

    def _try(self, model: str, slot: Slot, _stop: threading.Event) -> Tried:
        assert open_bundle(self.store.path_of(slot.digest)).digest == slot.digest
        return Tried(model, slot.digest)

    def _switch(self, model: str, slot: Slot | None) -> None:
        assert slot is not None, "there is always something to go back to here"
        self.ran.append(slot.digest)
        self._updating.switched(model)

    def disk_bytes(self) -> int:
        """What the whole state takes."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def require_sound(self, allowed: Sequence[str]) -> None:
        """Assert that nothing wrong was taken: every blob is what its name says, and nothing ran that is not allowed."""
        for path in (self.folder / "bundles" / "blobs").glob("*"):
            if path.is_file() and len(path.name) == 64:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        for path in (self.folder / "bundles").glob("*/manifest.json"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name
        assert set(self.ran) <= set(allowed)


def over_http(url: str, clock: LeapingClock) -> HttpTransport:
    """Return the transport to a mirror, with a test's patience."""
    patience = HttpPatience(connect_s=2.0, silence_s=SILENCE_S, least_bytes_s=512.0, period_s=SILENCE_S)
    return HttpTransport(url, clock, Pace(clock, None), patience=patience)


def over_mqtt(
    port: int, prefix: str, clock: LeapingClock, name: str = "box1", *, silence_s: float = SILENCE_S
) -> MqttTransport:
    """Return the transport over a broker, with a test's patience: more of it where the server is honest."""
    settings = MqttSettings(host="127.0.0.1", port=port, topic_prefix=prefix, client_id=f"{prefix}-{name}")
    patience = MqttPatience(silence_s=silence_s, window_s=2 * silence_s)
    return MqttTransport(settings, Topics(prefix, name), clock, SystemRandom(), patience=patience)
