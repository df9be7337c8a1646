"""What runs where, from retained reports that nobody vouches for."""

from __future__ import annotations

import json
import threading

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.errors import HoldfastError
from agent.mqtt.settings import MqttSettings
from agent.mqtt.subscriber import Arrived
from bundles.release.fleet import gather, read_fleet, rows
from simulator.broker import Mosquitto

REPORT = {
    "at": "2026-11-20T09:00:00Z",
    "models": {
        "people": {
            "channel": "stable", "state": "fetching", "release": 7, "name": "parcels", "version": "1.2",
            "digest": "ab" * 32, "confirmed": True, "previous": None, "candidate": {"version": "1.3"},
            "progress": {"done_bytes": 500_000, "total_bytes": 2_000_000, "transport": "mqtt"}, "reason": "", "denied": [],
        },
        "sound": {"channel": "beta", "state": "rolled_back", "release": 3, "name": None, "version": None,
                  "confirmed": False, "progress": None, "reason": "crashed 3 times", "denied": []},
    },
    "trust": {"timestamp": 12, "expires": "2026-11-27T09:00:00Z"},
}  # fmt: skip


def retained(device: str, kind: str, payload: object) -> Arrived:
    content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Arrived(f"holdfast/devices/{device}/{kind}", content, is_retained=True)


def test_a_row_for_each_model():
    """Channel, what runs, how far a download is, why something was refused."""
    devices = gather("holdfast", [retained("box1", "update", REPORT), retained("box1", "status", b"online")])
    people, sound = rows(devices)
    assert (people.device, people.status, people.channel, people.runs) == ("box1", "online", "stable", "parcels 1.2")
    assert people.release == "7" and people.detail == "25 % of 2.0 MB by mqtt"
    assert sound.runs == "the factory bundle" and sound.detail == "crashed 3 times"


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff\xfe", b"[1]", b"[" * 50_000, b'{"models": 7}', b'{"models": {"a": 3, "b": {"progress": "x"}}}',
     b'{"models": {"a": {"progress": {"done_bytes": 1, "total_bytes": 1' + b"0" * 400 + b'}}}}',
     b'{"models": {"a": {}}, "x": "' + b"x" * 70_000 + b'"}'],
    ids=["empty", "no text", "list", "deep", "number", "wrong types", "huge number", "too large"],
)  # fmt: skip
def test_hostile_reports_are_shown_as_such(payload: bytes):
    """The broker is not trusted: no report may end the command."""
    for row in rows(gather("holdfast", [retained("box1", "update", payload)])):
        assert row.device == "box1"
        assert len(payload) < 65_000 or row.detail == "unreadable: update"


def test_reports_cannot_move_the_cursor():
    """An escape sequence in a reason would rewrite the operator's screen."""
    report = {"models": {"people": {"reason": "\x1b[2Jfine", "name": "x\n", "version": "1"}}}
    (row,) = rows(gather("holdfast", [retained("box1", "update", report)]))
    assert row.detail == "?[2Jfine" and row.runs == "x? 1"


def test_reading_ends_where_live_messages_begin():
    """A fleet that talks all the time must not keep the command for ever."""

    def endless():
        yield retained("box1", "status", b"online")
        while True:
            yield Arrived("holdfast/devices/box1/update", b"{}", is_retained=False)

    assert [device.device_id for device in gather("holdfast", endless())] == ["box1"]


def test_read_from_a_real_broker(tmp_path, need_tool):
    """Retained messages come at once, from any number of devices."""
    need_tool("mosquitto")
    with Mosquitto(tmp_path / "broker") as broker:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect(broker.host, broker.port)
        client.loop_start()
        messages = [(f"holdfast/devices/box{number}/update", json.dumps(REPORT)) for number in range(5)]
        for topic, payload in [*messages, ("holdfast/devices/box0/status", "offline")]:
            client.publish(topic, payload, qos=1, retain=True).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()
        devices = read_fleet(MqttSettings(host=broker.host, port=broker.port), "test-fleet", quiet_s=0.5)
    assert [device.device_id for device in devices] == [f"box{number}" for number in range(5)]
    assert devices[0].status == "offline" and len(list(rows(devices))) == 10
    assert not [thread for thread in threading.enumerate() if "paho" in thread.name]


def test_broker_that_is_not_there_is_an_error_with_a_next_step():
    """The most frequent mistake."""
    with pytest.raises(HoldfastError) as caught:
        read_fleet(MqttSettings(host="127.0.0.1", port=1), "test-fleet")
    assert caught.value.hint
