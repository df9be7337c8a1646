"""A device whose parts are killed with `kill -9`, its service manager, its broker, and the account of what that did."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from agent.clock import SystemClock
from agent.paths import StatePaths
from simulator.audit import Audit, Findings
from simulator.broker import Mosquitto
from simulator.consumer import Consumer

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

Target = Literal["core", "worker", "broker"]
MARK = "KILL_TEST_DEVICE"
"""In the environment of everything that this test's agent starts, so that no orphan hides."""
WINDOW = 200
"""The outbox sends at most so many events that are not gone yet (agent.outbox.outbox.Outbox)."""
PROGRESS_WITHIN_S = 60.0
ORPHANS_GONE_WITHIN_S = 10.0
"""A worker sees the end of its input at once, but it may be importing ONNX Runtime on a machine that is busy."""


@dataclass(slots=True)
class Tally:
    """What was done to the device, and the most that may come twice because of it."""

    kills: Counter[str] = field(default_factory=Counter)
    in_flight_at_most: int = 0
    orphans: Counter[str] = field(default_factory=Counter)
    """Children that core left behind when it was killed, by role."""
    longest_orphan_s: float = 0.0


class Device:
    """A device under attack. Its core is started again after each end, as a service manager would."""

    def __init__(self, holdfast: Holdfast, broker: Mosquitto, *, delivery: str = "broker", seed: int = 0) -> None:
        self.holdfast, self.broker, self.delivery, self.chance = holdfast, broker, delivery, random.Random(seed)
        self.has_cameras = True
        self.paths = StatePaths(holdfast.state)
        os.environ[MARK] = str(holdfast.folder)
        self.audit = Audit(self.paths)
        self.tally = Tally()
        self.broker_is_up = True
        self._absences_s = itertools.cycle((3.0, 0.1, 1.0))
        self._clock = SystemClock()
        self._core: subprocess.Popen[bytes] | None = None

    # -- life -------------------------------------------------------------------------------------------------------

    def write_config(self, *, ends: bool, with_broker: bool = True) -> Path:
        """Two cameras on one model (unless told otherwise) and a sensor on another; `ends`: the sources do, by themselves."""
        frames, seconds = ("&frames=3", "&seconds=0.5") if ends else ("", "")
        rules = {"all": {"when": "detect"}, "parcel": {"when": "track"}}
        cameras: dict[str, Any] = {
            name: {"source": f"scene://conveyor?seed={seed}&fps=8{frames}", "model": "parcels", "rules": rules}
            for seed, name in enumerate(("north", "south") if self.has_cameras else ())
        }
        # A sound bearing scores about 1: a threshold there makes the rule speak every second or so.
        wobble = {"wobble": {"when": "level", "above": 1.0, "below": 0.95}}
        motor = {"source": f"signal://bearing?seed=3{seconds}", "model": "bearing", "rules": wobble}
        broker = {"host": self.broker.host, "port": self.broker.port, "keepalive_s": 5}
        return self.holdfast.write_config(
            **({"mqtt": broker} if with_broker else {}),
            device={"name": "victim"},
            outbox={"delivery": self.delivery, "consumer_timeout_s": 2},
            models={"bearing": {"bundle": "bearing"}, **({"parcels": {"bundle": "parcels"}} if cameras else {})},
            cameras=cameras,
            sensors={"motor": motor},
        )

    def prepare(self) -> None:
        """Measure the plans, so that later starts are quick. A few events wait on the disk then."""
        self._run_to_the_end(with_broker=False, timeout_s=150)

    def plans(self) -> dict[str, bytes]:
        """Return what is stored of them; equal to what it was unless a start measured again."""
        return {path.name: path.read_bytes() for path in self.paths.plans.iterdir()}

    def start(self) -> None:
        """Start core."""
        self._core = self.holdfast.run(self.write_config(ends=False))

    def stop(self) -> None:
        """Stop core politely."""
        assert self._core is not None
        self._core.terminate()
        assert self._core.wait(10) == 0, self.holdfast.log()[-3000:]

    def drain(self) -> Findings:
        """Stop core politely, let everything that waits leave, and return what the auditor has."""
        self.stop()
        self._count_in_flight(self.audit.read())  # it does not wait for the broker's last words either
        self._run_to_the_end(timeout_s=60)
        return self.audit.read()

    def leftovers(self) -> list[psutil.Process]:
        """Return what is left of the device's processes a moment after its end."""
        return psutil.wait_procs(self._processes(), ORPHANS_GONE_WITHIN_S)[1]

    # -- death ------------------------------------------------------------------------------------------------------

    def kill(self, target: Target, consumer: Consumer) -> bool:
        """Kill one part; return False where there is none to kill at this moment."""
        done = {"core": self._kill_core, "worker": self._kill_worker, "broker": self._kill_broker}[target](consumer)
        self.tally.kills[target] += done
        return done

    def restart_broker(self) -> None:
        """Bring the broker back, on the same port, with everything forgotten."""
        if not self.broker_is_up:
            self.broker.start()
            self.broker_is_up = True

    def wait_for_progress(self, consumer: Consumer, events: int) -> None:
        """Wait until so many more events reached the consumer."""
        wanted = len(consumer.account.ids) + events
        deadline_s = self._clock.monotonic() + PROGRESS_WITHIN_S
        while not consumer.wait_for(wanted, 0.2):
            self._assert_core_runs()
            assert self._clock.monotonic() < deadline_s, f"nothing reaches the consumer:\n{self.holdfast.log()[-5000:]}"

    def kill_core(self) -> list[psutil.Process]:
        """Kill core alone; return its orphans."""
        self._assert_core_runs()
        assert self._core is not None
        orphans = [process for process in self._processes() if process.pid != self._core.pid]
        self.tally.orphans.update(_role(process) for process in orphans)
        self._core.kill()
        self._core.wait()
        return orphans

    def _kill_core(self, consumer: Consumer) -> bool:
        orphans = self.kill_core()
        killed_s = self._clock.monotonic()
        self._look_at_the_dead(consumer)
        self.start()
        self.assert_gone(orphans)
        self.tally.longest_orphan_s = max(self.tally.longest_orphan_s, self._clock.monotonic() - killed_s)
        return True

    @staticmethod
    def assert_gone(orphans: list[psutil.Process]) -> None:
        """Give them a moment to notice that nobody is left to work for."""
        alive = psutil.wait_procs(orphans, ORPHANS_GONE_WITHIN_S)[1]
        assert not alive, f"orphans after core was killed: {alive}"

    def _look_at_the_dead(self, consumer: Consumer) -> None:
        """What has left the disk is at the consumer already, if it is the consumer's word that removes it."""
        found = self.audit.read()
        self._count_in_flight(found)
        if self.delivery == "consumer":
            gone = [event for event in found.recorded if event[0] not in found.waiting]
            vanished = [event for event in gone if event[2] not in consumer.account.ids]
            assert not vanished, f"left the outbox, and the consumer does not have it: {vanished}"

    def _kill_worker(self, _consumer: Consumer) -> bool:
        self._assert_core_runs()
        workers = [process for process in self._processes() if _role(process) == "worker"]
        if workers:
            self.chance.choice(workers).kill()
        return bool(workers)

    def _kill_broker(self, consumer: Consumer) -> bool:
        """The consumer comes back before the device or after it: then the first events find nobody."""
        if not self.broker_is_up:
            return False
        consumer.reconnect_after(next(self._absences_s))
        self.broker.kill()
        self.broker_is_up = False
        self.tally.in_flight_at_most += WINDOW
        return True

    # -- inside -----------------------------------------------------------------------------------------------------

    def _count_in_flight(self, found: Findings) -> None:
        """What was sent and not gone from the disk when a connection ended may come again."""
        self.tally.in_flight_at_most += min(WINDOW, len(found.waiting))

    def _run_to_the_end(self, *, timeout_s: float, with_broker: bool = True) -> None:
        config = self.write_config(ends=True, with_broker=with_broker)
        process = self.holdfast.run(config, "--exit-when-finished")
        assert process.wait(timeout_s) == 0, self.holdfast.log()[-3000:]

    def _assert_core_runs(self) -> None:
        assert self._core is not None
        status = self._core.poll()
        assert status is None, f"core ended by itself with {status}:\n{self.holdfast.log()[-5000:]}"

    def _processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            is_agent = process.cmdline()[:1] == [sys.executable] and "agent" in process.cmdline()
            return is_agent and process.environ().get(MARK) == str(self.holdfast.folder)
        except psutil.Error:
            return False


class StatusWatch:
    """What the broker tells about a device to whoever asks: its retained status."""

    def __init__(self, broker: Mosquitto, device: str) -> None:
        self._changed = threading.Condition()
        self._status = ""
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(f"holdfast/devices/{device}/status", qos=1)
        self._client.on_disconnect = lambda *_: self._set("")
        self._client.on_message = lambda _client, _data, message: self._set(message.payload.decode())
        self._client.connect(broker.host, broker.port)

    def wait_for(self, status: str, timeout_s: float = 20) -> bool:
        """Wait until the status is this."""
        with self._changed:
            return self._changed.wait_for(lambda: self._status == status, timeout_s)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _set(self, status: str) -> None:
        with self._changed:
            self._status = status
            self._changed.notify_all()


def _role(process: psutil.Process) -> str:
    """Return the role of a child, `worker` for example; empty for core and for what is gone."""
    try:
        *_, word, role = process.cmdline()
    except (psutil.Error, ValueError):
        return ""
    return role if word == "child" else ""
