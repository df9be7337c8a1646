"""Whether the plan chooses well: its choice against the best of all candidates, measured again and at length.

The plan is made as `holdfast run` makes it, for one core and for two, and read again as at a second start. The exhaustive
search then opens every candidate that may be chosen in one process and runs them in turns, run by run, so that none has quieter
times than another, in blocks: what is compared is the median of the blocks' p99. The best of several noisy figures looks a
little better than it is, so the ratio errs against the plan.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from agent.bundle.reader import Bundle, open_bundle
from agent.clock import SystemClock
from agent.device.facts import Facts
from agent.device.planning.candidates import candidates
from agent.device.planning.judging import judge
from agent.device.planning.plan import Candidate, Demand, Plan
from agent.device.planning.planstore import PlanStore
from agent.device.profiles.profile import Profile
from agent.device.survey.recognition import recognise
from agent.inference.golden import blank_sample
from agent.trial.planner import Planner
from benchmarks.parts import Parts
from benchmarks.processes import run_module
from benchmarks.table import Figure, Goal, Line

BLOCKS = 5
BLOCK_S, QUICK_BLOCK_S = 6.0, 1.5
FEWEST_RUNS, MOST_RUNS = 30, 400
"""Of each candidate in a block."""
CORES = (1, 2)
STARTS = 11


@dataclass(frozen=True)
class _Planned:
    """One model on so many cores."""

    name: str
    demand: Demand
    bundle: Bundle
    facts: Facts
    profile: Profile
    plan: Plan
    took_s: float
    read_ms: float


def lines(parts: Parts) -> Iterator[Line]:
    """Plan, then search, for four models that differ: small and deep, depthwise, small and dense, large and dense."""
    models: tuple[tuple[str, Callable[[], Bundle]], ...] = (
        ("UltraFace", lambda: parts.ultraface_variants),
        ("YOLOX-Nano", lambda: parts.yolox_variants),
        ("SqueezeNet", lambda: parts.squeezenet_variants),
        ("ResNet-50", lambda: parts.resnet_variants),
    )
    facts, selection = recognise()
    done: list[_Planned] = []
    for name, build in models:
        bundle = build()
        for cores in CORES:
            parts.say(f"planning {name} for {cores} cores")
            done.append(
                _planned(
                    f"{name}, {cores} core{'s' * (cores > 1)}",
                    bundle,
                    (facts, selection.profile),
                    Demand(cores=cores),
                    parts.folder,
                )
            )
            yield _against_the_best(done[-1], QUICK_BLOCK_S if parts.is_quick else BLOCK_S)
    slowest, latest = max(done, key=lambda each: each.took_s), max(done, key=lambda each: each.read_ms)
    yield Figure(
        "planning, slowest model", "s", [slowest.took_s], Goal("value", "≤", 60, "s"), (), "",
        ", ".join(f"{each.name} {each.took_s:.1f} s" for each in done),
    )  # fmt: skip
    yield Figure(
        "reading the plan at the second start, slowest", "ms", [latest.read_ms], Goal("value", "≤", 50, "ms"), (), "",
        f"candidates listed, the plan's file read and checked; median of {STARTS}",
    )  # fmt: skip


def _planned(name: str, bundle: Bundle, device: tuple[Facts, Profile], demand: Demand, folder: Path) -> _Planned:
    facts, profile = device
    plans = folder / f"plans-{name}"
    plans.mkdir()
    prepared = folder / "prepared"
    prepared.mkdir(exist_ok=True)
    clock = SystemClock()
    planner = Planner(facts, profile, PlanStore(plans), clock, prepared)
    began_s = clock.monotonic()
    plan = planner.measure(bundle, demand)
    took_s = clock.monotonic() - began_s
    assert plan is not None
    reads_ms: list[float] = []
    for _ in range(STARTS):
        began_s = clock.monotonic()
        again = planner.stored(bundle, demand)
        reads_ms.append((clock.monotonic() - began_s) * 1000)
        assert again == plan
    return _Planned(name, demand, bundle, facts, profile, plan, took_s, median(reads_ms))


def _against_the_best(planned: _Planned, block_s: float) -> Line:
    plan, manifest = planned.plan, planned.bundle.manifest
    allowed = {each.candidate for each in plan.outcomes if judge(each, planned.profile, manifest).refusal is None}
    found = candidates(planned.facts, planned.profile, manifest, demand=planned.demand)[0]
    wanted = list(dict.fromkeys([plan.chosen, *(each for each in found if each in allowed)]))
    text = json.dumps([asdict(each) for each in wanted])
    blocks_ms = run_module("benchmarks.planning", planned.bundle.folder, block_s, text)["p99_ms"]
    p99_ms = {each: [block[index] for block in blocks_ms] for index, each in enumerate(wanted)}
    best = min(wanted, key=lambda each: median(p99_ms[each]))
    return Figure(
        f"plan for {planned.name}, p99", "ms", p99_ms[plan.chosen], Goal("ratio", "≤", 1.05), p99_ms[best],
        f"best of {len(wanted)}: {best.label}",
        f"chose {plan.chosen.label}; {BLOCKS} blocks in turns: "
        + ", ".join(f"{each.label} {median(p99_ms[each]):.2f} ms" for each in wanted),
    )  # fmt: skip


def main() -> None:
    """The search itself: every candidate open at once, one run of each in turn; prints each one's p99 in each block."""
    from agent.inference.model import open_model

    folder, block_s, text = sys.argv[1:4]
    bundle = open_bundle(Path(folder), verify=False)
    opened = [open_model(bundle, _candidate(each)) for each in json.loads(text)]
    sample = blank_sample(bundle.manifest.input, SystemClock())
    runs = [(model.infer, model.prepare(sample)) for model in opened]
    blocks = []
    for _ in range(BLOCKS + 1):
        times_ms: list[list[float]] = [[] for _ in runs]
        began_s = time.monotonic()
        while len(times_ms[0]) < MOST_RUNS and (
            time.monotonic() - began_s < float(block_s) or len(times_ms[0]) < FEWEST_RUNS
        ):
            for (infer, inputs), times in zip(runs, times_ms, strict=True):
                infer(inputs)  # another candidate's weights fill the caches: the first run brings ours back
                run_began_s = time.perf_counter()
                infer(inputs)
                times.append((time.perf_counter() - run_began_s) * 1000)
        blocks.append([float(np.percentile(times, 99)) for times in times_ms])
    print(json.dumps({"p99_ms": blocks[1:]}))  # the first block warms up


def _candidate(values: dict[str, object]) -> Candidate:
    options = {key: tuple((a, b) for a, b in values[key]) for key in ("options", "session_options")}  # type: ignore[attr-defined]
    return Candidate(**{**values, **options})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
