"""Bundles that are correctly signed and bad: a real agent meets them one after another, and refuses each in its trial.

No signature protects from them; that nothing of them reaches the running worker does. `test_bad_live_bundles.py` has those
that pass their trial.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.update.documents import Form, TransferDocument
from bundles.release import repository as releases
from bundles.release.chunks import chunk_hashes
from simulator.badbundles import Fault, decompression_bomb
from simulator.broker import Mosquitto
from tests.e2e.releasing import Releasing, digest_of, disk_bytes, says

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
ON_X86 = platform.machine().lower() in {"x86_64", "amd64"}
BOMB_BYTES = 2_000_000_000
MOST_DISK_BYTES = 5_000_000
"""Of a device that holds a few bundles of 20 kB."""

REFUSED: dict[Fault, str] = {
    "nan": "NaN",
    "wrong shape": "expected shape",
    "other shape": "the manifest pins",
    "slow": "the limit is 25 ms",
    "memory": "memory|failed while running",
    "wrong answers": "agrees with the golden answers by 0.000",
    **({"crash at load": "SIGSEGV", "crash": "SIGFPE"} if ON_X86 else {}),
    **({"hang": "gave no answer within 60 s"} if IS_SOAK else {}),
}
"""By fault: what the reason says."""


def test_what_a_trial_shows_never_reaches_the_running_one(
    holdfast: Holdfast, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One agent, a good release, then every bad one: the worker that runs the good one is the same process to the end."""
    with Releasing(holdfast, mosquitto) as world:
        world.begin_audit()
        world.publish("2.0")
        world.until_confirmed("2.0")
        worker, good = world.worker, world.digests["2.0"]
        assert worker is not None
        began = datetime.now(UTC)
        refused = {}
        for fault, texts in REFUSED.items():
            release = world.publish(f"bad.{fault.replace(' ', '-')}", fault)
            reason = world.until_denied(release, within_s=240.0)
            assert says(reason, texts), f"{fault}: {reason}"
            refused[release] = fault
        _publish_what_is_missing(world)
        _require_steady(world, good, began)
        world.publish("3.0")
        world.until_confirmed("3.0")
        refused[_publish_a_bomb(world, monkeypatch)] = "bomb"
        for release, fault in refused.items():
            after = [step.after for step in world.steps(release)]
            assert after[-1] == "refused", fault
            assert "switching" not in after, fault
            assert after.count("trying") <= 1, fault
        world.until_speaks(world.digests["3.0"])
        assert worker.is_running()
        assert worker == world.worker
        assert not world.log_of("worker lamp is killed")
        world.require_nothing_lost()


def _publish_a_bomb(world: Releasing, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sign a release in which a blob of a few kilobytes travels as a frame that unpacks to gigabytes."""
    bomb = decompression_bomb(BOMB_BYTES)
    make_transfer = releases.make_transfer

    def make_bomb(bundle: Any, previous: Any, blobs: Path) -> bytes:
        document = TransferDocument.model_validate_json(make_transfer(bundle, previous, blobs))
        sha256 = hashlib.sha256(bomb).hexdigest()
        (blobs / sha256).write_bytes(bomb)
        chunks = chunk_hashes(blobs / sha256, document.chunk_bytes)
        form = Form(kind="zstd", sha256=sha256, size_bytes=len(bomb), chunks=chunks)
        model = bundle.manifest.variants[0].model.sha256
        return document.model_copy(update={"blobs": {**document.blobs, model: (form,)}}).model_dump_json().encode()

    with monkeypatch.context() as patch:
        patch.setattr(releases, "make_transfer", make_bomb)
        release = world.publish("bad.bomb")
    kept: list[int] = []

    def is_over() -> bool:
        kept.append(disk_bytes(world.paths.bundles))
        return any(each["release"] == release for each in world.report["denied"])

    world.until(is_over, "the bomb is refused")
    assert "no form of a blob gave it" in world.until_denied(release)
    assert max(kept) < MOST_DISK_BYTES, "the bomb went off on the disk"
    return release


def _publish_what_is_missing(world: Releasing) -> None:
    """A blob that is signed and not there may still be uploaded: it is waited for, seen, and passed over by a newer release."""
    folder = world.build("bad.missing")
    blobs = world.folder / "repo" / "blobs"
    before = set(blobs.iterdir())
    world.repository.add(folder)
    for path in set(blobs.iterdir()) - before:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releases.Publication, "_require_blobs", lambda *_: None)
        release = world.assign("bad.missing")
    late = "The update does not arrive"
    world.until(lambda: late in world.conditions.get("update-failed/lamp", ""), "the missing blob is seen")
    assert world.report["state"] == "fetching"
    assert world.report["candidate"]["release"] == release


def _require_steady(world: Releasing, good: str, began: datetime) -> None:
    """Assert that the good bundle spoke all the time: the light changes four times a second."""
    times = [datetime.fromisoformat(each["time"]) for each in world.consumer.account.events if digest_of(each) == good]
    times = [at for at in times if at > began]
    longest = max(later - earlier for earlier, later in itertools.pairwise(times))
    assert longest < timedelta(seconds=5), f"nothing was seen for {longest}"
