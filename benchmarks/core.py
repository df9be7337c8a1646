"""Core as a real `holdfast run` with a real broker: memory with one camera, CPU when nothing happens, speed of draining."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from agent.clock import SystemClock, SystemRandom
from agent.outbox.outbox import Outbox
from agent.outbox.settings import OutboxSettings
from agent.outbox.store import EventStore
from agent.paths import open_state
from benchmarks.outbox import MESSAGE, MODEL, envelope
from benchmarks.parts import Parts
from benchmarks.processes import cpu_s, peak_rss_mb, rss_mb
from benchmarks.running import RunningAgent
from benchmarks.table import Figure, Goal, Line
from simulator.broker import Mosquitto
from simulator.consumer import Consumer

STEADY_S, QUICK_STEADY_S = 60, 20
SETTLE_S = 5
QUEUED = 20_000


def lines(parts: Parts) -> Iterator[Line]:
    """Start a broker and measure three runs of the agent against it."""
    _ = parts.mosquitto
    # By default mosquitto throws away what a subscriber is 1,000 messages behind with, and ours is written in Python.
    with Mosquitto(parts.folder / "broker", extra=["max_queued_messages 0"]) as broker:
        mqtt = {"host": broker.host, "port": broker.port}
        yield _memory(parts, mqtt)
        quiet = RunningAgent(
            parts.folder / "quiet",
            mqtt=mqtt,
            models={"bearing": {"bundle": "bearing"}},
            sensors={"motor": {"source": "mqtt:nobody/speaks"}},
        )
        yield _idle(parts, quiet)
        yield _drain(parts, quiet, broker.port)


def _memory(parts: Parts, mqtt: dict[str, object]) -> Line:
    seconds = QUICK_STEADY_S if parts.is_quick else STEADY_S
    parts.say(f"core with one camera, {seconds} s")
    with RunningAgent(
        parts.folder / "camera",
        mqtt=mqtt,
        models={"faces": {"bundle": str(parts.ultraface.folder)}},
        cameras={"door": {"source": str(parts.video), "repeat": True}},
    ) as agent:
        agent.wait_for_log("model faces:")
        sizes = []
        for _ in range(seconds):
            time.sleep(1)
            sizes.append(rss_mb(agent.pid))
        peak = peak_rss_mb(agent.pid)
    tail = sizes[len(sizes) // 2 :]
    return Figure(
        "core memory", "MiB", [median(tail)], Goal("value", "≤", 80, "MiB"), (), "",
        f"resident, median of the last {len(tail)} s; peak since the start {peak:.1f} MiB",
    )  # fmt: skip


def _idle(parts: Parts, agent: RunningAgent) -> Line:
    seconds = QUICK_STEADY_S if parts.is_quick else STEADY_S
    parts.say(f"idle core, {seconds} s")
    with agent:
        agent.wait_for_log("model bearing:")
        time.sleep(SETTLE_S)
        began_s, before_s = time.monotonic(), cpu_s(agent.pid)
        time.sleep(seconds)
        share = (cpu_s(agent.pid) - before_s) / (time.monotonic() - began_s)
    return Figure(
        "idle core, CPU", "%", [share * 100], Goal("value", "≤", 1, "%"), (), "",
        f"over {seconds} s, of one CPU; connected to a broker, with a worker whose sensor is silent",
    )  # fmt: skip


def _drain(parts: Parts, agent: RunningAgent, port: int) -> Line:
    """The same agent once more, with a full outbox; its plan is stored, so that no trial disturbs."""
    parts.say(f"draining {QUEUED} events")
    clock = SystemClock()
    box = Outbox(EventStore.open(open_state(agent.state), clock), OutboxSettings(), envelope(), SystemRandom())
    for _ in range(QUEUED):
        box.record(MESSAGE, MODEL, clock.monotonic())
    box.close(clock.monotonic())
    with Consumer(port, device="bench", name="drain") as consumer:
        assert consumer.subscribed.wait(10)
        with agent:
            assert consumer.wait_for(1, 30), agent.log()
            began_s = time.monotonic()
            assert consumer.wait_for(QUEUED, 120), f"{len(consumer.account.ids)} of {QUEUED} arrived\n{agent.log()}"
            taken_s = time.monotonic() - began_s
    return Figure(
        "drain to mosquitto", "events/s", [QUEUED / taken_s], Goal("value", "≥", 1000, "events/s"), (), "",
        f"{QUEUED} events of an earlier run, counted at a subscriber written in Python; "
        f"{consumer.account.out_of_order} out of order, {consumer.account.duplicates} twice",
    )  # fmt: skip
