"""`holdfast events tail` against a real broker: what arrives is shown, and acknowledged when asked."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.events import line_of
from agent.errors import OperatorError, UnavailableError
from agent.mqtt.settings import MqttSettings
from agent.mqtt.subscriber import Subscriber
from simulator.certificates import Certificates

from .conftest import event, free_port

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def tail(tmp_path):
    """Return a function that starts `events tail` and waits until it listens."""
    started: list[subprocess.Popen[str]] = []

    def start(port: int, *arguments: str) -> subprocess.Popen[str]:
        (tmp_path / "holdfast.yaml").write_text(f"mqtt: {{host: 127.0.0.1, port: {port}}}\n")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent", "events", "tail", *arguments],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        started.append(process)
        assert "listening to" in process.stderr.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_tail_prints_events_in_order_and_stops_after_the_count(start_broker, connect, tail):
    """One line an event; nothing of other topics."""
    port = start_broker()
    process, client = tail(port, "--count", "2"), connect(port)
    client.publish("holdfast/devices/box1/status", b"online", qos=1)
    for seq in (7, 8):
        client.publish("holdfast/devices/box1/events/door", event(seq, zones={"current": ["yard"]}), qos=1)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.splitlines() == [
        f"2026-11-20T09:00:00.000Z box1/door #{seq} track new person 0.9 in yard" for seq in (7, 8)
    ]


def test_tail_acknowledges_what_it_printed(start_broker, connect, tail):
    """The consumer's half of `delivery: consumer`, to try it without writing one."""
    port = start_broker()
    acknowledged: queue.SimpleQueue[dict] = queue.SimpleQueue()
    client = connect(port)
    subscribed: queue.SimpleQueue[int] = queue.SimpleQueue()
    client.on_subscribe = lambda *_: subscribed.put(1)
    client.on_message = lambda _c, _d, message: acknowledged.put((message.topic, json.loads(message.payload)))
    client.subscribe("holdfast/devices/+/ack", 1)
    subscribed.get(timeout=10)
    process = tail(port, "--ack", "--json")
    client.publish("holdfast/devices/box1/events/door", event(41), qos=1)
    assert acknowledged.get(timeout=20) == ("holdfast/devices/box1/ack", {"seq": 41})
    assert json.loads(process.stdout.readline())["data"]["seq"] == 41


def test_tail_shows_what_is_no_event_and_goes_on(start_broker, connect, tail):
    """Somebody publishes nonsense on our topics."""
    port = start_broker()
    process, client = tail(port, "--ack", "--count", "3"), connect(port)
    for payload in (b"\xff\xfe", b"[1]", b'{"data": 5}'):
        client.publish("holdfast/devices/box1/events/x", payload, qos=1)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, len(out.splitlines())) == (0, 3), error


def test_broker_that_is_not_there_is_said(tail):
    """Exit code 5: trying later may work."""
    with pytest.raises(UnavailableError, match="nothing listens"):
        Subscriber(MqttSettings(host="127.0.0.1", port=free_port()), client_id="x").__enter__()


def test_wrong_password_is_said(start_broker, tmp_path):
    """And not tried for ever."""
    (tmp_path / "empty").write_text("")
    (tmp_path / "empty").chmod(0o600)
    port = start_broker("allow_anonymous false", f"password_file {tmp_path / 'empty'}")
    for protocol in ("auto", "5", "3.1.1"):
        settings = MqttSettings(host="127.0.0.1", port=port, user="u", password="bad", protocol=protocol)
        with pytest.raises(OperatorError, match="refuses this device") as caught:
            Subscriber(settings, client_id="x").__enter__()
        assert "bad" not in str(caught.value).replace("Bad", "")


def test_port_that_is_no_broker_is_said_in_time():
    """A web server, or a firewall that swallows: no answer to CONNECT."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = MqttSettings(host="127.0.0.1", port=listener.getsockname()[1], protocol="5")
        with pytest.raises(UnavailableError, match="does not answer"):
            Subscriber(settings, client_id="x", answer_timeout_s=0.3).__enter__()


def test_line_of_a_loss_report_says_how_many():
    """Losses must catch the eye."""
    loss = {
        "source": "/devices/b/pipelines/p", "type": "dev.holdfast.loss", "time": "t",
        "data": {"seq": 3, "cause": "quota", "count": 12},
    }  # fmt: skip
    assert line_of(loss) == "t b/p #3 loss lost 12 by quota"


@pytest.mark.parametrize("is_silent", [pytest.param(False, id="refuses"), pytest.param(True, id="says-nothing")])
def test_broker_that_speaks_only_the_old_protocol_is_spoken_to_in_it(is_silent):
    """Some refuse MQTT 5 (CONNACK 1), some never answer it at all."""
    import socket
    import threading

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            peer, _address = listener.accept()
            level = peer.recv(1024)[8]  # fixed header 2, name length 2, "MQTT" 4, then the protocol level
            if level == 4:
                peer.sendall(b"\x20\x02\x00\x00")
                peer.recv(1024)
            elif not is_silent:
                peer.sendall(b"\x20\x02\x00\x01")
            peers.append(peer)

    peers: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        settings = MqttSettings(host="127.0.0.1", port=listener.getsockname()[1])
        with Subscriber(settings, client_id="x", answer_timeout_s=1.0) as subscriber:
            assert subscriber.protocol == "3.1.1"
    for peer in peers:
        peer.close()


def test_tls_is_spoken_and_an_unknown_authority_is_said(start_broker, need_tool, tmp_path):
    """The same certificates as the agent's own link."""
    need_tool("openssl")
    own, other = Certificates(tmp_path / "own"), Certificates(tmp_path / "other")
    port = start_broker(f"cafile {own.ca}", f"certfile {own.server.cert}", f"keyfile {own.server.key}")
    settings = MqttSettings(host="127.0.0.1", port=port, tls={"ca": own.ca})
    with Subscriber(settings, client_id="x", topics=["a/#"]) as subscriber:
        assert subscriber.protocol == "5"
    stranger = MqttSettings(host="127.0.0.1", port=port, tls={"ca": other.ca})
    with pytest.raises(OperatorError, match="not trusted"):
        Subscriber(stranger, client_id="x").__enter__()


def test_subscription_that_the_broker_denies_is_said():
    """An empty screen would look as if nothing happened. (mosquitto grants, and filters; others answer 0x80.)"""
    import socket
    import threading

    def serve(listener: socket.socket) -> None:
        peer, _address = listener.accept()
        with peer:
            peer.recv(1024)
            peer.sendall(b"\x20\x02\x00\x00")
            subscribe = peer.recv(1024)
            peer.sendall(b"\x90\x03" + subscribe[2:4] + b"\x80")
            peer.recv(1024)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        settings = MqttSettings(host="127.0.0.1", port=listener.getsockname()[1], protocol="3.1.1")
        with pytest.raises(OperatorError, match="denies holdfast/"):
            Subscriber(settings, client_id="x", topics=["holdfast/devices/+/events/#"]).__enter__()


def test_event_cannot_steer_the_terminal_that_shows_it():
    """Whoever may write to the broker may write a label."""
    assert line_of({"source": "/devices/box", "data": {"label": "\x1b[2J\x9b5mperson"}}).endswith(
        "\\x1b[2J\\x9b5mperson"
    )
