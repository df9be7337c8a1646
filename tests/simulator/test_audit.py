"""The auditor must know what was recorded, also of a core that ended in the middle of a sentence."""

from __future__ import annotations

import json
from pathlib import Path

from agent.outbox.store import EventStore, Stored
from agent.paths import StatePaths
from simulator.audit import Audit
from simulator.clock import VirtualClock


def stored(seq: int, pipeline: str = "door") -> Stored:
    return Stored(seq, pipeline, json.dumps({"id": f"id-{seq}", "data": {"seq": seq}}).encode())


def test_every_recorded_event_is_noted_whatever_became_of_it(tmp_path: Path) -> None:
    """Before the audit and after, delivered and waiting; read while the writer's log is still open, as after a kill."""
    paths = StatePaths(tmp_path)
    store = EventStore.open(paths, VirtualClock())
    store.append([stored(1)])
    store.close()
    audit = Audit(paths)
    audit.begin()
    store = EventStore.open(paths, VirtualClock())
    store.append([stored(2), stored(3, "yard")])
    store.write(append=[stored(4)], delete=[1, 2])
    log_before = (tmp_path / "holdfast.db-wal").read_bytes()
    found = audit.read()
    assert found.recorded == ((1, "door", "id-1"), (2, "door", "id-2"), (3, "yard", "id-3"), (4, "door", "id-4"))
    assert found.waiting == {3, 4}
    assert found.lost == 0
    assert (tmp_path / "holdfast.db-wal").read_bytes() == log_before, "the log is the agent's to recover"
    store.close()
