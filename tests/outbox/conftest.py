"""A device's outbox on virtual time, and a broker that answers as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.health.conditions import ClearCondition, SetCondition
from agent.outbox.actions import Action, Publish
from agent.outbox.envelope import Envelope, ModelInfo
from agent.outbox.outbox import Outbox
from agent.outbox.settings import OutboxSettings
from agent.outbox.store import EventStore
from agent.paths import StatePaths
from simulator.clock import SeededRandom, VirtualClock

MODEL = ModelInfo("parcels", "1.0.0", "ab" * 32, "int8", "CPUExecutionProvider")


def message(pipeline: str = "door", **more: Any) -> dict[str, Any]:
    """An event as a worker sends it."""
    return {
        "pipeline": pipeline,
        "type": "track",
        "captured_at": "2026-11-20T09:00:00.123456+00:00",
        "phase": "new",
        "rule": "track",
        "label": "person",
        "score": 0.91,
        "track_id": 17,
        "box": [1.0, 2.0, 3.0, 4.0],
        **more,
    }


class Bench:
    """An outbox with its clock; collects what it asks core to do."""

    def __init__(self, paths: StatePaths, settings: OutboxSettings, clock: VirtualClock, window: int) -> None:
        self.paths, self.settings, self.clock, self.window = paths, settings, clock, window
        self.session = 0
        self.published: list[Publish] = []
        self.conditions: dict[str, SetCondition] = {}
        self.durable: set[int] = set()
        """Numbers of events (not of reports) that a transaction ever took."""
        self.open()

    def _spy(self, write: Callable[..., None]) -> Callable[..., None]:
        def spy(*, append: Any = (), delete: Any = (), losses: Any = ()) -> None:
            append = list(append)
            write(append=append, delete=delete, losses=losses)
            self.durable.update(event.seq for event in append if b'"dev.holdfast.loss"' not in event.payload)

        return spy

    def open(self) -> None:
        self.store = EventStore.open(self.paths, self.clock)
        self.store.write = self._spy(self.store.write)  # type: ignore[method-assign]
        envelope = Envelope("gate-07", self.clock, SeededRandom(2))
        self.outbox = Outbox(self.store, self.settings, envelope, SeededRandom(1), window=self.window)
        self.do(self.outbox.start(self.now))

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Publish():
                    self.published.append(action)
                case SetCondition():
                    self.conditions[action.name] = action
                case ClearCondition():
                    self.conditions.pop(action.name, None)

    message = staticmethod(message)

    def record(self, pipeline: str = "door", count: int = 1, **more: Any) -> None:
        for _ in range(count):
            self.do(self.outbox.record(message(pipeline, **more), MODEL, self.now))

    def commit(self) -> None:
        self.pass_time(self.settings.commit_ms / 1000)

    def pass_time(self, seconds: float) -> None:
        """Let time pass and do what falls due on the way."""
        end = self.now + seconds
        while (due := self.outbox.next_wakeup) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.now))
            self.do(self.outbox.tick(self.now))
        self.clock.advance(max(0.0, end - self.now))

    def connect(self, receive_maximum: int = 65535, sees_denials: bool = True) -> None:
        self.session += 1
        self.do(
            self.outbox.connected(
                self.now, session=self.session, receive_maximum=receive_maximum, sees_denials=sees_denials
            )
        )

    def disconnect(self) -> None:
        self.do(self.outbox.disconnected(self.now))

    def answer(self, publish: Publish, reason_code: int = 0) -> None:
        self.do(self.outbox.acknowledged(publish.seq, reason_code, publish.session, self.now))

    def answer_all(self, reason_code: int = 0) -> list[Publish]:
        """Answer what was published until nothing more comes; return it all."""
        answered: list[Publish] = []
        while self.published:
            batch, self.published = self.published, []
            for publish in batch:
                self.answer(publish, reason_code)
            answered += batch
            self.commit()
        return answered

    def kill(self) -> None:
        """`kill -9`: what was not committed is gone; the files stay as they are."""
        self.store._connection.close()
        self.published.clear()
        self.conditions.clear()


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def make_bench(paths: StatePaths, clock: VirtualClock) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(window: int = 200, **settings: Any) -> Bench:
        made.append(Bench(paths, OutboxSettings(**settings), clock, window))
        return made[-1]

    make.bench_type = Bench  # type: ignore[attr-defined]
    yield make
    for bench in made:
        bench.store._connection.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
