"""Brokers that are absent, deny, die and hang: each is said, and every event recorded arrives, once it can."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.broker import Mosquitto
from simulator.consumer import Consumer
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

MODELS = {"m": {"bundle": "parcels"}}
DENYING = ["topic readwrite holdfast/devices/+/status", "topic write holdfast/devices/+/health", "topic read #"]
MENDED = ["topic readwrite #"]


def test_every_event_arrives_whatever_the_broker_does(
    planned: Holdfast, tmp_path: Path, need_tool: Callable[[str], str], watch: Callable[[int], DeviceWatch]
) -> None:
    """Promise 5, one outage after the other: absent at the start, denying, killed with -9, hanging."""
    need_tool("mosquitto")
    broker = Mosquitto(tmp_path / "broker", acl=DENYING)
    config = planned.write_config(
        device={"name": "box"},
        mqtt={**broker_at(broker.port), "keepalive_s": 5},
        outbox={"delivery": "consumer", "consumer_timeout_s": 3},
        models=MODELS,
        cameras={"c": {"source": "scene://conveyor?fps=10&frames=250", "rules": {"all": {"when": "detect"}}}},
    )
    core = planned.run(config, "--exit-when-finished")
    wait_until(lambda: "Nothing listens at" in planned.log(), "its absence is said")
    wait_until(lambda: waiting_events(planned.state) > 20, "events are kept meanwhile")
    with broker, Consumer(broker.port, acknowledge=True) as consumer:
        device = watch(broker.port)
        text = device.wait_for_condition("publish-denied/c")
        assert "ACL" in text
        assert not consumer.account.ids
        broker.write_acl(MENDED)
        broker.reload()
        assert consumer.wait_for(20, PATIENCE_S), planned.log()
        device.wait_for(lambda it: "publish-denied/c" not in it.conditions, "the denial is over")

        broker.kill()
        before = waiting_events(planned.state)
        wait_until(lambda: waiting_events(planned.state) > before + 20, "events are kept while it is dead")
        broker.start()
        device.wait_for(lambda it: "broker-unreachable" not in it.conditions, "it is connected again")
        wait_until(lambda: waiting_events(planned.state) < 20, "what waited is gone")

        losses = planned.log().count("the connection was lost")
        broker.pause()
        wait_until(lambda: planned.log().count("the connection was lost") > losses, "the silence is noticed")
        broker.resume()
        assert core.wait(PATIENCE_S) == 0, planned.log()
        consumer.settle(0.5)
    seqs = consumer.account.seqs["c"]
    assert seqs == list(range(1, len(seqs) + 1)), "a gap is a loss"
    assert len(seqs) > 100 and not consumer.account.clashes
    assert not waiting_events(planned.state)


def test_wrong_password_is_said_without_it_and_mended_while_running(
    planned: Holdfast, tmp_path: Path, need_tool: Callable[[str], str]
) -> None:
    """The commonest mistake of the first day; nothing is lost while someone finds the right one."""
    need_tool("mosquitto")
    with Mosquitto(tmp_path / "broker", users={"box": "an-older-one"}) as broker:
        config = planned.write_config(
            mqtt={**broker_at(broker.port), "user": "box", "password": "hunter2-of-today"},
            models=MODELS,
            cameras={"c": {"source": "scene://conveyor?fps=10", "rules": {"all": {"when": "detect"}}}},
        )
        core = planned.run(config)
        wait_until(lambda: "refuses this device" in planned.log(), "the refusal is said")
        wait_until(lambda: waiting_events(planned.state) > 20, "events are kept meanwhile")
        passwords = tmp_path / "broker" / "passwords"
        subprocess.run([need_tool("mosquitto_passwd"), "-b", passwords, "box", "hunter2-of-today"], check=True)
        broker.reload()
        wait_until(lambda: not waiting_events(planned.state), "they are delivered")
        sigterm(core).assert_clean(planned.log())
    assert "hunter2" not in planned.log()
    assert "Check `mqtt.user` and `mqtt.password`" in planned.log()
