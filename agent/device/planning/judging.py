"""Whether a measured candidate may run at all, pure: each gate with its number and its limit.

Takes an outcome, the profile's limits and the manifest's word; gives a refusal with its cause, or none. The order of the gates:
right answers first, then where the nodes went, then memory, latency and temperature. That an accelerator is slower than
the CPU is said last, of those that passed (`slower_than_cpu`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

from agent.bundle.manifest import Manifest
from agent.device.planning.objective import FEWEST_FOR_P99, Yardstick
from agent.device.planning.plan import Candidate, Cause, Demand, Measurement, Outcome
from agent.device.profiles.profile import Limits, Profile

FP32_AGREEMENT = 0.99
"""fp32 gave the golden answers; on another device only a rare near-tie in suppression may fall the other way."""
QUANTIZED_AGREEMENT = 0.9
"""The builder gated the variant by its task metric. What a trial must catch is a device whose arithmetic breaks it:
saturating int8, a provider that computes in its own precision. That costs far more than a tenth of the objects."""
CPU_AGREEMENT = 0.9
"""Of raw outputs, where there are no golden answers. bf16 has 8 bits of mantissa and was measured to move outputs by
0.7 to 3.7 % (relative root mean square, four models); fp16 moves them by a tenth of that. Wrong layouts, saturation and
stale buffers move them by half of their size and more. A tenth lies between the two."""
MOST_NODES = 0.5
"""A candidate with less than this share of the graph on its own provider is not what it claims to be."""
FP32_FORMS = ("fp32", "fp32-fused")


def judge(outcome: Outcome, profile: Profile, manifest: Manifest) -> Outcome:
    """Return the outcome, refused with its reason and cause where it cannot be chosen."""
    if outcome.refusal is not None or outcome.measurement is None:
        refusal, cause = outcome.refusal or "not measured", outcome.cause or "untried"
        return replace(outcome, refusal=refusal, cause=cause)
    limits = profile.limits_for(outcome.candidate.provider)
    found = _gates(outcome.candidate, outcome.measurement, limits, manifest)
    return replace(outcome, cause=found[0], refusal=found[1]) if found else outcome


def _gates(candidate: Candidate, measured: Measurement, limits: Limits, manifest: Manifest) -> tuple[Cause, str] | None:
    if text := _wrong(candidate, measured, manifest):
        return "wrong", text
    if (share := own_share(candidate, measured)) < MOST_NODES:
        placement = ", ".join(f"{provider} {count}" for provider, count in sorted(measured.nodes.items()))
        return "misplaced", f"only {share:.0%} of the graph's nodes ran on {candidate.provider}: {placement}"
    if measured.peak_rss_bytes > limits.memory_mb * 2**20:
        return "memory", f"needed {measured.peak_rss_bytes / 2**20:.0f} MiB; the limit is {limits.memory_mb} MiB"
    name, time_ms = (
        ("p99", measured.p99_ms) if measured.runs >= FEWEST_FOR_P99 else ("even the median", measured.p50_ms)
    )
    if (limit_ms := p99_limit_ms(limits, manifest)) is not None and time_ms > limit_ms:
        return "limit", f"{name} is {time_ms:.2f} ms; the limit is {limit_ms:g} ms"
    if limits.celsius is not None and measured.celsius is not None and measured.celsius > limits.celsius:
        return "limit", f"the device was {measured.celsius:.0f} °C hot after it; the limit is {limits.celsius:g} °C"
    return None


def _wrong(candidate: Candidate, measured: Measurement, manifest: Manifest) -> str | None:
    """Return how the answers are wrong. A NaN agrees with nothing, hence `not >=`."""
    golden, required = measured.golden_agreement, required_agreement(manifest, candidate.variant)
    if golden is not None and not golden >= required:
        return f"agrees with the golden answers by {golden:.3f}; at least {required:.3f} is required"
    raw = measured.cpu_agreement
    if raw is not None and not raw >= CPU_AGREEMENT:
        return f"its outputs agree with the CPU's by {raw:.3f}; at least {CPU_AGREEMENT:.3f} is required"
    return None


def required_agreement(manifest: Manifest, variant: str) -> float:
    """Return the least agreement with the golden answers; a bundle that allows more says so itself and is signed for it."""
    if variant in FP32_FORMS:
        given = manifest.agreement.required if manifest.agreement else None
        return FP32_AGREEMENT if given is None else given
    found = manifest.variant(variant)
    allowed_drop = found.accuracy.gate if found and found.accuracy else 0.0
    return min(QUANTIZED_AGREEMENT, 1.0 - allowed_drop)


def p99_limit_ms(limits: Limits, manifest: Manifest) -> float | None:
    """Return the tighter of the profile's and the bundle's latency gates."""
    return min((limit for limit in (limits.p99_ms, manifest.max_p99_ms) if limit is not None), default=None)


def own_share(candidate: Candidate, measured: Measurement) -> float:
    """Return the share of nodes on the candidate's provider; 1 where the runtime did not say."""
    total = sum(measured.nodes.values())
    return measured.nodes.get(candidate.provider, 0) / total if total else 1.0


def slower_than_cpu(outcomes: Sequence[Outcome], demand: Demand) -> list[Outcome]:
    """Refuse what another provider does worse than the plain CPU, with both numbers.

    Not where the operator named where it must run: that is then a decision, and the numbers are in the table.
    """
    if demand.run_on != "auto":
        return list(outcomes)
    return [_not_worse(each, outcomes, demand) for each in outcomes]


def _not_worse(outcome: Outcome, outcomes: Sequence[Outcome], demand: Demand) -> Outcome:
    measured = outcome.measurement
    if outcome.refusal is not None or measured is None or outcome.candidate.is_plain_cpu:
        return outcome
    passed = [each for each in outcomes if each.candidate.is_plain_cpu and each.refusal is None]
    plain = [(each.candidate, each.measurement) for each in passed if each.measurement]
    if measured.runs >= FEWEST_FOR_P99:  # those that left early have no p99 to compare with
        plain = [pair for pair in plain if pair[1].runs >= FEWEST_FOR_P99] or plain
    if not plain:
        return outcome
    yardstick = Yardstick.of(demand, [measured, *(of_cpu for _, of_cpu in plain)])
    best, of_best = min(plain, key=lambda pair: (yardstick.figure(pair[1]), astuple(pair[0])))
    if yardstick.figure(measured) <= yardstick.still_equal(yardstick.figure(of_best)):
        return outcome
    text = (
        f"worse than the CPU: {yardstick.name} {yardstick.amount(measured)}, "
        f"where {best.label} has {yardstick.amount(of_best)}"
    )
    return replace(outcome, refusal=text, cause="slow")
