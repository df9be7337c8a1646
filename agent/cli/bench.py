"""`holdfast bench`: every candidate of this device on one bundle, measured alike and shown side by side.

It stores no plan and disturbs none: `holdfast plan measure` does that. The candidates are those that the planner would try.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.bundle.reader import Bundle
    from agent.cli.benchreport import Report
    from agent.device.facts import Facts
    from agent.device.plan import Candidate, Outcome
    from agent.device.profile import Profile
    from agent.trial.comparison import Comparison
    from agent.trial.tracing import Traced

DEFAULT_SECONDS = 60.0


def bench(
    bundle: Annotated[str, typer.Argument(help="The folder of a built bundle, or the name of one that ships.")],
    *,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="No round begins after that; three are run in any case.")
    ] = DEFAULT_SECONDS,
    candidates: Annotated[
        list[str] | None,
        typer.Option("--candidates", help="Only those whose name contains this, such as int8. Repeatable."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="Only candidates of this runtime, such as built-in. Repeatable."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="A device profile, instead of the best match.")
    ] = None,
    objective: Annotated[
        Literal["latency", "throughput", "power"] | None,
        typer.Option("--objective", help="What the choice goes by, instead of the profile's."),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the plot to this SVG file.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Trace the best one too, and write its Chrome trace to this file.")
    ] = None,
    candidate: Annotated[
        str | None, typer.Option("--candidate", help="With --trace: trace this one, and compare nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare every way to run a bundle on this device, and show where the time of the best one goes."""
    from agent.cli.benchtables import print_report, print_trace
    from agent.cli.output import print_json

    if candidate is not None and trace is None:
        raise OperatorError("--candidate names what is traced", hint="add --trace FILE.json, or mean --candidates")
    for target in (plot, trace):
        _require_folder(target)
    opened, facts = _open_bundle(bundle), _probe()
    chosen_profile = _select(facts, profile, objective)
    found, refused = _candidates(opened, facts, chosen_profile, runtime or ())
    if candidate is not None and trace is not None:
        traced = _trace(opened, _only(found, candidate), chosen_profile, trace)
        print_json(_traced_values(traced)) if as_json else print_trace(traced, trace)
        return
    comparison = _compare(opened, _matching(found, candidates or ()), chosen_profile, seconds, is_quiet=as_json)
    report = _report(opened, facts, chosen_profile, comparison, refused)
    if plot is not None:
        _write_plot(report, plot)
    best = None if trace is None else _trace(opened, report.plan.chosen, chosen_profile, trace)
    if as_json:
        print_json({**report.to_json(), "trace": best and _traced_values(best)})
        return
    print_report(report)
    if best is not None and trace is not None:
        print_trace(best, trace)


def _candidates(
    bundle: Bundle, facts: Facts, profile: Profile, runtimes: Sequence[str]
) -> tuple[list[Candidate], list[Outcome]]:
    from agent.device.planning import candidates

    found, refused = candidates(facts, profile, bundle.manifest, bundle.variants_present())
    if not runtimes:
        return found, refused
    of_runtime = [each for each in found if each.runtime in runtimes]
    if found and not of_runtime:
        known = ", ".join(sorted({each.runtime for each in found}))
        raise OperatorError(f"no candidate of {', '.join(runtimes)} here", hint=f"there are candidates of: {known}")
    return of_runtime, [each for each in refused if each.candidate.runtime in runtimes]


def _matching(found: Sequence[Candidate], words: Sequence[str]) -> list[Candidate]:
    """Return those whose name contains one of `words`, upper and lower case alike; all where there are none.

    Raises:
        OperatorError: there are candidates, and none matches.
    """
    from agent.cli.benchreport import names

    named = names(found)
    matching = [each for each in found if any(word.lower() in named[each].lower() for word in words)]
    if words and found and not matching:
        raise OperatorError(
            f"no candidate is named {' or '.join(words)}", hint=f"there are: {', '.join(named.values())}"
        )
    return matching or list(found)


