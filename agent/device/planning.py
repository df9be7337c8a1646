"""The plan's rules, pure: what to try on this device, and which of the measured candidates to run.

Takes facts, a profile, a manifest and measurements; gives candidates, refusals and a plan with its reason. It measures
nothing, reads nothing and knows no clock; `agent.trial.planner` does those.

The order of the choice:

1. Whatever was refused is out: not present, crashed, too slow, too large, mostly run by another provider.
2. Accuracy: agreement with the golden answers must reach `required_agreement`.
3. p99: the lowest wins, but all within 5 % (or 0.05 ms) of it count as equal: that is how far one measurement repeats.
4. Among equals the least CPU time a run wins: with spinning off, two threads often tie with one and cost more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Literal

from agent.bundle.manifest import Manifest
from agent.device.facts import Facts
from agent.device.hardware.cpu import usable_cores
from agent.device.plan import Candidate, Measurement, Outcome, Plan
from agent.device.profile import CandidateSpec, Limits, Profile
from agent.errors import CandidateError

EQUAL_SHARE = 1.05
"""Candidates whose p99 is within this factor of the best are equally fast."""
EQUAL_MS = 0.05
"""So are those that differ by less than one wake-up of a thread: a model of microseconds wants no second core."""
FP32_AGREEMENT = 0.99
"""fp32 gave the golden answers; on another device only a rare near-tie in suppression may fall the other way."""
QUANTIZED_AGREEMENT = 0.9
"""The builder gated the variant by its task metric. What a trial must catch is a device whose arithmetic breaks it:
saturating int8, a provider that computes in its own precision. That costs far more than a tenth of the objects."""
FIXED_SHAPES_ONLY = frozenset({"QNNExecutionProvider", "NnapiExecutionProvider", "RknpuExecutionProvider"})
"""ONNX Runtime's documentation of each: "QNN Execution Provider" (no dynamic shapes), "NNAPI Execution Provider" (the
model's inputs must have fixed shapes), "RKNPU Execution Provider" (the NPU's compiler takes none)."""
MOST_NODES = 0.5
"""A candidate with less than this share of the graph on its own provider is not what it claims to be."""


def candidates(
    facts: Facts, profile: Profile, manifest: Manifest, present: Collection[str] | None = None
) -> tuple[list[Candidate], list[Outcome]]:
    """Return what is worth a trial, in the profile's order and each once, and what is refused before one.

    `present`: the variants whose files are here; None: all of the manifest's.
    """
    found: dict[Candidate, None] = {}
    refused: list[Outcome] = []
    for spec in profile.candidates:
        absent = _absence(facts, spec)
        for candidate in _expand(spec, usable_cores(facts.cpu)):
            reason = absent or _lack(manifest, candidate.variant, present) or _misfit(manifest, candidate)
            if reason is None:
                found.setdefault(candidate)
            elif not any(_same_but_threads(candidate, outcome.candidate) for outcome in refused):
                refused.append(Outcome(candidate, refusal=reason))
    return list(found), refused


def resolve_threads(threads: int | Literal["half", "physical"], cores: int) -> int:
    """Return a number of threads for `cores` usable cores: at least 1, never more than there are cores.

    More threads than physical cores only wait for each other.
    """
    wanted = {"half": cores // 2, "physical": cores}[threads] if isinstance(threads, str) else threads
    return max(1, min(wanted, cores))


def _expand(spec: CandidateSpec, cores: int) -> Iterator[Candidate]:
    choices = product(spec.variants, spec.threads, _combinations(spec.options), _combinations(spec.session_options))
    for variant, threads, options, session_options in choices:
        yield Candidate(
            provider=spec.provider,
            device_type=spec.device_type,
            variant=variant,
            threads=resolve_threads(threads, cores),
            options=options,
            session_options=session_options,
        )


def _combinations(options: Mapping[str, str | tuple[str, ...]]) -> list[tuple[tuple[str, str], ...]]:
    """Return every combination of the values of each option, sorted by the options' names."""
    lists = [
        [(name, value) for value in ((values,) if isinstance(values, str) else values)]
        for name, values in sorted(options.items())
    ]
    return list(product(*lists))


