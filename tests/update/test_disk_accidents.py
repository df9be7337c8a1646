"""Full, read-only and damaged disks in the middle of an update: what runs goes on, and the update comes through in the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import atomicfile
from agent.update.fetching.download import Download
from agent.update.fetching.store import BundleStore
from agent.update.history import History
from agent.update.requests import Request
from simulator.disk import SmallDisk, why_not
from tests.conftest import missing
from tests.update.smalldevice import CHANNEL, FACTORY, MODEL, Shelf, SmallDevice

PAGE = 4096
"""What tmpfs gives out at once."""
A_WHILE_S = 120


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Return a repository with the releases A and B, and its state before B as `<folder>/before`."""
    folder = tmp_path_factory.mktemp("shelf")
    shelf = Shelf(folder)
    shelf.publish("A")
    shutil.copytree(shelf.folder, folder / "before")
    shelf.publish("B")
    return shelf


@pytest.fixture(scope="module")
def at_a(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the state of a device that runs A and has not heard of B."""
    state = tmp_path_factory.mktemp("at-a") / "state"
    (state / "updates").mkdir(parents=True)
    device = SmallDevice(state, shelf, source=shelf.folder.parent / "before")
    assert device.go_on_until(lambda: device.is_confirmed("A"))
    device.stop()
    return state


@pytest.fixture(scope="module")
def at_b(shelf: Shelf, at_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the state of a device that runs B and came from A."""
    state = Path(shutil.copytree(at_a, tmp_path_factory.mktemp("at-b") / "state"))
    device = SmallDevice(state, shelf)
    assert device.go_on_until(lambda: device.is_confirmed("B"))
    device.stop()
    return state


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if reason := why_not():
        missing(reason)
    with SmallDisk(tmp_path / "disk", 2 << 20) as disk:
        yield disk


def pass_time(device: SmallDevice, seconds: int = A_WHILE_S) -> None:
    until_s = device.clock.monotonic() + seconds
    device.go_on_until(lambda: device.clock.monotonic() >= until_s)


class Writes:
    """Counts what is about to be written; at the one that is asked for, something happens to the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at: int | None = None
        self.happens: Callable[[], None] = lambda: None
        for owner, name in (
            (atomicfile, "write"),
            (Download, "_write"),
            (History, "_write"),
            (BundleStore, "put_manifest"),
        ):
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name)))

    def _counting(self, write: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object) -> object:
            self.count += 1
            if self.count == self.at:
                self.happens()
            return write(*arguments)

        return counting


def suffer(shelf: Shelf, state: Path, disk: SmallDisk) -> bool:
    """Let a device work on a disk that is full or becomes so, cut its power, give it room; return whether it got stuck."""
    device = SmallDevice(state, shelf)
    pass_time(device)
    is_stuck = not device.is_confirmed("B")
    if is_stuck:
        assert device.runs in {"A", "B"}
        said = device.condition(f"update-failed/{MODEL}") + device.condition("no-update-source")
        assert "No space left" in said or device.runs == "B", f"nothing says why: {device.record}"
        assert "the network" not in said
    device.stop()
    again = SmallDevice(state, shelf)
    assert again.runs in {"A", "B"}
    disk.free()
    assert again.go_on_until(lambda: again.is_confirmed("B")), again.record
    assert {*device.ran, *again.ran} <= {"A", "B"}
    assert not again.conditions, [each.text for each in again.conditions]
    again.stop()
    return is_stuck


def test_disk_that_is_full_from_any_write_on_stops_nothing_and_is_said(
    shelf: Shelf, at_a: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write of an update is once the first that finds no room."""
    writes = Writes(monkeypatch)
    total, stuck = 1000, 0
    number = 0
    while number < total:
        number += 1
        state = Path(shutil.copytree(at_a, disk.folder / "state"))
        writes.count, writes.at, writes.happens = 0, number, disk.fill
        stuck += suffer(shelf, state, disk)
        total = min(total, writes.count) if writes.count < number else total
        shutil.rmtree(state)
    assert number > 20, f"an update has {number} writes?"
    assert stuck > number // 2


@pytest.mark.parametrize("pages", range(0, 40, 2))
def test_disk_with_a_few_pages_left_stops_nothing_and_is_said(
    shelf: Shelf, at_a: Path, disk: SmallDisk, pages: int
) -> None:
    """Writes succeed that are small, and are cut short where they are not."""
    state = Path(shutil.copytree(at_a, disk.folder / "state"))
    disk.fill(leave_bytes=pages * PAGE)
    suffer(shelf, state, disk)


def test_update_that_would_fill_the_disk_is_not_begun_and_takes_what_others_left(
    shelf: Shelf, at_a: Path, disk: SmallDisk
) -> None:
    """The outbox needs room too; a half download of an abandoned release does not."""
    state = Path(shutil.copytree(at_a, disk.folder / "state"))
    device = SmallDevice(state, shelf, reserve_bytes=256 << 10)
    disk.fill(leave_bytes=256 << 10)
    pass_time(device)
    assert "too full for the update" in device.condition(f"update-failed/{MODEL}")
    assert device.ran == ["A"]
    disk.free()
    device.store.partial_path("a" * 64).write_bytes(bytes(64 << 10))
    disk.fill(leave_bytes=256 << 10)
    assert device.go_on_until(lambda: device.is_confirmed("B"))
    device.stop()


@pytest.mark.parametrize("step", ["check", "fetch", "try", "switch"])
def test_disk_that_turns_read_only_in_the_middle_delays_the_update(
    shelf: Shelf, at_a: Path, disk: SmallDisk, step: str
) -> None:
    """ext4 does so after an error. The agent infers on, also after a restart."""
    state = Path(shutil.copytree(at_a, disk.folder / "state"))
    device = SmallDevice(state, shelf)
    device.before[step] = disk.make_read_only
    pass_time(device)
    assert not device.before, f"there was no {step}"
    assert device.runs == ("B" if step == "switch" else "A")
    device.stop()
    again = SmallDevice(state, shelf)
    pass_time(again)
    assert again.runs in {"A", "B"}
    disk.make_writable()
    assert again.go_on_until(lambda: again.is_confirmed("B"))
    assert {*device.ran, *again.ran} == {"A", "B"}
    again.stop()


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def blob_of(state: Path, digest: str) -> Path:
    manifest = json.loads((state / "bundles" / digest / "manifest.json").read_bytes())
    return state / "bundles" / "blobs" / manifest["variants"][0]["model"]["sha256"]


def manifest_of(state: Path, digest: str) -> Path:
    return state / "bundles" / digest / "manifest.json"


Damage = Callable[[Path, dict[str, str]], None]
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    # what is done to the disk, and what then runs, from the start to the end
    "record": (lambda state, _: flip(state / "updates/m.json"), ["B"]),
    "record's copy": (lambda state, _: flip(state / "updates/m.copy.json"), ["B"]),
    "both records": (
        lambda state, _: (flip(state / "updates/m.json"), cut(state / "updates/m.copy.json")),
        [FACTORY, "B"],
    ),
    "active blob": (lambda state, digests: flip(blob_of(state, digests["B"])), ["A", "B"]),
    "active blob short": (lambda state, digests: cut(blob_of(state, digests["B"])), ["A", "B"]),
    "active blob gone": (lambda state, digests: blob_of(state, digests["B"]).unlink(), ["A", "B"]),
    "active manifest": (lambda state, digests: flip(manifest_of(state, digests["B"])), ["A", "B"]),
    "active manifest gone": (lambda state, digests: manifest_of(state, digests["B"]).unlink(), ["A", "B"]),
    "active and previous": (
        lambda state, digests: (flip(blob_of(state, digests["B"])), flip(manifest_of(state, digests["A"]))),
        [FACTORY, "B"],
    ),
    "all bundles gone": (lambda state, _: shutil.rmtree(state / "bundles"), [FACTORY, "B"]),
    "high-water mark": (lambda state, _: flip(state / "updates/trust/high-water.json"), ["B"]),
    "high-water mark short": (lambda state, _: cut(state / "updates/trust/high-water.json"), ["B"]),
    "timestamp": (lambda state, _: cut(state / "updates/trust/metadata/timestamp.json"), ["B"]),
    "snapshot": (lambda state, _: flip(state / "updates/trust/metadata/snapshot.json"), ["B"]),
    "targets": (lambda state, _: flip(state / "updates/trust/metadata/targets.json"), ["B"]),
    "root": (lambda state, _: flip(state / "updates/trust/metadata/root.json"), ["B"]),
    "all metadata": (lambda state, _: shutil.rmtree(state / "updates/trust/metadata"), ["B"]),
    "documents": (lambda state, _: [flip(each) for each in (state / "updates/trust/targets").iterdir()], ["B"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file_costs_a_download_at_most(shelf: Shelf, at_b: Path, tmp_path: Path, name: str) -> None:
    """Flash rots. What runs is whole or does not run, the older repository is refused still, and B runs in the end."""
    damage, expected = DAMAGES[name]
    for source in ("an older repository", "the honest one"):
        state = Path(shutil.copytree(at_b, tmp_path / source))
        damage(state, shelf.digests)
        if source == "an older repository":
            replayed = SmallDevice(state, shelf, source=shelf.folder.parent / "before")
            pass_time(replayed)
            assert replayed.ran == expected[:1], "the older repository had a say"
            assert "updates-untrusted" in {each.name for each in replayed.conditions}
            replayed.stop()
        device = SmallDevice(state, shelf)
        assert device.go_on_until(lambda device=device: device.is_confirmed("B"))
        pass_time(device)
        assert device.ran == expected
        device.store.verify(shelf.digests["B"], {"fp32"})
        device.stop()


def test_mark_that_was_damaged_is_learnt_again_before_the_metadata_is_lost_too(
    shelf: Shelf, at_b: Path, tmp_path: Path
) -> None:
    """Each of the two stands in for the other; months may lie between two bad sectors."""
    state = Path(shutil.copytree(at_b, tmp_path / "state"))
    flip(state / "updates/trust/high-water.json")
    device = SmallDevice(state, shelf, source=shelf.folder.parent / "before")
    pass_time(device)
    device.stop()
    shutil.rmtree(state / "updates/trust/metadata")
    shutil.rmtree(state / "updates/trust/targets")
    again = SmallDevice(state, shelf, source=shelf.folder.parent / "before")
    pass_time(again)
    assert "updates-untrusted" in {each.name for each in again.conditions}
    again.stop()


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.write_bytes(b"no database" * 1000)])
def test_damaged_history_holds_no_update_up(
    shelf: Shelf, at_a: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """It is for people; what happened from now on is there."""
    state = Path(shutil.copytree(at_a, tmp_path / "state"))
    damage(state / "updates/history.db")
    device = SmallDevice(state, shelf)
    assert device.go_on_until(lambda: device.is_confirmed("B"))
    device.stop()
    assert [step.after for step in History(state / "updates/history.db").newest(2)] == ["confirmed", "probation"]


def test_going_back_does_not_wait_for_a_disk_and_is_written_down_when_it_can_be(
    shelf: Shelf, at_b: Path, disk: SmallDisk
) -> None:
    """A bad bundle on a read-only disk must stop running; after the next start it must not run again."""
    state = Path(shutil.copytree(at_b, disk.folder / "state"))
    device = SmallDevice(state, shelf)
    pass_time(device)
    disk.make_read_only()
    device.updater.request(Request(verb="rollback", reason="it misses parcels"))
    assert device.ran == ["B", "A"]
    pass_time(device)
    assert device.runs == "A"
    disk.make_writable()
    pass_time(device)
    device.stop()
    again = SmallDevice(state, shelf)
    pass_time(again)
    assert again.ran == ["A"]
    again.stop()


def test_denied_release_stays_denied_when_one_copy_of_the_record_is_damaged(
    shelf: Shelf, at_b: Path, tmp_path: Path
) -> None:
    """An older copy would not know it, and the bad release would run again."""
    state = Path(shutil.copytree(at_b, tmp_path / "state"))
    device = SmallDevice(state, shelf)
    device.updater.request(Request(verb="rollback", reason="it misses parcels"))
    assert device.go_on_until(lambda: device.record.state == "rolled_back")
    device.stop()
    for name in ("m.json", "m.copy.json"):
        flip(state / "updates" / name)
        again = SmallDevice(state, shelf)
        pass_time(again, 400)
        assert again.ran == ["A"]
        assert [each.release for each in again.record.denied] == [2]
        again.stop()


@pytest.mark.parametrize("size_bytes", [0, 1000, 20_000, 50_000])
def test_garbage_in_a_half_download_is_fetched_over(shelf: Shelf, at_a: Path, tmp_path: Path, size_bytes: int) -> None:
    """Which chunks are there is kept nowhere: each one is hashed again."""
    state = Path(shutil.copytree(at_a, tmp_path / "state"))
    manifest = json.loads((shelf.folder.parent / "B" / "manifest.json").read_bytes())
    partial = state / "bundles" / "partial" / manifest["variants"][0]["model"]["sha256"]
    device = SmallDevice(state, shelf)
    device.before["fetch"] = lambda: partial.write_bytes(bytes(size_bytes))
    assert device.go_on_until(lambda: device.is_confirmed("B"))
    assert not partial.exists()
    device.stop()


def test_channel_of_the_tests_is_what_the_marks_hold(at_b: Path) -> None:
    """The tests above lean on it."""
    marks = json.loads((at_b / "updates/trust/high-water.json").read_bytes())
    assert marks["releases"] == {CHANNEL: 2}
