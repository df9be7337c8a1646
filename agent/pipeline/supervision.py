"""The supervision of one worker process, as a state machine: what it says and the time go in, actions come out.

    idle ──start──▶ starting ──ready──▶ running ──exit──▶ waiting ──time──▶ starting
                       │ too slow          │ no beat, or no progress          ▲
                       └──────▶ dying ◀────┘ ───────────exit──────────────────┘

No thread, no process, no clock: `agent.pipeline.workers` carries the actions out. A worker that died starts again
after a growing delay that only a stable time shortens; one that failed for a reason only a person can mend is tried
again as slowly as allowed. While a running worker loads another session it has as long as for a start, and nothing need
come through. Whoever calls
`tick` has fed everything the worker said before; otherwise a late reader would take a full mailbox for silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.backoff import Backoff
from agent.childprocess import exit_text
from agent.clock import Random
from agent.errors import BundleError, OperatorError
from agent.health.conditions import ClearCondition, SetCondition, Severity
from agent.log import mask_url
from agent.pipeline.messages import Beat, Failed, PipelineBeat

State = Literal["idle", "starting", "running", "dying", "waiting", "stopped"]
FOR_PEOPLE = frozenset({OperatorError.exit_code, BundleError.exit_code})
"""Exit codes of failures that another attempt alone does not mend."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a worker may be silent, in seconds."""

    start_s: float = 60.0
    """Loading a large model on a small board, and building a provider's cache."""
    beat_s: float = 10.0
    kill_s: float = 5.0
    """A killed process that is still there is killed again: it may have hung in the kernel."""
    stable_s: float = 60.0
    """A worker that ran for so long was well: the next failure is a first one."""
    restart_first_s: float = 1.0
    restart_limit_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Start:
    """Start the worker."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the worker."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Ask the worker to leave by itself."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `tick` at this monotonic time, or soon after. Replaces the one before."""

    monotonic_s: float


Action = Start | Kill | Leave | SetCondition | ClearCondition | WakeAt


@dataclass(slots=True)
class _Progress:
    """When a pipeline last did what it should."""

    stall_s: float | None
    samples: int = -1
    at_s: float = 0.0


