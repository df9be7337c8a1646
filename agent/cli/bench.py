"""`holdfast bench`: every candidate of this device on one bundle, measured alike and shown side by side.

It stores no plan and disturbs none: `holdfast plan measure` does that. The candidates are those that the planner would try.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.thisdevice import ConfigOption, runtimes_of, settings_if_any
from agent.device.planning.plan import Candidate, Demand, Objective, Outcome, labels
from agent.errors import OperatorError

if TYPE_CHECKING:
    from agent.bundle.reader import Bundle
    from agent.cli.benchreport import Report
    from agent.device.facts import Facts
    from agent.device.profiles.profile import Profile
    from agent.trial.measuring import Measuring
    from agent.trial.tracing import Traced

DEFAULT_SECONDS = 60.0


def bench(
    bundle: Annotated[str, typer.Argument(help="The folder of a built bundle, or the name of one that ships.")],
    *,
    seconds: Annotated[
        float, typer.Option(min=0, help="No round begins after that; three are run in any case.")
    ] = DEFAULT_SECONDS,
    candidates: Annotated[
        list[str] | None, typer.Option(help="Only those whose name contains this, such as int8. May be repeated.")
    ] = None,
    objective: Annotated[
        Objective | None, typer.Option(help="What the choice goes by; the profile's where it is not given.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Runs at a time, for throughput.")] = 1,
    cores: Annotated[int | None, typer.Option(min=1, help="Physical cores that it may use.")] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="One more runtime: plugin:<module or library>, folder:<path> or virtual:<file>. May be repeated."
        ),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="A device profile, instead of the best match.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the plot to this SVG file.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Trace the best one too, and write its Chrome trace to this file.")
    ] = None,
    candidate: Annotated[str | None, typer.Option(help="With --trace: trace this one, and compare nothing.")] = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare every way to run a bundle on this device, and show where the time of the best one goes."""
    from agent.cli.benchtables import print_report, print_trace
    from agent.cli.output import print_json

    if candidate is not None and trace is None:
        raise OperatorError("--candidate names what is traced", hint="add --trace FILE.json, or mean --candidates")
    for target in (plot, trace):
        _require_folder(target)
    benched = _Bench.of(bundle, _recognise(config, profile, runtime or ()), objective, streams, cores)
    if candidate is not None and trace is not None:
        traced = benched.trace(benched.only(candidate), trace)
        print_json(asdict(traced)) if as_json else print_trace(traced, trace)
        return
    report = benched.compare(benched.matching(candidates or ()), seconds, is_quiet=as_json)
    if plot is not None:
        _write_plot(report, plot)
    best = None if trace is None else benched.trace(report.plan.chosen, trace)
    if as_json:
        print_json({**report.to_json(), "trace": best and asdict(best)})
        return
    print_report(report)
    if best is not None and trace is not None:
        print_trace(best, trace)


