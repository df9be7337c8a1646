"""`holdfast plan`: what runs a bundle on this device, with every number and every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from agent.cli.thisdevice import ConfigOption, runtimes_of, settings_if_any
from agent.device.planning.plan import Objective
from agent.errors import OperatorError

if TYPE_CHECKING:
    from agent.bundle.reader import Bundle
    from agent.device.facts import Facts, Finding
    from agent.device.planning.plan import Demand, Plan
    from agent.device.planning.planstore import PlanStore
    from agent.device.profiles.profile import Profile
    from agent.paths import StatePaths
    from agent.pipeline.demands import Asked

app = typer.Typer(help="What runs a bundle on this device, measured, and why.", no_args_is_help=True)

BundleOption = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        help="The folder of a built bundle, or the name of one that ships with Holdfast; else that of the configuration's model.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Where Holdfast keeps its state.")]
Runtimes = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        help="One more runtime: plugin:<module or library>, folder:<path> or virtual:<file>. May be repeated.",
    ),
]


@app.command()
def show(
    *,
    bundle: BundleOption = None,
    runtime: Runtimes = None,
    config: ConfigOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest stored plan in a line or two."""
    from agent.device.planning.planstore import to_json

    bundle, _ = _asked(config, bundle)
    plan = _stored_plans(bundle, _Device.of(config, state_dir, runtime or ()))[0]
    typer.echo(to_json(plan).decode() if as_json else _brief(plan))


