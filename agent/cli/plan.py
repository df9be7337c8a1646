"""`holdfast plan`: what runs a bundle on this device, with every number and every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from agent.cli.thisdevice import ConfigOption, settings_if_any
from agent.device.plan import Objective
from agent.errors import OperatorError

if TYPE_CHECKING:
    from agent.bundle.reader import Bundle
    from agent.device.facts import Facts, Finding
    from agent.device.plan import Demand, Plan
    from agent.device.planstore import PlanStore
    from agent.device.profile import Profile
    from agent.paths import StatePaths

app = typer.Typer(help="What runs a bundle on this device, measured, and why.", no_args_is_help=True)

BundleOption = Annotated[
    str, typer.Option("--bundle", help="The folder of a built bundle, or the name of one that ships with Holdfast.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Where Holdfast keeps its state.")]
Runtimes = Annotated[
    list[str] | None,
    typer.Option("--runtime", help="One more runtime: plugin:<module or library> or folder:<path>. May be repeated."),
]


@app.command()
def show(
    *,
    bundle: BundleOption = "parcels",
    runtime: Runtimes = None,
    config: ConfigOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest stored plan in one line."""
    from agent.device.planstore import to_json

    plan = _stored_plans(bundle, _Device.of(config, state_dir, runtime or ()))[0]
    typer.echo(to_json(plan).decode() if as_json else f"{plan.chosen.label}: {plan.reason}")


@app.command()
def explain(
    *,
    bundle: BundleOption = "parcels",
    runtime: Runtimes = None,
    config: ConfigOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest stored plan with every candidate, its numbers, and why it was refused."""
    from agent.device.planstore import to_json

    device = _Device.of(config, state_dir, runtime or ())
    plan, *others = _stored_plans(bundle, device)
    if as_json:
        typer.echo(to_json(plan).decode())
    else:
        print_plan(plan, others, device.facts.findings)


@app.command()
def measure(
    *,
    bundle: BundleOption = "parcels",
    objective: Annotated[
        str | None, typer.Option(help=f"{', '.join(get_args(Objective))}; the profile's where it is not given.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Pipelines that share the model.")] = 1,
    cores: Annotated[int | None, typer.Option(min=1, help="Physical cores that it may use.")] = None,
    run_on: Annotated[str, typer.Option(help="auto, cpu, gpu, npu, or a provider's name.")] = "auto",
    runtime: Runtimes = None,
    profile: Annotated[str | None, typer.Option(help="A device profile, instead of the best match.")] = None,
    config: ConfigOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure every candidate again, now, and store the plan."""
    from agent.device.planstore import to_json

    device, opened = _Device.of(config, state_dir, runtime or (), profile), _open_bundle(bundle)
    demand = _demand(objective, streams, cores, run_on, device.profile)
    plan = _measure(opened, device, demand, is_quiet=as_json)
    if as_json:
        typer.echo(to_json(plan).decode())
    else:
        print_plan(plan, findings=device.facts.findings)


def print_plan(plan: Plan, others: Sequence[Plan] = (), findings: Sequence[Finding] = ()) -> None:
    """Print the table, the refusals, the runtimes that had nothing to measure, the reason, and what the plan was made for; then
    which others are stored.
    """
    from rich.console import Console

    from agent.cli.plantable import demand_text, plan_table

    console = Console()
    console.print(plan_table(plan))
    for finding in findings:
        if ":" in finding.probe:  # a runtime's id; the others are of the operating system
            console.print(f"{finding.probe}: {finding.text}", style="dim", highlight=False, markup=False)
    console.print(f"\n{plan.reason}", highlight=False, markup=False)
    console.print(f"Requested: {plan.requested}. Chosen: {plan.chosen.label}.", highlight=False)
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
            f"Also stored: {demand_text(other.demand)}, {other.made_at}: {other.chosen.label}",
            style="dim",
            highlight=False,
        )


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
        from agent.device.recognition import recognise
        from agent.device.tried import Tried
        from agent.paths import open_state

        settings = settings_if_any(config)
        paths = open_state(state_dir or settings.state_dir)
        named = (*settings.device.runtimes, *runtimes)
        facts, selection = recognise(
            named, profile or settings.device.profile, profiles=settings.device.profiles, tried=Tried(paths.tried)
        )
        return cls(facts, selection.profile, paths)

    @property
    def store(self) -> PlanStore:
        from agent.device.planstore import PlanStore

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


def _demand(objective: str | None, streams: int, cores: int | None, run_on: str, profile: Profile) -> Demand:
    """Check the words of the command line like those of the operator's file."""
    from pydantic import ValidationError

    from agent.device.plan import Demand
    from agent.pipeline.settings import ModelSettings

    try:
        model = ModelSettings.model_validate({"bundle": "any", "objective": objective, "run_on": run_on})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise OperatorError(
            f"--{str(first['loc'][0]).replace('_', '-')}: `{first['input']}` is not known",
            hint="run `holdfast plan measure --help`",
        ) from error
    return Demand(model.objective or profile.tune.objective, streams, cores, model.run_on)


def _measure(bundle: Bundle, device: _Device, demand: Demand, *, is_quiet: bool) -> Plan:
    """Measure with a table that grows on the terminal."""
    from rich.console import Console
    from rich.live import Live

    from agent.cli.plantable import Growing
    from agent.clock import SystemClock
    from agent.trial.planner import make_plan

    clock = SystemClock()
    growing = Growing(demand, clock)
    console = Console(stderr=True, quiet=is_quiet)
    with Live(console=console, transient=True, refresh_per_second=4, get_renderable=growing.table):
        plan = make_plan(
            bundle,
            device.facts,
            device.profile,
            device.store,
            clock,
            demand=demand,
            prepared=device.paths.prepared,
            progress=growing.add,
            again=True,
        )
    assert plan is not None  # only a stop event, which nobody holds here, gives None
    return plan


def _open_bundle(name: str) -> Bundle:
    from agent.bundle.finding import find_bundle
    from agent.bundle.reader import open_bundle

    return open_bundle(find_bundle(name))
