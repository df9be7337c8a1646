"""The device's disk was damaged while the agent was off, or is full: it runs what is whole, and fetches the rest when it can."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.update.fetching.store import RESERVE_BYTES
from simulator import disk
from tests.conftest import missing
from tests.e2e.conftest import Holdfast
from tests.e2e.following import MODEL, Follower, Releases


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    releases = Releases(tmp_path_factory.mktemp("releases"))
    for version in ("0", "A", "B"):
        releases.add(version)
    return releases


@pytest.fixture(scope="module")
def at_b(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the state of a device that runs B, came from A, and knows the plans of both and of the factory bundle."""
    holdfast = Holdfast(tmp_path_factory.mktemp("device"))
    follower = make_follower(holdfast, releases)
    for version in ("0", "A", "B"):  # the first one is the same bundle as the operator's own
        releases.publish(version)
        follower.update_to(version)
    yield follower.state
    holdfast.end()


def make_follower(holdfast: Holdfast, releases: Releases, source: Path | None = None) -> Follower:
    return Follower(holdfast, releases, factory="0", transports=[str(source or releases.folder)])


def model_of(state: Path, digest: str) -> Path:
    manifest = json.loads((state / "bundles" / digest / "manifest.json").read_bytes())
    return state / "bundles" / "blobs" / manifest["variants"][0]["model"]["sha256"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_model(state: Path, releases: Releases, version: str) -> None:
    flip(model_of(state, releases.digests[version]))


def flip_manifest(state: Path, releases: Releases, version: str) -> None:
    flip(state / "bundles" / releases.digests[version] / "manifest.json")


def flip_records(state: Path, _releases: Releases) -> None:
    for name in (f"{MODEL}.json", f"{MODEL}.copy.json"):
        flip(state / "updates" / name)


def events(state: Path) -> list[str]:
    """Return which version each event is from, in order; no broker takes them, so they are all there."""
    with contextlib.closing(sqlite3.connect(state / "holdfast.db")) as connection:
        rows = connection.execute("SELECT payload FROM events ORDER BY seq").fetchall()
    return [json.loads(payload)["data"]["model"]["version"] for (payload,) in rows]


@pytest.mark.parametrize(
    ("damage", "then_runs"),
    [
        pytest.param(lambda *where: flip_model(*where, "B"), "A", id="active blob"),
        pytest.param(lambda *where: flip_manifest(*where, "B"), "A", id="active manifest"),
        pytest.param(lambda *where: (flip_model(*where, "B"), flip_model(*where, "A")), "0", id="active and previous"),
        pytest.param(flip_records, "0", id="both records"),
    ],
)
def test_damaged_bundle_does_not_run_and_comes_again(
    holdfast: Holdfast,
    releases: Releases,
    at_b: Path,
    tmp_path: Path,
    damage: Callable[[Path, Releases], None],
    then_runs: str,
) -> None:
    """Promise 2 for flash that rots: something that worked runs at once, and the release is taken up again by itself."""
    shutil.copytree(at_b, holdfast.state)
    damage(holdfast.state, releases)
    before = events(holdfast.state)
    far_away = make_follower(holdfast, releases, tmp_path)  # no release comes meanwhile
    far_away.start()
    far_away.wait_until(lambda: len(events(holdfast.state)) > len(before), "an event")
    far_away.stop()
    assert {*events(holdfast.state)[len(before) :]} == {then_runs}
    make_follower(holdfast, releases).update_to("B")
    assert_is_whole(holdfast.state, releases)


def assert_is_whole(state: Path, releases: Releases) -> None:
    """B's files are the very bytes that were released."""
    bundle = releases.bundle("B")
    for blob in (bundle / "blobs").iterdir():
        assert (state / "bundles" / "blobs" / blob.name).read_bytes() == blob.read_bytes()
    manifest = state / "bundles" / releases.digests["B"] / "manifest.json"
    assert manifest.read_bytes() == (bundle / "manifest.json").read_bytes()


def test_full_disk_delays_a_release_and_stops_nothing_else(holdfast: Holdfast, releases: Releases) -> None:
    """The old bundle infers on meanwhile; with room, the release comes in by itself."""
    if reason := disk.why_not():
        missing(reason)
    with disk.SmallDisk(holdfast.state, RESERVE_BYTES + (16 << 20)) as small:
        follower = make_follower(holdfast, releases)
        releases.publish("A")
        follower.update_to("A")
        releases.publish("B")
        small.fill(leave_bytes=1 << 20)
        before = events(holdfast.state)
        follower.start()
        follower.wait_for("fetching", "A")
        follower.wait_until(lambda: len(events(holdfast.state)) > len(before), "an event")
        assert events(holdfast.state)[-1] == "A"
        assert follower.standing() == ("fetching", "A")
        small.free()
        follower.wait_for("confirmed", "B")
        assert "gives up" not in follower.log()
        follower.stop()
        assert_is_whole(holdfast.state, releases)
