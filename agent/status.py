"""What the agent knows of itself at one moment: a value that people, the broker and the demo all read.

Core's thread replaces the whole value about once a second; readers in other threads only ever see finished ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from agent import __version__
from agent.bundle.manifest import Variant
from agent.device.facts import Facts
from agent.device.plan import Candidate, Measurement, Outcome, Plan
from agent.health.conditions import Condition
from agent.pipeline.messages import PipelineBeat


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The link to the broker."""

    state: Literal["none", "connecting", "connected"]
    protocol: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model: what was asked for, what runs, and what every candidate measured."""

    name: str
    bundle: str
    version: str = ""
    digest: str = ""
    trying: Candidate | None = None
    outcomes: tuple[Outcome, ...] = ()
    plan: Plan | None = None
    plan_is_stored: bool = False
    """The plan was measured at an earlier start."""
    variant: Variant | None = None
    """The one that the plan chose: opset, inputs and outputs as they are pinned."""
    nodes: dict[str, int] | None = None
    """Where the running session's graph nodes went, by provider; None while none runs."""
    worker_pid: int | None = None
    worker_rss_bytes: int = 0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """One camera or sensor."""

    name: str
    model: str
    beat: PipelineBeat | None = None


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The events' account. Every event recorded is delivered, queued, or lost and counted."""

    recorded: int = 0
    delivered: int = 0
    queued: int = 0
    lost: dict[str, int] | None = None
    """By cause."""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """Everything at one moment."""

    device_id: str
    at: datetime
    started_at: datetime
    link: LinkStatus
    outbox: OutboxStatus
    models: tuple[ModelStatus, ...] = ()
    pipelines: tuple[PipelineStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    facts: Facts | None = None
    core_rss_bytes: int = 0

    def info(self) -> dict[str, Any]:
        """Return what the retained `info` message says: hardware, versions, and where each model runs and why."""
        return {
            "agent": __version__,
            "started_at": self.started_at.isoformat(),
            "device": self.facts.to_json() if self.facts else None,
            "models": {model.name: _model_info(model) for model in self.models},
        }

    def health(self) -> dict[str, Any]:
        """Return what the retained `health` message says: the conditions that hold."""
        return {
            "ok": not any(condition.severity == "error" for condition in self.conditions),
            "conditions": [
                {**asdict(condition), "since": condition.since.isoformat()} for condition in self.conditions
            ],
        }

    def metrics(self) -> dict[str, Any]:
        """Return what the `metrics` message says: counters, percentiles and sizes."""
        return {
            "at": self.at.isoformat(),
            "outbox": asdict(self.outbox),
            "pipelines": {pipeline.name: pipeline.beat for pipeline in self.pipelines},
            "core_rss_bytes": self.core_rss_bytes,
            "worker_rss_bytes": {model.name: model.worker_rss_bytes for model in self.models},
            "restarts": {model.name: model.restarts for model in self.models},
        }


def _model_info(model: ModelStatus) -> dict[str, Any]:
    plan = model.plan
    return {
        "bundle": model.bundle,
        "version": model.version,
        "digest": model.digest,
        "opset": model.variant.opset if model.variant else None,
        "inputs": [spec.model_dump() for spec in model.variant.inputs] if model.variant else None,
        "requested": asdict(plan.chosen) if plan else None,
        "nodes": model.nodes,
        "reason": plan.reason if plan else None,
        "profile": plan.profile if plan else None,
        "runtime": plan.runtime_version if plan else None,
        "candidates": [_outcome_info(outcome) for outcome in plan.outcomes] if plan else [],
    }


def _outcome_info(outcome: Outcome) -> dict[str, Any]:
    measured: Measurement | None = outcome.measurement
    return {
        "candidate": outcome.candidate.label,
        "p50_ms": measured.p50_ms if measured else None,
        "p99_ms": measured.p99_ms if measured else None,
        "refusal": outcome.refusal,
    }
