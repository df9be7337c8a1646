"""The loop with tiny sources and models: it knows neither pictures nor signals, so neither do these."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from agent.clock import SystemClock
from agent.errors import CandidateError, OperatorError, SourceError
from agent.events.event import Event
from agent.inference.answers import Score
from agent.pipeline.active import Active
from agent.pipeline.loop import INVALID_LIMIT, LoopSettings, PipelineLoop
from agent.pipeline.stages import Tally
from simulator.clock import SeededRandom

CLOCK = SystemClock()


@dataclass(frozen=True)
class Tick:
    """The smallest sample there is."""

    source: str
    id: int
    captured_at: datetime
    captured_monotonic_s: float


class Ticks:
    """A source of ticks. An Exception in the script is raised, an Event is waited for."""

    def __init__(self, script, *, first_id=0, is_live=False):
        self.is_live = is_live
        self.dropped = {}
        self.is_closed = False
        self._script = iter(script)
        self._next_id = first_id

    def read(self):
        for item in self._script:
            if isinstance(item, threading.Event):
                item.wait(20)
                continue
            if isinstance(item, Exception):
                raise item
            tick = Tick("t", self._next_id, datetime(2026, 1, 1, tzinfo=UTC), item or CLOCK.monotonic())
            self._next_id += 1
            return None if self.is_closed else tick
        return None

    def close(self):
        self.is_closed = True

    def __iter__(self):
        return iter(self.read, None)


class Echo:
    """A model whose answer is the sample's id, after `gate` where there is one."""

    def __init__(self, *, gate=None, invalid=()):
        self.gate, self.invalid, self.name = gate, invalid, "echo"

    def prepare(self, sample):
        return sample.id

    def infer(self, inputs):
        if self.gate is not None:
            self.gate.wait(20)
        return inputs

    def decode(self, outputs, sample, *, min_score=None, class_ids=None):
        if outputs in self.invalid:
            raise CandidateError("output 'scores' holds NaN")
        return Score(outputs)


class Every:
    """A judge that has something to say about every sample, and at the end."""

    def track(self, answer, sample):
        return (answer, sample)

    def judge(self, observation):
        answer, sample = observation
        return [event(sample.captured_at, value=answer.value)]

    def finish(self):
        return [event(datetime(2026, 1, 1, tzinfo=UTC), phase="end")]


def event(at, *, phase="new", value=None):
    return Event(pipeline="p", type="level", captured_at=at, phase=phase, rule="level", value=value)


class Bench:
    """A loop with what came out of it."""

    def __init__(self, sources, *, model=None, judge=None, **settings):
        self.events, self.latencies, self.failures, self.first_ids, self.versions = [], [], [], [], []
        self._sources = iter(sources)
        self.loop = PipelineLoop(
            "p",
            open_source=self._open,
            active=Active(model or Echo(), judge or Every(), made_by={"version": "1"}),
            emit=self._emit,
            on_failure=self.failures.append,
            clock=CLOCK,
            random=SeededRandom(1),
            settings=LoopSettings(**{"reconnect_first_s": 0.01, "reconnect_limit_s": 0.02, **settings}),
        )

    def _open(self, stop, first_id):
        self.first_ids.append(first_id)
        make = next(self._sources)
        if isinstance(make, Exception):
            raise make
        return make(first_id) if callable(make) else make

    def _emit(self, event, latency_ms, made_by):
        self.events.append(event)
        self.latencies.append(latency_ms)
        self.versions.append(made_by["version"])

    @property
    def values(self):
        return [event.value for event in self.events if event.phase == "new"]


def test_every_sample_of_a_recording_goes_through_in_order(eventually):
    """At full speed nothing is left out, however slow the model is."""
    bench = Bench([Ticks([0] * 500)])
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.values == list(range(500))
    assert bench.loop.samples == bench.loop.captured == 500
    assert sum(bench.loop.dropped.values()) == 0


def test_end_of_a_recording_flushes_the_rules(eventually):
    """What was begun must be ended: a consumer waits for the `end` of each track."""
    bench = Bench([Ticks([0, 0])])
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert [event.phase for event in bench.events] == ["new", "new", "end"]
    assert bench.loop.events == 3


