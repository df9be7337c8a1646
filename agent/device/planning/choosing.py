"""Which of the measured candidates runs, pure: the ranking, the choice and its reason.

Takes judged outcomes; gives a plan, or an error that lists every refusal. The order of the choice:

1. Whatever a gate refuses is out (`agent.device.planning.judging`), then what is worse than the plain CPU.
2. What the operator asked for with `run_on` comes first; the others stand behind it, for when it fails.
3. The objective's figure: the lowest wins, but all within 5 % (or 0.05 ms) of it count as equal.
4. Among equals the least CPU time a run wins: with spinning off, two threads often tie with one and cost more.
5. Among those the fewest threads, and none that spin.

What comes behind the choice is ordered by medians: it was measured for different lengths of time.

The order in which candidates were measured decides nothing, except where the profile says `as-listed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

from agent.bundle.manifest import Manifest
from agent.device.facts import EpDevice, Facts
from agent.device.planning.candidates import is_requested
from agent.device.planning.judging import judge, slower_than_cpu
from agent.device.planning.objective import FEWEST_FOR_P99, Yardstick, by_median, digits
from agent.device.planning.plan import FAULTS, SPINNING, Candidate, Demand, Measurement, Outcome, Plan, labels
from agent.device.profiles.profile import Profile
from agent.errors import CandidateError

Measured = tuple[Candidate, Measurement]


def choose(
    facts: Facts,
    profile: Profile,
    manifest: Manifest,
    *,
    digest: str,
    outcomes: Sequence[Outcome],
    made_at: str,
    demand: Demand | None = None,
    is_interim: bool = False,
) -> Plan:
    """Rank the outcomes and return the plan. Outcomes that a gate turns down carry its reason as their refusal.

    Args:
        facts: What the probe saw.
        profile: The selected profile.
        manifest: The bundle's.
        digest: The bundle's digest, a part of the plan's key.
        outcomes: Every candidate, in the order tried.
        made_at: RFC 3339 UTC.
        demand: What the plan is made for.
        is_interim: Others are still being measured.

    Raises:
        CandidateError: none is left; the message has a line for each with its refusal.
    """
    demand = demand or Demand()
    is_listed = profile.tune.mode == "as-listed"
    judged = [judge(each, profile, manifest) for each in outcomes]
    judged = judged if is_listed else slower_than_cpu(judged, demand)
    passed = [each for each in judged if each.refusal is None]
    if not passed:
        raise _nothing_left(profile, manifest, judged)
    ranked = [each.candidate for each in (passed if is_listed else rank(passed, demand))]
    ranked.sort(key=lambda candidate: not is_requested(candidate, demand))
    names = labels(each.candidate for each in judged)
    reason = _listed_reason(passed[0], names) if is_listed else _reason(ranked[0], passed, demand, names)
    return Plan(
        fingerprint=facts.fingerprint,
        bundle_digest=digest,
        runtime_version=facts.runtime_version,
        profile=profile.name,
        chosen=ranked[0],
        reason=reason + _providers_note(judged, demand),
        outcomes=tuple(judged),
        made_at=made_at,
        demand=demand,
        ranked=tuple(ranked),
        requested=requested(facts, profile, demand),
        fallback=_fallback(ranked[0], judged, profile, demand, names, in_vain=facts.in_vain, is_interim=is_interim),
        is_interim=is_interim,
    )


def still_holds(plan: Plan, profile: Profile, found: Sequence[Candidate]) -> bool:
    """Return whether a stored plan may be used again: made with this profile, and all that it would run is still a candidate.

    The key has covered hardware, bundle, runtime and demand; an operator may have edited or renamed the profile since. What takes
    over when the choice fails counts as well: a file in the state folder must not be able to name a library to load.
    """
    known = {*found, *map(spinning, found)}
    is_whole = not plan.ranked or plan.chosen in plan.ranked
    says_so = plan.fallback is not None or is_requested(plan.chosen, plan.demand)
    is_final = is_whole and says_so and not plan.is_interim
    return is_final and plan.profile == profile.name and known.issuperset((plan.chosen, *plan.ranked))


def spinning(candidate: Candidate) -> Candidate:
    """Return the candidate with threads that wait without sleeping."""
    return replace(candidate, session_options=tuple(sorted({*candidate.session_options, SPINNING})))


def rank(passed: Sequence[Outcome], demand: Demand) -> list[Outcome]:
    """Return the outcomes best first: the choice among those that were measured to the end, then all others by their medians."""
    of = {each.candidate: each for each in passed}
    best = _best([each for each in passed if each.dropped_in is None] or passed, demand)
    return [best, *(of[candidate] for candidate, _ in by_median(passed, demand) if candidate != best.candidate)]


def _best(group: Sequence[Outcome], demand: Demand) -> Outcome:
    measured = {each.candidate: each.measurement for each in group if each.measurement is not None}
    yardstick = Yardstick.of(demand, list(measured.values()))
    figures = {candidate: yardstick.figure(each) for candidate, each in measured.items()}
    limit = yardstick.still_equal(min(figures.values()))
    cpu_ms = {candidate: each.cpu_ms_per_run for candidate, each in measured.items() if figures[candidate] <= limit}
    if not all(SPINNING in candidate.session_options for candidate in cpu_ms):
        cpu_ms = {each: value for each, value in cpu_ms.items() if SPINNING not in each.session_options}
    limit_cpu_ms = _still_equal_cpu(min(cpu_ms.values()))
    equal = [candidate for candidate, value in cpu_ms.items() if value <= limit_cpu_ms]
    best = min(equal, key=lambda candidate: (candidate.threads, figures[candidate], astuple(candidate)))
    return next(each for each in group if each.candidate == best)


def _still_equal_cpu(best_ms: float) -> float:
    return Yardstick("latency", has_p99=True, has_energy=False).still_equal(best_ms)


def requested(facts: Facts, profile: Profile, demand: Demand) -> str:
    """Return what was asked for; where nothing was, the profile's first accelerator that this device has, else the CPU."""
    if demand.run_on != "auto":
        return demand.run_on
    here = {(device.provider, device.device_type) for device in facts.devices_here}
    accelerators = (
        f"{spec.provider} {spec.device_type}"
        for spec in profile.candidates
        if spec.device_type != "cpu" and (spec.provider, spec.device_type) in here
    )
    return next(accelerators, "cpu")


