"""`kill -9` of core, workers and broker at random moments: what was recorded arrives, in order, with ids to tell copies by.

A short run by default. `HOLDFAST_SOAK=1` (`make soak`) makes it 200 kills a test; `HOLDFAST_SEED` repeats one run's choices.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.clock import SystemClock
from agent.errors import StateError
from simulator.audit import Findings
from simulator.broker import Mosquitto
from simulator.consumer import Account, Consumer
from tests.e2e.killing import Device, StatusWatch, Tally, Target

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

IS_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
pytestmark = pytest.mark.timeout(3600 if IS_SOAK else 300)
Printer = Callable[..., None]


@pytest.fixture(scope="module")
def measured_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a state folder with measured plans, so that each start in these tests takes a second or two."""
    from tests.e2e.conftest import Holdfast

    folder = tmp_path_factory.mktemp("measured")
    command = Holdfast(folder)
    Device(command, Mosquitto(folder / "broker")).prepare()
    yield command.state
    command.end()


@pytest.fixture
def make_device(holdfast: Holdfast, mosquitto: Mosquitto, measured_state: Path) -> Callable[..., Device]:
    """Return a function that makes a device which has its plans."""
    shutil.copytree(measured_state, holdfast.state)
    return partial(Device, holdfast, mosquitto)


@pytest.mark.parametrize(
    ("delivery", "targets", "kills"),
    [
        pytest.param("consumer", ("core", "worker", "broker"), 200 if IS_SOAK else 11, id="consumer"),
        pytest.param("broker", ("core", "worker"), 200 if IS_SOAK else 9, id="broker"),
    ],
)
def test_every_recorded_event_arrives_in_order_whatever_is_killed(
    make_device: Callable[..., Device], printer: Printer, delivery: str, targets: Sequence[Target], kills: int
) -> None:
    """Promise 5, against the worst that a machine does to its programs."""
    seed = int(os.environ.get("HOLDFAST_SEED") or secrets.randbelow(1_000_000))
    printer("", f"kill -9, delivery: {delivery}, HOLDFAST_SEED={seed}")
    device = make_device(delivery=delivery, seed=seed)
    plans, began_s = device.plans(), SystemClock().monotonic()
    device.audit.begin()
    with Consumer(device.broker.port, acknowledge=delivery == "consumer") as consumer:
        assert consumer.subscribed.wait(10)
        device.start()
        device.wait_for_progress(consumer, 1)
        attack(device, consumer, targets, kills, printer)
        found = device.drain()
        consumer.wait_for(len(found.recorded), 10)  # what the broker still has in hand
    printer(*report(device.tally, found, consumer.account), f"  in {SystemClock().monotonic() - began_s:.0f} s")
    judge(device, found, consumer.account)
    assert device.plans() == plans, "a start measured again"
    assert not device.leftovers(), "processes were left behind"


def test_status_tells_of_a_killed_core_and_survives_a_killed_broker(make_device: Callable[..., Device]) -> None:
    """Whoever watches a fleet learns from the broker alone which devices are down, also after the broker's own fall."""
    device = make_device()
    device.start()
    with StatusWatch(device.broker, "victim") as watch:
        assert watch.wait_for("online"), device.holdfast.log()
        device.kill_core()
        assert watch.wait_for("offline"), "the last will did not come"
        device.start()
        assert watch.wait_for("online")
        device.broker.kill()
        assert watch.wait_for("")
        device.broker.start()
        assert watch.wait_for("online"), "the broker lost the retained status, and was not told again"
        device.stop()
        assert watch.wait_for("offline")


def test_a_second_core_on_the_same_state_is_refused_and_disturbs_nothing(make_device: Callable[..., Device]) -> None:
    """A service manager and an impatient operator may both start it; two writers would break order and numbers."""
    device = make_device()
    with Consumer(device.broker.port) as consumer:
        assert consumer.subscribed.wait(10)
        device.start()
        device.wait_for_progress(consumer, 1)
        second = device.holdfast.run(device.write_config(ends=False))
        assert second.wait(20) == StateError.exit_code
        assert "another holdfast is running" in device.holdfast.log()
        device.wait_for_progress(consumer, 20)
        device.kill_core()
        device.start()  # the lock died with its holder
        device.wait_for_progress(consumer, 20)
        device.stop()
    assert consumer.account.out_of_order == consumer.account.clashes == 0


