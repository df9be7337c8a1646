"""Core itself: it never loads native code, and a child that hangs or a clock that lies cannot hold it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.app import Core
from agent.clock import SystemClock, SystemRandom
from agent.config.file import read
from agent.paths import open_state
from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from tests.e2e.bad_input.conftest import PATIENCE_S, DeviceWatch, broker_at, family, sigterm

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

NATIVE = ("onnxruntime", "cv2", "libopencv")
SCENE = {"source": "scene://conveyor?fps=10", "rules": {"all": {"when": "detect"}}}


def native_libraries(pid: int) -> set[str]:
    """Return which of the libraries that may crash are mapped into a process."""
    paths = {mapped.path for mapped in psutil.Process(pid).memory_maps()}
    return {name for name in NATIVE if any(name in path for path in paths)}


def test_core_never_loads_native_code_and_the_worker_does(planned: Holdfast, mosquitto: Mosquitto) -> None:
    """Promise 6 rests on it: what is not loaded cannot crash core. Looked up in the running processes' memory maps."""
    config = planned.write_config(
        mqtt=broker_at(mosquitto.port), models={"m": {"bundle": "parcels"}}, cameras={"c": SCENE}
    )
    with Consumer(mosquitto.port) as consumer:
        core = planned.run(config)
        assert consumer.wait_for(5, PATIENCE_S), planned.log()
        (worker,) = [child for child in family(core) if "worker" in child.cmdline()]
        assert {"onnxruntime", "cv2"} <= native_libraries(worker.pid), "the look finds nothing, so it proves nothing"
        assert not native_libraries(core.pid)
        sigterm(core).assert_clean(planned.log())


def test_importing_core_imports_no_native_code() -> None:
    """The same, by names, so that a mistake is found on a system without memory maps too."""
    code = "import sys, agent.app\nprint([name for name in ('onnxruntime', 'cv2', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_worker_that_hangs_while_a_sensor_floods_it_cannot_block_core(
    holdfast: Holdfast, mosquitto: Mosquitto, watch: Callable[[int], DeviceWatch]
) -> None:
    """A pipe that nobody empties fills up; core must still notice the hang, kill the worker and go on."""
    config = holdfast.write_config(
        device={"name": "box"},
        mqtt=broker_at(mosquitto.port),
        models={"m": {"bundle": "bearing"}},
        sensors={"motor": {"source": "mqtt:plant/motor", "rate_hz": 12000}},
    )
    device = watch(mosquitto.port)
    device.agent = core = holdfast.run(config)
    device.wait_for(lambda it: it.retained.get("info", {}).get("models", {}).get("m", {}).get("nodes"), "it runs")
    (worker,) = [child for child in family(core) if "worker" in child.cmdline()]
    os.kill(worker.pid, signal.SIGSTOP)
    plant = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    plant.connect("127.0.0.1", mosquitto.port)
    plant.loop_start()
    for _ in range(40):
        plant.publish("plant/motor", b"[" + b",".join([b"0.125"] * 2000) + b"]", qos=1).wait_for_publish(5)
    device.wait_for_condition("worker-down/m", having="it hung: no sign of life")
    device.wait_for_condition("worker-down/m", having="running again")
    plant.disconnect()
    plant.loop_stop()
    sigterm(core).assert_clean(holdfast.log())


class ShiftedClock(SystemClock):
    """The system's clock, with wall time that stands elsewhere and may be moved; monotonic time is real."""

    def __init__(self, moment: datetime) -> None:
        self.set(moment)

    def set(self, moment: datetime) -> None:
        self._shift = moment - datetime.now(UTC)

    def now(self) -> datetime:
        return super().now() + self._shift


@pytest.mark.parametrize("year", [1970, 2100])
def test_events_of_a_device_with_a_wrong_clock_arrive_in_order_and_the_clock_is_said(
    planned: Holdfast, mosquitto: Mosquitto, watch: Callable[[int], DeviceWatch], year: int
) -> None:
    """Boards without a battery wake in 1970; then a time service sets them, and the wall clock jumps, also back."""
    clock = ShiftedClock(datetime(year, 1, 2, tzinfo=UTC))
    scene = {**SCENE, "source": "scene://conveyor?fps=10&frames=70"}
    config = planned.write_config(
        mqtt=broker_at(mosquitto.port), models={"m": {"bundle": "parcels"}}, cameras={"c": scene}
    )
    settings = read(config).settings
    device = watch(mosquitto.port)
    core = Core(settings, open_state(settings.state_dir), clock, SystemRandom(), exit_when_finished=True)
    running = threading.Thread(target=core.run, daemon=True)
    with Consumer(mosquitto.port) as consumer:
        running.start()
        text = device.wait_for_condition("clock-implausible")
        assert f"the clock says {year}-01-02" in text and "NTP" in text
        assert consumer.wait_for(5, PATIENCE_S)
        clock.set(datetime(2026, 11, 20, tzinfo=UTC))
        device.wait_for(lambda it: "clock-implausible" not in it.conditions, "the clock is right")
        so_far = len(consumer.account.ids)
        assert consumer.wait_for(so_far + 5, PATIENCE_S)
        clock.set(datetime(2026, 11, 20, tzinfo=UTC) - timedelta(hours=1))
        running.join(PATIENCE_S)
        assert not running.is_alive()
        consumer.settle(0.5)
    account = consumer.account
    seqs = account.seqs["c"]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) > 20
    ids = [event["id"] for event in account.events]
    assert all(earlier < later for earlier, later in pairwise(ids)), "ids rise, whatever the clock does"
