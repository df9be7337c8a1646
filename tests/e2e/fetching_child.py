"""A device's fetching alone, as a program that can be killed: `python fetching_child.py PORT ROOT STATE`.

Trust, staging and the MQTT transport are the agent's own. It says `fetched` when the newest release is in the store.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from agent.clock import SystemClock, SystemRandom
from agent.errors import UnavailableError
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.settings import MqttSettings
from agent.mqtt.topics import Topics
from agent.update.fetching.staging import Stager
from agent.update.fetching.store import BundleStore
from agent.update.selection import Device, choose, slot_of
from agent.update.verification.checking import read_channel
from agent.update.verification.trust import Trust
from tests.e2e.following import CHANNEL, VARIANT


def main(port: int, root: Path, state: Path) -> None:
    clock, stop = SystemClock(), threading.Event()
    transport = MqttTransport(
        MqttSettings(host="127.0.0.1", port=port), Topics("holdfast", "device"), clock, SystemRandom()
    )
    trust = Trust(state / "trust", root.read_bytes(), lambda path, limit: transport.read(path, limit, stop), clock)
    stager = Stager(BundleStore(state / "bundles"), transport, refuse_to_unpack, clock)
    while True:
        try:
            document = read_channel(trust, trust.high_water, CHANNEL)
            assignment = choose(document, Device("device", frozenset()))
            assert assignment is not None
            stager.stage(slot_of(assignment), trust.target, lambda _: {VARIANT}, lambda *_: None, stop)
        except UnavailableError as error:  # what came is kept; the agent would wait longer
            sys.stderr.write(f"{error}\n")
            clock.wait(stop, 0.2)
        else:
            break
    sys.stdout.write("fetched\n")


def refuse_to_unpack(form: object, *_: object) -> None:
    raise AssertionError(f"{form} was to travel as it is")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