def test_core_killed_over_and_over_while_it_starts_for_the_first_time_starts_in_the_end(
    holdfast: Holdfast, mosquitto: Mosquitto, printer: Printer
) -> None:
    """No moment of making the database, the numbers, the facts and the plan may leave something that stops the next start."""
    seed = int(os.environ.get("HOLDFAST_SEED") or secrets.randbelow(1_000_000))
    device = Device(holdfast, mosquitto, seed=seed)
    device.has_cameras = False  # one small model: its plan is measured in a few seconds
    for number in range(40 if IS_SOAK else 6):
        if number % 2 == 0:  # every second start finds what the one before left half made
            shutil.rmtree(holdfast.state, ignore_errors=True)
        device.start()
        SystemClock().wait(threading.Event(), device.chance.uniform(0.1, 3))
        device.assert_gone(device.kill_core())
    with Consumer(mosquitto.port) as consumer:
        assert consumer.subscribed.wait(10)
        device.start()
        device.wait_for_progress(consumer, 3)
        device.stop()
    assert consumer.account.out_of_order == consumer.account.clashes == 0
    assert not list(device.paths.root.glob("*.damaged-*")) and not list(device.paths.plans.glob("*.damaged"))
    orphans = ", ".join(f"{count} {role}s" for role, count in device.tally.orphans.items())
    printer("", f"kill -9 of core in its first seconds, HOLDFAST_SEED={seed}: orphans {orphans}, all gone")


def attack(device: Device, consumer: Consumer, targets: Sequence[Target], kills: int, printer: Printer) -> None:
    """Kill each part once at work, then at random: mostly a device at work, sometimes one that still gets up."""
    chance = device.chance
    for target in targets:
        while not device.kill(target, consumer):  # its worker is not up yet: what came were older events
            device.wait_for_progress(consumer, 1)
        device.restart_broker()
        device.wait_for_progress(consumer, 30)
    while device.tally.kills.total() < kills:
        if not device.kill(chance.choice(targets), consumer):
            device.restart_broker()
            consumer.wait_for(len(consumer.account.ids) + 1, 0.1)
            continue
        if device.tally.kills.total() % 50 == 0:
            printer(f"  {device.tally.kills.total()} kills, {len(consumer.account.ids)} events")
        if chance.random() < 0.2:  # the next kill comes before the device is up again, or two parts go at once
            consumer.wait_for(len(consumer.account.ids) + 1000, chance.uniform(0, 2))
        else:
            consumer.wait_for(len(consumer.account.ids) + 1000, chance.uniform(0, 0.5))
            device.restart_broker()
            device.wait_for_progress(consumer, chance.randint(1, 60))
    device.restart_broker()
    device.wait_for_progress(consumer, 1)


def judge(device: Device, found: Findings, account: Account) -> None:
    """Hold the account against what was recorded."""
    expected: dict[str, list[int]] = defaultdict(list)
    for seq, pipeline, _ in found.recorded:
        expected[pipeline].append(seq)
    assert {"north", "south", "motor"} <= set(expected), "a pipeline recorded nothing"
    assert len({seq for seq, _, _ in found.recorded}) == len(found.recorded), "a number was given twice"
    assert found.lost == 0 and not found.waiting
    assert account.ids == {ulid for _, _, ulid in found.recorded}, "not what was recorded"
    assert account.clashes == account.altered == 0
    assert account.out_of_order == 0
    assert account.seqs == expected
    assert account.duplicates <= device.tally.in_flight_at_most
    assert not list(device.paths.root.glob("*.damaged-*")), "the database was found damaged"


def report(tally: Tally, found: Findings, account: Account) -> list[str]:
    """Return the counts for people."""
    kills = ", ".join(f"{count} of {target}" for target, count in sorted(tally.kills.items()))
    missing = len({ulid for _, _, ulid in found.recorded} - account.ids)
    by_pipeline = ", ".join(f"{name} {len(seqs)}" for name, seqs in sorted(account.seqs.items()))
    return [
        f"  {tally.kills.total()} kills: {kills}",
        f"  {len(found.recorded)} events recorded, {len(account.ids)} reached the consumer ({by_pipeline})",
        f"  {missing} missing, {account.out_of_order} out of order, {account.clashes} numbers used twice, "
        f"{found.lost} lost and counted",
        f"  {account.duplicates} copies came again (at most {tally.in_flight_at_most} events were in flight), "
        f"{account.altered} of them altered",
        f"  {tally.orphans.total()} orphaned children, the last of them gone {tally.longest_orphan_s:.1f} s after core at most",
    ]
