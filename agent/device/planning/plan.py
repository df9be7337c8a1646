"""The plan, as values: which provider, variant and threads run a bundle on this device, and why.

Pure: facts, profile, manifest and measurements in; plan and reasons out. Measuring is `agent.trial`'s work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from agent.device.facts import BUILT_IN

Objective = Literal["latency", "throughput", "power"]
Cause = Literal["absent", "lacking", "unusable", "failed", "memory", "wrong", "misplaced", "limit", "slow", "untried"]
"""Why a candidate is refused. absent: no such device here; lacking: no such variant; unusable: the device is there and
no session can be made on it; failed: the trial crashed, hung, took too long to compile or did not load; memory: it took
more than it may; wrong: other answers; misplaced: most of the graph ran elsewhere; limit: a gate of p99 or temperature;
slow: the CPU is better; untried: not measured."""
FAULTS: frozenset[Cause] = frozenset({"unusable", "failed", "memory", "wrong", "misplaced"})
"""Something is broken, and whoever paid for the accelerator wants to know."""
PLAN_FORMAT = 2
"""Of the stored form; plans of another one are measured anew."""
SPINNING = ("session.intra_op.allow_spinning", "1")
"""Threads wait for work without sleeping: 4 to 16 times the CPU of a paced camera's work (measured), so only where it pays."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a plan is made for beside the device and the bundle: the operator's words for a model. Part of the plan's key."""

    objective: Objective = "latency"
    """`latency`: the lowest p99; `throughput`: the most runs a second with `streams` at a time; `power`: the least energy a
    run where it can be measured, else the least CPU time."""
    streams: int = 1
    """Pipelines that share the session."""
    cores: int | None = None
    """Physical cores that this model may use, its share where several models run; None: all that this process may use."""
    run_on: str = "auto"
    """`auto`, a device type (`cpu`, `gpu`, `npu`), or a provider's name such as `OpenVINOExecutionProvider`."""
    is_required: bool = False
    """A pipeline says `fallback: require`: no node may run on another provider than the candidate's."""

    @property
    def digest(self) -> str:
        """A short digest: plans for different demands are stored beside each other."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


Place = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a bundle."""

    provider: str
    device_type: str
    variant: str
    threads: int
    """Intra-op threads; inter-op is 1 and execution is sequential."""
    options: tuple[tuple[str, str], ...] = ()
    session_options: tuple[tuple[str, str], ...] = ()
    runtime: str = BUILT_IN
    """Which runtime brings the provider (`EpDevice.runtime`): enough for any process to open it."""
    device: str = ""
    """Which of several devices of this provider and type (`Facts.key_of`); empty where there is one."""

    @property
    def is_plain_cpu(self) -> bool:
        """Whether ONNX Runtime's own CPU provider runs it: what is always there, and what the others are compared with."""
        return self.provider == "CPUExecutionProvider"

    @property
    def place(self) -> Place:
        """What of it can fail at run time: a provider, of a runtime, on a device."""
        return self.runtime, self.provider, self.device_type, self.device

    @property
    def prepared_name(self) -> str:
        """The name of the folder, inside the plan's, for what this candidate compiles: threads do not change that."""
        parts = [self.provider, self.device_type, self.variant, self.options, self.session_options, self.runtime]
        text = json.dumps([*parts, self.device] if self.device else parts)
        return f"{self.variant}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def label(self) -> str:
        """A short name, such as `CPU int8 ×2`, `OpenVINO npu int8` or `Dml gpu fp16 on NVIDIA GeForce RTX 3060`.

        Beside others, `labels` tells them apart.
        """
        return self.label_with()

    def label_with(self, *more: str) -> str:
        """Return the label with more words about how, before those about where."""
        provider = self.provider.removesuffix("ExecutionProvider")
        how = [self.variant, f"×{self.threads}"] if self.device_type == "cpu" else [self.device_type, self.variant]
        return " ".join([provider, *how, *more, *(["on", self.device] if self.device else [])])


