"""The link against a real mosquitto, and against everything that goes wrong with one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.mqtt.messages import Connected, ConnectFailed, Disconnected, MessageArrived, PublishAcknowledged
from simulator.broker import EmbeddedBroker, Mosquitto, free_port
from simulator.certificates import Certificates
from simulator.link import FaultyLink

Link = Any
Mailbox = Any
MakeLink = Callable[..., Link]
MakeBroker = Callable[..., Mosquitto]
STOP_PROMISE_S = 2.0


def stop_in_time(link: Link) -> None:
    """The product's promise: SIGTERM ends everything within 2 s, in any state."""
    clock = SystemClock()
    began = clock.monotonic()
    link.stop()
    assert clock.monotonic() - began < STOP_PROMISE_S


def wait_until(condition: Callable[[], bool]) -> None:
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + 20
    while not condition():
        assert clock.monotonic() < deadline
        clock.wait(never, 0.01)


def test_speaks_mqtt_5_and_hands_over_answers_by_token(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox
) -> None:
    with make_broker() as broker:
        link = make_link(broker.port)
        connected = mailbox.next(Connected)
        assert (connected.protocol, connected.sees_denials) == ("5", True)
        for token in range(100):
            assert link.publish("holdfast/x", b"{}", qos=1, token=token, session=connected.session)
        assert [mailbox.next(PublishAcknowledged).token for _ in range(100)] == list(range(100))


def test_publish_for_another_connection_is_dropped(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox
) -> None:
    """Core may be a message behind: what it meant for the old connection would come out of order on the new one."""
    with make_broker() as broker:
        link = make_link(broker.port)
        session = mailbox.next(Connected).session
        assert not link.publish("holdfast/x", b"{}", qos=1, token=1, session=session - 1)


def test_status_is_retained_online_then_offline_and_info_is_sent_on_each_connect(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox, watch: Callable[..., Any], topics: Any
) -> None:
    broker = make_broker()
    broker.start()
    link = make_link(broker.port)
    link.retain(topics.info, b'{"v":1}')
    mailbox.next(Connected)
    link.retain(topics.info, b'{"v":2}')
    broker.kill()
    mailbox.next(Disconnected)
    broker.start()
    mailbox.next(Connected)
    watcher = watch(broker)
    assert watcher.next(topics.info).payload == b'{"v":2}'
    assert watch(broker).next(topics.status).payload == b"online"
    stop_in_time(link)
    offline = watcher.next(topics.status)
    while offline.payload == b"online":
        offline = watcher.next(topics.status)
    assert offline.payload == b"offline"
    assert watch(broker).next(topics.status).retain


def test_last_will_says_offline_when_the_line_is_cut(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox, watch: Callable[..., Any], topics: Any
) -> None:
    with make_broker() as broker, FaultyLink(broker.host, broker.port) as line:
        make_link(line.port)
        mailbox.next(Connected)
        watcher = watch(broker)
        assert watcher.next(topics.status).payload == b"online"
        line.reset()
        assert watcher.next(topics.status).payload == b"offline"


def test_subscribes_again_on_each_connect(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox, topics: Any
) -> None:
    broker = make_broker()
    broker.start()
    link = make_link(broker.port, subscriptions=(topics.ack, "sensors/#"))
    for _ in range(2):
        session = mailbox.next(Connected).session
        assert link.publish("sensors/a", b"1", qos=1, session=session)
        arrived = mailbox.next(MessageArrived)
        assert (arrived.topic, arrived.payload) == ("sensors/a", b"1")
        broker.kill()
        mailbox.next(Disconnected)
        broker.start()


def test_denied_publish_carries_its_reason_on_mqtt_5_and_looks_delivered_on_3(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox
) -> None:
    """The reason for MQTT 5 first: 3.1.1 acknowledges what the ACL threw away."""
    with make_broker(acl=["topic readwrite holdfast/devices/gate-07/status"]) as broker:
        link = make_link(broker.port)
        mailbox.next(Connected)
        link.publish("holdfast/devices/gate-07/events/door", b"{}", qos=1, token=1)
        assert mailbox.next(PublishAcknowledged).reason_code == 0x87
        stop_in_time(link)
        link = make_link(broker.port, protocol="3.1.1")
        assert not mailbox.next(Connected).sees_denials
        link.publish("holdfast/devices/gate-07/events/door", b"{}", qos=1, token=2)
        assert mailbox.next(PublishAcknowledged).reason_code == 0


