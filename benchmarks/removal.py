"""An accelerator that is pulled out, crashes or hangs while it is used: how soon the next candidate serves, and what is lost.

The accelerators are the simulator's, everything else is the agent as it runs on a device. Each picture makes one event,
so that an event that is lost leaves a gap in their numbers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml

from benchmarks.parts import Parts
from benchmarks.running import RunningAgent
from benchmarks.table import Figure, Goal, Line
from simulator.badbundles import make_bundle
from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from simulator.hardware import set_trouble, unplug

ROUNDS, QUICK_ROUNDS = 5, 2
FIRST, SECOND = "FirstExecutionProvider", "SecondExecutionProvider"
WITHIN_S = 60
CAMERA = {"pace": "fast", "repeat": True, "rules": {"each": {"when": "class"}}}
"""It speaks for every picture, and plays them as fast as the model goes."""
HAPPENINGS: dict[str, Callable[[Path], None]] = {
    "pulled out": lambda hardware: unplug(hardware, "First"),
    "its driver crashes": lambda hardware: set_trouble(hardware, "First", "crashes"),
    "its driver hangs": lambda hardware: set_trouble(hardware, "First", "hangs"),
}


def lines(parts: Parts) -> Iterator[Line]:
    """One line a happening; events are counted for the first, where no process dies."""
    _ = parts.mosquitto
    rounds = QUICK_ROUNDS if parts.is_quick else ROUNDS
    for number, (what, happen) in enumerate(HAPPENINGS.items()):
        parts.say(f"an accelerator: {what}, {rounds} times")
        found = [_round(parts.folder / f"removal-{number}-{each}", happen) for each in range(rounds)]
        yield Figure(
            f"accelerator {what}", "s", [took_s for took_s, _, _ in found], Goal("value", "≤", 5, "s"), (), "",
            f"until the next candidate's first event, median of {rounds}",
        )  # fmt: skip
        if what == "pulled out":
            lost, count = (sum(each[index] for each in found) for index in (1, 2))
            yield Figure(
                "events lost as it is pulled out", "", [lost], Goal("value", "≤", 0), (), "", f"of {count}"
            )  # fmt: skip


def _round(folder: Path, happen: Callable[[Path], None]) -> tuple[float, int, int]:
    """Return the seconds until the next candidate served, the pictures without an event, and the events."""
    folder.mkdir()
    hardware = _hardware(folder)
    with Mosquitto(folder / "broker", extra=["max_queued_messages 0"]) as broker, Consumer(broker.port) as consumer:
        assert consumer.subscribed.wait(10)
        agent = RunningAgent(
            folder / "agent",
            device={"name": "bench", "profile": "board", "profiles": str(folder), "runtimes": [f"virtual:{hardware}"]},
            mqtt={"host": broker.host, "port": broker.port},
            models={"lamp": {"bundle": str(_bundle(folder))}},
            cameras={"door": {"source": str(_pictures(folder)), **CAMERA}},
        )  # fmt: skip
        with agent:
            _wait_for(FIRST, consumer)
            happen(hardware)
            began_s = time.monotonic()
            _wait_for(SECOND, consumer)
            took_s = time.monotonic() - began_s
        consumer.settle(1)
        frames = [event["data"]["frame"]["id"] for event in consumer.account.events]
    return took_s, max(frames) + 1 - len(set(frames)), len(frames)


def _wait_for(provider: str, consumer: Consumer) -> None:
    """Wait for an event that this provider made."""
    deadline_s = time.monotonic() + WITHIN_S
    seen = 0
    while time.monotonic() < deadline_s:
        events = list(consumer.account.events)
        if any(event["data"]["model"]["ep"] == provider for event in events[seen:]):
            return
        seen = len(events)
        time.sleep(0.005)
    raise RuntimeError(f"no event by {provider} within {WITHIN_S} s")


def _hardware(folder: Path) -> Path:
    """A board whose processor takes 30 ms, with accelerators that take 6 and 12, and a profile that tries all three."""
    devices = [
        {"provider": provider, "name": name, "device_type": kind, "driver_version": "1", "run_ms": run_ms}
        for provider, name, kind, run_ms in ((FIRST, "First", "npu", 6), (SECOND, "Second", "gpu", 12))
    ]
    hardware = folder / "hardware" / "board.yaml"
    hardware.parent.mkdir()
    hardware.write_text(yaml.safe_dump({"cpu": {"run_ms": 30}, "accelerators": devices}))
    tried = ((FIRST, "npu"), (SECOND, "gpu"), ("CPUExecutionProvider", "cpu"))
    profile = {
        "name": "board",
        "description": "a board of the simulator",
        "candidates": [
            {"provider": provider, "device_type": kind, "variants": ["fp32"], "threads": [1]}
            for provider, kind in tried
        ],
    }
    (folder / "board.yaml").write_text(yaml.safe_dump(profile))
    return hardware


def _bundle(folder: Path) -> Path:
    """A classifier of microseconds, without a latency gate."""
    bundle = make_bundle(folder / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    text = json.dumps({**manifest, "max_p99_ms": None}, sort_keys=True, separators=(",", ":"))
    (bundle / "manifest.json").write_text(text)
    return bundle


def _pictures(folder: Path) -> Path:
    """A dark and a bright picture: every one changes the class, so every one makes an event."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, grey in enumerate((10, 200)):
        cv2.imwrite(str(pictures / f"{number}.png"), np.full((64, 64, 3), grey, np.uint8))
    return pictures