def _absence(facts: Facts, spec: CandidateSpec) -> str | None:
    devices = {(device.provider, device.device_type) for device in facts.ep_devices}
    if (spec.provider, spec.device_type) in devices:
        return None
    offered = ", ".join(f"{provider} ({kind})" for provider, kind in sorted(devices)) or "nothing"
    return f"no {spec.device_type} device of {spec.provider} here; this device offers {offered}"


def _lack(manifest: Manifest, variant: str, present: Collection[str] | None) -> str | None:
    if manifest.variant(variant):
        is_here = present is None or variant in present
        return None if is_here else f"{variant} is not on this device: its files were not fetched"
    why = next((refused.reason for refused in manifest.refused if refused.name == variant), None)
    return f"the builder left {variant} out: {why}" if why else f"the bundle has no {variant} variant"


def _misfit(manifest: Manifest, candidate: Candidate) -> str | None:
    variant = manifest.variant(candidate.variant)
    if candidate.provider not in FIXED_SHAPES_ONLY or variant is None or variant.is_fixed:
        return None
    return f"{candidate.provider} compiles for fixed shapes, and the inputs of {candidate.variant} may vary"


def _same_but_threads(first: Candidate, second: Candidate) -> bool:
    return (first.provider, first.device_type, first.variant) == (second.provider, second.device_type, second.variant)


def required_agreement(manifest: Manifest, variant: str) -> float:
    """Return the least agreement with the golden answers; a bundle whose gate allows a larger loss keeps its word."""
    if variant == "fp32":
        return FP32_AGREEMENT
    found = manifest.variant(variant)
    allowed_drop = found.accuracy.gate if found and found.accuracy else 0.0
    return min(QUANTIZED_AGREEMENT, 1.0 - allowed_drop)


def p99_limit_ms(limits: Limits, manifest: Manifest) -> float | None:
    """Return the tighter of the profile's and the bundle's latency gates."""
    return min((limit for limit in (limits.p99_ms, manifest.max_p99_ms) if limit is not None), default=None)


def judge(outcome: Outcome, profile: Profile, manifest: Manifest) -> str | None:
    """Return why this outcome cannot be chosen; None where it can."""
    candidate, measured = outcome.candidate, outcome.measurement
    if outcome.refusal is not None or measured is None:
        return outcome.refusal or "not measured"
    agreement, required = measured.golden_agreement, required_agreement(manifest, candidate.variant)
    if agreement is not None and not agreement >= required:
        return f"agrees with the golden answers by {agreement:.3f}; at least {required:.3f} is required"
    limit = p99_limit_ms(profile.limits, manifest)
    if limit is not None and measured.p99_ms > limit:
        return f"p99 is {measured.p99_ms:.2f} ms; the limit is {limit:g} ms"
    memory = profile.limits.memory_mb
    if measured.peak_rss_bytes > memory * 2**20:
        return f"needed {measured.peak_rss_bytes / 2**20:.0f} MiB; the limit is {memory} MiB"
    if (share := _own_share(candidate, measured)) < MOST_NODES:
        return f"only {share:.0%} of the graph's nodes ran on {candidate.provider}: {_placement(measured)}"
    return None


def _own_share(candidate: Candidate, measured: Measurement) -> float:
    """Return the share of nodes on the candidate's provider; 1 where the runtime did not say."""
    total = sum(measured.nodes.values())
    return measured.nodes.get(candidate.provider, 0) / total if total else 1.0


def _placement(measured: Measurement) -> str:
    return ", ".join(f"{provider} {count}" for provider, count in sorted(measured.nodes.items()))


