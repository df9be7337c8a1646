"""Power cuts at every point of an update: the agent's own system calls are recorded once, then every disk is built that may
be left.

Each part of the agent is opened on each different disk, in this process; the whole agent is started on a few (all of them
with `HOLDFAST_SOAK=1`) and goes on to the end of the update. What it had *said* by then binds it: it logs a step once the
record of it is durable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.bundle.reader import open_bundle
from agent.clock import SystemClock, SystemRandom
from agent.device.planning.planstore import PlanStore
from agent.errors import UntrustedError
from agent.health.conditions import Conditions
from agent.outbox.store import EventStore
from agent.paths import StatePaths, hold_state, open_state
from agent.update.fetching.store import BundleStore
from agent.update.history import History, Step
from agent.update.settings import UpdateSettings
from agent.update.slots import Slots
from agent.update.transports.folder import FolderTransport
from agent.update.updater import Updater
from agent.update.verification.checking import read_channel
from agent.update.verification.trust import Trust
from simulator.crashpoints import KINDS, Image, Recorder, Recording
from tests.e2e.conftest import Holdfast
from tests.e2e.following import CHANNEL, MODEL, VARIANT, Follower, Releases

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
pytestmark = pytest.mark.timeout(4 * 3600 if IS_SOAK else 300)
STARTS = 8
"""Of the whole agent, in a short run."""
STEPS = ("confirmed", "fetching", "staged", "trying", "switching", "probation")
"""Of the update, in their order; then it is confirmed."""


@dataclass(frozen=True)
class Cut:
    """One recorded update from A to B, and the repository as it was before A, with A, and with B."""

    recording: Recording
    releases: Releases
    repositories: dict[str, Path]
    follower: Follower


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    """Bring a real agent to A, then record how it takes B up; its log goes to standard output, as its promises."""
    if shutil.which("strace") is None:
        from tests.conftest import missing

        missing("the program strace")
    folder = tmp_path_factory.mktemp("cut")
    releases, repositories = Releases(folder), {}
    for version in ("0", "A", "B"):
        releases.add(version)
    holdfast = Holdfast(folder)
    follower = Follower(holdfast, releases, factory="0", transports=[str(releases.folder)])
    for name, version in (("nothing", ""), ("A", "A"), ("B", "B")):
        if version:
            releases.publish(version)
        repositories[name] = Path(shutil.copytree(releases.folder, folder / f"repository with {name}"))
        if version == "A":
            follower.update_to("A")
    recording = _record(follower)
    yield Cut(recording, releases, repositories, follower)
    holdfast.end()


def _record(follower: Follower) -> Recording:
    speaking = "import sys; sys.stderr = sys.stdout; from agent.__main__ import main; main()"
    command = [sys.executable, "-c", speaking, "run", "--config", str(follower.config)]
    with Recorder(follower.state) as recorder:
        with (follower.config.parent / "said").open("wb") as said:
            follower.process = subprocess.Popen(recorder.command(command), stdout=said)
        try:
            follower.wait_for("confirmed", "B", 150)
            follower.stop()
        finally:
            follower.cut_power()
        return recorder.recording()


# -- what was promised by then -----------------------------------------------------------------------------------------


def steps_said(image: Image) -> list[str]:
    """Return the steps of the update that the agent had logged."""
    lines = [json.loads(line) for line in image.said.splitlines(keepends=True) if line.endswith(b"\n")]
    return [line["state"] for line in lines if line.get("event") == "update"]


def progress_said(image: Image) -> int:
    """Return how far the update had come, in `STEPS`, for all that the agent had said; the end is `len(STEPS)`."""
    said = steps_said(image)
    return len(STEPS) if "confirmed" in said else max((STEPS.index(step) for step in said), default=0)


# -- each part, on each disk that is different for it ---------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The agent's parts as they are opened at a start."""

    cut: Cut
    folder: Path

    @property
    def paths(self) -> StatePaths:
        return StatePaths(self.folder)

    def slots_and_bundles(self, progress: int) -> str:
        """The record says A or B, whole in the store; return which."""
        digests = self.cut.releases.digests
        record = Slots(self.paths.updates).load(MODEL)
        assert record.active is not None, "neither A nor B, but the factory bundle"
        step = len(STEPS) if record.state == "confirmed" and record.active.release == 2 else STEPS.index(record.state)
        assert step >= progress, f"{record.state} after {[*STEPS, 'the end'][progress]} had been said"
        assert record.active.digest == digests["B" if step >= STEPS.index("switching") else "A"]
        assert record.denied == ()
        store = BundleStore(self.paths.bundles)
        assert record.active.digest in store.bundles()
        for digest in store.bundles():
            store.verify(digest, {VARIANT})
            assert open_bundle(store.path_of(digest), variants={VARIANT}).digest == digest
        if record.previous:
            assert record.previous.digest in store.bundles(), "no way back"
        return self._start_updater(record.active.digest)

    def _start_updater(self, expected: str) -> str:
        idle = Idle()
        settings = UpdateSettings(root=self.cut.releases.root)
        updater = Updater(
            {MODEL: CHANNEL}, settings, self.paths.updates, factories=[MODEL], random=SystemRandom(), clock=SystemClock(),
            conditions=Conditions(SystemClock()), work=idle, switch=lambda *_: None,
        )  # fmt: skip
        updater.start()
        active = updater.active(MODEL)
        assert active is not None
        assert active.digest == expected, "a start alone changed what runs"
        assert active.digest in idle.kept or not idle.kept, "what runs was to be removed"
        return active.version

    def trust(self, progress: int) -> None:
        """What was trusted is, older repositories are refused, and the honest one is taken."""
        if progress:
            marks = self._trust("B").high_water
            assert marks.release(CHANNEL) >= 2
            assert marks.version("timestamp") >= self._version("B")
        if state := self._trust("B").state():
            marks = self._trust("B").high_water
            assert all(marks.version(role) >= version for role, version in state.versions.items()), "a mark is behind"
        is_at_b = state is not None and state.timestamp_version == self._version("B")
        older = ["nothing", *(["A"] if progress or is_at_b else [])]
        self._refuse(older)
        without_metadata = Start(self.cut, Path(shutil.copytree(self.folder, f"{self.folder} without metadata")))
        shutil.rmtree(without_metadata.paths.updates / "trust" / "metadata")
        without_metadata._refuse(older)  # the marks alone
        assert self._read("B") == 2
        self._refuse(("nothing", "A"))

    def _refuse(self, repositories: Iterable[str]) -> None:
        for repository in repositories:
            with pytest.raises(UntrustedError):
                self._read(repository)

    def _trust(self, repository: str) -> Trust:
        transport, never = FolderTransport(self.cut.repositories[repository]), threading.Event()
        return Trust(
            self.paths.updates / "trust",
            self.cut.releases.root.read_bytes(),
            lambda path, limit_bytes: transport.read(path, limit_bytes, never),
            SystemClock(),
        )

    def _read(self, repository: str) -> int:
        trust = self._trust(repository)
        return read_channel(trust, trust.high_water, CHANNEL).release

    def _version(self, repository: str) -> int:
        content = json.loads((self.cut.repositories[repository] / "metadata" / "timestamp.json").read_bytes())
        return int(content["signed"]["version"])

    def events(self, _progress: int) -> None:
        """The outbox opens, sound, and gives numbers."""
        with hold_state(open_state(self.folder)):
            store = EventStore.open(self.paths, SystemClock())
            assert store.recovery is None, "the database was found damaged"
            store.close()

    def history(self, _progress: int) -> None:
        """It opens, and takes a row."""
        history = History(self.paths.updates / "history.db")
        assert {step.after for step in history.newest()} <= {*STEPS, "idle"}
        history.add(Step("now", MODEL, 2, "B", "fetching", "staged", "a test"))
        assert history.newest(1)[0].reason == "a test"
        assert not list(self.paths.updates.glob("*.damaged"))

    def plans(self, _progress: int) -> None:
        """Each is whole, or not there."""
        store = PlanStore(self.paths.plans)
        for path in self.paths.plans.glob("[!.]*.json"):
            assert store.load(path.stem) is not None