def test_broker_that_is_absent_at_first_is_found_later(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox
) -> None:
    broker = make_broker()
    make_link(broker.port)
    failed = mailbox.next(ConnectFailed)
    assert failed.kind == "unreachable"
    assert "nothing listens" in failed.reason.lower()
    broker.start()
    mailbox.next(Connected)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_wrong_password_is_named_with_advice_and_not_printed(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox, need_tool: Any, protocol: str
) -> None:
    need_tool("mosquitto_passwd")
    with make_broker(users={"gate": "right"}) as broker:
        make_link(broker.port, user="gate", password="wrong-secret", protocol=protocol)
        failed = mailbox.next(ConnectFailed)
        assert failed.kind == "credentials"
        assert "mqtt.password" in failed.reason
        assert "wrong-secret" not in failed.reason


def test_tls_with_client_certificate_works_and_each_mistake_has_its_advice(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox, tmp_path: Path, need_tool: Any
) -> None:
    need_tool("openssl")
    ours, theirs = Certificates(tmp_path / "ours"), Certificates(tmp_path / "theirs")
    gate = ours.issue("gate-07")
    with make_broker(certificates=ours) as broker:
        good = {"ca": str(ours.ca), "cert": str(gate.cert), "key": str(gate.key)}
        make_link(broker.port, tls=good)
        assert mailbox.next(Connected).protocol == "5"
        mistakes = {
            "not trusted": {**good, "ca": str(theirs.ca)},
            "mqtt.tls": {**good, "cert": str(tmp_path / "missing.pem")},
            "certificate": {"ca": str(ours.ca)},
        }
        for word, tls in mistakes.items():
            link = make_link(broker.port, tls=tls)
            failed = mailbox.next(ConnectFailed)
            assert word in failed.reason, failed
            link.stop()


def test_plain_mqtt_at_a_tls_port_and_tls_at_a_plain_port_fail_with_advice(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox, tmp_path: Path, need_tool: Any
) -> None:
    need_tool("openssl")
    certificates = Certificates(tmp_path / "tls")
    with make_broker(certificates=certificates) as broker:
        link = make_link(broker.port)
        assert "closed the connection" in mailbox.next(ConnectFailed).reason
        link.stop()
    with make_broker() as broker:
        make_link(broker.port, tls={"ca": str(certificates.ca)})
        assert mailbox.next(ConnectFailed).kind == "tls"


def test_broker_that_speaks_only_3_is_found_without_being_told(make_link: MakeLink, mailbox: Mailbox) -> None:
    """amqtt never answers an MQTT 5 CONNECT."""
    pytest.importorskip("amqtt")
    with EmbeddedBroker() as broker:
        link = make_link(broker.port, answer_timeout_s=1.0)
        connected = mailbox.next(Connected)
        assert connected.protocol == "3.1.1"
        link.publish("holdfast/x", b"{}", qos=1, token=5)
        assert mailbox.next(PublishAcknowledged).token == 5


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A server that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        for sock in held:
            sock.close()


def test_server_that_never_answers_is_named(make_link: MakeLink, mailbox: Mailbox, mute_port: int) -> None:
    make_link(mute_port, answer_timeout_s=0.3)
    failed = mailbox.next(ConnectFailed)
    assert failed.kind == "silent"
    assert "does not answer" in failed.reason


def test_name_that_cannot_be_looked_up_is_named(make_link: MakeLink, mailbox: Mailbox) -> None:
    make_link(1883, host="no-such-broker.invalid")
    assert "mqtt.host" in mailbox.next(ConnectFailed).reason


def test_stops_in_time_while_the_first_connect_hangs_and_does_not_connect_later(make_link: MakeLink, deaf: Any) -> None:
    """A zombie that connects late would throw out its own successor: same client id."""
    link = make_link(deaf.port)
    wait_until(lambda: link._attempt is not None)
    stop_in_time(link)
    assert deaf.first_bytes() == b""


