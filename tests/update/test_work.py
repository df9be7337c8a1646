"""The updater's thread: real threads, no sleeps."""

from __future__ import annotations

import queue
import threading

import pytest

from agent.errors import (
    BundleError,
    CandidateError,
    ConfigurationError,
    OperatorError,
    StateError,
    UnavailableError,
    UntrustedError,
)
from agent.update.notes import Checked, CheckFailed, FetchFailed, FetchProgress, Staged, TrialRefused, Tried
from agent.update.record import Slot
from agent.update.work import _DISK, Work

SLOT = Slot(7, "parcels", "1.2.0", "a" * 64)
OTHER = Slot(8, "parcels", "1.3.0", "b" * 64)


class Bench:
    """A Work whose jobs do what the test puts in; `begun` tells when one begins."""

    def __init__(self):
        self.notes, self.begun, self.order = queue.Queue(), queue.Queue(), []
        self.does = {"check": lambda *_: Checked("m", 1, None), "fetch": lambda *_: None, "try": self.try_}
        self.kept = []
        self.work = Work(
            check=lambda *job: self.run("check", *job),
            fetch=lambda *job: self.run("fetch", *job),
            try_=lambda *job: self.run("try", *job),
            collect=self.kept.append,
            post=self.notes.put,
        )

    def try_(self, model, slot, stop):
        return Tried(model, slot.digest, max_p99_ms=30.0)

    def run(self, kind, model, *job):
        self.order.append((kind, model))
        self.begun.put((kind, model))
        return self.does[kind](model, *job)

    def note(self):
        return self.notes.get(timeout=20)


@pytest.fixture
def bench():
    bench = Bench()
    with bench.work:
        yield bench
    assert not bench.work._thread.is_alive()


def raising(error):
    def run(*_):
        raise error

    return run


def until_stopped(_model, _slot, *rest):
    assert rest[-1].wait(20)
    raise UnavailableError("stopped")


def test_jobs_give_their_notes(bench):
    """The plain case."""

    def fetch(model, slot, progress, stop):
        progress(10, 100, "mqtt")

    bench.does["fetch"] = fetch
    bench.work.check("m")
    assert bench.note() == Checked("m", 1, None)
    bench.work.fetch("m", SLOT)
    assert bench.note() == FetchProgress("m", 10, 100, "mqtt")
    assert bench.note() == Staged("m", SLOT.digest)
    bench.work.try_("m", SLOT)
    assert bench.note() == Tried("m", SLOT.digest, 30.0)


@pytest.mark.parametrize(
    ("kind", "error", "note"),
    [
        ("check", UnavailableError("silence"), CheckFailed("m", "silence.")),
        (
            "check",
            OperatorError("no root", hint="copy it"),
            CheckFailed("m", "no root.", hint="copy it", needs_operator=True),
        ),
        (
            "check",
            UntrustedError("wrong signature", role="timestamp"),
            CheckFailed("m", "timestamp: wrong signature.", True),
        ),
        ("check", StateError("disk full", where="/x"), CheckFailed("m", "/x: disk full.", hint=_DISK)),
        ("check", ZeroDivisionError("ours"), CheckFailed("m", "ZeroDivisionError: ours.")),
        ("fetch", UnavailableError("silence"), FetchFailed("m", SLOT.digest, "silence.")),
        ("fetch", StateError("disk full", where="/x"), FetchFailed("m", SLOT.digest, "/x: disk full.")),
        ("fetch", UntrustedError("wrong", role="targets"), FetchFailed("m", SLOT.digest, "targets: wrong.")),
        ("fetch", BundleError("no manifest"), FetchFailed("m", SLOT.digest, "no manifest.", is_final=True)),
        ("fetch", MemoryError(), FetchFailed("m", SLOT.digest, "MemoryError: .")),
        ("try", BundleError("NaN"), TrialRefused("m", SLOT.digest, "NaN.")),
        ("try", CandidateError("no variant fits"), TrialRefused("m", SLOT.digest, "no variant fits.")),
        ("try", ConfigurationError([]), TrialRefused("m", SLOT.digest, ".")),
        ("try", StateError("disk full"), FetchFailed("m", SLOT.digest, "disk full.")),
        ("try", RuntimeError("ours"), FetchFailed("m", SLOT.digest, "RuntimeError: ours.")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_errors_become_notes(kind, error, note, bench):
    """Who is to blame decides what happens next; a defect of ours must not deny a release nor end the thread."""
    bench.does[kind] = raising(error)
    {"check": bench.work.check, "fetch": bench.work.fetch, "try": bench.work.try_}[kind](
        *(("m",) if kind == "check" else ("m", SLOT))
    )
    assert bench.note() == note
    bench.does[kind] = lambda *_: Checked("m", 2, None)
    bench.work.check("m")
    assert bench.note().release in (1, 2)


def test_cancelled_fetch_ends_and_says_nothing(bench):
    """Its `Staged` or its failure would be taken for the new candidate's."""
    bench.does["fetch"] = until_stopped
    bench.work.fetch("m", SLOT)
    assert bench.begun.get(timeout=20) == ("fetch", "m")
    bench.work.fetch("m", OTHER)
    bench.work.cancel("m")
    bench.work.check("m")
    assert bench.note() == Checked("m", 1, None)
    assert bench.order == [("fetch", "m"), ("check", "m")]


def test_cancel_leaves_other_models_and_checks_alone(bench):
    """One model's new release is no reason to stop another's download."""
    bench.does["fetch"] = lambda model, slot, progress, stop: None if model == "n" else until_stopped(model, slot, stop)
    bench.work.fetch("m", SLOT)
    bench.begun.get(timeout=20)
    bench.work.fetch("n", OTHER)
    bench.work.check("m")
    bench.work.cancel("m")
    assert {bench.note(), bench.note()} == {Checked("m", 1, None), Staged("n", OTHER.digest)}


def test_checks_and_trials_go_before_fetches(bench):
    """A fetch may take a night; what is short may make it pointless."""
    go = threading.Event()
    bench.does["check"] = lambda model, stop: go.wait(20) and Checked(model, 1, None)
    bench.work.check("first")
    bench.begun.get(timeout=20)
    bench.work.fetch("m", SLOT)
    bench.work.collect(frozenset("k"))
    bench.work.try_("n", OTHER)
    bench.work.check("o")
    go.set()
    for _ in range(4):
        bench.note()
    assert [kind for kind, _ in bench.order] == ["check", "check", "try", "fetch"]
    assert bench.kept == [frozenset("k")]


def test_stop_ends_what_runs(bench):
    """Within the grace that a service manager gives."""
    bench.does["fetch"] = until_stopped
    bench.work.fetch("m", SLOT)
    bench.begun.get(timeout=20)
    bench.work.stop()
    bench.work.join(20)
    assert not bench.work._thread.is_alive()
    assert bench.notes.empty()


def test_failing_collect_harms_nothing(bench):
    """What cannot be removed stays."""
    bench.work._collect = raising(StateError("read-only"))
    bench.work.collect(frozenset())
    bench.work.check("m")
    assert bench.note() == Checked("m", 1, None)


def test_signed_text_is_neither_endless_nor_obeyed_by_a_terminal(bench):
    """A reason is kept in the record, retained at the broker and printed: megabytes of it would cut the device off."""
    bench.does["fetch"] = raising(BundleError("\x1b]0;gotcha\x07" + "x" * 8_000_000))
    bench.work.fetch("m", SLOT)
    note = bench.note()
    assert len(note.reason) <= 1001
    assert note.reason.startswith("\\x1b]0;gotcha\\x07xxx")
