"""The trials of one plan: who is measured when, and for how long. The rules of each round are in `agent.device.planning.halving`.

`Measuring` runs one trial at a time, so that none disturbs another, and remembers what came of each candidate. What an
accelerator takes to compile, the first time, is not counted against the budget: it may be minutes, is paid once and kept
(`agent.device.planning.preparedmodels`). Providers that run on the processor load in a second or two, which counts.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from agent import scratch
from agent.bundle.manifest import Manifest
from agent.clock import Clock
from agent.device.planning.candidates import CPU_SPEC
from agent.device.planning.halving import (
    FINAL_RUNS,
    FINAL_S,
    FIRST_RUNS,
    FIRST_S,
    MOST_FINALISTS,
    TURNS,
    better_half,
    finalists,
    runs_in,
    seconds_in,
    typical,
)
from agent.device.planning.judging import judge
from agent.device.planning.plan import Candidate, Demand, Outcome
from agent.device.profiles.profile import Limits, Profile
from agent.errors import StateError
from agent.trial.running import Ask, is_reference

LEAST_FINAL_S = 0.5
STARTING_S = 0.7
"""What a trial takes beside its runs: a process, imports, loading, the golden samples."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A candidate's model is loaded and compiled: from now on it is measured."""

    candidate: Candidate


Progress = Callable[[Candidate | Loaded | Outcome], None]
"""Told of a candidate when its trial begins (it loads, and compiles the first time), when it is loaded, and of the outcome."""


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Give a folder among the system's temporary files, for a command that needs one.

    Raises:
        StateError: none can be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch.folder(prefix))
        except OSError as error:
            raise StateError(
                f"no temporary folder can be made: {error.strerror or error}",
                hint="make room on the disk, or name a folder that can be written by the variable TMPDIR",
            ) from error
        yield folder


class RunTrial(Protocol):
    """`agent.trial.running.run_trial`, or a stand-in that knows its outcomes."""

    def __call__(
        self,
        bundle_folder: Path,
        candidate: Candidate,
        limits: Limits,
        stop: threading.Event,
        /,
        *,
        ask: Ask,
        loaded: Callable[[], None],
    ) -> Outcome: ...


@dataclass(slots=True)
class Budget:
    """Time for measuring. What compiling takes is taken out again."""

    clock: Clock
    total_s: float
    ends_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends_s = self.clock.monotonic() + self.total_s

    def left_s(self, reserved_share: float = 0.0) -> float:
        """Return what is left, less a share of the whole that is kept for others."""
        return self.ends_s - self.clock.monotonic() - reserved_share * self.total_s