def _moment(text: str) -> str:
    """Refuse what is no RFC 3339 time with its offset: core reckons with it."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"expected a time with its offset, found {text}")
    return text


def _share(value: float) -> float:
    """Refuse what is no share. NaN is one: it agrees with nothing."""
    if value < 0 or value > 1:
        raise ValueError(f"expected a share from 0 to 1, found {value}")
    return value


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Native code may answer anything, and a time that is negative or no number would win or break every comparison."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, AfterValidator(_share)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a trial found. Times are of `session.run` on golden samples (or zeros), in milliseconds."""

    runs: Annotated[int, Field(gt=0)]
    mean_ms: Amount
    p50_ms: Amount
    p95_ms: Amount
    p99_ms: Amount
    load_ms: Amount
    cpu_ms_per_run: Amount
    peak_rss_bytes: Count
    nodes: dict[str, Count] = field(default_factory=dict)
    """Graph nodes by the provider that ran them, from ONNX Runtime's own assignment record."""
    golden_agreement: Share | None = None
    """Mean agreement with the golden answers, 0 to 1 (`agent.inference.golden`); None where the bundle has none."""
    cpu_agreement: Share | None = None
    """For a bundle without golden samples: 1 minus the relative root mean square difference of the raw outputs from those of
    the same variant on the plain CPU provider; None where that was not compared."""
    partitions: dict[str, Count] = field(default_factory=dict)
    """Connected parts of the graph by provider: each border between two providers costs a copy."""
    time_share: dict[str, Share] = field(default_factory=dict)
    """Share of a run's time by provider, 0 to 1, from a traced run; empty where it was not traced."""
    runs_per_s: Amount | None = None
    """With `Demand.streams` runs at a time; None where only one stream was asked for."""
    energy_mj_per_run: Amount | None = None
    """Of the processor package (RAPL), in millijoules, less what it takes idle; None where nothing measures it."""
    celsius: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The hottest thermal zone at the end of the trial."""
    p99_range_ms: tuple[Amount, Amount] | None = None
    """The lowest and the highest p99 of several trials of one length; None for a single one."""
    compile_ms: Amount | None = None
    """How long the first load took, where later ones read a prepared model; `load_ms` is then of a later one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate with what became of it: measured, or refused with a reason."""

    candidate: Candidate
    measurement: Measurement | None = None
    refusal: str | None = None
    cause: Cause | None = None
    """What kind of refusal it is; None where there is none."""
    dropped_in: int | None = None
    """The round of successive halving after which it was left behind, 1 the first; None: measured to the end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The choice, with every number and every refusal. Stored under `key`."""

    fingerprint: str
    bundle_digest: str
    runtime_version: str
    profile: str
    chosen: Candidate
    reason: str
    outcomes: tuple[Outcome, ...]
    made_at: Annotated[str, AfterValidator(_moment)]
    """RFC 3339 UTC."""
    demand: Demand = Demand()
    ranked: tuple[Candidate, ...] = ()
    """Every candidate that passed, best first, `chosen` included: what takes over when the chosen one fails at run time."""
    requested: str = ""
    """What was asked for or expected, in words: `npu`, `OpenVINOExecutionProvider`, or the profile's first accelerator."""
    fallback: str | None = None
    """Why the choice is not what was requested; None where it is."""
    is_interim: bool = False
    """Chosen among the CPU's candidates while an accelerator is still being compiled and measured; never stored."""
    format: int = PLAN_FORMAT

    @property
    def key(self) -> str:
        return plan_key(self.fingerprint, self.bundle_digest, self.runtime_version, self.demand)


def plan_key(fingerprint: str, bundle_digest: str, runtime_version: str, demand: Demand | None = None) -> str:
    """Return the name under which a plan is stored: it is void when any of these changes."""
    return f"{fingerprint}-{bundle_digest[:16]}-ort{runtime_version}-{(demand or Demand()).digest}"


def labels(candidates: Iterable[Candidate]) -> dict[Candidate, str]:
    """Return a name for each that no other has: its label, and what sets it apart from those that share it.

    `OpenVINO gpu fp16 PRECISION=f16` stands beside `OpenVINO gpu fp16 PRECISION=f32`; one alone is `OpenVINO gpu fp16`.
    """
    alike: dict[str, list[Candidate]] = {}
    for candidate in dict.fromkeys(candidates):
        alike.setdefault(candidate.label, []).append(candidate)
    names: dict[Candidate, str] = {}
    for group in alike.values():
        short = [candidate.label_with(*_apart(candidate, group, is_short=True)) for candidate in group]
        if len(set(short)) < len(group):
            short = [candidate.label_with(*_apart(candidate, group, is_short=False)) for candidate in group]
        names |= zip(group, short, strict=True)
    return names


def _apart(candidate: Candidate, group: Sequence[Candidate], *, is_short: bool) -> list[str]:
    """Return the options, the threads and the runtime, as far as not all of the group have them in common."""
    shared = set.intersection(*({*each.options, *each.session_options} for each in group))
    words = [
        _short_option(name, value) if is_short else f"{name}={value}"
        for name, value in (*candidate.options, *candidate.session_options)
        if (name, value) not in shared
    ]
    if any(each.threads != candidate.threads for each in group):
        words.append(f"×{candidate.threads}")
    if any(each.runtime != candidate.runtime for each in group):
        words.append(f"({candidate.runtime.replace(':', '/').rpartition('/')[2] if is_short else candidate.runtime})")
    return words


def _short_option(name: str, value: str) -> str:
    """Return an option in a word: OpenVINO's `load_config={"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}` is `bf16`."""
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    return ",".join(_leaves(found)) if isinstance(found, dict) else f"{name.rpartition('.')[2]}={value}"


def _leaves(value: object) -> list[str]:
    return [leaf for each in value.values() for leaf in _leaves(each)] if isinstance(value, dict) else [str(value)]
