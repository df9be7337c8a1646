"""A board with declared hardware, the real agent on it, a broker, and what the agent says of itself there."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import psutil
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from agent.clock import SystemClock
from agent.device.planning.plan import Outcome, Plan
from agent.device.planning.planstore import from_json
from agent.mqtt.topics import Topics
from agent.paths import StatePaths
from simulator.badbundles import make_bundle
from simulator.broker import Mosquitto
from simulator.consumer import Consumer

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

DEVICE, MODEL, CAMERA, PROFILE = "box1", "lamp", "door", "virtual-board"
CPU = "CPUExecutionProvider"
WITHIN_S = 60.0
GREYS = (10, 200)
"""Of the pictures, in turns: every one changes the class, so every one makes an event."""
HASTY = Path(__file__).with_name("hasty.py")


def ep(name: str) -> str:
    """Return a provider's name."""
    return f"{name}ExecutionProvider"


class Board:
    """All of it; a context manager.

    Args:
        holdfast: The command, with a folder of its own.
        broker: A running one.
        hurry: Waits to change, by `module:CONSTANT`.
    """

    def __init__(self, holdfast: Holdfast, broker: Mosquitto, hurry: Mapping[str, float] | None = None) -> None:
        self.holdfast, self.broker = holdfast, broker
        self.folder = holdfast.folder
        self.hardware = self.folder / "board.yaml"
        self.runtimes = [f"virtual:{self.hardware}"]
        self.profile = PROFILE
        self.consumer = Consumer(broker.port)
        self.info: dict[str, Any] = {}
        """The newest `info` message."""
        self.conditions: dict[str, dict[str, Any]] = {}
        """The newest `health` message's, by name."""
        self.all_conditions: list[tuple[str, str]] = []
        """Every condition that was ever published, name and text, once each in a row."""
        self._hurry = {
            "agent.preparation:EARLY_AFTER_S": 60.0,
            **(hurry or {}),
        }  # a loaded machine decides nothing here
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        topics = Topics("holdfast", DEVICE)
        self._watch = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._watch.on_message = lambda _c, _d, message: self._take(topics, message)
        self._watch.connect(broker.host, broker.port)
        self._watch.subscribe([(topics.info, 1), (topics.health, 1)])
        self._clock, self._never = SystemClock(), threading.Event()

    # -- what there is -----------------------------------------------------------------------------------------------

    def declare(self, *accelerators: Mapping[str, Any], cpu: Mapping[str, float] | None = None) -> None:
        """Write the board's hardware file; its processor takes 30 ms where nothing else is said."""
        declared = {"cpu": dict(cpu or {"run_ms": 30}), "accelerators": [dict(each) for each in accelerators]}
        self.hardware.write_text(yaml.safe_dump(declared))

    def try_on(self, *accelerators: tuple[str, str], limits: Mapping[str, Any] | None = None) -> None:
        """Write the board's profile: one thread of the processor, and these providers with their device types."""
        folder = self.folder / "profiles"
        folder.mkdir(exist_ok=True)
        cpu = [{"provider": CPU, "variants": ["fp32"], "threads": [1]}]
        others = [
            {"provider": p, "device_type": kind, "variants": ["fp32"], "threads": [1]} for p, kind in accelerators
        ]
        profile = {
            "name": PROFILE,
            "description": "a board of the simulator",
            "candidates": [*others, *cpu],
            "limits": {"memory_mb": 400, "trial_s": 10, "compile_s": 10, **(limits or {})},
            "tune": {"budget_s": 60},
        }
        (folder / f"{PROFILE}.yaml").write_text(yaml.safe_dump(profile))

    def bundle(self, name: str = MODEL) -> Path:
        """Build the lamp: five nodes, microseconds. It has no latency gate: a loaded machine must not decide."""
        folder = make_bundle(self.folder / f"bundle-{name}", name=name)
        manifest = json.loads((folder / "manifest.json").read_text())
        text = json.dumps({**manifest, "max_p99_ms": None}, sort_keys=True, separators=(",", ":"))
        (folder / "manifest.json").write_text(text)
        return folder

    def pictures(self, count: int) -> Path:
        """Write so many small pictures, dark and bright in turns."""
        folder = self.folder / f"pictures-{count}"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            grey = np.full((64, 64, 3), GREYS[number % 2], np.uint8)
            cv2.imwrite(str(folder / f"{number:05d}.png"), grey)
        return folder

    def camera(self, pictures: int = 2, *, repeat: bool = True, **settings: Any) -> dict[str, Any]:
        """Return a camera that speaks for every picture, and plays them as fast as the model goes."""
        source = {"source": str(self.pictures(pictures)), "pace": "fast", "repeat": repeat}
        return {**source, "rules": {"each": {"when": "class"}}, **settings}

    # -- the agent ---------------------------------------------------------------------------------------------------

    def configure(self, *, models: Mapping[str, Any] | None = None, cameras: Mapping[str, Any] | None = None) -> Path:
        """Write the operator's file; one model with one camera where nothing else is given."""
        profiles = self.folder / "profiles"
        return self.holdfast.write_config(
            device={
                "name": DEVICE,
                "runtimes": self.runtimes,
                **({"profile": self.profile, "profiles": str(profiles)} if profiles.exists() else {"profile": None}),
            },
            mqtt={"host": self.broker.host, "port": self.broker.port},
            models=models or {MODEL: {"bundle": str(self.bundle())}},
            cameras=cameras or {CAMERA: self.camera()},
        )

    def start(
        self,
        *,
        models: Mapping[str, Any] | None = None,
        cameras: Mapping[str, Any] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Configure and start the agent."""
        self.info, self.conditions = {}, {}
        config = self.configure(models=models, cameras=cameras)
        hurry = [f"{name}={value}" for name, value in self._hurry.items()]
        command = [sys.executable, str(HASTY), *hurry, "--", "run", "--config", str(config), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        """Stop it politely, if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(20) == 0, self.log()
            self._process = None

    @property
    def pid(self) -> int:
        """Core's."""
        assert self._process is not None
        return self._process.pid

    def cut(self) -> None:
        """Kill core and its children at once, as a power cut does."""
        core = psutil.Process(self.pid)
        core.suspend()  # it must not see its children die
        everything = [*core.children(recursive=True), core]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, 10)
        self._process = None

    def wait_for_its_end(self) -> None:
        """Wait until it has played everything (`--exit-when-finished`)."""
        assert self._process is not None
        assert self._process.wait(WITHIN_S) == 0, self.log()
        self._process = None

    def __enter__(self) -> Self:
        self._watch.loop_start()
        self.consumer.__enter__()
        assert self.consumer.subscribed.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
        self.consumer.__exit__()
        self._watch.disconnect()
        self._watch.loop_stop()

    # -- what it says ------------------------------------------------------------------------------------------------

    def model(self, name: str = MODEL) -> dict[str, Any]:
        """What `info` says of a model; empty before it says anything."""
        found: dict[str, Any] = self.info.get("models", {}).get(name, {})
        return found

    def plan(self) -> Plan:
        """The stored plan, the newest."""
        return max(self.plans(), key=lambda plan: plan.made_at)

    def plans(self) -> list[Plan]:
        """Every stored plan."""
        return [from_json(path.read_bytes()) for path in StatePaths(self.holdfast.state).plans.glob("*.json")]

    def outcome(self, provider: str) -> Outcome:
        """What became of a provider's candidate."""
        return next(each for each in self.plan().outcomes if each.candidate.provider == provider)

    def serves(self, provider: str, *, after: int = 0, camera: str = CAMERA) -> bool:
        """Whether an event later than the first `after` was made by this provider."""
        return provider in self.providers(camera)[after:]

    def providers(self, camera: str = CAMERA) -> list[str]:
        """Which provider made each event of a camera so far, in order."""
        events = list(self.consumer.account.events)
        return [each["data"]["model"]["ep"] for each in events if each["source"].endswith(f"/{camera}")]

    def frames(self, camera: str = CAMERA) -> list[int]:
        """The picture of each event of a camera so far, in order."""
        events = list(self.consumer.account.events)
        return [each["data"]["frame"]["id"] for each in events if each["source"].endswith(f"/{camera}")]

    def log(self) -> str:
        """What every start so far wrote."""
        return self.holdfast.log()[-8000:]

    def until(self, is_so: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> float:
        """Wait for something while the agent runs; return the seconds that it took."""
        began_s = self._clock.monotonic()
        while not is_so():
            assert self._process is None or self._process.poll() is None, f"the agent ended by itself:\n{self.log()}"
            assert self._clock.monotonic() - began_s < within_s, (
                f"not {what}; {self.conditions}; {self.model()}\n{self.log()}"
            )
            self._clock.wait(self._never, 0.02)
        return self._clock.monotonic() - began_s

    def _take(self, topics: Topics, message: mqtt.MQTTMessage) -> None:
        document = json.loads(message.payload)
        if message.topic == topics.info:
            self.info = document
            return
        self.conditions = {each["name"]: each for each in document["conditions"]}
        for each in document["conditions"]:
            if (said := (each["name"], each["text"])) not in self.all_conditions:
                self.all_conditions.append(said)


SWIFT, SPARE = ep("Swift"), ep("Spare")
HURRY = {
    "agent.wishes:LOOK_FIRST_S": 1.0,
    "agent.pipeline.degrading:RETRY_FIRST_S": 2.0,
    "agent.pipeline.jobs:PATIENCE_LEAST_S": 1.5,
    "agent.pipeline.drift:SUSTAINED_S": 1.0,
    "agent.device.survey.recognition:look.timeout_s": 4.0,
    "agent.trial.measuring:FINAL_S": 0.6,
    "agent.trial.measuring:TURNS": 1,
}


def device(name: str, run_ms: float = 6.0, **more: Any) -> dict[str, Any]:
    """Declare an accelerator, an NPU where nothing else is said."""
    return {"provider": ep(name), "name": name, "device_type": "npu", "driver_version": "1", "run_ms": run_ms, **more}


def swift_and_spare(board: Board, **swift: Any) -> None:
    """Two accelerators on the board: 6 and 12 ms, where the processor takes 30."""
    board.declare(device("Swift", **swift), device("Spare", 12, device_type="gpu"))
    board.try_on((SWIFT, "npu"), (SPARE, "gpu"))


def nothing_is_lost(board: Board, camera: str = CAMERA) -> None:
    """Stop the agent; every picture up to the last has its one event, in order."""
    board.stop()
    board.consumer.settle(1.0)
    frames = board.frames(camera)
    assert frames == list(range(len(frames)))
    assert not board.consumer.account.out_of_order


def severity(board: Board, condition: str) -> str:
    """Return a condition's severity now; empty where it does not hold."""
    return str(board.conditions.get(condition, {}).get("severity", ""))


def text(board: Board, condition: str) -> str:
    """Return a condition's text now; empty where it does not hold."""
    return str(board.conditions.get(condition, {}).get("text", ""))
