"""What ONNX Runtime's profiler wrote, summed up: which operators, nodes and providers a run's time went to.

Takes the file of a session with profiling on: Chrome's trace format as ONNX Runtime writes it, one event a line (see
"Performance tuning, profiling tools" in its documentation). Gives a `Trace`. Counts whole runs only: not loading and
optimising, not the first runs, which allocate, and not a run that a killed process left unfinished. Reads line by line,
so that the file of a long run takes no memory. Refuses what is no such file, and one that is too large to be an accident.

Times are those that the provider's kernel kept the calling thread. A provider that computes beside that thread (CUDA,
DirectML) shows what it took to hand the work over, unless it waits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from agent.errors import StateError

MOST_BYTES = 512 << 20
"""ONNX Runtime itself ends a trace after a million events of about 500 bytes."""
LONGEST_EVENT_BYTES = 1 << 20
"""An event names the shape of each input: a node that concatenates thousands of tensors has the longest."""
MOST_CALLS = 200_000
"""Of nodes in one run; a large detector has 1,500."""
_KERNEL = "_kernel_time"


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One node of the optimised graph."""

    name: str
    operator: str
    provider: str
    calls: int
    total_ms: float
    """Over all runs counted, without what nodes of its own subgraphs took."""


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """All nodes of one operator type on one provider."""

    operator: str
    provider: str
    nodes: int
    calls: int
    total_ms: float
    share: float
    """Of the time of all nodes, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the time of the runs went. Every tuple is sorted, the longest first."""

    runs: int
    """Whole runs counted; those for warming up are not among them."""
    run_ms: float
    """Mean time of a whole run, with what is spent between nodes."""
    nodes: tuple[NodeTime, ...]
    operators: tuple[OperatorTime, ...]
    share_by_provider: dict[str, float]
    """Share of the time of all nodes, 0 to 1; the shares sum to 1."""
    is_whole: bool
    """The file was closed; False: its process ended in the middle of writing it."""

    @property
    def nodes_ms(self) -> float:
        """Mean time of a run that was spent inside nodes."""
        return sum(each.total_ms for each in self.nodes) / self.runs


def read_trace(path: Path, *, warm_up_runs: int = 1) -> Trace:
    """Read the profiler's file.

    Args:
        path: What `InferenceSession.end_profiling` returned, or what a killed process left behind.
        warm_up_runs: So many first runs are left out.

    Raises:
        StateError: the file cannot be read, is none of ONNX Runtime's, is damaged in its middle, is too large, or holds
            no whole run after the first `warm_up_runs`.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise _refused(path, f"{size >> 20} MiB is more than any trace has; the limit is {MOST_BYTES >> 20} MiB")
        with path.open("rb") as file:
            reading = _Reading(path, warm_up_runs)
            reading.read(file)
    except OSError as error:
        raise StateError(f"the trace cannot be read: {error.strerror or error}", where=str(path)) from error
    return reading.trace()


def _refused(path: Path, what: str) -> StateError:
    return StateError(what, where=str(path), hint="trace again; nothing but this file is affected")


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    total_us: float = 0.0


_Key = tuple[str, str, str]
"""A node's name, operator and provider."""


class _Call(NamedTuple):
    """One node event."""

    thread: int
    began_us: float
    duration_us: float
    key: _Key


