"""State folders that cannot be written, are full, damaged or taken: a clear end, or a visible condition and no loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simulator import disk
from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from tests.conftest import missing
from tests.e2e.bad_input.conftest import (
    PATIENCE_S,
    DeviceWatch,
    broker_at,
    sigterm,
    wait_until,
    waiting_events,
)

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

STATE_ERROR = 7
MODELS = {"m": {"bundle": "parcels"}}
ENDLESS = {"source": "scene://conveyor?fps=10", "rules": {"all": {"when": "detect"}}}


@pytest.fixture
def small_disk(holdfast: Holdfast) -> Callable[[int], disk.SmallDisk]:
    """Return a function that makes the state folder a disk of its own."""
    if reason := disk.why_not():
        missing(reason)
    return lambda size_bytes: disk.SmallDisk(holdfast.state, size_bytes)


def assert_refused(holdfast: Holdfast, status: int | None, *texts: str) -> None:
    """The run ended by itself with the code for our own state, in words and without a traceback."""
    assert status == STATE_ERROR, holdfast.log()
    assert all(text in holdfast.log() for text in texts), holdfast.log()
    assert "Traceback" not in holdfast.log()


def test_read_only_and_full_disks_and_folders_that_are_none_end_the_start_in_words(
    holdfast: Holdfast, small_disk: Callable[[int], disk.SmallDisk]
) -> None:
    """Without a place to keep events the agent would break its promise: it says so and ends."""
    config = holdfast.write_config(models=MODELS, cameras={"c": ENDLESS})
    with small_disk(1 << 20) as small:
        small.make_read_only()
        assert_refused(holdfast, holdfast.run(config).wait(PATIENCE_S), "cannot be written: Read-only file system")
        small.make_writable()
        small.fill()
        assert_refused(holdfast, holdfast.run(config).wait(PATIENCE_S), "No space left on device")
        small.free()
    for name in ("lock", "holdfast.db", "plans"):
        shutil.rmtree(holdfast.state)
        holdfast.state.mkdir()
        (holdfast.state / name).write_bytes(b"") if name == "plans" else (holdfast.state / name).mkdir()
        assert_refused(holdfast, holdfast.run(config).wait(PATIENCE_S), str(holdfast.state))
    shutil.rmtree(holdfast.state)
    holdfast.state.write_text("a file, where the folder should be")
    assert_refused(holdfast, holdfast.run(config).wait(PATIENCE_S), "File exists")


def test_second_agent_on_the_same_state_is_refused_and_the_first_goes_on(planned: Holdfast) -> None:
    """Two writers would hand out the same numbers."""
    config = planned.write_config(models=MODELS, cameras={"c": ENDLESS})
    first = planned.run(config)
    wait_until(lambda: waiting_events(planned.state), "the first one records")
    second = planned.run(config)
    assert_refused(planned, second.wait(PATIENCE_S), "another holdfast is running with this state folder")
    before = waiting_events(planned.state)
    wait_until(lambda: waiting_events(planned.state) > before, "the first one goes on recording")
    sigterm(first).assert_clean(planned.log())


def test_disk_that_fills_up_loses_nothing_that_was_recorded_and_goes_on_when_there_is_room(
    holdfast: Holdfast,
    small_disk: Callable[[int], disk.SmallDisk],
    measured_plans: Path,
    mosquitto: Mosquitto,
    watch: Callable[[int], DeviceWatch],
) -> None:
    """Logs of another program fill the disk; the agent says it at the broker, holds its events, and goes on after."""
    with small_disk(8 << 20) as small, Consumer(mosquitto.port, acknowledge=True) as consumer:
        shutil.copytree(measured_plans, holdfast.state / "plans")
        scene = {**ENDLESS, "source": "scene://conveyor?fps=10&frames=150"}
        config = holdfast.write_config(
            mqtt=broker_at(mosquitto.port), outbox={"delivery": "consumer"}, models=MODELS, cameras={"c": scene}
        )
        device = watch(mosquitto.port)
        core = holdfast.run(config, "--exit-when-finished")
        assert consumer.wait_for(5, PATIENCE_S), holdfast.log()
        small.fill()
        assert "held in memory" in device.wait_for_condition("disk-refuses")
        small.free()
        device.wait_for(lambda it: "disk-refuses" not in it.conditions, "the disk is well again")
        assert core.wait(PATIENCE_S) == 0, holdfast.log()
        consumer.settle(0.5)
    seqs = consumer.account.seqs["c"]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) > 50, seqs
    assert not [event for event in consumer.account.events if event["type"] == "dev.holdfast.loss"]


def test_damaged_database_is_set_aside_and_said_and_numbers_go_on(
    planned: Holdfast, mosquitto: Mosquitto, watch: Callable[[int], DeviceWatch]
) -> None:
    """The agent of a box nobody visits must start whatever a power cut left on the disk."""
    config = planned.write_config(mqtt=broker_at(mosquitto.port), models=MODELS, cameras={"c": ENDLESS})
    database = planned.state / "holdfast.db"
    with Consumer(mosquitto.port) as consumer:
        core = planned.run(config)
        assert consumer.wait_for(5, PATIENCE_S), planned.log()
        sigterm(core).assert_clean(planned.log())
        database.write_bytes(b"\xa5" * 20_000)
        device = watch(mosquitto.port)
        core = planned.run(config)
        text = device.wait_for_condition("database-rebuilt")
        so_far = len(consumer.account.ids)
        assert consumer.wait_for(so_far + 5, PATIENCE_S), planned.log()
        sigterm(core).assert_clean(planned.log())
    (kept,) = planned.state.glob("holdfast.db.damaged-*")
    assert str(kept) in text
    assert not consumer.account.clashes and not consumer.account.out_of_order
