"""Cameras that crash, freeze, vanish and change under a running agent: four faults at once, one process to survive them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from tests.e2e.bad_input.conftest import DeviceWatch, broker_at, sigterm

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

CAMERAS: dict[str, dict[str, Any]] = {
    "crashes": {"source": "scene://conveyor?fps=10&crash_at=30", "model": "first"},
    "freezes": {"source": "scene://conveyor?fps=10&freeze_at=20", "model": "second"},
    "vanishes": {
        "source": "scene://conveyor?fps=10&vanish_at=20",
        "model": "third",
        "reconnect_first_s": 0.5,
        "reconnect_limit_s": 2.0,
    },
    "resizes": {"source": "scene://conveyor?seed=3&fps=10&resize_at=30", "model": "third"},
}
EACH = {"rules": {"all": {"when": "detect"}}}


def test_native_crash_freeze_loss_and_new_resolution_of_cameras_leave_the_agent_running(
    planned: Holdfast, mosquitto: Mosquitto, watch: Callable[[int], DeviceWatch]
) -> None:
    """Promise 6, seen from the broker: what failed and what is done about it is published, and the others go on."""
    config = planned.write_config(
        device={"name": "box"},
        mqtt=broker_at(mosquitto.port),
        models={name: {"bundle": "parcels"} for name in ("first", "second", "third")},
        cameras={name: {**camera, **EACH} for name, camera in CAMERAS.items()},
    )
    device = watch(mosquitto.port)
    with Consumer(mosquitto.port) as consumer:
        core = planned.run(config)
        device.wait_for_condition("source-down/vanishes", having="vanished at frame 20")
        device.wait_for_condition("worker-down/first", having="was ended by SIGABRT")
        device.wait_for_condition("worker-down/first", having="running again; before: the worker was ended by SIGABRT")
        device.wait_for_condition("worker-down/first", having="attempt 3 in")
        device.wait_for_condition("worker-down/second", having="freezes stalled: its source is open")
        device.wait_for_condition("worker-down/second", having="running again")
        account = consumer.account
        assert core.poll() is None, planned.log()
        stopped = sigterm(core)
    words = device.history["worker-down/first"][0]
    assert "Fatal Python error: Aborted" in words and "camera.py" in words, words
    stopped.assert_clean(planned.log())
    assert not account.out_of_order and not account.clashes
    by_size: dict[tuple[str, int], int] = {}
    for event in account.events:
        key = (event["source"].rsplit("/", 1)[-1], event["data"]["frame"]["w"])
        by_size[key] = by_size.get(key, 0) + 1
    assert by_size[("resizes", 640)] > 10 and by_size[("resizes", 320)] > 10, by_size
    assert {"crashes", "freezes", "vanishes"} <= {name for name, _ in by_size}
