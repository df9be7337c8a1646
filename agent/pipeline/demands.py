"""What each model's plan is to be made for: the operator's words for it, and its part of this device.

Several models share the processor by plan, not by luck: each may use its part of the usable physical cores by the number of its
pipelines, rounded down, and at least one. A single model may use all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.device.facts import Facts
from agent.device.hardware.cpu import usable_cores
from agent.device.planning.plan import Demand, Objective
from agent.device.profiles.profile import Profile
from agent.pipeline.messages import PipelineJob
from agent.pipeline.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Asked:
    """What the operator's file says of one model, as far as its plan is concerned."""

    objective: Objective | None = None
    run_on: str = "auto"
    streams: int = 1
    """Its own pipelines."""
    all_streams: int = 1
    """Those of all models."""
    is_required: bool = False

    def demand(self, facts: Facts, profile: Profile) -> Demand:
        """Return what a plan is to be made for on this device."""
        share = usable_cores(facts.cpu) * self.streams // self.all_streams
        return Demand(
            objective=self.objective or profile.tune.objective,
            streams=self.streams,
            cores=None if self.streams == self.all_streams else max(1, share),
            run_on=self.run_on,
            is_required=self.is_required,
        )


def asked_by_model(
    models: Mapping[str, ModelSettings], pipelines: Mapping[str, Sequence[PipelineJob]]
) -> dict[str, Asked]:
    """Return what is asked for each model that has pipelines."""
    all_streams = sum(len(jobs) for jobs in pipelines.values())
    return {
        name: Asked(
            objective=models[name].objective,
            run_on=models[name].run_on,
            streams=len(jobs),
            all_streams=all_streams,
            is_required=any(job.settings["fallback"] == "require" for job in jobs),
        )
        for name, jobs in pipelines.items()
    }