def test_stop_flushes_the_rules_too(eventually):
    """Whoever restarts the agent does not leave tracks open for ever."""
    bench = Bench([Ticks([0, threading.Event()], is_live=True)])
    with bench.loop:
        eventually(lambda: bench.loop.samples == 1)
        bench.loop.stop()
        eventually(lambda: any(event.phase == "end" for event in bench.events))


def test_newest_sample_of_a_live_source_wins_and_the_others_are_counted(eventually):
    """A slow model must see now, not the past; and nobody may be left to wonder where the frames went."""
    gate, last = threading.Event(), threading.Event()
    bench = Bench([Ticks([0] * 50 + [last], is_live=True)], model=Echo(gate=gate))
    with bench.loop:
        eventually(lambda: bench.loop.captured == 50)
        gate.set()
        eventually(lambda: 49 in bench.values)
        last.set()
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.values == sorted(bench.values)
    assert bench.loop.dropped["latest"] == 50 - len(bench.values)
    assert len(bench.values) < 10


def test_live_source_is_drained_while_the_model_is_busy(eventually):
    """An RTSP stream that nobody reads grows old in its buffer."""
    gate = threading.Event()
    bench = Bench([Ticks([0] * 1000, is_live=True)], model=Echo(gate=gate))
    with bench.loop:
        eventually(lambda: bench.loop.captured == 1000)
        assert bench.loop.samples == 0
        gate.set()


def test_rate_limit_keeps_the_mean_rate_despite_jitter_and_counts_the_rest(eventually):
    """`fps: 10` of a camera of 15 means ten, not seven and a half."""
    times = [100 + n / 15 + (0.004 if n % 3 else 0.0) for n in range(150)]
    bench = Bench([Ticks(times, is_live=True)], fps=10)
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert 48 <= bench.loop.dropped["rate"] <= 52


def test_rate_limit_of_the_cameras_own_rate_costs_no_frame(eventually):
    """A limit that equals the rate must not halve it because a frame came a millisecond early."""
    times = [100 + n / 10 - (0.02 if n % 5 == 4 else 0) for n in range(100)]
    bench = Bench([Ticks(times, is_live=True)], fps=10)
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.loop.dropped["rate"] == 0


def test_source_that_fails_is_opened_again_and_ids_go_on(eventually):
    """A camera that reboots is the same camera."""
    bench = Bench(
        [
            lambda first_id: Ticks([0, 0, SourceError("the stream broke off")], first_id=first_id),
            SourceError("the connection was refused", where="rtsp://u:secret@cam/1"),
            lambda first_id: Ticks([0, 0, 0], first_id=first_id),
        ]
    )
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.values == [0, 1, 2, 3, 4]
    assert bench.first_ids == [0, 2, 2]


def test_source_that_is_down_says_why_and_hides_the_password(eventually):
    """The operator reads this text, and may paste it into a ticket."""
    bench = Bench([SourceError("refused", where="rtsp://u:secret@cam/1")], reconnect_first_s=100, reconnect_limit_s=100)
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "down")
        assert "refused" in bench.loop.source_text
        assert "secret" not in bench.loop.source_text
        bench.loop.stop()
        assert bench.loop.join(2.0), "a stop does not wait for the next attempt"


def test_operators_error_at_the_opening_is_retried_and_clears(eventually):
    """Once the password is corrected in the camera, nobody must restart the agent."""
    bench = Bench([OperatorError("wrong password"), Ticks([0])])
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.loop.source_text == ""
    assert bench.loop.samples == 1


def test_recording_that_ends_before_its_time_finishes_and_says_so(eventually):
    """What was there is analysed; that it was not all of it is said."""
    bench = Bench([Ticks([0, 0, OperatorError("ended after 2 of 9 frames")])])
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.loop.samples == 2
    assert "2 of 9" in bench.loop.source_text


def test_invalid_answers_are_counted_and_the_next_valid_one_ends_the_matter(eventually):
    """NaN is not `nothing seen`."""
    bench = Bench([Ticks([0] * 10)], model=Echo(invalid={3, 4}))
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.values == [0, 1, 2, 5, 6, 7, 8, 9]
    assert bench.loop.dropped["invalid"] == 2
    assert bench.loop.invalid_text == ""
    assert not bench.failures