@dataclass(slots=True)
class Supervisor:
    """One worker's life.

    Args:
        model: The worker's name in conditions: its model's name in the operator's file.
        stall_s: By pipeline: how long its open source may bring nothing through. None: for ever (a sensor that speaks
            once a day).
        patience_s: How long one inference may take.
        random: For the jitter of delays.
        limits: See Limits.
    """

    model: str
    stall_s: Mapping[str, float | None]
    random: Random
    limits: Limits = field(default_factory=Limits)
    patience_s: float = float("inf")
    """One inference that takes longer has hung (`Job.patience_s`)."""
    state: State = field(default="idle", init=False)
    restarts: int = field(default=0, init=False)
    has_stalled: bool = field(default=False, init=False)
    """Whether the present worker hung, or brought nothing through."""
    last_failure: str = field(default="", init=False)
    last_words: str = field(default="", init=False)
    """What the last dead worker wrote to stderr at the end, whole."""
    failed: Failed | None = field(default=None, init=False)
    """What the last dead worker gave as its reason, if it could."""
    _backoff: Backoff = field(init=False)
    _progress: dict[str, _Progress] = field(default_factory=dict, init=False)
    _conditions: set[str] = field(default_factory=set, init=False)
    _deadline_s: float = field(default=0.0, init=False)
    _running_since_s: float = field(default=0.0, init=False)
    _kill_reason: str = field(default="", init=False)
    _swap_deadline_s: float | None = field(default=None, init=False)
    _is_replaced: bool = field(default=False, init=False)
    """It was asked to leave, to be started with another job."""

    def __post_init__(self) -> None:
        self._backoff = Backoff(self.random, self.limits.restart_first_s, self.limits.restart_limit_s)

    @property
    def condition(self) -> str:
        """The name of the condition that says that this worker is down."""
        return f"worker-down/{self.model}"

    @property
    def is_for_people(self) -> bool:
        """Whether the last worker gave a reason that another attempt, or another candidate, does not mend."""
        return self.failed is not None and self.failed["exit_code"] in FOR_PEOPLE

    @property
    def is_recovering(self) -> bool:
        """Whether it failed, and has not run for long enough since to be believed in."""
        return self.condition in self._conditions

    def start(self, now_s: float) -> list[Action]:
        """The worker is wanted. Also for a waiting one: the operator does not want to wait."""
        self.state = "starting"
        self.failed = None
        self.has_stalled = False
        self._kill_reason = ""
        self._swap_deadline_s = None
        self._is_replaced = False
        self._deadline_s = now_s + self.limits.start_s
        return [Start(), WakeAt(self._deadline_s)]

    def swapping(self, now_s: float) -> list[Action]:
        """The running worker was asked to load another bundle."""
        self._swap_deadline_s = now_s + self.limits.start_s
        return [WakeAt(self._next_s())]

    def swapped(self, now_s: float) -> None:
        """The running worker has answered, with success or without. A provider that failed let nothing through meanwhile."""
        self._swap_deadline_s = None
        for progress in self._progress.values():
            progress.at_s = now_s

    def replace(self, now_s: float, *, may_hang: bool = False) -> list[Action]:
        """Start the worker anew, with another job: its exit is then no failure. One that may hang is not asked to leave."""
        if self.state == "stopped":
            return []
        if self.state in ("idle", "waiting"):
            return self.start(now_s)
        can_leave = self.state == "running" and not may_hang
        self.state = "dying"
        self._is_replaced = True
        self._kill_reason = "it did not leave when it was asked to"
        self._deadline_s = now_s + self.limits.kill_s
        return [Leave() if can_leave else Kill("another job takes its place"), WakeAt(self._deadline_s)]

    def stop(self) -> list[Action]:
        """The worker is no longer wanted; nothing that happens to it matters any more."""
        self.state = "stopped"
        return [ClearCondition(name) for name in self._forget_conditions()]

    def ready(self, now_s: float) -> list[Action]:
        """The worker loaded its model and opens its sources."""
        if self.state != "starting":
            return []
        self.state = "running"
        self._running_since_s = now_s
        self._deadline_s = now_s + self.limits.beat_s
        self._progress = {name: _Progress(stall_s, at_s=now_s) for name, stall_s in self.stall_s.items()}
        actions: list[Action] = []
        if self.condition in self._conditions:
            actions.append(self._set(self.condition, "warning", f"running again; before: {self.last_failure}"))
        return [*actions, WakeAt(self._next_s())]

    def beat(self, beat: Beat, now_s: float) -> list[Action]:
        """The worker is alive and says how its pipelines are."""
        if self.state != "running":
            return []
        self._deadline_s = now_s + self.limits.beat_s
        actions: list[Action] = []
        for name, pipeline in beat["pipelines"].items():
            self._note_progress(name, pipeline, now_s)
            actions += self._judge_pipeline(name, pipeline)
            if pipeline["inferring_s"] >= self.patience_s:
                self.has_stalled = True
                return self._kill(f"it hung: an inference for {name} takes longer than {self.patience_s:.1f} s", now_s)
        if now_s - self._running_since_s >= self.limits.stable_s:
            self._backoff.reset()
            actions += self._clear(self.condition)
        return [*actions, WakeAt(self._next_s())]

    def failing(self, failed: Failed) -> list[Action]:
        """The worker says why it is about to exit."""
        self.failed = failed
        return []

    def exited(self, status: int, last_words: str, now_s: float) -> list[Action]:
        """The worker's process has ended. `status` is negative for a signal."""
        if self.state in ("stopped", "idle"):
            return []
        if self._is_replaced:
            return [*(ClearCondition(name) for name in self._forget_conditions()), *self.start(now_s)]
        self.last_words = mask_url(last_words)
        self.last_failure = self._describe_exit(status)
        self.restarts += 1
        self.state = "waiting"
        gone: list[Action] = [ClearCondition(name) for name in self._forget_conditions() if name != self.condition]
        delay_s = self._backoff.next_delay_s()
        if self.is_for_people:
            delay_s = self.limits.restart_limit_s
        self._deadline_s = now_s + delay_s
        text = f"{self.last_failure}; attempt {self.restarts + 1} in {delay_s:.0f} s"
        return [*gone, self._set(self.condition, "error", text), WakeAt(self._deadline_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed. May be called at any time."""
        match self.state:
            case "waiting" if now_s >= self._deadline_s:
                return self.start(now_s)
            case "starting" if now_s >= self._deadline_s:
                return self._kill(f"it was not ready within {self.limits.start_s:.0f} s", now_s)
            case "running" if now_s >= self._deadline_s:
                self.has_stalled = True
                return self._kill(f"it hung: no sign of life for {self.limits.beat_s:.0f} s", now_s)
            case "running" if self._swap_deadline_s is not None and now_s >= self._swap_deadline_s:
                return self._kill(f"it did not load the new bundle within {self.limits.start_s:.0f} s", now_s)
            case "running" if self._swap_deadline_s is None and (stalled := self._stalled(now_s)):
                self.has_stalled = True
                return self._kill(stalled, now_s)
            case "dying" if now_s >= self._deadline_s:
                return self._kill(self._kill_reason, now_s)
            case "idle" | "stopped":
                return []
        return [WakeAt(self._next_s())]

    def _kill(self, reason: str, now_s: float) -> list[Action]:
        self.state = "dying"
        self._kill_reason = reason
        self._deadline_s = now_s + self.limits.kill_s
        return [Kill(reason), WakeAt(self._deadline_s)]

    def _note_progress(self, name: str, pipeline: PipelineBeat, now_s: float) -> None:
        progress = self._progress.get(name)
        if progress is not None and (pipeline["source"] != "open" or pipeline["samples"] != progress.samples):
            progress.samples = pipeline["samples"]
            progress.at_s = now_s

    def _stalled(self, now_s: float) -> str | None:
        for name, progress in self._progress.items():
            if progress.stall_s is not None and now_s >= progress.at_s + progress.stall_s:
                return f"{name} stalled: its source is open, but nothing came through for {progress.stall_s:.0f} s"
        return None

    def _next_s(self) -> float:
        if self.state != "running":
            return self._deadline_s
        if self._swap_deadline_s is not None:
            return min(self._deadline_s, self._swap_deadline_s)
        stalls = (each.at_s + each.stall_s for each in self._progress.values() if each.stall_s is not None)
        return min([self._deadline_s, *stalls])

    def _judge_pipeline(self, name: str, pipeline: PipelineBeat) -> list[Action]:
        actions: list[Action] = []
        down, ended, invalid = (f"{what}/{name}" for what in ("source-down", "source-ended", "invalid-answers"))
        match pipeline["source"]:
            case "down":
                actions.append(self._set(down, "error", pipeline["source_text"]))
            case "open" | "finished":
                actions += self._clear(down)
        if pipeline["source"] == "finished" and pipeline["source_text"]:
            actions.append(self._set(ended, "warning", pipeline["source_text"]))
        if pipeline["invalid_text"]:
            actions.append(self._set(invalid, "warning", pipeline["invalid_text"]))
        else:
            actions += self._clear(invalid)
        return actions

    def _set(self, name: str, severity: Severity, text: str) -> SetCondition:
        self._conditions.add(name)
        return SetCondition(name, severity, text)

    def _clear(self, name: str) -> list[Action]:
        if name not in self._conditions:
            return []
        self._conditions.discard(name)
        return [ClearCondition(name)]

    def _forget_conditions(self) -> list[str]:
        names = sorted(self._conditions)
        self._conditions.clear()
        return names

    def _describe_exit(self, status: int) -> str:
        if self._kill_reason:
            return f"the worker was killed: {self._kill_reason}"
        if self.failed is not None:
            return mask_url(self.failed["reason"])
        words = " | ".join(telling_lines(self.last_words))
        what = f"the worker {exit_text(status)}"
        return f"{what}; its last words: {words[-300:]}" if words else what


def telling_lines(last_words: str) -> list[str]:
    """Return the lines that say most: after a native crash what was printed before it and where it was, else the last.

    `faulthandler` writes `Fatal Python error: …`, then each thread, the crashed one as `Current thread … (most recent
    call first):`, and at the end a long list of extension modules that says nothing.
    """
    lines = [line.strip() for line in last_words.splitlines() if line.strip()]
    fatal = next((index for index, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    if fatal is None:
        return lines[-3:]
    frames = next((index + 1 for index, line in enumerate(lines) if line.startswith("Current thread")), len(lines))
    place = [line for line in lines[frames : frames + 2] if line.startswith("File ")]
    return [*lines[max(0, fatal - 1) : fatal + 1], *place]