def choose(
    facts: Facts,
    profile: Profile,
    manifest: Manifest,
    *,
    digest: str,
    outcomes: Sequence[Outcome],
    made_at: str,
) -> Plan:
    """Rank the outcomes and return the plan. Outcomes that a gate turns down carry its reason as their refusal.

    Args:
        facts: What the probe saw.
        profile: The selected profile.
        manifest: The bundle's.
        digest: The bundle's digest, a part of the plan's key.
        outcomes: Every candidate, in the order tried.
        made_at: RFC 3339 UTC.

    Raises:
        CandidateError: none is left; the message has a line for each with its refusal.
    """
    judged = [Outcome(each.candidate, each.measurement, judge(each, profile, manifest)) for each in outcomes]
    left = [(each.candidate, each.measurement) for each in judged if each.refusal is None and each.measurement]
    if not left:
        raise _nothing_left(profile, manifest, judged)
    chosen, reason = _first_listed(left) if profile.tune.mode == "as-listed" else _best(left)
    return Plan(
        fingerprint=facts.fingerprint,
        bundle_digest=digest,
        runtime_version=facts.runtime_version,
        profile=profile.name,
        chosen=chosen,
        reason=reason,
        outcomes=tuple(judged),
        made_at=made_at,
    )


def still_holds(plan: Plan, profile: Profile, found: Sequence[Candidate]) -> bool:
    """Return whether a stored plan may be used again: made with this profile, and its choice is still a candidate.

    The key has covered hardware, bundle and runtime; an operator may have edited or renamed the profile since.
    """
    return plan.profile == profile.name and plan.chosen in found


def rank(measured: Sequence[tuple[Candidate, Measurement]]) -> list[tuple[Candidate, Measurement]]:
    """Return candidates best first: the equally fast ones by CPU (a tie: by threads), then the rest by p99."""
    limit_p99 = _still_equal(min(measurement.p99_ms for _, measurement in measured))
    fast = [measurement.cpu_ms_per_run for _, measurement in measured if measurement.p99_ms <= limit_p99]
    limit_cpu = _still_equal(min(fast))

    def order(pair: tuple[Candidate, Measurement]) -> tuple[bool, bool, float, float]:
        candidate, measurement = pair
        if measurement.p99_ms > limit_p99:
            return True, True, measurement.p99_ms, 0.0
        is_costly = measurement.cpu_ms_per_run > limit_cpu
        return False, is_costly, measurement.cpu_ms_per_run if is_costly else candidate.threads, measurement.p99_ms

    return sorted(measured, key=order)


def _still_equal(best_ms: float) -> float:
    return max(best_ms * EQUAL_SHARE, best_ms + EQUAL_MS)


def _first_listed(left: list[tuple[Candidate, Measurement]]) -> tuple[Candidate, str]:
    candidate, measured = left[0]
    return (
        candidate,
        f"{candidate.label} is the first in the profile's order that passed, p99 {measured.p99_ms:.2f} ms.",
    )


def _best(left: list[tuple[Candidate, Measurement]]) -> tuple[Candidate, str]:
    ranked = rank(left)
    candidate, measured = ranked[0]
    if len(ranked) == 1:
        return candidate, f"{candidate.label} is the only candidate that passed, p99 {measured.p99_ms:.2f} ms."
    fastest, fastest_measured = min(left, key=lambda pair: pair[1].p99_ms)
    if fastest == candidate:
        second, second_measured = ranked[1]
        return candidate, (
            f"{candidate.label} has the lowest p99, {measured.p99_ms:.2f} ms; "
            f"next is {second.label} with {second_measured.p99_ms:.2f} ms."
        )
    return candidate, (
        f"{candidate.label} takes {measured.cpu_ms_per_run:.2f} ms of CPU a run where {fastest.label} takes "
        f"{fastest_measured.cpu_ms_per_run:.2f}, at an equal p99 ({measured.p99_ms:.2f} and "
        f"{fastest_measured.p99_ms:.2f} ms)."
    )


def _nothing_left(profile: Profile, manifest: Manifest, judged: Sequence[Outcome]) -> CandidateError:
    lines = "".join(f"\n  {each.candidate.label}: {each.refusal}" for each in judged) or " it is empty"
    return CandidateError(
        f"nothing in profile {profile.name} can run bundle {manifest.name} {manifest.version}:{lines}",
        hint="see `holdfast device show` for what is here; loosen the limits, or name another profile under `device:`",
    )
