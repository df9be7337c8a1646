"""When the device asks: hints, failures and attackers decide how often, never whether."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.health.conditions import ClearCondition, SetCondition
from agent.update.notes import Checked, CheckFailed
from agent.update.schedule import HINT_RETRIES, MIN_GAP_S, CheckSchedule, read_hint
from agent.update.settings import UpdateSettings
from simulator.clock import SeededRandom

DAY = 86400.0
SETTINGS = UpdateSettings(root=Path("root.json"))


class Bench:
    """A schedule at time `now_s`; `timestamp` is what the repository has."""

    def __init__(self, models=("m",)):
        self.schedule, self.now_s, self.timestamp = CheckSchedule(models, SETTINGS, SeededRandom(1)), 0.0, 1
        self.models, self.conditions = models, {}
        self.schedule.start(self.now_s)
        self.check()

    def check(self, *, fails="", is_attack=False):
        """Wait for the next check, answer it, and return how long the wait was."""
        waited_s = max(0.0, self.schedule.due_s - self.now_s)
        self.now_s += waited_s
        self.schedule.began(self.now_s)
        for model in self.models:
            if fails:
                steps = self.schedule.failed(CheckFailed(model, fails, is_attack), self.now_s)
            else:
                steps = self.schedule.checked(Checked(model, 1, None, self.timestamp), self.now_s)
            for step in steps:
                match step:
                    case SetCondition(name):
                        self.conditions[name] = step.text
                    case ClearCondition(name):
                        self.conditions.pop(name, None)
        return waited_s

    def hint(self, payload):
        self.schedule.hint(payload, self.now_s)
        return self.schedule.due_s - self.now_s


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"-5",
        b"5.0",
        b" 5",
        b"5\n",
        b"0x5",
        "٥".encode(),
        b"9" * 19,
        b"9" * 100_000_000,
        b'{"url": "http://x"}',
        b"\xff",
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_what_is_no_hint_causes_nothing(payload):
    """Anybody may publish there: neither time nor memory is spent on it."""
    assert read_hint(payload) is None
    assert Bench().hint(payload) > DAY / 2


def test_hint_of_a_known_version_causes_nothing():
    """The retained hint comes again at each connect."""
    bench = Bench()
    assert bench.hint(b"1") > DAY / 2
    assert bench.hint(b"0") > DAY / 2


def test_newer_hint_causes_a_check_after_a_random_moment():
    """A fleet that hears the same hint must not ask at once."""
    delays = set()
    for seed in range(20):
        schedule = CheckSchedule(["m"], SETTINGS, SeededRandom(seed))
        schedule.start(0.0)
        schedule.began(0.0)
        schedule.checked(Checked("m", 1, None, 1), 0.0)
        schedule.hint(b"2", 1000.0)
        delays.add(schedule.due_s - 1000.0)
    assert len(delays) == 20
    assert all(0 <= delay <= SETTINGS.hint_jitter_s for delay in delays)


def test_many_hints_keep_a_distance():
    """A hostile broker can make a device ask, but not often."""
    bench, checks = Bench(), 0
    began_s = bench.now_s
    for version in range(2, 600):
        bench.hint(str(version).encode())
        bench.timestamp = version
        if bench.schedule.due_s <= bench.now_s:
            bench.check()
            checks += 1
        bench.now_s += 0.5
    assert 10 < checks <= (bench.now_s - began_s) / MIN_GAP_S + 1


def test_hint_that_does_not_come_true_is_forgotten():
    """A mirror may lag a while; a liar must not make the device ask for ever, nor deaf to later hints."""
    bench = Bench()
    bench.hint(b"999999999999999999")
    waits = [bench.check() for _ in range(HINT_RETRIES + 2)]
    assert waits[-1] > DAY / 2
    assert all(MIN_GAP_S <= wait < 1000 for wait in waits[1:-1])
    assert bench.hint(b"2") <= MIN_GAP_S + SETTINGS.hint_jitter_s


def test_without_hints_it_asks_once_a_day_with_jitter():
    """HTTP and USB have no hints, and a broker may swallow them."""
    bench = Bench()
    waits = [bench.check() for _ in range(10)]
    assert all(0.9 * DAY <= wait <= 1.1 * DAY for wait in waits)
    assert len(set(waits)) == 10


def test_failures_back_off_and_are_said_when_they_last():
    """One failure is the network; three in a row are worth a look. What runs is not touched."""
    bench = Bench()
    waits = [bench.check(fails="nobody answers.") for _ in range(2)]
    assert "no-update-source" not in bench.conditions
    waits += [bench.check(fails="nobody answers.") for _ in range(20)]
    assert "nobody answers" in bench.conditions["no-update-source"]
    assert waits[1] < 15
    assert all(450 <= wait <= 900 for wait in waits[-3:])
    bench.check()
    assert bench.conditions == {}
    assert bench.check() > DAY / 2


def test_what_a_person_must_change_is_said_at_once_with_the_next_step():
    """A root.json that is not there is not the network's mood, and `check the network` would be the wrong advice."""
    bench = Bench()
    bench.schedule.began(bench.now_s)
    note = CheckFailed("m", "root.json: cannot be read.", hint="copy root.json there", needs_operator=True)
    (said,) = (step for step in bench.schedule.failed(note, bench.now_s) if isinstance(step, SetCondition))
    assert said.name == "no-update-source"
    assert said.text.endswith("Copy root.json there.") and "network" not in said.text