@app.command()
def explain(
    *,
    bundle: BundleOption = None,
    runtime: Runtimes = None,
    config: ConfigOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest stored plan with every candidate, its numbers, and why it was refused.

    Times are milliseconds. Nodes, parts of the graph and share of the time are those on the candidate's own provider.
    """
    from agent.device.planning.planstore import to_json

    bundle, _ = _asked(config, bundle)
    device = _Device.of(config, state_dir, runtime or ())
    plan, *others = _stored_plans(bundle, device)
    if as_json:
        typer.echo(to_json(plan).decode())
    else:
        print_plan(plan, others, device.facts.runtime_findings)


@app.command()
def measure(
    *,
    bundle: BundleOption = None,
    objective: Annotated[
        str | None, typer.Option(help=f"{', '.join(get_args(Objective))}; the profile's where it is not given.")
    ] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="Pipelines that share the model.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Physical cores that it may use.")] = None,
    run_on: Annotated[str | None, typer.Option(help="auto, cpu, gpu, npu, or a provider's name.")] = None,
    runtime: Runtimes = None,
    profile: Annotated[str | None, typer.Option(help="A device profile, instead of the best match.")] = None,
    config: ConfigOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure every candidate again, now, and store the plan.

    What no option says is as the configuration has it, so that the plan is the one that `holdfast run` uses.
    """
    from agent.device.planning.planstore import to_json

    bundle, asked = _asked(config, bundle)
    device, opened = _Device.of(config, state_dir, runtime or (), profile), _open_bundle(bundle)
    demand = _demand(asked.demand(device.facts, device.profile), objective, streams, cores, run_on)
    plan = _measure(opened, device, demand, is_quiet=as_json)
    if as_json:
        typer.echo(to_json(plan).decode())
    else:
        print_plan(plan, findings=device.facts.runtime_findings)


def print_plan(plan: Plan, others: Sequence[Plan] = (), findings: Sequence[Finding] = ()) -> None:
    """Print the table, the refusals, the runtimes that had nothing to measure, the reason, and what the plan was made for; then
    which others are stored.
    """
    from rich.console import Console

    from agent.cli.plantable import demand_text, plan_table

    console = Console()
    console.print(plan_table(plan))
    for finding in findings:
        console.print(f"{finding.probe}: {finding.text}", style="dim", highlight=False, markup=False)
    console.print(f"\n{plan.reason}", highlight=False, markup=False)
    requested = plan.requested if plan.demand.run_on != "auto" else f"auto (expected: {plan.requested})"
    console.print(f"Requested: {requested}. Chosen: {_chosen(plan)}.", highlight=False, markup=False)
    if plan.fallback:
        console.print(f"Fallback: {plan.fallback}", style="yellow", highlight=False, markup=False)
    console.print(
        f"Measured {plan.made_at} {demand_text(plan.demand)}. Profile {plan.profile}, device {plan.fingerprint}, "
        f"bundle {plan.bundle_digest[:16]}, ONNX Runtime {plan.runtime_version}.",
        style="dim",
        highlight=False,
    )
    for other in others:
        console.print(
            f"Also stored: {demand_text(other.demand)}, {other.made_at}: {_chosen(other)}",
            style="dim",
            highlight=False,
        )


def _brief(plan: Plan) -> str:
    return f"{plan.reason}\nFallback: {plan.fallback}" if plan.fallback else plan.reason


def _chosen(plan: Plan) -> str:
    """Return the choice by a name that no other candidate has, and the runtime that brings it where that is not the usual one."""
    from agent.device.facts import BUILT_IN
    from agent.device.planning.plan import labels

    chosen = plan.chosen
    name = labels([chosen, *(each.candidate for each in plan.outcomes)])[chosen]
    return name if chosen.runtime == BUILT_IN else f"{name} ({chosen.runtime})"


@dataclass(frozen=True, slots=True)
class _Device:
    """What the agent knows of this device: plans are found by its fingerprint."""

    facts: Facts
    profile: Profile
    paths: StatePaths

    @classmethod
    def of(
        cls, config: Path | None, state_dir: Path | None, runtimes: Sequence[str], profile: str | None = None
    ) -> _Device:
        from agent.device.survey.recognition import recognise
        from agent.device.survey.tried import Tried
        from agent.paths import open_state

        settings = settings_if_any(config)
        paths = open_state(state_dir or settings.state_dir)
        facts, selection = recognise(
            runtimes_of(settings, runtimes),
            profile or settings.device.profile,
            profiles=settings.device.profiles,
            tried=Tried(paths.tried),
        )
        return cls(facts, selection.profile, paths)

    @property
    def store(self) -> PlanStore:
        from agent.device.planning.planstore import PlanStore

        return PlanStore(self.paths.plans)


def _stored_plans(bundle: str, device: _Device) -> list[Plan]:
    opened, facts = _open_bundle(bundle), device.facts
    plans = [each for each in device.store.of(facts.fingerprint, opened.digest) if _is_of_this_runtime(each, facts)]
    if not plans:
        manifest = opened.manifest
        raise OperatorError(
            f"no plan is stored for {manifest.name} {manifest.version} on this device ({facts.fingerprint})",
            hint=f"run `holdfast plan measure --bundle {bundle}`",
        )
    return plans


def _is_of_this_runtime(plan: Plan, facts: Facts) -> bool:
    return plan.runtime_version == facts.runtime_version


def _asked(config: Path | None, bundle: str | None) -> tuple[str, Asked]:
    """Return the bundle that is meant, and what the configuration asks of the model that uses it.

    Raises:
        OperatorError: no bundle is named, and the configuration has several.
    """
    from agent.pipeline.demands import Asked, asked_by_model
    from agent.pipeline.jobs import pipelines_by_model

    settings = settings_if_any(config)
    models = {name: model for name, model in settings.models.items() if bundle in {None, name, model.bundle}}
    bundles = {model.bundle for model in models.values() if model.bundle is not None}
    if bundle is None and len(bundles) > 1:
        raise OperatorError(
            f"the configuration has {len(bundles)} bundles", hint=f"name one: --bundle {' or '.join(sorted(bundles))}"
        )
    jobs = pipelines_by_model(settings.cameras, settings.sensors, list(settings.models))
    asked = asked_by_model(settings.models, jobs)
    found = next((asked[name] for name in models if name in asked), Asked())
    return next(iter(bundles), bundle or "parcels"), found


def _demand(asked: Demand, objective: str | None, streams: int | None, cores: int | None, run_on: str | None) -> Demand:
    """Put the words of the command line, checked like those of the operator's file, in place of what is asked."""
    from pydantic import ValidationError

    from agent.pipeline.settings import ModelSettings

    try:
        model = ModelSettings.model_validate(
            {"bundle": "any", "objective": objective, "run_on": run_on or asked.run_on}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise OperatorError(
            f"--{str(first['loc'][0]).replace('_', '-')}: `{first['input']}` is not known",
            hint="run `holdfast plan measure --help`",
        ) from error
    return replace(
        asked,
        objective=model.objective or asked.objective,
        streams=streams or asked.streams,
        cores=cores or asked.cores,
        run_on=model.run_on,
    )


def _measure(bundle: Bundle, device: _Device, demand: Demand, *, is_quiet: bool) -> Plan:
    """Measure with a table that grows on the terminal."""
    from rich.console import Console
    from rich.live import Live

    from agent.cli.plantable import Growing
    from agent.clock import SystemClock
    from agent.trial.planner import Planner

    clock = SystemClock()
    growing = Growing(demand, clock)
    console = Console(stderr=True, quiet=is_quiet)
    planner = Planner(device.facts, device.profile, device.store, clock, device.paths.prepared)
    with Live(console=console, transient=True, refresh_per_second=4, get_renderable=growing.table):
        plan = planner.measure(bundle, demand, progress=growing.add)
    assert plan is not None  # only a stop event, which nobody holds here, gives None
    return plan


def _open_bundle(name: str) -> Bundle:
    from agent.bundle.finding import find_bundle
    from agent.bundle.reader import open_bundle

    return open_bundle(find_bundle(name))
