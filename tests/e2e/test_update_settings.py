"""A signed release that changes what a device looks for, and no model: thresholds, zones and rules by channel.

It takes effect between two pictures in the running worker, costs no byte of a bundle, is refused where it makes no sense,
and the way back brings the settings of before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent.clock import SystemRandom
from agent.update.documents import PipelineOverrides
from agent.update.requests import Request, Requests
from simulator.broker import Mosquitto
from tests.e2e.releasing import CAMERA, Releasing

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

BALLAST_BYTES = 300_000
METADATA_BYTES = 30_000
"""All documents of a small repository, and nothing of a bundle."""
SENSELESS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"zones": {"gate": {"coordinates": [[0, 0], [1, 1]]}}}, "at least three corners"),
    ({"rules": {"night": {"when": "dusk"}}}, "dusk"),
    ({"rules": {"in": {"when": "class", "labels": ["dusk"]}}}, "dusk"),
    ({"rules": {"in": {"when": "enter", "zone": "gate"}}}, "gate"),
)
"""What a release says, and what the reason names."""
NIGHT = {"night": {"when": "class", "labels": ["dark"], "for_s": 0.1}}


def until_only(world: Releasing, rule: str) -> None:
    """Wait until a rule speaks, and only that one."""
    began = datetime.now(UTC)

    def is_so() -> bool:
        events = list(world.consumer.account.events)[-4:]
        return all(
            each["subject"] == f"rules/{rule}" and datetime.fromisoformat(each["time"]) > began for each in events
        )

    world.until(is_so, f"rule {rule} speaks")


def test_settings_come_and_go_by_release(holdfast: Holdfast, mosquitto: Mosquitto) -> None:
    """The operator's file says what a device does until a release says otherwise, and again when that is taken back."""
    with Releasing(holdfast, mosquitto) as world:
        world.publish("2.0", ballast_bytes=BALLAST_BYTES)
        world.until_confirmed("2.0")
        until_only(world, "light")
        worker, sent_bytes = world.worker, world.server.served.piece_bytes
        night = world.assign("2.0", pipelines={CAMERA: PipelineOverrides(rules=NIGHT)})
        until_only(world, "night")
        world.until(lambda: world.report["state"] == "confirmed" and world.report["release"] == night, "its probation")
        assert world.worker == worker
        assert [step.after for step in world.steps(night)] == ["staged", "switching", "probation", "confirmed"]
        assert world.server.served.piece_bytes - sent_bytes < METADATA_BYTES
        world.stop()
        world.run()
        until_only(world, "night")
        Requests(world.paths.updates / "requests").post(Request(verb="rollback", reason="too dark"), SystemRandom())
        until_only(world, "light")
        assert world.report["version"] == "2.0"
        assert "too dark" in world.until_denied(night)


def test_settings_that_make_no_sense_are_refused_with_the_reason(holdfast: Holdfast, mosquitto: Mosquitto) -> None:
    """Signed or not: the agent goes on as before, in the same processes, and says why."""
    with Releasing(holdfast, mosquitto) as world:
        running = world.publish("2.0")
        world.until_confirmed("2.0")
        core, worker = world.core, world.worker
        for settings, text in SENSELESS:
            release = world.assign("2.0", pipelines={CAMERA: PipelineOverrides(**settings)})
            assert text in world.until_denied(release)
            until_only(world, "light")
            assert core.is_running()
            assert world.worker == worker
            assert world.report["release"] == running
