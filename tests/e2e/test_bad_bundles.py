"""Bundles that are correctly signed and bad: a real agent meets them one after another and goes on with the good one.

No signature protects from them. What the golden samples show is refused in a trial, which cannot hurt what runs; what only
live pictures show is taken back in probation. Nothing is tried twice under the same release number, no event is lost, and
each event names the bundle that it is from.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.update.documents import Form, TransferDocument
from bundles.release import repository as releases
from bundles.release.chunks import chunk_hashes
from simulator.badbundles import Fault, decompression_bomb
from simulator.broker import Mosquitto
from tests.e2e.releasing import BRIGHT, Releasing, digest_of

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
ON_X86 = platform.machine().lower() in {"x86_64", "amd64"}
BACK_WITHIN_S = 10.0
MAX_STARTS = 3
BOMB_BYTES = 2_000_000_000

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
TAKEN_BACK: dict[Fault, str] = {
    "nan": "invalid|no valid answer|NaN",
    "wrong shape": "invalid|expected shape",
    "slow": "p99 of inference is",
    "memory": "MiB and may take 512 MiB",
    "hang": "stalled",
    **({"crash": "SIGFPE"} if ON_X86 else {}),
}


def says(reason: str, texts: str) -> bool:
    """Whether one of the texts is in a reason."""
    return any(text in reason for text in texts.split("|"))


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
        began = datetime.now(UTC)  # noqa: DTZ  aware
        refused = {}
        for fault, texts in REFUSED.items():
            release = world.publish(f"bad.{fault.replace(' ', '-')}", fault)
            reason = world.until_denied(release, within_s=240.0)
            assert says(reason, texts), f"{fault}: {reason}"
            refused[release] = fault
        refused[_publish_a_bomb(world, monkeypatch)] = "bomb"
        _publish_what_is_missing(world)
        for release, fault in refused.items():
            after = [step.after for step in world.steps(release)]
            assert after[-1] == "refused", fault
            assert "switching" not in after, fault
            assert after.count("trying") <= 1, fault
        world.publish("3.0")
        world.until_confirmed("3.0")
        assert worker.is_running()
        assert worker == world.worker
        assert not world.log_of("worker lamp is killed")
        _require_steady(world, good, began)
        _require_nothing_lost(world)


def _publish_a_bomb(world: Releasing, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sign a release in which a blob of a few kilobytes travels as a frame that unpacks to gigabytes."""
    bomb = decompression_bomb(BOMB_BYTES)
    make_transfer = releases.make_transfer

    def make_bomb(bundle: Any, previous: Any, blobs: Path) -> bytes:
        document = TransferDocument.model_validate_json(make_transfer(bundle, previous, blobs))
        sha256 = __import__("hashlib").sha256(bomb).hexdigest()
        (blobs / sha256).write_bytes(bomb)
        chunks = tuple(chunk_hashes(blobs / sha256))
        form = Form(kind="zstd", sha256=sha256, size_bytes=len(bomb), chunks=chunks)
        model = bundle.manifest.variants[0].model.sha256
        return document.model_copy(update={"blobs": {**document.blobs, model: (form,)}}).model_dump_json().encode()

    with monkeypatch.context() as patch:
        patch.setattr(releases, "make_transfer", make_bomb)
        release = world.publish("bad.bomb")
    reason = world.until_denied(release)
    assert "no form of a blob gave it" in reason
    kept = sum(path.stat().st_size for path in world.paths.bundles.rglob("*") if path.is_file())
    assert kept < 5_000_000, "the bomb must not have gone off on the disk"
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
    world.until(lambda: "update-failed/lamp" in world.conditions, "the missing blob is seen")
    assert "does not arrive" in world.conditions["update-failed/lamp"]
    assert world.report["state"] == "fetching"
    assert world.report["candidate"]["release"] == release


def _require_steady(world: Releasing, good: str, began: datetime) -> None:
    """Assert that the good bundle spoke all the time: the light changes four times a second."""
    times = [datetime.fromisoformat(each["time"]) for each in world.consumer.account.events if digest_of(each) == good]
    times = [at for at in times if at > began]
    longest = max(later - earlier for earlier, later in zip(times, times[1:], strict=False))
    assert longest < timedelta(seconds=5), f"nothing was seen for {longest}"


def _require_nothing_lost(world: Releasing) -> None:
    """Assert that every event that was recorded came, in order, and names a bundle that was signed."""
    findings, account = world.end_audit(), world.consumer.account
    came = {each["id"] for each in account.events}
    waiting = {event_id for seq, _, event_id in findings.recorded if seq in findings.waiting}
    assert {event_id for _, _, event_id in findings.recorded} <= came | waiting
    assert findings.lost == 0
    assert account.out_of_order == account.clashes == account.altered == 0
    known = {digest: version for version, digest in world.digests.items()}
    for event in account.events:
        assert known[digest_of(event)] == event["data"]["model"]["version"]


@pytest.mark.parametrize("fault", TAKEN_BACK)
def test_what_only_live_pictures_show_is_taken_back(holdfast: Holdfast, mosquitto: Mosquitto, fault: Fault) -> None:
    """It passes its trial and runs; seconds after it is found out the good one runs again, and it never comes back."""
    with Releasing(holdfast, mosquitto) as world:
        world.begin_audit()
        world.publish("2.0")
        world.until_confirmed("2.0")
        release = world.publish("bad", fault, "live", memory_bytes=700_000_000)
        reason = world.until_denied(release)
        assert says(reason, TAKEN_BACK[fault]), reason
        detected = min(
            [datetime.fromisoformat(step.at) for step in world.steps(release) if step.after == "rolled_back"]
            + [at for at, _ in world.log_of("worker lamp is killed")]
            + [at for at, _ in world.log_of("worker lamp: the worker")]
        )
        back = world.until_speaks(world.digests["2.0"], after=detected)
        assert back - detected <= timedelta(seconds=BACK_WITHIN_S)
        assert world.report["version"] == "2.0"
        assert world.report["state"] == "rolled_back"
        starts = len(world.log_of(f"works with bundle {world.digests['bad'][:12]}")) + len(world.log_of("attempt "))
        assert 1 <= starts <= MAX_STARTS
        _require_no_second_try(world, release)
        again = world.assign("bad", percent=99)
        assert again > release
        world.until_denied(again)
        assert world.report["version"] == "2.0"
        _require_nothing_lost(world)


def _require_no_second_try(world: Releasing, release: int) -> None:
    """Let the device check again, and start again: what is denied stays denied."""
    before = world.steps(release)
    version = world.report
    world.repository.refresh()
    world.check()
    world.until(lambda: world.log_of("an operator asks for update check"), "the check")
    world.stop()
    world.run()
    world.check()
    world.until_speaks(world.digests["2.0"])
    assert world.steps(release) == before
    assert world.report["version"] == version["version"]
