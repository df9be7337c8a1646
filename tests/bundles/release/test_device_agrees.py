"""The device's own trust accepts what the operator's side writes."""

from __future__ import annotations

from pathlib import Path

from agent.errors import UnavailableError
from agent.update.documents import MAX_CHANNEL_BYTES, ChannelDocument, channel_path
from agent.update.transports.transport import NotThereError
from agent.update.verification.trust import Trust
from bundles.release.repository import Repository
from bundles.release.rotation import replace_key


def test_device_follows_a_repository_through_its_life(filled: Repository, tmp_path: Path, clock):
    """Publish, promote, roll back, rotate every key: one device, one state folder, no root.json but the first."""

    def read(path: str, limit_bytes: int) -> bytes:
        file = filled.folder / path
        if not file.is_file():
            raise NotThereError(f"there is no {path}")
        content = file.read_bytes()
        if len(content) > limit_bytes:
            raise UnavailableError("too large")
        return content

    root = (filled.folder / "metadata" / "1.root.json").read_bytes()
    trust = Trust(tmp_path / "device", root, read, clock)

    def channel() -> ChannelDocument:
        trust.refresh()
        return ChannelDocument.model_validate_json(trust.target(channel_path("stable"), MAX_CHANNEL_BYTES))

    assert channel().release == 1
    filled.publish("stable", "tiny", "2", percent=25)
    filled.promote("stable", 100)
    filled.rollback("stable", "1", "why")
    assert channel().assignments[0].rollback.reason == "why"
    for role in ("root", "targets", "snapshot", "timestamp"):
        replace_key(filled, role)
        assert channel().release == 4
    clock.pass_days(6)
    filled.refresh()
    assert channel().release == 4