class _Reading:
    """The sums while a file is read. Events of the run at hand wait until its own event, `model_run`, ends it."""

    def __init__(self, path: Path, warm_up_runs: int) -> None:
        self._path = path
        self._warm_up_runs = warm_up_runs
        self._runs = 0
        self._run_us = 0.0
        self._waiting: list[_Call] = []
        self._sums: dict[_Key, _Sum] = {}
        self._is_whole = False

    def read(self, file: IO[bytes]) -> None:
        for number, event in self._events(file):
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"line {number} is no event of ONNX Runtime: {type(error).__name__} {error}"
                raise _refused(self._path, what) from error

    def trace(self) -> Trace:
        counted = self._runs - self._warm_up_runs
        total_us = sum(each.total_us for each in self._sums.values())
        if counted <= 0 or not self._sums:
            what = f"the trace holds {max(0, self._runs)} whole runs; more than {self._warm_up_runs} are needed"
            raise _refused(self._path, what)
        nodes = tuple(
            NodeTime(name, operator, provider, each.calls, each.total_us / 1000)
            for (name, operator, provider), each in self._sums.items()
        )
        return Trace(
            runs=counted,
            run_ms=self._run_us / 1000 / counted,
            nodes=tuple(sorted(nodes, key=lambda node: -node.total_ms)),
            operators=_by_operator(nodes, total_us / 1000),
            share_by_provider=_by_provider(nodes, total_us / 1000),
            is_whole=self._is_whole,
        )

    def _events(self, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
        """Yield line numbers and events; a last line that was cut off ends it, one in the middle is damage."""
        number, broken = 0, 0
        while line := file.readline(LONGEST_EVENT_BYTES):
            number += 1
            text = line.strip().removesuffix(b",")
            if number == 1 and text != b"[":
                raise _refused(self._path, "this is no trace of ONNX Runtime, which begins with a line `[`")
            if text in (b"", b"[", b"]"):
                self._is_whole = self._is_whole or text == b"]"
                continue
            if broken:
                raise _refused(self._path, f"line {broken} is damaged: this is no trace of ONNX Runtime")
            try:
                event = json.loads(text)
            except (ValueError, RecursionError):
                broken = number
                continue
            yield number, event
        if broken and self._is_whole:
            raise _refused(self._path, f"line {broken} is damaged: this is no trace of ONNX Runtime")

    def _take(self, event: Mapping[str, Any]) -> None:
        category, name = event.get("cat"), event.get("name")
        if category == "Session" and name == "model_run":
            self._end_run(_duration_us(event))
        elif category == "Node" and str(name).endswith(_KERNEL):
            self._waiting.append(_call(event))
            if len(self._waiting) > MOST_CALLS:
                raise _refused(self._path, f"more than {MOST_CALLS:,} nodes in one run are too many to sum up")

    def _end_run(self, duration_us: float) -> None:
        self._runs += 1
        if self._runs > self._warm_up_runs:
            self._run_us += duration_us
            for key, own_us in _own_times(self._waiting):
                each = self._sums.setdefault(key, _Sum())
                each.calls += 1
                each.total_us += own_us
        self._waiting = []


def _call(event: Mapping[str, Any]) -> _Call:
    arguments = event["args"]
    key = (event["name"].removesuffix(_KERNEL), str(arguments["op_name"]), str(arguments["provider"]))
    return _Call(int(event["tid"]), float(event["ts"]), _duration_us(event), key)


def _duration_us(event: Mapping[str, Any]) -> float:
    duration_us = float(event["dur"])
    if not 0 <= duration_us < math.inf:  # also false for NaN
        raise ValueError(f"it lasted {duration_us} µs")
    return duration_us


def _own_times(calls: list[_Call]) -> list[tuple[_Key, float]]:
    """Return each call's node with its duration in µs less that of the calls inside it: If, Loop and Scan contain others.

    Those of one thread either contain each other or follow each other; the longer of two that begin together comes first.
    """
    own_us: list[float] = []
    ordered = sorted(calls, key=lambda call: (call.thread, call.began_us, -call.duration_us))
    around: list[tuple[int, _Call]] = []  # with their place in `ordered`: what the next call may lie inside
    for index, call in enumerate(ordered):
        while around and not _contains(around[-1][1], call):
            around.pop()
        if around:
            own_us[around[-1][0]] -= call.duration_us
        own_us.append(call.duration_us)
        around.append((index, call))
    return [(call.key, max(0.0, each)) for call, each in zip(ordered, own_us, strict=True)]


def _contains(outer: _Call, inner: _Call) -> bool:
    ends_us = outer.began_us + outer.duration_us
    return outer.thread == inner.thread and inner.began_us < ends_us and inner.began_us + inner.duration_us <= ends_us


def _by_operator(nodes: tuple[NodeTime, ...], total_ms: float) -> tuple[OperatorTime, ...]:
    groups: dict[tuple[str, str], list[NodeTime]] = {}
    for node in nodes:
        groups.setdefault((node.operator, node.provider), []).append(node)
    found = [
        OperatorTime(
            operator,
            provider,
            nodes=len(members),
            calls=sum(node.calls for node in members),
            total_ms=(own_ms := sum(node.total_ms for node in members)),
            share=own_ms / total_ms if total_ms else 0.0,
        )
        for (operator, provider), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.total_ms))


def _by_provider(nodes: tuple[NodeTime, ...], total_ms: float) -> dict[str, float]:
    """Return each provider's share; by calls where a model is so small that no node took a whole microsecond."""
    weights: dict[str, float] = {}
    for node in nodes:
        weights[node.provider] = weights.get(node.provider, 0.0) + (node.total_ms if total_ms else node.calls)
    total = sum(weights.values())
    return {provider: weight / total for provider, weight in sorted(weights.items(), key=lambda item: -item[1])}