def test_invalid_answers_between_valid_ones_do_not_end_the_pipeline(eventually):
    """Only a model that has stopped working ends it, not one that stumbles."""
    bench = Bench([Ticks([0] * 10 * INVALID_LIMIT)], model=Echo(invalid=range(0, 10 * INVALID_LIMIT, 2)))
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert not bench.failures
    assert bench.loop.dropped["invalid"] == 5 * INVALID_LIMIT


def test_many_invalid_answers_in_a_row_end_the_pipeline_with_the_reason(eventually):
    """A model that gives NaN for ever must not look alive."""
    bench = Bench([Ticks([0] * 1000)], model=Echo(invalid=range(5, 1000)))
    with bench.loop:
        eventually(lambda: bench.failures)
        assert bench.loop.join(2.0)
    assert isinstance(bench.failures[0], CandidateError)
    assert len(bench.failures) == 1
    assert bench.loop.dropped["invalid"] >= INVALID_LIMIT
    assert all(event.phase != "end" for event in bench.events), "a failure is no end of a track"


def test_error_of_the_rules_ends_the_pipeline_once(eventually):
    """A defect of ours is not counted away."""

    class Broken(Every):
        def judge(self, observation):
            raise ZeroDivisionError("a defect")

    bench = Bench([Ticks([0] * 100)], judge=Broken())
    with bench.loop:
        eventually(lambda: bench.failures)
    assert [type(error) for error in bench.failures] == [ZeroDivisionError]


@pytest.mark.parametrize("is_live", [True, False])
def test_model_may_be_replaced_between_two_samples(eventually, is_live):
    """A new bundle comes in without closing the source: a sample is begun and ended by the same model."""

    class Signed(Echo):
        def __init__(self, name, gate):
            super().__init__(gate=gate)
            self.name = name

        def prepare(self, sample):
            return (self.name, sample.id)

        def infer(self, inputs):
            assert inputs[0] == self.name, "inputs of one model went to the other"
            return super().infer(inputs)

        def decode(self, outputs, sample, *, min_score=None, class_ids=None):
            assert outputs[0] == self.name, "outputs of one model went to the other"
            return Score(outputs[1])

    swap = threading.Event()
    bench = Bench([Ticks([0, 0, swap] + [0] * 20, is_live=is_live)], model=Signed("old", swap))
    with bench.loop:
        eventually(lambda: bench.loop.captured == 2)
        bench.loop.active = replace(bench.loop.active, model=Signed("new", None))
        swap.set()
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.loop.dropped["invalid"] == 0
    assert bench.loop.samples + bench.loop.dropped["latest"] == 22


class Begun(Every):
    """A judge with something open: it says who it is."""

    def __init__(self, name):
        self.name = name

    def finish(self):
        return [replace(event(datetime(2026, 1, 1, tzinfo=UTC), phase="end"), label=self.name)]


@pytest.mark.parametrize("is_live", [True, False])
@pytest.mark.parametrize("goes_on", [True, False])
def test_judge_goes_on_over_a_swap_unless_there_is_another(eventually, is_live, goes_on):
    """What was begun is ended where the judgement changes, as an event of the old bundle; else tracks go on."""
    swap = threading.Event()
    judge = Begun("old")
    bench = Bench([Ticks([0, swap, 0], is_live=is_live)], judge=judge)
    with bench.loop:
        eventually(lambda: bench.loop.samples == 1)
        bench.loop.active = Active(Echo(), judge if goes_on else Begun("new"), made_by={"version": "2"})
        swap.set()
        eventually(lambda: bench.loop.source_state == "finished")
    seen = [(each.phase, each.label, version) for each, version in zip(bench.events, bench.versions, strict=True)]
    ended = [] if goes_on else [("end", "old", "1")]
    last = ("end", "old" if goes_on else "new", "2")
    assert seen == [("new", None, "1"), *ended, ("new", None, "2"), last]
    assert bench.values == [0, 1]


def test_threshold_and_classes_come_and_go_with_the_bundle(eventually):
    """A threshold that was tuned for the old bundle must not judge the new one's answers, nor the other way round."""

    class Asked(Echo):
        def decode(self, outputs, sample, *, min_score=None, class_ids=None):
            seen.append((outputs, min_score, class_ids))
            return Score(outputs)

    seen, gate = [], threading.Event()
    model = Asked(gate=gate)
    bench = Bench([Ticks([0] * 10)], model=model)
    with bench.loop:
        eventually(lambda: bench.loop.captured == 4)
        bench.loop.active = replace(bench.loop.active, min_score=0.7, class_ids=frozenset({1}))
        gate.set()
        eventually(lambda: bench.loop.source_state == "finished")
    assert seen == [(n, None, None) if n < 4 else (n, 0.7, frozenset({1})) for n in range(10)]