@dataclass(frozen=True, slots=True)
class _Bench:
    """A bundle on this device, and what there is to measure."""

    bundle: Bundle
    facts: Facts
    profile: Profile
    demand: Demand
    found: Sequence[Candidate]
    refused: Sequence[Outcome]

    @classmethod
    def of(
        cls,
        name: str,
        device: tuple[Facts, Profile],
        objective: Objective | None,
        streams: int,
        cores: int | None,
    ) -> _Bench:
        from agent.bundle.finding import find_bundle
        from agent.bundle.reader import open_bundle
        from agent.device.planning.candidates import candidates

        bundle, (facts, profile) = open_bundle(find_bundle(name)), device
        demand = Demand(objective or profile.tune.objective, streams, cores)
        found, refused = candidates(facts, profile, bundle.manifest, bundle.variants_present(), demand)
        return cls(bundle, facts, profile, demand, found, refused)

    @property
    def names(self) -> dict[Candidate, str]:
        """The names that the report will show."""
        return labels([*self.found, *(each.candidate for each in self.refused)])

    def matching(self, words: Sequence[str]) -> list[Candidate]:
        """Return the candidates whose name contains one of `words`, upper and lower case alike; all where there are none.

        Raises:
            OperatorError: there are candidates, and none matches.
        """
        named = self.names
        matching = [each for each in self.found if any(word.lower() in named[each].lower() for word in words)]
        if words and self.found and not matching:
            hint = f"there are: {', '.join(named[each] for each in self.found)}"
            raise OperatorError(f"no candidate is named {' or '.join(words)}", hint=hint)
        return matching or list(self.found)

    def only(self, word: str) -> Candidate:
        """Return the one candidate of that name, or whose name alone contains it."""
        if not self.found:
            raise OperatorError("there is no candidate here", hint="run it without --candidate: it lists the reasons")
        named = self.names
        exact = [each for each in self.found if named[each].lower() == word.lower()]
        matching = exact or self.matching([word])
        if len(matching) > 1:
            which = ", ".join(named[each] for each in matching)
            raise OperatorError(f"{word} names {len(matching)} candidates", hint=f"take one of: {which}")
        return matching[0]

    def compare(self, wanted: Sequence[Candidate], seconds: float, *, is_quiet: bool) -> Report:
        """Measure in rounds, with a line on the terminal that says whose turn it is; elsewhere a line for each round."""
        from rich.console import Console

        from agent.trial.rounds import compare

        named = self.names
        console = Console(stderr=True, quiet=is_quiet)
        told = 0
        with self._measuring() as measuring, console.status("") as status:

            def progress(candidate: Candidate, number: int, outcomes: Sequence[Outcome]) -> None:
                nonlocal told
                del outcomes
                turn = f"{wanted.index(candidate) + 1} of {len(wanted)}"
                status.update(f"round {number}, candidate {turn}: {named[candidate]}")
                if not console.is_terminal and number > told:
                    told = number
                    console.print(f"round {number} of {len(wanted)} candidates …", highlight=False)

            found = compare(wanted, measuring.once, measuring.budget.clock, seconds=seconds, progress=progress)
            outcomes = [_with_time_share(each, measuring) for each in found.outcomes]
        return self._report(outcomes, found.rounds)

    def trace(self, candidate: Candidate, target: Path) -> Traced:
        """Trace one candidate and keep its Chrome trace at `target`."""
        from agent.trial.tracing import trace_candidate

        limits = self.profile.limits_for(candidate.provider)
        return trace_candidate(self.bundle.folder, candidate, limits, target)

    @contextmanager
    def _measuring(self) -> Iterator[Measuring]:
        """Give what makes trials, with a folder for what they compile: the first round makes it, later ones read it."""
        import threading

        from agent.clock import SystemClock
        from agent.trial.measuring import Budget, Measuring, temporary_folder
        from agent.trial.running import run_trial

        with temporary_folder("holdfast-bench-") as folder:
            (prepared := folder / "prepared").mkdir()
            yield Measuring(
                bundle_folder=self.bundle.folder,
                manifest=self.bundle.manifest,
                profile=self.profile,
                demand=self.demand,
                budget=Budget(SystemClock(), self.profile.tune.budget_s),
                run=run_trial,
                progress=lambda _: None,
                stop=threading.Event(),
                prepared=prepared,
                scratch=folder,
            )

    def _report(self, outcomes: Sequence[Outcome], rounds: int) -> Report:
        from agent.cli.benchreport import Report
        from agent.clock import SystemClock
        from agent.device.planning.choosing import choose
        from agent.trial.variants import side_by_side

        manifest = self.bundle.manifest
        plan = choose(
            self.facts,
            self.profile,
            manifest,
            digest=self.bundle.digest,
            outcomes=[*outcomes, *self.refused],
            made_at=SystemClock().now().isoformat(timespec="seconds").replace("+00:00", "Z"),
            demand=self.demand,
        )
        return Report(
            bundle=f"{manifest.name} {manifest.version}",
            device=self.facts.board or self.facts.cpu.model or self.facts.architecture,
            rounds=rounds,
            plan=plan,
            variants=side_by_side(plan.outcomes, manifest, self.demand),
        )


def _with_time_share(outcome: Outcome, measuring: Measuring) -> Outcome:
    """Add the share of time by provider, where a graph runs on more than one."""
    measured = outcome.measurement
    if measured is None or len(measured.nodes) < 2:
        return outcome
    return replace(outcome, measurement=replace(measured, time_share=measuring.trace(outcome.candidate)))


def _recognise(config: Path | None, profile: str | None, runtimes: Sequence[str]) -> tuple[Facts, Profile]:
    from agent.device.runtimes.catalogue import find_runtimes
    from agent.device.survey.recognition import recognise

    settings = settings_if_any(config)
    device, named = settings.device, runtimes_of(settings, runtimes)
    asked = named[len(device.runtimes) :]
    find_runtimes(asked)  # one that was asked for here and is not there is an error, not a finding
    facts, selection = recognise(named, profile or device.profile, profiles=device.profiles)
    for finding in facts.findings:
        if finding.probe in asked and not any(each.runtime == finding.probe for each in facts.ep_devices):
            raise OperatorError(finding.text, where=finding.probe, hint="correct --runtime, or leave it out")
    return facts, selection.profile


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
