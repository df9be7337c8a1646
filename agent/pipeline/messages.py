"""What core and a worker say to each other, as JSON lines: `{"is": KIND, …}`.

Core → worker: one `job` at the start; then `payload` for sensors on MQTT topics, and `swap` for another job in place of
the one that runs; the end of input means finish.
Worker → core, in this order of life: `ready`, then any of `event` and `beat`, `swapped` or `swap-failed` for each `swap`
that no newer one replaced, `provider-failed` at most once for each job that has fallbacks, and `failed` before it gives up.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NotRequired, TypedDict

from agent.device.planning.plan import Candidate
from agent.errors import HoldfastError
from agent.log import mask_url


@dataclass(frozen=True, slots=True)
class PipelineJob:
    """One camera or sensor of a job."""

    name: str
    kind: Literal["camera", "sensor"]
    settings: Mapping[str, Any]
    """A CameraSettings or SensorSettings as JSON-ready values."""
    first_sample_id: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to run: one bundle in one session, and the pipelines that share it."""

    model: str
    """The model's name in the operator's file."""
    bundle: str
    """The bundle's folder."""
    candidate: Candidate
    pipelines: tuple[PipelineJob, ...]
    beat_s: float = 1.0
    fallbacks: tuple[Candidate, ...] = ()
    """What may take the candidate's place when its provider fails at run time, best first. Where there are any, a failing
    worker says `provider-failed`, and keeps the sample until it is given another job."""
    prepared: str | None = None
    """The folder of the plan's prepared models; None: load what the bundle has."""
    patience_s: float = 10.0
    """One inference that takes longer has hung."""

    def to_message(self) -> dict[str, Any]:
        """Return the `job` message."""
        return {"is": "job", **asdict(self)}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Job:
        """Return the job of a `job` message. Raises KeyError or TypeError for anything else."""
        return cls(
            model=message["model"],
            bundle=message["bundle"],
            candidate=_candidate(message["candidate"]),
            pipelines=tuple(PipelineJob(**pipeline) for pipeline in message["pipelines"]),
            beat_s=message["beat_s"],
            fallbacks=tuple(_candidate(each) for each in message["fallbacks"]),
            prepared=message["prepared"],
            patience_s=message["patience_s"],
        )

    def going_on_at(self, next_ids: Mapping[str, int]) -> Job:
        """Return this job for a new worker, whose samples are numbered from where the old one was last heard of."""
        pipelines = tuple(
            replace(pipeline, first_sample_id=next_ids.get(pipeline.name, pipeline.first_sample_id))
            for pipeline in self.pipelines
        )
        return replace(self, pipelines=pipelines)


def _candidate(values: Mapping[str, Any]) -> Candidate:
    pairs = {key: tuple((name, value) for name, value in values[key]) for key in ("options", "session_options")}
    return Candidate(**{**values, **pairs})


def explain(error: BaseException) -> tuple[str, int]:
    """Return an error's text and exit code; for one that is not ours, its type too."""
    if isinstance(error, HoldfastError):
        return mask_url(str(error)), error.exit_code
    return mask_url(f"{type(error).__name__}: {error}"), HoldfastError.exit_code


def payload_message(pipeline: str, at: str, payload: bytes) -> dict[str, Any]:
    """Return the message that carries what came on a sensor's topic. `at` is the arrival, RFC 3339 UTC."""
    return {"is": "payload", "pipeline": pipeline, "at": at, "payload": base64.b64encode(payload).decode()}


def payload_bytes(message: Mapping[str, Any]) -> bytes:
    """Return the payload of a `payload` message."""
    return base64.b64decode(message["payload"])


def swap_message(number: int, job: Job) -> dict[str, Any]:
    """Return the message that asks for another job. Answers carry its number."""
    return {**job.to_message(), "is": "swap", "number": number}


class MadeBy(TypedDict):
    """The bundle that an event is from, and how it was run. Each event carries it: around a swap there are two."""

    name: str
    version: str
    digest: str
    variant: str
    ep: str


class ProviderFailed(TypedDict):
    """The candidate's provider failed at run time. The sample at hand is kept until another job takes its place (`swap`)."""

    number: int
    """Of the swap that brought the candidate; 0 for the first job's."""
    reason: str


class SessionFacts(TypedDict):
    """What a session really is, whatever was asked for. Every `ready` and every `swapped` says it."""

    provider: str
    device_type: str
    device: str
    """Which of several of its provider and type; empty where there is one."""
    runtime: str
    variant: str
    threads: int
    opset: int
    inputs: dict[str, list[int]]
    """Shapes by name; -1 where the model leaves a size open."""
    nodes: dict[str, int]
    """Graph nodes by the provider that runs them; empty where the runtime does not tell."""
    partitions: dict[str, int]
    """Connected parts of the graph by provider; empty where the runtime does not tell."""
    was_prepared: bool
    """Loaded from what an earlier session had compiled or optimised."""
    load_ms: float


def where_it_runs(session: SessionFacts) -> str:
    """Return the provider and the device of a session in words."""
    return f"{session['provider']} {session['device_type']} {session['device']}".rstrip()


class Swapped(SessionFacts):
    """Every pipeline works with the new bundle. Beats that come later are about it."""

    number: int
    bundle: str
    """The digest of its manifest."""
    pause_ms: float | None
    """The longest time between the ends of two consecutive samples of a pipeline, from the beginning of loading until the old
    session was freed; None where no sample ended meanwhile."""


class SwapFailed(TypedDict):
    """The old bundle runs as before."""

    number: int
    reason: str
    exit_code: int
    needs_restart: bool
    """The new job is well as far as it was looked at, but needs other sources than those that are open, or another ONNX Runtime
    than the one that this process holds."""


class Ready(SessionFacts):
    """The session is warm and sources are being opened."""


class Failed(TypedDict):
    """The worker gives up and says why; it exits with `exit_code`, which is that of the error (agent.errors)."""

    reason: str
    exit_code: int
    pipeline: NotRequired[str]
    """Whose fault it was, where it was one pipeline's."""


class StageTimes(TypedDict):
    """One stage since its bundle began (counts) and over the last window of samples (percentiles), milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


SourceState = Literal["opening", "open", "down", "finished"]


class BundleCounts(TypedDict):
    """Counts since the worker works with the present bundle."""

    samples: int
    invalid: int


class PipelineBeat(TypedDict):
    """How one pipeline is doing. Counts are since the worker started."""

    samples: int
    """Samples that went through to the end."""
    captured: int
    dropped: dict[str, int]
    """By cause: `latest` (a newer frame replaced it), `rate`, `stale`, `missing`,
    `invalid`, `overrun` (payloads of a topic that the sensor's pipeline was too slow for) …"""
    events: int
    bundle: BundleCounts
    stages: dict[str, StageTimes]
    """`capture preprocess infer decode track rules emit`, and `age`: from capture to the end of emit."""
    source: SourceState
    source_text: str
    """Why it is down, or why it finished before its time."""
    next_sample_id: int
    inferring_s: float
    """How long the inference under way has been running; 0 where none is."""
    invalid_text: str
    """Why the newest invalid sample was none; empty when the newest sample was fine."""
    width: NotRequired[int]
    height: NotRequired[int]


class Beat(TypedDict):
    """The worker's heartbeat: by pipeline."""

    pipelines: dict[str, PipelineBeat]
    rss_bytes: int