def test_swap_with_full_queues_loses_no_sample_of_a_recording(eventually):
    """Samples that were begun with the old bundle are ended with it, those after with the new one."""
    gate = threading.Event()
    bench = Bench([Ticks([0] * 100)], model=Echo(gate=gate))
    with bench.loop:
        eventually(lambda: bench.loop.captured == 4)  # one runs, two wait, one stands at the queue
        bench.loop.active = replace(bench.loop.active, model=Echo(), made_by={"version": "2"}, tally=Tally())
        gate.set()
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.values == list(range(100))
    of_old = bench.versions[:-1].count("1")
    assert of_old == 4
    assert bench.versions[:100] == ["1"] * of_old + ["2"] * (100 - of_old)
    assert bench.loop.active.tally.samples == bench.loop.rings["infer"].count == 100 - of_old


def test_invalid_answers_of_the_old_bundle_are_not_the_new_ones(eventually):
    """A bundle that is taken back because of invalid answers must not pull down the one that takes its place."""
    swap, limit = threading.Event(), INVALID_LIMIT - 1
    bench = Bench([Ticks([0] * limit + [swap] + [0] * 3)], model=Echo(invalid=range(limit)))
    with bench.loop:
        eventually(lambda: bench.loop.dropped["invalid"] == limit)
        bench.loop.active = replace(bench.loop.active, model=Echo(invalid={limit}), tally=Tally())
        swap.set()
        eventually(lambda: bench.loop.source_state == "finished")
    assert not bench.failures
    assert (bench.loop.active.tally.invalid, bench.loop.active.tally.samples) == (1, 2)


def test_stages_are_timed_and_latency_is_the_samples_age(eventually):
    """p50, p95 and p99 of each stage come by default."""
    bench = Bench([Ticks([0] * 10)])
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    counts = {stage: ring.summary()["count"] for stage, ring in bench.loop.rings.items()}
    assert counts == dict.fromkeys(counts, 10)
    age = bench.loop.rings["age"].summary()
    assert 0 < age["p50_ms"] <= age["p95_ms"] <= age["p99_ms"]
    assert all(latency > 0 for latency in bench.latencies[:-1])


def test_stop_in_the_middle_of_everything_ends_all_threads(eventually):
    """Full queues on both sides of a busy model: each thread must be let go."""
    gate = threading.Event()
    bench = Bench([Ticks([0] * 100)], model=Echo(gate=gate))
    with bench.loop:
        eventually(lambda: bench.loop.captured >= 3)
        bench.loop.stop()
        gate.set()
        assert bench.loop.join(2.0)


def test_drops_of_the_source_itself_are_reported_and_kept_over_a_reconnect(eventually):
    """`stale` is counted by the camera's source, which is thrown away when it fails."""
    first = Ticks([0, SourceError("broke off")])
    first.dropped = {"stale": 3}
    second = Ticks([0], first_id=1)
    second.dropped = {"stale": 2}
    bench = Bench([first, second])
    with bench.loop:
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.loop.dropped["stale"] == 5


class Frail(Echo):
    """A model whose provider fails from one sample on, and for good."""

    def __init__(self, fails_at, **more):
        super().__init__(**more)
        self.fails_at, self.has_failed, self.tried = fails_at, threading.Event(), []

    def infer(self, inputs):
        self.tried.append(inputs)
        if inputs >= self.fails_at:
            self.has_failed.set()
            raise CandidateError("the device does not answer any more")
        return super().infer(inputs)


class Relieved(Bench):
    """A loop whose provider fails; the test says when another session is there."""

    def __init__(self, sources, *models, **settings):
        super().__init__(sources, model=models[0], **settings)
        self.said = []
        self.loop.active = replace(self.loop.active, has_fallbacks=len(models) > 1)
        self.loop._on_provider_failure = lambda failed, error: self.said.append((failed, str(error)))

    def relieve(self, model, version, *, has_fallbacks=False):
        active = self.loop.active
        self.loop.active = replace(
            active, model=model, made_by={"version": version}, tally=Tally(), has_fallbacks=has_fallbacks
        )