def test_stops_in_time_while_the_broker_is_mute(make_link: MakeLink, mute_port: int) -> None:
    stop_in_time(make_link(mute_port))


def test_stops_in_time_while_waiting_between_attempts(make_link: MakeLink, mailbox: Mailbox) -> None:
    link = make_link(free_port())
    mailbox.next(ConnectFailed)
    stop_in_time(link)


def test_stops_in_time_while_black_holed(make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox) -> None:
    with make_broker() as broker, FaultyLink(broker.host, broker.port) as line:
        link = make_link(line.port)
        session = mailbox.next(Connected).session
        line.partition()
        for token in range(500):
            link.publish("holdfast/x", b"x" * 10_000, qos=1, token=token, session=session)
        stop_in_time(link)


def test_stopped_link_posts_nothing_more(make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox) -> None:
    with make_broker() as broker, FaultyLink(broker.host, broker.port) as line:
        line.partition()
        link = make_link(line.port)
        wait_until(lambda: line.connections > 0)
        stop_in_time(link)
        line.heal()
        link._thread.join(10)
        assert mailbox.queue.empty()


def test_a_stop_of_our_own_does_not_look_like_trouble(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who reads `the connection was lost` at the end of a log looks for a fault."""
    with make_broker() as broker:
        link = make_link(broker.port)
        mailbox.next(Connected)
        with caplog.at_level("INFO"):
            link.stop()
    assert "disconnected from the broker: we left" in caplog.messages


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., int]]:
    """A server that answers each CONNECT with given bytes, by the protocol level in it (5, or 4 for MQTT 3.1.1)."""
    servers: list[socket.socket] = []

    def make(answers: dict[int, bytes], *, then_close: bool = True) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            held = []
            while True:
                try:
                    connection = server.accept()[0]
                    packet = connection.recv(4096)
                    connection.sendall(answers[packet[packet.index(b"MQTT") + 4]])
                except OSError:
                    return
                if then_close:
                    connection.close()
                held.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        return server.getsockname()[1]

    yield make
    for server in servers:
        server.close()


def test_the_brokers_own_reason_for_ending_the_connection_is_kept(
    make_link: MakeLink, mailbox: Mailbox, scripted_server: Callable[..., int]
) -> None:
    """MQTT 5 section 3.14.2.1; without it an operator sees "lost" and blames the network."""
    port = scripted_server({5: bytes.fromhex("2003000000 e0018e")})
    make_link(port)
    assert "taken over" in mailbox.next(Disconnected).reason.lower()


@pytest.mark.parametrize(
    "refusal",
    [pytest.param("20020001", id="as-3.1.1"), pytest.param("2003008400", id="as-5"), pytest.param("", id="close")],
)
def test_broker_that_refuses_mqtt_5_is_asked_with_3_at_once(
    make_link: MakeLink, mailbox: Mailbox, scripted_server: Callable[..., int], refusal: str
) -> None:
    port = scripted_server({5: bytes.fromhex(refusal), 4: bytes.fromhex("20020000")})
    make_link(port)
    assert mailbox.queue.get(timeout=10) == Connected(2, "3.1.1", 65535)


@pytest.mark.parametrize("code", [0x81, 0x85, 0x88, 0x8A, 0x9F])
def test_each_refusal_is_reported_and_tried_again(
    make_link: MakeLink, mailbox: Mailbox, scripted_server: Callable[..., int], code: int
) -> None:
    port = scripted_server({5: bytes([0x20, 3, 0, code, 0])})
    make_link(port)
    assert mailbox.next(ConnectFailed).kind == "refused"
    assert mailbox.next(ConnectFailed).retry_in_s > 0


def test_receive_maximum_of_the_broker_reaches_core(
    make_broker: MakeBroker, make_link: MakeLink, mailbox: Mailbox
) -> None:
    """mosquitto allows 20 by default; one more and it ends the connection."""
    with make_broker(extra=["max_inflight_messages 7"]) as broker:
        make_link(broker.port)
        assert mailbox.next(Connected).receive_maximum == 7