class Idle:
    """The updater's thread, which does nothing."""

    def __init__(self) -> None:
        self.kept: frozenset[str] = frozenset()

    def collect(self, keep: frozenset[str]) -> None:
        self.kept = keep

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


PARTS: dict[str, tuple[Callable[[Start, int], object], Callable[[str], bool]]] = {
    # the check, and which files it reads
    "slots and bundles": (
        Start.slots_and_bundles,
        lambda path: path.startswith((f"updates/{MODEL}.", f"updates/.{MODEL}.", "bundles/")),
    ),
    "trust": (Start.trust, lambda path: path.startswith("updates/trust/")),
    "events": (Start.events, lambda path: path.startswith(("holdfast.db", "sequence", ".sequence"))),
    "history": (Start.history, lambda path: path.startswith("updates/history")),
    "plans": (Start.plans, lambda path: path.startswith("plans/")),
}


def each_different(images: Iterable[Image], reads: Callable[[str], bool]) -> Iterator[tuple[Image, int]]:
    """Give every disk that is different in what is read, that part of it, with the most that any such disk had promised."""
    found: dict[object, tuple[Image, int]] = {}
    for image in images:
        files = {path: content for path, content in image.files.items() if reads(path)}
        folders = [
            path for path in image.folders if reads(f"{path}/") or any(each.startswith(f"{path}/") for each in files)
        ]
        key, promised = (frozenset(files.items()), frozenset(folders)), progress_said(image)
        if key not in found or promised > found[key][1]:
            found[key] = replace(image, files=files, folders=folders), promised
    yield from found.values()


