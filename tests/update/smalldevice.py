"""A device's whole release flow in one process: everything of it is real but the trial, which always passes, and the worker.

The repository is a real one in a folder, time is virtual, and the updater's thread is the real one. What is "run" was
opened as the agent opens it before a worker gets it: every byte of it is right, or it is not run.
"""

from __future__ import annotations

import hashlib
import json
import queue
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from agent.bundle.reader import open_bundle
from agent.clock import SystemClock
from agent.device.profiles.profile import Limits
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.update.fetching.store import BundleStore
from agent.update.notes import Health, WorkNote
from agent.update.record import Record, Slot
from agent.update.selection import Device
from agent.update.settings import ProbationSettings, UpdateSettings
from agent.update.slots import Slots
from agent.update.transports.folder import FolderTransport
from agent.update.transports.trying import Transports
from agent.update.updater import Updater
from agent.update.work import Work
from agent.updatesteps import UpdateSteps
from bundles.release.creation import create
from simulator.clock import SeededRandom, VirtualClock

MODEL, CHANNEL, VARIANT = "m", "stable", "fp32"
FACTORY = "factory"
STEP_S = 1.0
PATIENCE_STEPS = 3000
"""Virtual seconds: more than any back-off."""


class Shelf:
    """A release repository with bundles that do not compress, and the factory bundle."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.repository, _ = create(folder / "repo", folder / "keys", clock=SystemClock())
        self.folder = folder / "repo"
        self.root = self.folder / "metadata" / "1.root.json"
        self.digests: dict[str, str] = {}

    def build(self, version: str, size_bytes: int = 20_000) -> Path:
        """Write a bundle of random bytes in three blobs."""
        folder, chance = self._folder / version, random.Random(version)
        (folder / "blobs").mkdir(parents=True)

        def blob(content: bytes) -> dict[str, object]:
            sha256 = hashlib.sha256(content).hexdigest()
            (folder / "blobs" / sha256).write_bytes(content)
            return {"sha256": sha256, "size_bytes": len(content)}

        tensor = {"name": "x", "dtype": "float32", "shape": [1]}
        manifest = {
            "name": "tiny",
            "version": version,
            "input": {"kind": "image", "width": 4, "height": 4},
            "decoder": {"model_type": "yolox"},
            "variants": [
                {
                    "name": VARIANT,
                    "opset": 17,
                    "inputs": [tensor],
                    "outputs": [tensor],
                    "model": blob(chance.randbytes(size_bytes)),
                }
            ],
            "golden": [{"input": blob(chance.randbytes(500)), "expected": blob(b"{}")}],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
        self.digests[version] = open_bundle(folder).digest
        return folder

    def publish(self, version: str) -> None:
        """Build a bundle where it is new, and release it to everybody."""
        if version not in self.digests:
            self.repository.add(self.build(version))
        self.repository.publish(CHANNEL, "tiny", version)


class Passing:
    """Stands for agent.preparation.Preparer: whatever is whole passes its trial."""

    def variants_for(self, *_: object) -> frozenset[str]:
        return frozenset({VARIANT})

    def prepare(self, wanted, *_: object) -> SimpleNamespace:
        open_bundle(Path(wanted.bundle), variants={VARIANT})
        return SimpleNamespace(plan=SimpleNamespace(chosen=SimpleNamespace(provider="CPUExecutionProvider")))

    def device(self, _stop: object) -> tuple[None, SimpleNamespace]:
        return None, SimpleNamespace(limits_for=lambda _provider: Limits(memory_mb=1000))


class SmallDevice:
    """One start of a device. `stop` ends it; another one on the same state is the next start."""

    def __init__(
        self, state: Path, shelf: Shelf, *, reserve_bytes: int = -(1 << 40), source: Path | None = None
    ) -> None:
        self.state, self.shelf = state, shelf
        self.clock = VirtualClock(SystemClock().now())
        self.conditions = Conditions(self.clock)
        self.ran: list[str] = []
        """The version of everything that was given to the worker, in this order."""
        self.runs: str | None = None
        self.before: dict[str, Callable[[], None]] = {}
        """What happens to the device when a step begins: `check`, `fetch`, `try`, `switch`."""
        self._samples = 0
        self._notes: queue.SimpleQueue[WorkNote] = queue.SimpleQueue()
        self.store = BundleStore(state / "bundles", reserve_bytes=reserve_bytes)
        steps = UpdateSteps(
            state / "updates" / "trust", shelf.root, Device("small", frozenset()), {MODEL: CHANNEL},
            pipelines={MODEL: ()}, preparer=Passing(), store=self.store,
            transports=Transports([FolderTransport(source or shelf.folder)]), elsewhere=[], clock=self.clock,
        )  # fmt: skip
        self.work = Work(
            check=lambda *job: self._begin("check", steps.check, *job),
            fetch=lambda *job: self._begin("fetch", steps.fetch, *job),
            try_=lambda *job: self._begin("try", steps.try_, *job),
            collect=steps.collect,
            post=self._notes.put,
        )
        settings = UpdateSettings(
            root=shelf.root, hint_jitter_s=0, check_every_s=300, probation=ProbationSettings(seconds=2, samples=2)
        )
        self.updater = Updater(
            {MODEL: CHANNEL}, settings, state / "updates", factories=[MODEL], random=SeededRandom(), clock=self.clock,
            conditions=self.conditions, work=self.work, switch=self._switch,
        )  # fmt: skip
        self.updater.start()
        self._run(self.updater.active(MODEL), is_switch=False)

    # -- what the test asks ----------------------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """As the next start would find it."""
        return Slots(self.state / "updates").load(MODEL)

    def go_on_until(self, is_so: Callable[[], bool]) -> bool:
        """Let time pass until something is so; return whether it came to that."""
        for _ in range(PATIENCE_STEPS):
            if is_so():
                return True
            self._step()
        return is_so()

    def is_confirmed(self, version: str) -> bool:
        """Whether a version runs and has passed its probation, and everything was written down."""
        record = self.record
        active = record.active.version if record.active else FACTORY
        return (record.state, active, self.runs) == ("confirmed", version, version)

    def condition(self, name: str) -> str:
        """The text of a condition; empty where it is not set."""
        return next((each.text for each in self.conditions if each.name == name), "")

    def stop(self) -> None:
        """End it."""
        self.work.stop()
        self.work.join(20)

    # -- core ------------------------------------------------------------------------------------------------------

    def _begin(self, step: str, does, *job):
        self.before.pop(step, lambda: None)()
        return does(*job)

    def _step(self) -> None:
        """What core does in a second; the updater's thread has all the time that it needs."""
        self.updater.tick(self.clock.monotonic())
        while self.work._open or not self._notes.empty():
            try:
                self.updater.deal_with(self._notes.get(timeout=0.01))
            except queue.Empty:
                assert self.work._thread.is_alive()
        self._samples += 15
        self.updater.observe(MODEL, Health(self.clock.monotonic(), self._samples, 0, "", 0, None, None))
        self.updater.document()
        self.clock.advance(STEP_S)

    def _switch(self, model: str, slot: Slot | None) -> None:
        self.before.pop("switch", lambda: None)()
        self._run(slot, is_switch=True)

    def _run(self, slot: Slot | None, *, is_switch: bool) -> None:
        """As agent/app.py: verify, then run it, or say that it cannot run."""
        try:
            if slot is not None:
                bundle = open_bundle(self.store.path_of(slot.digest), variants={VARIANT})
                assert bundle.digest == slot.digest == self.shelf.digests[slot.version]
        except HoldfastError as error:
            self.updater.switch_failed(MODEL, str(error))
            return
        self.runs, self._samples = slot.version if slot else FACTORY, 0
        self.ran.append(self.runs)
        if is_switch:
            self.updater.switched(MODEL)
