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
from agent.device.planning.plan import Candidate, Outcome, Plan, labels
from agent.health.conditions import Condition
from agent.pipeline.messages import PipelineBeat, SessionFacts, where_it_runs


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
    is_loading: bool = False
    """The one that is tried is being loaded and compiled; else it is being measured."""
    outcomes: tuple[Outcome, ...] = ()
    plan: Plan | None = None
    plan_is_stored: bool = False
    """The plan was measured at an earlier start."""
    variant: Variant | None = None
    """The one that the plan chose: opset, inputs and outputs as they are pinned."""
    session: SessionFacts | None = None
    """What the running session really is; None while none runs."""
    used: Candidate | None = None
    """The candidate that the worker was given last: the plan's choice, or what took over from it."""
    degraded: str = ""
    """Why something else than the plan's choice runs; empty where the choice does."""
    degraded_count: int = 0
    """How often a failure at run time was answered with another candidate, since the plan."""
    worker_pid: int | None = None
    worker_rss_bytes: int = 0
    restarts: int = 0

    @property
    def nodes(self) -> dict[str, int] | None:
        """Where the running session's graph nodes went, by provider; None while none runs."""
        return self.session["nodes"] if self.session else None

    @property
    def fallback(self) -> str | None:
        """Why the model does not run on what was asked for; None where it does, or nothing is known yet."""
        return self.degraded or (self.plan.fallback if self.plan else None) or None

    @property
    def meanwhile(self) -> str:
        """What is still being prepared while something else serves, in words; empty where nothing is."""
        if self.plan is None or not self.plan.is_interim:
            return ""
        what = self.trying.label if self.trying else self.plan.requested or "an accelerator"
        does = "compiling" if self.is_loading else "measuring"
        return f"{does} {what}, running on {self.plan.chosen.label} meanwhile"

    @property
    def time_share(self) -> dict[str, float]:
        """Share of a run's time by provider, as the plan's trial traced it; empty where it did not."""
        outcomes = self.plan.outcomes if self.plan else ()
        measured = (each.measurement for each in outcomes if each.candidate == self.used and each.measurement)
        return next((each.time_share for each in measured), {})


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
            "models": {model.name: _model_metrics(model) for model in self.models},
        }


def _model_info(model: ModelStatus) -> dict[str, Any]:
    plan = model.plan
    return {
        "bundle": model.bundle,
        "version": model.version,
        "digest": model.digest,
        "opset": model.variant.opset if model.variant else None,
        "inputs": [spec.model_dump() for spec in model.variant.inputs] if model.variant else None,
        "requested": _requested(model),
        "actual": model.session,
        "fallback": model.fallback,
        "meanwhile": model.meanwhile or None,
        "nodes": model.nodes,
        "time_share": model.time_share,
        "reason": plan.reason if plan else None,
        "profile": plan.profile if plan else None,
        "runtime": plan.runtime_version if plan else None,
        "candidates": _outcomes_info(plan) if plan else [],
    }


def _requested(model: ModelStatus) -> dict[str, Any] | None:
    """Return what was asked for in words, what the plan chose of it, and what the worker was given last."""
    plan, used = model.plan, model.used
    if plan is None:
        return None
    return {
        "run_on": plan.demand.run_on,
        "what": plan.requested,
        "chosen": asdict(plan.chosen),
        "used": asdict(used) if used else None,
    }


def _model_metrics(model: ModelStatus) -> dict[str, Any]:
    """Return by numbers and names what a session was to be and what it is. Both are null while none runs."""
    session = model.session
    return {
        "requested": model.used.label if model.used else None,
        "actual": where_it_runs(session) if session else None,
        "variant": session["variant"] if session else None,
        "is_fallback": model.fallback is not None,
        "is_interim": bool(model.meanwhile),
        "nodes": session["nodes"] if session else {},
        "partitions": session["partitions"] if session else {},
        "time_share": model.time_share,
        "degraded": model.degraded_count,
    }


def _outcomes_info(plan: Plan) -> list[dict[str, Any]]:
    names = labels(outcome.candidate for outcome in plan.outcomes)
    return [
        {
            "candidate": names[outcome.candidate],
            "p50_ms": outcome.measurement.p50_ms if outcome.measurement else None,
            "p99_ms": outcome.measurement.p99_ms if outcome.measurement else None,
            "refusal": outcome.refusal,
        }
        for outcome in plan.outcomes
    ]
