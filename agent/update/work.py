"""The updater's own thread: checks, trials and fetches, one after another, with callables that the app gives.

Checks go first, since they are short and may change what is worth fetching; a fetch that must make room was called off by
its machine and goes on where it stopped. What a callable raises becomes a note here, so that a state machine can judge it:

    UnavailableError, StateError         the world or the disk: again later
    UntrustedError                       signed wrongly: in a check an attack, in a fetch again later
    BundleError, ReleaseRefusedError     the release is bad: final
    CandidateError, OperatorError        in a trial: refused
    anything else                        a defect of ours: logged with its traceback, again later
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import PriorityQueue
from typing import Self

from agent.errors import BundleError, CandidateError, HoldfastError, OperatorError, StateError, UntrustedError
from agent.log import brief
from agent.update.notes import Checked, CheckFailed, FetchFailed, FetchProgress, Staged, TrialRefused, Tried, WorkNote
from agent.update.record import Slot

log = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int, str], None]
"""Bytes done, bytes in all, the transport's name."""
_DISK = "free space on this device's disk, or mend its permissions"
_CHECK, _TRY, _COLLECT, _FETCH, _END = 0, 1, 2, 3, -1


@dataclass(order=True, slots=True)
class _Job:
    kind: int
    number: int
    model: str = field(compare=False)
    run: Callable[[threading.Event], None] = field(compare=False)
    stop: threading.Event = field(default_factory=threading.Event, compare=False)


class Work:
    """One thread that does what takes long. A context manager.

    Args:
        check: Return what a model should run.
        fetch: Bring a bundle into the store, whole and verified; return early, or raise, once `stop` is set.
        try_: Run a bundle's trial, with its gates in the note. What is wrong with *this device's disk* is a StateError or
            an UnavailableError: a BundleError denies the release.
        collect: Remove the bundles whose digests are not named.
        post: Takes each note, in this thread; should only hand over.
    """

    def __init__(
        self,
        *,
        check: Callable[[str, threading.Event], Checked],
        fetch: Callable[[str, Slot, ProgressCallback, threading.Event], None],
        try_: Callable[[str, Slot, threading.Event], Tried],
        collect: Callable[[frozenset[str]], None],
        post: Callable[[WorkNote], None],
    ) -> None:
        self._check, self._fetch, self._try, self._collect, self._post = check, fetch, try_, collect, post
        self._jobs: PriorityQueue[_Job] = PriorityQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._open: dict[int, _Job] = {}
        """Waiting or running, by number."""
        self._thread = threading.Thread(target=self._run, name="updater", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def check(self, model: str) -> None:
        """Ask for `Checked` or `CheckFailed`."""
        self._add(_CHECK, model, lambda stop: self._run_check(model, stop))

    def fetch(self, model: str, slot: Slot) -> None:
        """Ask for `Staged` or `FetchFailed`, with `FetchProgress` on the way."""
        self._add(_FETCH, model, lambda stop: self._run_fetch(model, slot, stop))

    def try_(self, model: str, slot: Slot) -> None:
        """Ask for `Tried`, `TrialRefused`, or `FetchFailed` where the trial itself could not be held."""
        self._add(_TRY, model, lambda stop: self._run_trial(model, slot, stop))

    def collect(self, keep: frozenset[str]) -> None:
        """Remove what is not kept. No note: it harms nothing where it fails."""
        self._add(_COLLECT, "", lambda _: self._collect(keep))

    def cancel(self, model: str) -> None:
        """Call off this model's fetch or trial, waiting or running; no note comes of it any more, except one already posted."""
        with self._lock:
            for job in self._open.values():
                if job.model == model and job.kind in (_FETCH, _TRY):
                    job.stop.set()

    def stop(self) -> None:
        """End what runs, soon. Does not wait: see `join`."""
        with self._lock:
            for job in self._open.values():
                job.stop.set()
        self._add(_END, "", lambda _: None)

    def join(self, timeout_s: float) -> None:
        """Wait, for at most `timeout_s`, until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join(5.0)

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _add(self, kind: int, model: str, run: Callable[[threading.Event], None]) -> None:
        job = _Job(kind, next(self._numbers), model, run)
        with self._lock:
            self._open[job.number] = job
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()).kind != _END:
            if not job.stop.is_set():
                self._run_one(job)
            with self._lock:
                del self._open[job.number]

    def _run_one(self, job: _Job) -> None:
        try:
            job.run(job.stop)
        except Exception:  # the top of a thread: a job that leaves no note must not end the others
            log.exception("a job of the updater for model %s failed", job.model)

    def _run_check(self, model: str, stop: threading.Event) -> None:
        self._answer(stop, lambda: self._check(model, stop), lambda error: _check_failed(model, error))

    def _run_fetch(self, model: str, slot: Slot, stop: threading.Event) -> None:
        def progress(done_bytes: int, total_bytes: int, transport: str) -> None:
            if not stop.is_set():
                self._post(FetchProgress(model, done_bytes, total_bytes, transport))

        def fetch() -> WorkNote:
            self._fetch(model, slot, progress, stop)
            return Staged(model, slot.digest)

        self._answer(stop, fetch, lambda error: _fetch_failed(model, slot.digest, error))

    def _run_trial(self, model: str, slot: Slot, stop: threading.Event) -> None:
        self._answer(stop, lambda: self._try(model, slot, stop), lambda error: _trial_failed(model, slot.digest, error))

    def _answer(
        self, stop: threading.Event, run: Callable[[], WorkNote], failed: Callable[[HoldfastError], WorkNote]
    ) -> None:
        """Post what came of a job; nothing when it was called off, for then its result is not what it seems."""
        try:
            note = run()
        except HoldfastError as error:
            note = failed(error)
        except Exception as error:  # the top of a thread
            if not stop.is_set():
                log.exception("a job of the updater failed")
            note = failed(HoldfastError(f"{type(error).__name__}: {error}"))
        if not stop.is_set():
            self._post(note)


def _check_failed(model: str, error: HoldfastError) -> WorkNote:
    return CheckFailed(
        model,
        _text(error),
        is_attack=isinstance(error, UntrustedError),
        hint=error.hint or (_DISK if isinstance(error, StateError) else ""),
        needs_operator=isinstance(error, OperatorError),
    )


def _fetch_failed(model: str, digest: str, error: HoldfastError) -> WorkNote:
    return FetchFailed(model, digest, _text(error), is_final=isinstance(error, BundleError))


def _trial_failed(model: str, digest: str, error: HoldfastError) -> WorkNote:
    if isinstance(error, OperatorError | CandidateError):
        return TrialRefused(model, digest, _text(error))
    return FetchFailed(model, digest, _text(error))


def _text(error: HoldfastError) -> str:
    text = brief(f"{error.where}: {error.message}" if error.where else error.message)
    return text if text.endswith(".") else f"{text}."
