"""`holdfast release serve` as a process: its options reach the broker, and the timestamp stays fresh."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from agent.mqtt.settings import MqttSettings, TlsSettings
from agent.mqtt.subscriber import Subscriber
from agent.paths import StatePaths, hold_state
from bundles.release.creation import create, open_repository
from bundles.release.settings import ExpiryDays
from simulator.broker import Mosquitto
from simulator.certificates import Certificates

COMMAND = [sys.executable, "-c", "from bundles.release.cli import app; app()", "serve"]


def test_serve_with_tls_says_what_is_new_and_leaves_when_asked(tmp_path: Path, need_tool):
    """With a client certificate, and with the online keys only: the others are not on this machine."""
    need_tool("mosquitto")
    certificates = Certificates(tmp_path / "tls")
    ours, guest = certificates.issue("server-1"), certificates.issue("fleet")
    create(tmp_path / "repo", tmp_path / "keys", tmp_path / "online", expires_days=ExpiryDays(timestamp=7))
    (tmp_path / "keys").rename(tmp_path / "keys-on-the-laptop")
    with Mosquitto(tmp_path / "broker", certificates=certificates) as broker:
        tls = TlsSettings(ca=certificates.ca, cert=guest.cert, key=guest.key)
        settings = MqttSettings(host="localhost", port=broker.port, tls=tls)
        words = ["--host", "localhost", "--port", broker.port, "--ca", certificates.ca, "--prefix", "holdfast",
                 "--cert", ours.cert, "--key", ours.key,
                 "--online-keys", tmp_path / "online"]  # fmt: skip
        server = subprocess.Popen([*COMMAND, str(tmp_path / "repo"), *map(str, words)], stderr=subprocess.PIPE)
        try:
            with Subscriber(settings, client_id="test", topics=["holdfast/releases/timestamp"]) as subscriber:
                messages = subscriber.messages(idle_s=30)
                assert next(messages).payload == b"1"
                open_repository(tmp_path / "repo", key_folders=[tmp_path / "online"]).refresh()
                assert next(messages).payload == b"2"
            server.send_signal(signal.SIGTERM)
            assert "served 0 pieces" in server.communicate(timeout=30)[1].decode()
            assert server.returncode == 0
        finally:
            server.kill()
            server.wait()


def test_server_that_starts_while_another_one_refreshes_serves(tmp_path: Path, need_tool):
    """Two start at the same boot, on the same folder: the one that finds it locked must not end."""
    need_tool("mosquitto")
    create(tmp_path / "repo", tmp_path / "keys", tmp_path / "online")
    with Mosquitto(tmp_path / "broker") as broker, hold_state(StatePaths(tmp_path / "repo")):
        words = ["--host", "127.0.0.1", "--port", broker.port, "--online-keys", tmp_path / "online"]
        server = subprocess.Popen([*COMMAND, str(tmp_path / "repo"), *map(str, words)])
        try:
            settings = MqttSettings(host="127.0.0.1", port=broker.port)
            with Subscriber(settings, client_id="test", topics=["holdfast/releases/timestamp"]) as subscriber:
                assert next(subscriber.messages(idle_s=30)).payload == b"1"
        finally:
            server.kill()
            server.wait()
