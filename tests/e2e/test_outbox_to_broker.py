"""The outbox and the link together against a real mosquitto: what core does with them, without core."""

from __future__ import annotations

import json
import queue
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from agent.clock import SystemClock, SystemRandom
from agent.health.conditions import ClearCondition, SetCondition
from agent.mqtt.link import Link
from agent.mqtt.messages import Connected, ConnectFailed, Disconnected, MessageArrived, PublishAcknowledged
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.outbox.actions import Publish
from agent.outbox.envelope import CONTENT_TYPE, Envelope
from agent.outbox.outbox import Outbox
from agent.outbox.settings import OutboxSettings
from agent.outbox.store import EventStore
from agent.paths import StatePaths
from simulator.broker import Mosquitto
from simulator.link import FaultyLink

WITHIN_S = 60.0
TOPICS = Topics("holdfast", "gate-07")


class MiniCore:
    """Core's loop, as app.py has it, for the outbox alone."""

    def __init__(self, folder: Path, port: int, **outbox: Any) -> None:
        self.clock = SystemClock()
        self.messages: queue.Queue[Any] = queue.Queue()
        self.conditions: dict[str, str] = {}
        self.outbox = Outbox(
            EventStore.open(StatePaths(folder), self.clock),
            OutboxSettings(**outbox),
            Envelope("gate-07", self.clock, SystemRandom()),
            SystemRandom(),
        )
        self.link = Link(
            MqttSettings(host="127.0.0.1", port=port, keepalive_s=5),
            TOPICS,
            post=self.messages.put,
            clock=self.clock,
            random=SystemRandom(),
            subscriptions=(TOPICS.ack,),
            answer_timeout_s=1.0,
        )
        self.carry_out(self.outbox.start(self.now))
        self.link.start()

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def carry_out(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Publish():
                    self.link.publish(
                        TOPICS.events(action.pipeline), action.payload,
                        qos=1, token=action.seq, session=action.session, content_type=CONTENT_TYPE,
                    )  # fmt: skip
                case SetCondition():
                    self.conditions[action.name] = action.text
                case ClearCondition():
                    self.conditions.pop(action.name, None)

    def record(self, pipeline: str, number: int) -> None:
        message = {
            "pipeline": pipeline, "type": "count", "captured_at": "2026-11-20T09:00:00+00:00", "phase": "new",
            "rule": "count", "value": number,
        }  # fmt: skip
        self.carry_out(self.outbox.record(message, None, self.now))

    def step(self) -> None:
        wakeup = self.outbox.next_wakeup
        wait_s = 0.2 if wakeup is None else min(0.2, max(0.0, wakeup - self.now))
        try:
            message = self.messages.get(timeout=max(wait_s, 0.0001))
        except queue.Empty:
            message = None
        match message:
            case Connected():
                self.carry_out(
                    self.outbox.connected(
                        self.now,
                        session=message.session,
                        receive_maximum=message.receive_maximum,
                        sees_denials=message.sees_denials,
                    )
                )
                self.conditions.pop("broker-unreachable", None)
            case Disconnected():
                self.carry_out(self.outbox.disconnected(self.now))
            case ConnectFailed():
                self.conditions["broker-unreachable"] = message.reason
            case PublishAcknowledged():
                self.carry_out(self.outbox.acknowledged(message.token, message.reason_code, message.session, self.now))
            case MessageArrived():
                self.carry_out(self.outbox.consumer_acknowledged(message.payload, self.now))
        self.carry_out(self.outbox.tick(self.now))

    def run_until(self, condition: Callable[[], bool]) -> None:
        deadline = self.now + WITHIN_S
        while not condition():
            if self.now > deadline:
                pytest.fail(f"not within {WITHIN_S} s: {self.outbox.stats()} {self.conditions}")
            self.step()

    def drain(self) -> None:
        self.run_until(lambda: self.outbox.stats().queued == 0)

    def close(self) -> None:
        self.link.stop()
        self.outbox.close(self.now)


class Consumer:
    """A subscriber with a persistent session that keeps what it saw, and acknowledges where it is told to."""

    def __init__(self, port: int, *, acknowledges: bool = False) -> None:
        self.values: dict[str, list[int]] = {}
        self.seqs: list[int] = []
        self._acknowledges = acknowledges
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="consumer", clean_session=False)
        self._client.on_connect = lambda *_: self._client.subscribe("holdfast/devices/+/events/#", 1)
        self._client.on_message = self._on_message
        ready: queue.Queue[None] = queue.Queue()
        self._client.on_subscribe = lambda *_: ready.put(None)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        ready.get(timeout=WITHIN_S)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        event = json.loads(message.payload)
        seq = event["data"]["seq"]
        if seq not in self.seqs:
            self.values.setdefault(message.topic.rsplit("/", 1)[1], []).append(event["data"]["value"])
        self.seqs.append(seq)
        if self._acknowledges:
            self._client.publish(TOPICS.ack, json.dumps({"seq": seq}), 1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path, need_tool: Callable[[str], str]) -> Iterator[Mosquitto]:
    need_tool("mosquitto")
    with Mosquitto(tmp_path / "broker", extra=["max_queued_messages 0"]) as broker:
        yield broker


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    parts: list[Any] = []
    yield parts
    for part in parts:
        part.close()