def test_full_disk_is_not_taken_for_a_silent_network():
    """The operator would look for the fault in the wrong place."""
    bench = Bench()
    for _ in range(4):
        bench.schedule.began(bench.now_s)
        note = CheckFailed("m", "/x: no space left.", hint="free space on the disk")
        steps = bench.schedule.failed(note, bench.now_s)
        bench.now_s = bench.schedule.due_s
    text = next(step.text for step in steps if isinstance(step, SetCondition))
    assert "no space left." in text
    assert text.endswith("Free space on the disk.")
    assert "network" not in text


def test_attack_is_said_at_once():
    """Somebody sends wrong metadata: a person must know."""
    bench = Bench()
    bench.check(fails="timestamp: the signature is wrong.", is_attack=True)
    assert "signature is wrong" in bench.conditions["updates-untrusted"]
    bench.check()
    assert bench.conditions == {}


def test_one_of_two_models_failing_counts_as_one_failure():
    """Two channels, one source: their failures must not make it wait twice as long, nor clear each other's condition."""
    bench = Bench(models=("a", "b"))
    for _ in range(4):
        bench.schedule.began(bench.now_s)
        bench.schedule.failed(CheckFailed("a", "no such channel."), bench.now_s)
        steps = bench.schedule.checked(Checked("b", 1, None, 1), bench.now_s)
        bench.now_s = bench.schedule.due_s
    assert [step.name for step in steps if isinstance(step, SetCondition)] == ["no-update-source"]


def test_two_models_failing_together_count_once():
    """Three models on one dead link are one dead link."""
    bench = Bench(models=("a", "b", "c"))
    waits = [bench.check(fails="nobody answers.") for _ in range(3)]
    assert max(waits[1:]) <= MIN_GAP_S
    assert "no-update-source" in bench.conditions
    bench = Bench(models=("a", "b", "c"))
    bench.check(fails="nobody answers.")
    assert bench.conditions == {}


def test_operator_is_served_at_once():
    """The distance is kept to what comes over the network, not to a person who waits for an answer."""
    bench = Bench()
    bench.schedule.began(bench.now_s)
    bench.schedule.wanted(bench.now_s)
    assert bench.schedule.due_s == bench.now_s


def test_hints_count_again_once_a_stolen_key_is_revoked():
    """Its holder signed the largest version there is; the recovery (TUF, section 5.3.11) begins below."""
    bench = Bench()
    bench.timestamp = 10**17
    bench.check()
    bench.timestamp = 2
    bench.check()
    assert bench.hint(b"3") < MIN_GAP_S + SETTINGS.hint_jitter_s
