"""What an update may cost on the wire, counted as `benchmarks/update.py` does: bytes are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.update import BALLAST_BYTES, CHANNEL, IDLE_BYTES, served


def test_idle_check_costs_less_than_a_kilobyte_and_the_way_back_no_byte_of_a_bundle(
    tmp_path: Path, need_tool: Callable[[str], str]
) -> None:
    """A device on a metered link asks every day; and it goes back when the link may be what is broken."""
    need_tool("mosquitto")
    with served(tmp_path / "world") as world:
        assert 300 < world.idle_check_bytes() <= IDLE_BYTES
        assert world.first_bytes > BALLAST_BYTES
        world.repository.rollback(CHANNEL, "1", "it was better")
        assert world.update() == ("1", 0)