def test_events_of_several_pipelines_arrive_complete_and_in_order_over_a_bad_line(
    broker: Mosquitto, tmp_path: Path, closing: list[Any]
) -> None:
    """Resets and a stall in the middle: nothing is lost, and duplicates are few and removable by seq."""
    with FaultyLink(broker.host, broker.port) as line:
        consumer = Consumer(broker.port)
        core = MiniCore(tmp_path, line.port)
        closing += [core, consumer]
        for number in range(900):
            core.record(("door", "yard", "belt")[number % 3], number // 3)
            if number % 300 == 150:
                core.run_until(lambda: bool(core.outbox.stats().delivered))
                line.reset()
            core.step()
        core.drain()
        assert line.connections >= 2, "the fault must have fired"
        core.run_until(lambda: len(set(consumer.seqs)) >= 900)
        assert consumer.values == {name: list(range(300)) for name in ("door", "yard", "belt")}


def test_broker_killed_hard_loses_nothing_with_consumer_acknowledgement(
    broker: Mosquitto, tmp_path: Path, closing: list[Any]
) -> None:
    """mosquitto loses its queue on `kill -9`; what the consumer has not acknowledged is sent again, in order."""
    consumer = Consumer(broker.port, acknowledges=True)
    core = MiniCore(tmp_path, broker.port, delivery="consumer", consumer_timeout_s=2)
    closing += [core, consumer]
    for number in range(600):
        core.record("door", number)
        if number in (200, 400):
            core.run_until(lambda: core.outbox.stats().delivered > 0)
            broker.kill()
            broker.start()
        core.step()
    core.drain()
    assert consumer.values == {"door": list(range(600))}
    assert max(Counter(consumer.seqs).values()) <= 4


def test_denied_topic_keeps_its_events_says_so_and_recovers_when_it_is_allowed(
    tmp_path: Path, need_tool: Callable[[str], str], closing: list[Any]
) -> None:
    """A denied publish is not a delivered one (MQTT 5)."""
    need_tool("mosquitto")
    everything_but_door = ["topic readwrite holdfast/devices/gate-07/events/yard", "topic read holdfast/#"]
    with Mosquitto(tmp_path / "broker", acl=everything_but_door) as broker:
        consumer = Consumer(broker.port)
        core = MiniCore(tmp_path, broker.port)
        closing += [core, consumer]
        for number in range(50):
            core.record("door", number)
            core.record("yard", number)
        core.run_until(lambda: "publish-denied/door" in core.conditions and core.outbox.stats().queued == 50)
        assert "not authorised" in core.conditions["publish-denied/door"]
        broker.write_acl(["topic readwrite holdfast/#"])
        broker.reload()
        core.drain()
        core.run_until(lambda: len(set(consumer.seqs)) >= 100)
        assert consumer.values == {"door": list(range(50)), "yard": list(range(50))}
        assert "publish-denied/door" not in core.conditions


def test_events_recorded_without_a_broker_survive_a_restart_and_arrive(
    tmp_path: Path, need_tool: Callable[[str], str], closing: list[Any]
) -> None:
    need_tool("mosquitto")
    broker = Mosquitto(tmp_path / "broker")
    core = MiniCore(tmp_path, broker.port)
    for number in range(500):
        core.record("door", number)
    core.run_until(lambda: "broker-unreachable" in core.conditions)
    core.close()
    with broker:
        consumer = Consumer(broker.port)
        core = MiniCore(tmp_path, broker.port)
        closing += [core, consumer]
        core.drain()
        core.run_until(lambda: len(set(consumer.seqs)) >= 500)
        assert consumer.values == {"door": list(range(500))}
