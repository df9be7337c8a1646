"""Whatever happens, in whatever order: no recorded event vanishes uncounted, order holds, duplicates are explained."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent.outbox.settings import OutboxSettings
from agent.paths import StatePaths
from simulator.clock import VirtualClock

IN_MEMORY = Path("/dev/shm")  # thousands of fsyncs say nothing here; crashes are simulated above the disk
PIPELINES = ("door", "yard", "belt")


class World(RuleBasedStateMachine):
    """An outbox, a broker with an ACL, and a consumer; every step may be the last before a crash."""

    bench_type: Any
    mode = "broker"
    quota_mb = 256.0
    policy = "drop_oldest"

    @initialize(window=st.sampled_from([1, 3, 20, 200]))
    def begin(self, window: int) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        chosen = OutboxSettings(
            delivery=self.mode, max_mb=self.quota_mb, when_full=self.policy, consumer_timeout_s=5, commit_ms=20
        )
        self.bench = self.bench_type(StatePaths(self.folder), chosen, VirtualClock(), window)
        self.is_up = False
        self.denied: set[str] = set()
        self.taken: list[Any] = []  # the broker has them; its answer is still on the way
        self.received: list[tuple[str, int]] = []  # what subscribers saw
        self.may_repeat: Counter[int] = Counter()

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            try:
                self.heal_and_check()
            finally:
                self.bench.kill()
                shutil.rmtree(self.folder)

    @rule(pipeline=st.sampled_from(PIPELINES), count=st.integers(1, 30))
    def record(self, pipeline: str, count: int) -> None:
        self.bench.record(pipeline, count)

    @rule(seconds=st.sampled_from([0.005, 0.02, 1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.pass_time(seconds)

    @precondition(lambda self: not self.is_up)
    @rule(receive_maximum=st.sampled_from([1, 5, 20, 65535]))
    def connect(self, receive_maximum: int) -> None:
        self.bench.connect(receive_maximum)
        self.receive_maximum = receive_maximum
        self.is_up = True

    @precondition(lambda self: self.is_up)
    @rule(count=st.integers(1, 50))
    def broker_takes(self, count: int) -> None:
        for _ in range(min(count, len(self.bench.published))):
            publish = self.bench.published.pop(0)
            if publish.pipeline not in self.denied:
                kind = json.loads(publish.payload)["type"]
                self.received.append((publish.pipeline, publish.seq) if "loss" not in kind else ("loss", publish.seq))
            self.taken.append((publish, 0x87 if publish.pipeline in self.denied else 0))

    @precondition(lambda self: self.is_up)
    @rule(count=st.integers(1, 50))
    def broker_answers(self, count: int) -> None:
        for _ in range(min(count, len(self.taken))):
            publish, reason_code = self.taken.pop(0)
            self.bench.answer(publish, reason_code)

    @rule(pipeline=st.sampled_from(PIPELINES))
    def deny(self, pipeline: str) -> None:
        self.denied.add(pipeline)

    @rule()
    def allow(self) -> None:
        """Only between windows: a broker that denies one and accepts the next out of one window may reorder them."""
        if self.is_up:
            self.broker_takes(len(self.bench.published))
            self.broker_answers(len(self.taken))
            self.broker_takes(len(self.bench.published))
            self.broker_answers(len(self.taken))
        if not self.bench.published and not self.taken:
            self.denied.clear()

    @precondition(lambda self: self.mode == "consumer" and self.is_up)
    @rule(share=st.sampled_from([1, 2, 3]))
    def consumer_acknowledges(self, share: int) -> None:
        seqs = [seq for _, seq in self.received[-60:]][::share]
        self.bench.do(self.bench.outbox.consumer_acknowledged(json.dumps(seqs).encode(), self.bench.now))

    @precondition(lambda self: self.is_up)
    @rule()
    def disconnect(self) -> None:
        self.break_off()
        self.bench.disconnect()

    @rule()
    def kill(self) -> None:
        self.break_off()
        self.bench.kill()
        self.bench.open()

    def break_off(self) -> None:
        in_flight = self.bench.outbox._delivery._lane_of
        self.may_repeat.update(list(in_flight))
        self.bench.published.clear()
        self.taken.clear()
        self.is_up = False

    @invariant()
    def receive_maximum_is_kept(self) -> None:
        if hasattr(self, "bench") and self.is_up:
            assert len(self.bench.published) + len(self.taken) <= self.receive_maximum

    def heal_and_check(self) -> None:
        if self.is_up:
            self.disconnect()
        self.denied.clear()
        self.bench.commit()
        self.connect(65535)
        for _ in range(5_000):  # one a round, where the window is one
            self.broker_takes(10_000)
            self.broker_answers(10_000)
            if self.mode == "consumer":
                self.consumer_acknowledges(1)
            self.bench.pass_time(1.0)
            if not (self.bench.published or self.bench.outbox.stats().queued or "event-loss" in self.bench.conditions):
                break
        events = [(pipeline, seq) for pipeline, seq in self.received if pipeline != "loss"]
        seen = {seq for _, seq in events}
        lost = sum(self.bench.outbox.stats().lost.values())
        assert self.bench.outbox.stats().queued == 0, "everything was healed, so everything must arrive"
        assert seen <= self.bench.durable, "nothing is sent that a power cut could take back"
        assert len(self.bench.durable - seen) <= lost, "what did not arrive was counted"
        if self.quota_mb > 1:
            assert lost == 0
        for pipeline in PIPELINES:
            first = list(dict.fromkeys(seq for name, seq in events if name == pipeline))
            assert first == sorted(first), "order per pipeline, duplicates removed"
        if self.mode == "broker":
            for seq, count in Counter(seq for _, seq in events).items():
                assert count <= 1 + self.may_repeat[seq], "only what was in flight comes twice"


@pytest.mark.parametrize(
    ("mode", "quota_mb", "policy"),
    [
        pytest.param("broker", 256.0, "drop_oldest", id="broker"),
        pytest.param("consumer", 256.0, "drop_oldest", id="consumer"),
        pytest.param("broker", 0.02, "drop_oldest", id="broker-full-drop-oldest"),
        pytest.param("broker", 0.02, "thin_out", id="broker-full-thin-out"),
        pytest.param("consumer", 0.02, "drop_newest", id="consumer-full-drop-newest"),
    ],
)
def test_promises_hold_whatever_happens(make_bench: Any, mode: str, quota_mb: float, policy: str) -> None:
    """Promise 5 of the design, over random histories of connects, cuts, denials, crashes and acknowledgements."""
    world = type("World", (World,), {"bench_type": make_bench.bench_type, "mode": mode, "quota_mb": quota_mb})
    world.policy = policy
    run_state_machine_as_test(
        world,
        settings=settings(
            max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