def _fallback(
    chosen: Candidate,
    judged: Sequence[Outcome],
    profile: Profile,
    demand: Demand,
    names: dict[Candidate, str],
    *,
    in_vain: Sequence[EpDevice],
    is_interim: bool,
) -> str | None:
    """Return why the choice is not what was asked for or expected; None where it is.

    An accelerator that is merely slower, or for which the bundle has no variant, is no fallback: nothing is broken.
    """
    if demand.run_on != "auto":
        if is_requested(chosen, demand):
            return None
        asked = f"`run_on: {demand.run_on}` was asked for"
        if is_interim:
            return f"{asked} and is still being compiled and measured"
        mine = [each for each in judged if is_requested(each.candidate, demand)]
        mine.sort(key=lambda each: (each.cause not in FAULTS, names[each.candidate]))
        return f"{asked}, but {_refused(mine[0], names) if mine else _nothing_of_it(in_vain, demand)}"
    broken = [] if is_interim else _broken(chosen, judged, profile)
    return "; ".join(_refused(each, names) for each in broken) or None


def _nothing_of_it(in_vain: Sequence[EpDevice], demand: Demand) -> str:
    """Say why there is no candidate of what was asked for: the driver's words, where something was installed for it."""
    tried = (each for each in in_vain if demand.run_on in (each.device_type, each.provider) and each.unusable)
    words = [f"{each.provider} ({each.unusable})" for each in tried]
    return f"no such device is here for {', '.join(words)}" if words else "the profile lists nothing of it"


def _broken(chosen: Candidate, judged: Sequence[Outcome], profile: Profile) -> list[Outcome]:
    """Return a fault of each accelerator that the profile lists before the choice and of which nothing worked."""
    found: dict[tuple[str, str], Outcome] = {}
    for spec in profile.candidates:
        kind = spec.provider, spec.device_type
        if kind == (chosen.provider, chosen.device_type) and spec.device_type != "cpu":
            break
        mine = [each for each in judged if (each.candidate.provider, each.candidate.device_type) == kind]
        faults = [each for each in mine if each.cause in FAULTS]
        has_worked = any(each.refusal is None or each.cause in {"slow", "limit"} for each in mine)
        if spec.device_type != "cpu" and faults and not has_worked:
            found.setdefault(kind, min(faults, key=lambda each: astuple(each.candidate)))
    return list(found.values())


def _refused(outcome: Outcome, names: dict[Candidate, str]) -> str:
    return f"{names[outcome.candidate]}: {outcome.refusal}"


def _listed_reason(first: Outcome, names: dict[Candidate, str]) -> str:
    assert first.measurement is not None
    return (
        f"{names[first.candidate]} is the first in the profile's order that passed, "
        f"p99 {digits(first.measurement.p99_ms)} ms."
    )


def _reason(chosen: Candidate, passed: Sequence[Outcome], demand: Demand, names: dict[Candidate, str]) -> str:
    """Return the choice in a sentence or two, with the numbers that decided."""
    rivals = [each for each in passed if is_requested(each.candidate, demand) == is_requested(chosen, demand)]
    ranked = [(each.candidate, each.measurement) for each in rank(rivals, demand) if each.measurement]
    stayed = [each.candidate for each in rivals if each.dropped_in is None]
    of_stayed = [measured for candidate, measured in ranked if candidate in stayed]
    yardstick = Yardstick.of(demand, of_stayed or [ranked[0][1]])
    asked = f"`run_on: {demand.run_on}` was asked for; there, " if demand.run_on != "auto" else ""
    return (
        f"{asked if is_requested(chosen, demand) else ''}{_comparison(ranked, stayed, yardstick, names)}"
        f"{_p99_note(yardstick, of_stayed)}{_power_note(yardstick)}{_spinning_note(chosen, ranked, yardstick)}"
        f"{_variant_note(ranked)}"
    )


