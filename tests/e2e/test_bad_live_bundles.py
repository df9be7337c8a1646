"""Bundles that are correctly signed, pass their trial and are bad all the same: only live pictures show what they do.

A real agent runs one after another, finds each out in its probation, and goes back to the last confirmed one within seconds.
What failed is not tried again under its number, no event is lost, and each event names the bundle that it is from.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from simulator.badbundles import Fault
from simulator.broker import Mosquitto
from tests.e2e.releasing import Releasing, says

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

ON_X86 = platform.machine().lower() in {"x86_64", "amd64"}
BACK_WITHIN_S = 10.0
MAX_STARTS = 3
MEMORY_BYTES = 700_000_000
"""The device's profile gives a worker 512 MiB."""

TAKEN_BACK: dict[Fault, str] = {
    "nan": "invalid|no valid answer|NaN",
    "wrong shape": "invalid|expected shape",
    "slow": "p99 of inference is",
    "memory": "MiB and may take 512 MiB",
    "hang": "stalled",
    **({"crash": "SIGFPE"} if ON_X86 else {}),
}
"""By fault: what the reason says."""


def test_what_only_live_pictures_show_is_taken_back(holdfast: Holdfast, mosquitto: Mosquitto) -> None:
    """Every fault in turn, in one agent's life: seconds after it is found out the good one runs again."""
    with Releasing(holdfast, mosquitto) as world:
        world.begin_audit()
        world.publish("2.0")
        world.until_confirmed("2.0")
        good = world.digests["2.0"]
        for fault, texts in TAKEN_BACK.items():
            began = datetime.now(UTC)
            version = f"bad.{fault.replace(' ', '-')}"
            release = world.publish(version, fault, "live", memory_bytes=MEMORY_BYTES)
            reason = world.until_denied(release)
            assert says(reason, texts), f"{fault}: {reason}"
            detected = _detected(world, release, began)
            back = world.until_speaks(good, after=detected)
            assert back - detected <= timedelta(seconds=BACK_WITHIN_S), fault
            assert (world.report["version"], world.report["confirmed"]) == ("2.0", True)
            steps = [step.after for step in world.steps(release)]
            assert steps.count("switching") == 1, f"{fault}: {steps}"
            deaths = [at for at, text in world.log_of("worker lamp: ") if at >= began.replace(microsecond=0)]
            assert 1 + len(deaths) <= MAX_STARTS, fault  # the switch, and at most one start after each death
        world.require_nothing_lost()


def _detected(world: Releasing, release: int, began: datetime) -> datetime:
    """Return when the first sign of a fault was noted: a death, a killing, or the verdict. The log has whole seconds."""
    deaths = [at for what in ("worker lamp is killed", "worker lamp: the worker") for at, _ in world.log_of(what)]
    verdicts = [
        datetime.fromisoformat(step.at) for step in world.steps(release) if step.after in {"rolled_back", "refused"}
    ]
    return min(at for at in [*deaths, *verdicts] if at >= began.replace(microsecond=0))


def test_what_failed_comes_back_with_a_newer_number_only(holdfast: Holdfast, mosquitto: Mosquitto) -> None:
    """Not with the next check, not after a restart; an operator who insists publishes it again."""
    with Releasing(holdfast, mosquitto) as world:
        world.publish("2.0")
        world.until_confirmed("2.0")
        release = world.publish("bad", "nan", "live")
        world.until_denied(release)
        before = world.steps(release)
        world.repository.refresh()
        asked = len(world.log_of("an operator asks for update check"))
        world.check()
        world.until(lambda: len(world.log_of("an operator asks for update check")) > asked, "the check")
        world.stop()
        world.run()
        world.check()
        world.until_speaks(world.digests["2.0"])
        assert world.steps(release) == before
        assert (world.report["version"], world.report["confirmed"]) == ("2.0", True)
        again = world.assign("bad")
        world.until_denied(again)
        assert "switching" in [step.after for step in world.steps(again)]
        world.until_speaks(world.digests["2.0"])
