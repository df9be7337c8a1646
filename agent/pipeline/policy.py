"""Which pipelines may run while their model is not on what was asked for, and what is said about it. Pure.

Takes why it is elsewhere (None: it is not) and each pipeline's `fallback:`; gives the pipelines that run, and conditions.
`require` does not run then; `prefer` runs, with a warning; `allow` runs, and the status alone says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.device.planning.candidates import is_requested
from agent.device.planning.plan import Candidate, Plan
from agent.health.conditions import ClearCondition, SetCondition
from agent.log import brief
from agent.pipeline.messages import PipelineJob


@dataclass(frozen=True, slots=True)
class Ruling:
    """What comes of the policy of a model's pipelines."""

    pipelines: tuple[PipelineJob, ...]
    """Those that run, in the file's order."""
    conditions: tuple[SetCondition | ClearCondition, ...]
    """For each pipeline, and for the model."""


def rule(
    model: str,
    pipelines: Sequence[PipelineJob],
    *,
    elsewhere: str | None,
    fallback: str | None = None,
    is_interim: bool = False,
) -> Ruling:
    """Return which of a model's pipelines run.

    Args:
        model: Its name in the operator's file.
        pipelines: All of them.
        elsewhere: Why the model does not run on what was asked for; None where it does.
        fallback: Why the plan could not choose it; None where it could. A failure at run time has a condition of its own.
        is_interim: Only until an accelerator is compiled and measured: nobody need be warned, but `require` waits.
    """
    required = [each.name for each in pipelines if each.settings["fallback"] == "require"]
    conditions = [_fallback(model, pipelines, None if is_interim else fallback)]
    conditions += [_required(name, elsewhere, is_interim=is_interim) for name in required]
    return Ruling(
        tuple(each for each in pipelines if elsewhere is None or each.name not in required), tuple(conditions)
    )


def _fallback(model: str, pipelines: Sequence[PipelineJob], fallback: str | None) -> SetCondition | ClearCondition:
    name = f"accelerator-fallback/{model}"
    if fallback is None or all(each.settings["fallback"] != "prefer" for each in pipelines):
        return ClearCondition(name)
    return SetCondition(name, "warning", f"the model runs on the next best: {brief(fallback)}")


def _required(pipeline: str, elsewhere: str | None, *, is_interim: bool) -> SetCondition | ClearCondition:
    name = f"accelerator-required/{pipeline}"
    if elsewhere is None:
        return ClearCondition(name)
    text = f"the pipeline does not run (`fallback: require`): {brief(elsewhere)}"
    return SetCondition(name, "info" if is_interim else "error", text)


def elsewhere_at_start(plan: Plan) -> str | None:
    """Return why a plan's choice is not what was asked for; None where it is."""
    if plan.is_interim:
        return f"{plan.chosen.label} serves while others are compiled and measured (wanted: {plan.requested})"
    return plan.fallback


def elsewhere_degraded(plan: Plan, used: Candidate, reason: str) -> str | None:
    """Return why what runs after a failure is not what was asked for; None where it still is: another device of its kind is."""
    if used == plan.chosen:
        return elsewhere_at_start(plan)
    if (used.provider, used.device_type) == (plan.chosen.provider, plan.chosen.device_type):
        return plan.fallback
    if plan.demand.run_on != "auto" and is_requested(used, plan.demand):
        return plan.fallback
    return f"{plan.chosen.label} failed: {reason}"


def in_order(plan: Plan) -> tuple[Candidate, ...]:
    """Return what may run the bundle: the choice, then the rest as the plan ranks them.

    Where no `run_on` says otherwise the plain CPU comes last: an accelerator that is worse was refused for it, but one that
    successive halving left behind is ranked after those that it measured to the end.
    """
    rest = [each for each in plan.ranked if each != plan.chosen]
    if plan.demand.run_on == "auto":
        rest.sort(key=lambda each: each.is_plain_cpu)
    return plan.chosen, *rest