def _only(found: Sequence[Candidate], word: str) -> Candidate:
    from agent.cli.benchreport import names

    if not found:
        raise OperatorError(
            "there is no candidate here", hint="see `holdfast bench` without --candidate for the reasons"
        )
    named = names(found)
    exact = [each for each in found if named[each].lower() == word.lower()]
    matching = exact or _matching(found, [word])
    if len(matching) > 1:
        which = ", ".join(named[each] for each in matching)
        raise OperatorError(f"{word} names {len(matching)} candidates", hint=f"take one of: {which}")
    return matching[0]


def _compare(
    bundle: Bundle, found: Sequence[Candidate], profile: Profile, seconds: float, *, is_quiet: bool
) -> Comparison:
    """Measure with a table that grows on the terminal."""
    import threading

    from rich.console import Console
    from rich.live import Live

    from agent.cli.plantable import outcome_table
    from agent.clock import SystemClock
    from agent.trial.comparison import compare
    from agent.trial.running import run_trial

    stop = threading.Event()
    with Live(console=Console(stderr=True, quiet=is_quiet), transient=True, refresh_per_second=4) as live:

        def progress(candidate: Candidate, number: int, outcomes: Sequence[Outcome]) -> None:
            del number
            live.update(outcome_table(outcomes, running=candidate))

        return compare(
            found,
            lambda candidate: run_trial(bundle.folder, candidate, profile.limits, stop),
            SystemClock(),
            seconds=seconds,
            progress=progress,
            stop=stop,
        )


def _report(
    bundle: Bundle, facts: Facts, profile: Profile, comparison: Comparison, refused: Sequence[Outcome]
) -> Report:
    from agent.cli.benchreport import Report
    from agent.clock import SystemClock
    from agent.device.planning import choose
    from agent.trial.variants import side_by_side

    plan = choose(
        facts,
        profile,
        bundle.manifest,
        digest=bundle.digest,
        outcomes=[*comparison.outcomes, *refused],
        made_at=SystemClock().now().isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    rows = side_by_side(plan.outcomes, bundle.manifest, profile.tune.objective)
    manifest = bundle.manifest
    return Report(
        bundle=f"{manifest.name} {manifest.version}",
        device=facts.cpu.model or facts.board or facts.architecture,
        objective=profile.tune.objective,
        rounds=comparison.rounds,
        plan=plan,
        variants=rows,
    )


def _trace(bundle: Bundle, candidate: Candidate, profile: Profile, target: Path) -> Traced:
    from agent.trial.tracing import trace_candidate

    return trace_candidate(bundle.folder, candidate, profile.limits, target)


def _traced_values(traced: Traced) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(traced)


def _write_plot(report: Report, target: Path) -> None:
    from agent.cli.benchplot import svg
    from agent.errors import StateError

    try:
        target.write_text(svg(report), encoding="utf-8")
    except OSError as error:
        raise StateError(f"the plot cannot be written: {error.strerror or error}", where=str(target)) from error


def _require_folder(target: Path | None) -> None:
    """Refuse a place that cannot be, before a minute was spent on measuring."""
    if target is not None and not target.absolute().parent.is_dir():
        raise OperatorError("there is no such folder", where=str(target.parent), hint="make it, or name another file")


def _open_bundle(name: str) -> Bundle:
    from agent.bundle.finding import find_bundle
    from agent.bundle.reader import open_bundle

    return open_bundle(find_bundle(name))


def _probe() -> Facts:
    from agent.device.probing import probe_facts

    return probe_facts()


def _select(facts: Facts, name: str | None, objective: Literal["latency", "throughput", "power"] | None) -> Profile:
    from agent import resources
    from agent.device.profiles import load_profiles, select

    profile = select(facts, load_profiles([resources.device_profiles()]), name).profile
    if objective is None:
        return profile
    return profile.model_copy(update={"tune": profile.tune.model_copy(update={"objective": objective})})