def _comparison(
    ranked: Sequence[Measured], stayed: Sequence[Candidate], yardstick: Yardstick, names: dict[Candidate, str]
) -> str:
    candidate, measured = ranked[0]
    name, amount = names[candidate], yardstick.amount(measured)
    if len(ranked) == 1:
        return f"{name} is the only candidate that passed, {yardstick.name} {amount}."
    compared = [pair for pair in ranked if pair[0] in stayed] or list(ranked)
    fastest, of_fastest = min(compared, key=lambda pair: yardstick.figure(pair[1]))
    if fastest == candidate:
        # One that was left behind after a short round may still come before the CPU, which never is.
        others = [pair for pair in compared if pair[0] != candidate] if ranked[1][0] in stayed else []
        shown = yardstick if others else replace(yardstick, has_p99=False)
        second, of_second = min(others or ranked[1:], key=lambda pair: shown.figure(pair[1]))
        prefix = "" if others else f"{shown.name} "
        return f"{name} has the {yardstick.best}, {amount}; next is {names[second]} with {prefix}{shown.amount(of_second)}."
    return (
        f"{_saving(ranked[0], (fastest, of_fastest), names)}, at an equal {yardstick.name} "
        f"({amount} and {yardstick.amount(of_fastest)})."
    )


def _saving(chosen: Measured, fastest: Measured, names: dict[Candidate, str]) -> str:
    """Return what the choice takes less of than the fastest, which it equals."""
    (mine, of_mine), (other, of_other) = chosen, fastest
    cpu_ms, other_cpu_ms = digits(of_mine.cpu_ms_per_run), digits(of_other.cpu_ms_per_run)
    if cpu_ms == other_cpu_ms and mine.threads != other.threads:
        return f"{names[mine]} takes fewer threads than {names[other]}"
    return f"{names[mine]} takes {cpu_ms} ms of CPU a run where {names[other]} takes {other_cpu_ms}"


def _p99_note(yardstick: Yardstick, compared: Sequence[Measurement]) -> str:
    had_runs = all(each.runs >= FEWEST_FOR_P99 for each in compared)
    if yardstick.objective != "latency" or yardstick.has_p99 or not had_runs:
        return ""
    return " Their p99 overlap from trial to trial."


def _providers_note(judged: Sequence[Outcome], demand: Demand) -> str:
    """Say what each provider's best reaches, where more than one was measured: that is what most people want to compare."""
    works = [each for each in judged if each.cause in {None, "slow"}]
    measured = {each.candidate: each.measurement for each in works if each.measurement is not None}
    yardstick = replace(Yardstick.of(demand, list(measured.values())), has_p99=False)
    best: dict[str, str] = {}
    for candidate, _ in by_median(works, demand):
        kind = "" if candidate.device_type == "cpu" else f" {candidate.device_type}"
        name = candidate.provider.removesuffix("ExecutionProvider") + kind
        best.setdefault(name, f"{name} {yardstick.amount(measured[candidate])}")
    return f" Best {yardstick.name} by provider: {', '.join(best.values())}." if len(best) > 1 else ""


def _power_note(yardstick: Yardstick) -> str:
    if yardstick.objective != "power":
        return ""
    if yardstick.has_energy:
        return " Energy is that of the processor package (RAPL), less what it takes idle."
    return " No energy counter can be read for all of them, so CPU time stands for energy."


def _spinning_note(chosen: Candidate, ranked: Sequence[Measured], yardstick: Yardstick) -> str:
    """Say whether threads that wait without sleeping paid, where that was tried."""
    measured = dict(ranked)
    for candidate, without in ranked:
        if (with_it := measured.get(spinning(candidate))) is None or spinning(candidate) == candidate:
            continue
        verdict = "is on: it gives" if chosen == spinning(candidate) else "stays off: it gives only"
        return f" Spinning {verdict} {yardstick.amount(with_it)} where {yardstick.amount(without)} is without."
    return ""


def _variant_note(ranked: Sequence[Measured]) -> str:
    """Say that int8 does not pay, where it is there and fp32 is chosen: most people expect the opposite."""
    (chosen, measured), *others = ranked
    smaller = [each.p50_ms for candidate, each in others if candidate.variant.startswith("int8")]
    if not chosen.variant.startswith("fp32") or not smaller or min(smaller) < measured.p50_ms:
        return ""
    best, own = digits(min(smaller)), digits(measured.p50_ms)
    return f" int8 does not pay here: its best median is {best} ms, that of {chosen.variant} {own}."


def _nothing_left(profile: Profile, manifest: Manifest, judged: Sequence[Outcome]) -> CandidateError:
    names = labels(each.candidate for each in judged)
    lines = "".join(f"\n  {_refused(each, names)}" for each in judged) or " it is empty"
    return CandidateError(
        f"nothing in profile {profile.name} can run bundle {manifest.name} {manifest.version}:{lines}",
        hint="see `holdfast device show` for what is here; loosen the limits, or name another profile under `device:`",
    )