def test_an_update_has_hundreds_of_points(cut: Cut, printer: Callable[..., None]) -> None:
    """A recording that misses what the agent writes would make every test below pass."""
    counts = Counter(image.kind for image in cut.recording.images())
    said = {step for image in cut.recording.images(("kept",)) for step in steps_said(image)}
    printer("", f"{cut.recording.points()} points of an update, {counts.total()} disks: {dict(counts)}")
    assert cut.recording.status == 0
    assert said == set(STEPS)
    assert cut.recording.points() >= 200
    assert set(counts) == set(KINDS)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_opens_on_every_disk_and_keeps_what_it_said(
    cut: Cut, part: str, tmp_path: Path, printer: Callable[..., None]
) -> None:
    """Never bricked: exactly A or exactly B runs, every byte of it right, and no older repository is believed."""
    check, reads = PARTS[part]
    disks = list(each_different(cut.recording.images(), reads))
    for number, (image, progress) in enumerate(disks):
        folder = tmp_path / str(number)
        image.write_to(folder)
        try:
            check(Start(cut, folder), progress)
        except BaseException as error:
            error.add_note(f"on the disk `{image.label}`, after the agent had said {steps_said(image)}; see {folder}")
            raise
        shutil.rmtree(folder)
    printer("", f"{part}: {len(disks)} different disks")


def test_the_agent_starts_on_any_disk_and_finishes_the_update(
    cut: Cut, tmp_path: Path, printer: Callable[..., None]
) -> None:
    """All parts together, as the device's own first minute after the power is back."""
    images = list(cut.recording.images())
    chosen = images if IS_SOAK else [images[len(images) * number // STARTS] for number in range(STARTS)]
    for number, image in enumerate(chosen):
        folder = tmp_path / str(number)
        image.write_to(folder / "state")
        holdfast = Holdfast(folder)
        follower = Follower(holdfast, cut.releases, factory="0", transports=[str(cut.releases.folder)])
        try:
            _finish(follower, progress_said(image), cut)
        except BaseException as error:
            error.add_note(f"on the disk `{image.label}`, after the agent had said {steps_said(image)}; see {folder}")
            raise
        finally:
            holdfast.end()
        shutil.rmtree(folder)
        if number % 50 == 49:
            printer(f"  the agent finished the update from {number + 1} of {len(chosen)} disks")
    printer("", f"the agent finished the update from {len(chosen)} of {len(images)} disks")


def _finish(follower: Follower, progress: int, cut: Cut) -> None:
    follower.update_to("B")
    log = follower.log()
    assert "cannot run" not in log
    assert ".damaged" not in log
    if progress == len(STEPS):
        assert "update" not in {json.loads(line).get("event") for line in log.splitlines()}, "it was confirmed already"
    BundleStore(StatePaths(follower.state).bundles).verify(cut.releases.digests["B"], {VARIANT})