def test_sample_whose_provider_failed_is_kept_and_run_again_by_the_next(eventually):
    """A recording loses nothing: not the sample at hand, and not the two that were prepared for the old session."""
    frail = Frail(3)
    bench = Relieved([lambda first_id: Ticks([None] * 8, first_id=first_id)], frail, Echo())
    with bench.loop:
        eventually(lambda: bench.said)
        assert [text for _, text in bench.said] == ["the device does not answer any more"]
        eventually(lambda: bench.values == [0, 1, 2])
        bench.relieve(Echo(), "2")
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.values == list(range(8))
    assert bench.versions[:8] == ["1"] * 3 + ["2"] * 5, "an event names what really made it"
    assert frail.tried == [0, 1, 2, 3], "what failed is not asked again"
    assert sum(bench.loop.dropped.values()) == 0
    assert bench.failures == []


def test_provider_that_fails_in_the_place_of_another_is_said_too_and_the_sample_is_still_kept(eventually):
    """One after the other, down to the last."""
    bench = Relieved([lambda first_id: Ticks([None] * 4, first_id=first_id)], Frail(1), Frail(1), Echo())
    with bench.loop:
        eventually(lambda: len(bench.said) == 1)
        bench.relieve(Frail(1), "2", has_fallbacks=True)
        eventually(lambda: len(bench.said) == 2)
        bench.relieve(Echo(), "3")
        eventually(lambda: bench.loop.source_state == "finished")
    assert bench.values == [0, 1, 2, 3]
    assert bench.versions[:4] == ["1", "3", "3", "3"]


def test_live_source_is_drained_while_another_session_is_waited_for(eventually):
    """A camera does not wait: the newest picture is worked on then, and the others are counted."""
    go_on = threading.Event()
    ticks = [None, None, *([None] * 5), go_on, None]
    bench = Relieved([lambda first_id: Ticks(ticks, first_id=first_id, is_live=True)], Frail(0), Echo())
    with bench.loop:
        eventually(lambda: bench.said)
        eventually(lambda: bench.loop.captured == 7)
        bench.relieve(Echo(), "2")
        go_on.set()
        eventually(lambda: bench.loop.source_state == "finished")
    counts = bench.loop
    assert counts.samples + counts.dropped["latest"] == counts.captured == 8
    assert counts.dropped["latest"] >= 4
    assert counts.dropped["invalid"] == 0


def test_without_fallbacks_a_failing_provider_is_an_invalid_answer_as_before(eventually):
    """The plain CPU has nothing to wait for."""
    bench = Relieved([lambda first_id: Ticks([None] * (INVALID_LIMIT + 5), first_id=first_id)], Frail(0))
    with bench.loop:
        eventually(lambda: bench.failures)
    assert bench.said == []
    assert bench.loop.dropped["invalid"] == INVALID_LIMIT


def test_stopping_ends_the_wait_for_another_session(eventually):
    """SIGTERM comes when it comes."""
    bench = Relieved([lambda first_id: Ticks([None] * 4, first_id=first_id)], Frail(0), Echo())
    with bench.loop:
        eventually(lambda: bench.said)
        bench.loop.stop()
        assert bench.loop.join(5.0)
    assert bench.loop.dropped["invalid"] == 0


def test_wait_that_nobody_ends_ends_the_pipeline(monkeypatch, eventually):
    """Core may be at its wits' end: then the worker gives up, and supervision starts it anew."""
    monkeypatch.setattr("agent.pipeline.loop.PROVIDER_WAIT_S", 0.05)
    bench = Relieved([lambda first_id: Ticks([None] * 4, first_id=first_id)], Frail(0), Echo())
    with bench.loop:
        eventually(lambda: bench.failures)
    assert len(bench.failures) == 1


def test_inference_that_hangs_is_seen_from_outside(eventually):
    """The beat tells core how long it has been running."""
    gate = threading.Event()
    bench = Relieved([lambda first_id: Ticks([None], first_id=first_id)], Echo(gate=gate))
    with bench.loop:
        eventually(lambda: bench.loop.inferring_s > 0.01)
        gate.set()
        eventually(lambda: bench.loop.source_state == "finished")
        assert bench.loop.inferring_s == 0.0
