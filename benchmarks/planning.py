"""Whether the plan chooses well: its choice against the best of all candidates, measured again and at length.

The plan is made as `holdfast run` makes it: a short trial process for each candidate. The exhaustive search then opens every
candidate side by side in one process and runs them in turns, run by run, so that no candidate has quieter times than another.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from agent.bundle.reader import Bundle, open_bundle
from agent.clock import SystemClock
from agent.device.candidates import candidates
from agent.device.judging import judge
from agent.device.plan import Candidate, Plan
from agent.device.planstore import PlanStore
from agent.device.profiles import load_profiles, select
from agent.device.recognition import look
from agent.inference.golden import blank_sample
from agent.resources import device_profiles
from agent.trial.planner import make_plan
from benchmarks.parts import Parts
from benchmarks.processes import run_module
from benchmarks.table import Figure, Goal, Line

RUNS, QUICK_RUNS = 1500, 300


def lines(parts: Parts) -> Iterator[Line]:
    """Plan, then search, for two models."""
    for name, bundle in (("UltraFace", parts.ultraface_variants), ("YOLOX-Nano", parts.yolox_variants)):
        yield from _lines_of(name, bundle, parts)


def _lines_of(name: str, bundle: Bundle, parts: Parts) -> Iterator[Line]:
    parts.say(f"planning {name}")
    facts = look()
    profile = select(facts, load_profiles([device_profiles()]), None).profile
    folder = parts.folder / f"plans-{name}"
    folder.mkdir()
    store = PlanStore(folder)
    plan = make_plan(bundle, facts, profile, store, SystemClock(), again=True)
    assert plan is not None
    allowed = {
        outcome.candidate for outcome in plan.outcomes if judge(outcome, profile, bundle.manifest).refusal is None
    }
    wanted = [candidate for candidate in candidates(facts, profile, bundle.manifest)[0] if candidate in allowed]
    parts.say(f"exhaustive search over {len(wanted)} candidates of {name}")
    runs = QUICK_RUNS if parts.is_quick else RUNS
    found = run_module(
        "benchmarks.planning", bundle.folder, runs, json.dumps([asdict(candidate) for candidate in wanted])
    )
    yield from _compare(name, plan, wanted, found["times_ms"], runs)


def _compare(name: str, plan: Plan, wanted: list[Candidate], times_ms: list[list[float]], runs: int) -> Iterator[Line]:
    for percent in (50, 99):
        figures = {
            candidate: float(np.percentile(times, percent)) for candidate, times in zip(wanted, times_ms, strict=True)
        }
        best = min(figures, key=lambda candidate: figures[candidate])
        note = f"{runs} runs each in turns: " + ", ".join(
            f"{candidate.label} {figure:.2f} ms" for candidate, figure in figures.items()
        )
        # The plan promises the lowest p99; its p50 stands beside it for comparison.
        goal = Goal("ratio", "≤", 1.05) if percent == 99 else None
        yield Figure(
            f"plan for {name}, p{percent}", "ms", [figures[plan.chosen]], goal, [figures[best]],
            f"best: {best.label}", f"chose {plan.chosen.label}; {note}",
        )  # fmt: skip


def main() -> None:
    """The search itself: every candidate open at once, one run of each in turn; prints each one's times."""
    from agent.inference.model import open_model

    folder, runs, text = sys.argv[1:4]
    bundle = open_bundle(Path(folder), verify=False)
    opened = [open_model(bundle, _candidate(each)) for each in json.loads(text)]
    sample = blank_sample(bundle.manifest.input, SystemClock())
    prepared = [model.prepare(sample) for model in opened]
    times_ms: list[list[float]] = [[] for _ in opened]
    for number in range(int(runs) + 5):
        for model, inputs, times in zip(opened, prepared, times_ms, strict=True):
            model.infer(inputs)  # another candidate's weights fill the caches: the first run brings ours back
            began = time.perf_counter()
            model.infer(inputs)
            if number >= 5:
                times.append((time.perf_counter() - began) * 1000)
    print(json.dumps({"times_ms": times_ms}))


def _candidate(values: dict[str, object]) -> Candidate:
    options = {key: tuple((a, b) for a, b in values[key]) for key in ("options", "session_options")}  # type: ignore[attr-defined]
    return Candidate(**{**values, **options})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
