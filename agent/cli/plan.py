"""`holdfast plan`: what runs a bundle on this device, with every number and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.errors import OperatorError

if TYPE_CHECKING:
    from agent.bundle.reader import Bundle
    from agent.device.facts import Facts
    from agent.device.plan import Plan
    from agent.device.planstore import PlanStore
    from agent.device.profile import Profile

app = typer.Typer(help="What runs a bundle on this device, measured, and why.", no_args_is_help=True)

BundleOption = Annotated[
    str, typer.Option("--bundle", help="The folder of a built bundle, or the name of one that ships with Holdfast.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Where Holdfast keeps its state.")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="A device profile, instead of the best match.")]


@app.command()
def show(*, bundle: BundleOption = "parcels", state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show the stored plan in one line."""
    from agent.device.planstore import to_json

    plan = _stored_plan(bundle, state_dir)
    typer.echo(to_json(plan).decode() if as_json else f"{plan.chosen.label}: {plan.reason}")


@app.command()
def explain(*, bundle: BundleOption = "parcels", state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show the stored plan with every candidate, its numbers, and why it was refused."""
    from agent.device.planstore import to_json

    plan = _stored_plan(bundle, state_dir)
    if as_json:
        typer.echo(to_json(plan).decode())
    else:
        print_plan(plan)


@app.command()
def measure(
    *,
    bundle: BundleOption = "parcels",
    profile: ProfileName = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure every candidate again, now, and store the plan."""
    from agent.device.planstore import to_json

    opened, store = _open_bundle(bundle), _open_store(state_dir)
    facts = _probe(state_dir)
    plan = _measure(opened, facts, _select(facts, profile), store, is_quiet=as_json)
    if as_json:
        typer.echo(to_json(plan).decode())
    else:
        print_plan(plan)


def print_plan(plan: Plan) -> None:
    """Print the table, the reason, and what the plan was made for."""
    from rich.console import Console

    from agent.cli.plantable import plan_table

    console = Console()
    console.print(plan_table(plan))
    console.print(f"\n{plan.reason}", highlight=False)
    console.print(
        f"Profile {plan.profile}, device {plan.fingerprint}, bundle {plan.bundle_digest[:16]}, "
        f"ONNX Runtime {plan.runtime_version}, measured {plan.made_at}.",
        style="dim",
        highlight=False,
    )


def _stored_plan(bundle: str, state_dir: Path | None) -> Plan:
    from agent.device.plan import plan_key

    opened, store = _open_bundle(bundle), _open_store(state_dir)
    facts = _probe(state_dir)
    plan = store.load(plan_key(facts.fingerprint, opened.digest, facts.runtime_version))
    if plan is None:
        manifest = opened.manifest
        raise OperatorError(
            f"no plan is stored for {manifest.name} {manifest.version} on this device ({facts.fingerprint})",
            hint=f"run `holdfast plan measure --bundle {bundle}`",
        )
    return plan


def _measure(bundle: Bundle, facts: Facts, profile: Profile, store: PlanStore, *, is_quiet: bool) -> Plan:
    """Measure with a table that grows on the terminal."""
    from rich.console import Console
    from rich.live import Live

    from agent.cli.plantable import outcome_table
    from agent.clock import SystemClock
    from agent.device.plan import Candidate, Outcome
    from agent.trial.measuring import Loaded
    from agent.trial.planner import make_plan

    outcomes: dict[Candidate, Outcome] = {}
    with Live(console=Console(stderr=True, quiet=is_quiet), transient=True, refresh_per_second=4) as live:

        def progress(news: Candidate | Loaded | Outcome) -> None:
            running = news if isinstance(news, Candidate) else None
            if isinstance(news, Outcome):
                outcomes[news.candidate] = news
            live.update(outcome_table(list(outcomes.values()), running=running))

        plan = make_plan(bundle, facts, profile, store, SystemClock(), progress=progress, again=True)
    assert plan is not None  # only a stop event, which nobody holds here, gives None
    return plan


def _open_bundle(name: str) -> Bundle:
    from agent.bundle.finding import find_bundle
    from agent.bundle.reader import open_bundle

    return open_bundle(find_bundle(name))


def _open_store(state_dir: Path | None) -> PlanStore:
    from agent.device.planstore import PlanStore
    from agent.paths import open_state

    return PlanStore(open_state(state_dir).plans)


def _probe(state_dir: Path | None) -> Facts:
    """Return the very facts that the agent has: plans are found by their fingerprint."""
    from agent.cli.thisdevice import settings_if_any
    from agent.device.recognition import recognise
    from agent.device.tried import Tried
    from agent.paths import open_state

    device = settings_if_any(None).device
    return recognise(device.runtimes, device.profile, tried=Tried(open_state(state_dir).tried))[0]


def _select(facts: Facts, name: str | None) -> Profile:
    from agent import resources
    from agent.device.profiles import load_profiles, select

    return select(facts, load_profiles([resources.device_profiles()]), name).profile
