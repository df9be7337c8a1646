"""What the agent says of itself: keeps the Status up to date, and tells the broker when something in it changed.

Belongs to core's thread. `status` is replaced, never changed: other threads may read it at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import psutil

from agent.clock import PLAUSIBLE_YEARS, Clock
from agent.device.facts import Facts
from agent.device.planning.plan import Outcome
from agent.health.conditions import Conditions
from agent.mqtt.link import Link
from agent.mqtt.topics import Topics
from agent.outbox.outbox import OutboxStats
from agent.pipeline.messages import Ready, SessionFacts
from agent.pipeline.workers import Workers
from agent.status import LinkStatus, ModelStatus, OutboxStatus, PipelineStatus, Status

log = logging.getLogger(__name__)

METRICS_PERIOD_S = 60.0


class Reporter:
    """The agent's Status and its retained messages.

    Args:
        bundles: By model.
        pipelines: Each pipeline's model.
    """

    def __init__(
        self,
        device_id: str,
        *,
        bundles: Mapping[str, str],
        pipelines: Mapping[str, str],
        conditions: Conditions,
        clock: Clock,
        topics: Topics,
        link: Link | None,
    ) -> None:
        self._pipelines = pipelines
        self._conditions = conditions
        self._clock = clock
        self._topics = topics
        self._link = link
        self._process = psutil.Process()
        self._published: dict[str, bytes] = {}
        self._next_metrics_s = clock.monotonic() + METRICS_PERIOD_S
        now = clock.now()
        self.status = Status(
            device_id,
            now,
            now,
            LinkStatus("connecting" if link else "none"),
            OutboxStatus(),
            models=tuple(ModelStatus(name, bundle) for name, bundle in bundles.items()),
        )

    def set_facts(self, facts: Facts) -> None:
        """The probe has answered."""
        self.status = replace(self.status, facts=facts)

    def set_link(self, link: LinkStatus) -> None:
        """The link to the broker changed its state."""
        if link != self.status.link:
            log.info("broker: %s %s%s", link.state, f"MQTT {link.protocol}" if link.protocol else "", link.text)
        self.status = replace(self.status, link=link)

    def update_model(self, name: str, **changes: Any) -> None:  # noqa: ANN401  as dataclasses.replace
        """Change fields of one model's status."""
        models = tuple(replace(model, **changes) if model.name == name else model for model in self.status.models)
        self.status = replace(self.status, models=models)

    def add_outcome(self, name: str, outcome: Outcome) -> None:
        """A trial of this model has ended."""
        before = next(model for model in self.status.models if model.name == name)
        self.update_model(name, trying=None, outcomes=(*before.outcomes, outcome))

    def refresh(self, workers: Workers, stats: OutboxStats) -> None:
        """Look at everything again, and publish what changed."""
        self._check_clock()
        for worker in workers.status():
            self.update_model(
                worker.model,
                session=_session(worker.ready),
                used=worker.job.candidate,
                worker_pid=worker.pid,
                worker_rss_bytes=worker.beat["rss_bytes"] if worker.beat else 0,
                restarts=worker.restarts,
            )
        beats = dict(workers.beats())
        self.status = replace(
            self.status,
            at=self._clock.now(),
            outbox=OutboxStatus(stats.recorded, stats.delivered, stats.queued, dict(stats.lost), stats.queued_bytes),
            pipelines=tuple(PipelineStatus(name, model, beats.get(name)) for name, model in self._pipelines.items()),
            conditions=tuple(self._conditions),
            core_rss_bytes=self._process.memory_info().rss,
        )
        if self._link is not None:
            self._publish(self._link)

    def _check_clock(self) -> None:
        now = self._clock.now()
        if now.year in PLAUSIBLE_YEARS:
            self._conditions.clear("clock-implausible")
        else:
            text = f"the clock says {now:%Y-%m-%d}: times in events are wrong until it is set (NTP, or a battery)"
            self._conditions.set("clock-implausible", "warning", text)

    def _publish(self, link: Link) -> None:
        for topic, document in ((self._topics.info, self.status.info()), (self._topics.health, self.status.health())):
            payload = json.dumps(document, separators=(",", ":")).encode()
            if self._published.get(topic) != payload:
                self._published[topic] = payload
                link.retain(topic, payload)
        now_s = self._clock.monotonic()
        if now_s >= self._next_metrics_s:
            self._next_metrics_s = now_s + METRICS_PERIOD_S
            link.publish(self._topics.metrics, json.dumps(self.status.metrics()).encode())


def _session(ready: Ready | None) -> SessionFacts | None:
    """Return what a worker's session is, without the message's own words."""
    if ready is None:
        return None
    return cast("SessionFacts", {key: ready[key] for key in SessionFacts.__annotations__})  # type: ignore[literal-required]