@dataclass(slots=True)
class Measuring:
    """What the trials of one plan have in common, and what came of them."""

    bundle_folder: Path
    manifest: Manifest
    profile: Profile
    demand: Demand
    budget: Budget
    run: RunTrial
    progress: Progress
    stop: threading.Event
    prepared: Path | None
    """The plan's folder of prepared models."""
    scratch: Path | None
    """For raw outputs that are compared and for traces; None where nothing can be written."""
    trials: dict[Candidate, list[Outcome]] = field(default_factory=dict)
    dropped_in: dict[Candidate, int] = field(default_factory=dict)

    def take(self, known: Iterable[Outcome]) -> None:
        """Count what was measured before as measured."""
        for each in known:
            if each.measurement is not None:
                self.trials[each.candidate] = [replace(each, dropped_in=None)]
                if each.dropped_in is not None:
                    self.dropped_in[each.candidate] = each.dropped_in

    def outcomes(self) -> list[Outcome]:
        """Return one outcome for each candidate that was tried or left out, in the order of their first trials."""
        return [self._outcome(candidate) for candidate in self.trials]

    def has_passed(self, candidates: Sequence[Candidate] | None = None) -> bool:
        """Return whether any of them (None: of all so far) may be chosen."""
        return bool(self._passed(list(self.trials) if candidates is None else candidates))

    def halve(self, group: Sequence[Candidate], kept: Candidate | None = None, reserved_share: float = 0.0) -> None:
        """Measure a group by successive halving: short rounds for many, long ones in turns for the last few.

        Args:
            group: In the order of the first round, in which a spent budget leaves out the last.
            kept: The reference: it comes first, and stays to the end.
            reserved_share: Of the budget, for groups that follow.
        """
        staying = sorted(group, key=lambda candidate: candidate != kept)
        for number in itertools.count(1):
            self._round(staying, number, reserved_share)
            if self._is_over(reserved_share) or not (passed := self._passed(staying)):
                return
            if len(better := better_half(passed, self.demand)) <= MOST_FINALISTS:
                break
            staying = self._drop(passed, better, kept, number)
        if kept is not None and kept not in finalists(passed, self.demand):
            self._turns([kept], 1, reserved_share)
        self._finish(group, number, reserved_share)

    def _finish(self, group: Sequence[Candidate], number: int, reserved_share: float) -> None:
        """Measure the last few in turns. Whoever turns out to be better than they are, since one of the two was disturbed before,
        is measured too.
        """
        finished: list[Candidate] = []
        while (passed := self._passed(group)) and not self._is_over(reserved_share):
            last = finalists(passed, self.demand)
            missing = [candidate for candidate in last if candidate not in finished]
            if not missing:
                break
            self._turns(missing, TURNS, reserved_share)
            finished += missing
        self._drop(self._passed(group), finished, None, number)

    def in_order(self, candidates: Sequence[Candidate]) -> None:
        """Measure one after another, each to the end, until one passes: the profile says `as-listed`."""
        for candidate in candidates:
            if self.stop.is_set() or self.has_passed():
                self.leave_out(candidate, "not measured: one before it in the profile's order passed")
            else:
                self._trial(candidate, runs=FINAL_RUNS, seconds=FINAL_S)

    def again(self, candidate: Candidate) -> None:
        """Measure one more candidate as long as the finalists."""
        self._turns([candidate], TURNS, 0.0)

    def leave_out(self, candidate: Candidate, why: str) -> None:
        """Say of a candidate that was not measured why."""
        self.trials.setdefault(candidate, [Outcome(candidate, refusal=why, cause="untried")])

    def trace(self, candidate: Candidate) -> dict[str, float]:
        """Return the share of a run's time by provider, from a traced trial; empty where it failed."""
        if self.scratch is None:
            return {}
        ask = Ask(runs=FIRST_RUNS, seconds=FIRST_S, prepared=self.prepared, trace=self.scratch / "trace")
        measured = self._in_child(candidate, ask).measurement
        return measured.time_share if measured else {}

    def _round(self, candidates: Sequence[Candidate], number: int, reserved_share: float) -> None:
        """Give each a trial while there is time; in any case until something passed: late is better than never."""
        for index, candidate in enumerate(candidates):
            if self.stop.is_set():
                return
            if self.budget.left_s(reserved_share) <= 0 and self.has_passed():
                for left in candidates[index:]:
                    self.leave_out(left, f"not measured: the budget of {self.profile.tune.budget_s:g} s was spent")
                return
            self._trial(candidate, runs=runs_in(number), seconds=seconds_in(number))

    def _drop(
        self, passed: Sequence[Outcome], staying: Sequence[Candidate], kept: Candidate | None, number: int
    ) -> list[Candidate]:
        """Note who does not stay, and return who is measured on: they and the reference, even where it is not among them."""
        left = [each.candidate for each in passed if each.candidate not in staying]
        self.dropped_in = dict.fromkeys(left, number) | self.dropped_in
        for candidate in staying:
            self.dropped_in.pop(candidate, None)  # one that came back
        return [*staying, *(candidate for candidate in left if candidate == kept)]

    def _turns(self, candidates: Sequence[Candidate], turns: int, reserved_share: float) -> None:
        """Measure all of them, again and again; how long each runs depends on what is left of the budget."""
        left = turns * len(candidates)
        for candidate in list(candidates) * turns:
            if self._is_over(reserved_share):
                return
            if candidate not in self.trials or self._passes(candidate):
                seconds = self.budget.left_s(reserved_share) / left - STARTING_S
                self._trial(candidate, runs=FINAL_RUNS, seconds=max(LEAST_FINAL_S, min(FINAL_S, seconds)))
            left -= 1

    def _trial(self, candidate: Candidate, *, runs: int, seconds: float) -> None:
        """Run one trial and keep its outcome, unless somebody stopped it."""
        outcome = self.once(candidate, runs=runs, seconds=seconds)
        if not self.stop.is_set():
            self.trials.setdefault(candidate, []).append(outcome)
            self.progress(outcome)

    def once(self, candidate: Candidate, *, runs: int = FINAL_RUNS, seconds: float = FINAL_S) -> Outcome:
        """Run one trial, by default one as long as a finalist's, and keep nothing."""
        try:
            reference = self._reference(candidate)
        except OSError as error:
            return Outcome(candidate, refusal=str(error), cause="untried")
        ask = Ask(
            runs=runs,
            seconds=seconds,
            streams=self.demand.streams if self.demand.objective == "throughput" else 1,
            wants_energy=self.demand.objective == "power",
            prepared=self.prepared,
            reference=reference,
        )
        return self._run(candidate, ask)

    def _run(self, candidate: Candidate, ask: Ask) -> Outcome:
        """Run one trial; the time that an accelerator's compiler took, the first time, is given back to the budget."""
        clock = self.budget.clock
        began_s = clock.monotonic()
        loaded_s: list[float] = []

        def loaded() -> None:
            loaded_s.append(clock.monotonic())
            self.progress(Loaded(candidate))

        self.progress(candidate)
        outcome = self._in_child(candidate, ask, loaded)
        if candidate.device_type != "cpu" and candidate not in self.trials:
            self.budget.ends_s += (loaded_s[0] if loaded_s else clock.monotonic()) - began_s
        return outcome

    def _reference(self, candidate: Candidate) -> Path | None:
        """Return the file of raw outputs to compare with, where there are no golden answers; made where it is missing.

        Raises:
            OSError: the plain CPU has outputs, and they cannot be written: nobody would see that others are wrong.
        """
        if self.manifest.golden:
            return None
        path = self.scratch / f"{candidate.variant}.npz" if self.scratch else None
        if is_reference(candidate) or (path and path.exists()):
            return path
        plain = Candidate(CPU_SPEC.provider, "cpu", candidate.variant, threads=1)
        if path and self._in_child(plain, Ask(runs=1, seconds=0.0, reference=path)).refusal:
            return path  # where the plain CPU cannot run it, there is nothing to compare with
        if path is None or not path.exists():
            raise OSError(
                "its outputs cannot be compared with the CPU's: no file can be written, the disk is full or read-only"
            )
        return path

    def _in_child(self, candidate: Candidate, ask: Ask, loaded: Callable[[], None] = lambda: None) -> Outcome:
        limits = self.profile.limits_for(candidate.provider)
        return self.run(self.bundle_folder, candidate, limits, self.stop, ask=ask, loaded=loaded)

    def _outcome(self, candidate: Candidate) -> Outcome:
        return replace(typical(self.trials[candidate], self.demand), dropped_in=self.dropped_in.get(candidate))

    def _passed(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        tried = [self._outcome(candidate) for candidate in candidates if candidate in self.trials]
        return [each for each in tried if judge(each, self.profile, self.manifest).refusal is None]

    def _passes(self, candidate: Candidate) -> bool:
        return bool(self._passed([candidate]))

    def _is_over(self, reserved_share: float) -> bool:
        return self.stop.is_set() or self.budget.left_s(reserved_share) <= 0
