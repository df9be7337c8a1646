"""What core and a worker say to each other, as JSON lines: `{"is": KIND, …}`.

Core → worker: one `job` at the start; then nothing but the end of input, which means finish.
Worker → core, in this order of life: `ready`, then any of `event`, `state`, `beat`, and `failed` before it gives up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from agent.device.plan import Candidate


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


@dataclass(frozen=True, slots=True)
class PipelineJob:
    """One camera or sensor of a job."""

    name: str
    kind: Literal["camera", "sensor"]
    settings: Mapping[str, Any]
    """A CameraSettings or SensorSettings as JSON-ready values."""
    first_sample_id: int = 0


class Ready(TypedDict):
    """The session is warm and sources are being opened."""

    nodes: dict[str, int]
    load_ms: float


class StageTimes(TypedDict):
    """One stage since the worker started (counts) and over the last window of samples (percentiles), milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class PipelineBeat(TypedDict):
    """How one pipeline is doing."""

    samples: int
    """Samples that went through to the end."""
    captured: int
    dropped: dict[str, int]
    """By cause: `latest` (a newer frame replaced it), `rate`, `stale`, `missing`, `invalid` …"""
    events: int
    stages: dict[str, StageTimes]
    """`capture preprocess infer decode track rules emit`, and `age`: from capture to the end of emit."""
    source: Literal["opening", "open", "down", "finished"]
    source_text: str
    """Why it is down."""
    width: NotRequired[int]
    height: NotRequired[int]


class Beat(TypedDict):
    """The worker's heartbeat: by pipeline."""

    pipelines: dict[str, PipelineBeat]
    rss_bytes: int
