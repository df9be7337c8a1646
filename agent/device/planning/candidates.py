"""What to try on this device, pure: a profile's candidates, times what is here, times what the bundle has.

Takes facts, a profile, a manifest and the operator's demand; gives candidates, each once and in the profile's order,
and a refusal for each that needs no trial. It measures nothing and reads nothing; `agent.trial.planner` does those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from itertools import product
from typing import Literal

from agent.bundle.manifest import Manifest
from agent.device.facts import BUILT_IN, EpDevice, Facts
from agent.device.hardware.cpu import usable_cores
from agent.device.planning.plan import Candidate, Cause, Demand, Outcome
from agent.device.profiles.profile import CandidateSpec, Profile

NO_CPU_FALLBACK = ("session.disable_cpu_ep_fallback", "1")
"""ONNX Runtime refuses to make a session when a node would run on its CPU provider instead."""
FIXED_SHAPES_ONLY = frozenset({"QNNExecutionProvider", "NnapiExecutionProvider", "RknpuExecutionProvider"})
"""ONNX Runtime's documentation of each: "QNN Execution Provider" (no dynamic shapes), "NNAPI Execution Provider" (the
model's inputs must have fixed shapes), "RKNPU Execution Provider" (the NPU's compiler takes none)."""
CPU_SPEC = CandidateSpec(provider="CPUExecutionProvider", variants=("fp32",), threads=("half",))


def candidates(
    facts: Facts,
    profile: Profile,
    manifest: Manifest,
    present: Collection[str] | None = None,
    demand: Demand | None = None,
) -> tuple[list[Candidate], list[Outcome]]:
    """Return what is worth a trial, in the profile's order and each once, and what is refused before one.

    A provider that several runtimes offer gives candidates of each. The plain CPU is always among them, where it is
    here at all: the others are compared with it, and it is what is left when an accelerator fails.

    Args:
        facts: What the probe saw.
        profile: The selected profile.
        manifest: The bundle's.
        present: The variants whose files are here; None: all of the manifest's.
        demand: How many cores there are to use, and whether each node must run on the candidate's own provider.
    """
    demand = demand or Demand()
    cores = min(usable_cores(facts.cpu), demand.cores or usable_cores(facts.cpu))
    found: dict[Candidate, None] = {}
    refused: dict[tuple[object, ...], Outcome] = {}
    for spec in profile.candidates:
        for candidate, refusal in _of_spec(facts, spec, cores, demand):
            why = refusal or _lack(manifest, candidate.variant, present) or _misfit(manifest, candidate)
            if why is None:
                found.setdefault(candidate)
            else:
                about = replace(candidate, device="") if why[0] == "lacking" else candidate
                refused.setdefault(_group(about, why), Outcome(about, refusal=why[1], cause=why[0]))
    if not any(candidate.is_plain_cpu for candidate in found):
        found |= dict.fromkeys(_plain_cpu(facts, manifest, present, cores))
    return list(found), list(refused.values())


def reference(found: Iterable[Candidate]) -> Candidate | None:
    """Return what the others are compared with: the plain CPU with fp32 and the fewest threads; without fp32, any variant."""
    plain = (each for each in found if each.is_plain_cpu)
    return min(
        plain,
        key=lambda each: (each.runtime != BUILT_IN, each.variant != "fp32", each.threads, astuple(each)),
        default=None,
    )


def is_requested(candidate: Candidate, demand: Demand) -> bool:
    """Return whether the operator's `run_on` allows this candidate."""
    return demand.run_on in ("auto", candidate.device_type, candidate.provider)


def resolve_threads(threads: int | Literal["half", "physical"], cores: int) -> int:
    """Return a number of threads for `cores` usable cores: at least 1, never more than there are cores.

    More threads than physical cores only wait for each other.
    """
    wanted = {"half": cores // 2, "physical": cores}[threads] if isinstance(threads, str) else threads
    return max(1, min(wanted, cores))


_Why = tuple[Cause, str]


def _of_spec(facts: Facts, spec: CandidateSpec, cores: int, demand: Demand) -> Iterator[tuple[Candidate, _Why | None]]:
    """Yield the candidates of each runtime that offers the provider, with why they cannot be tried.

    Those of several devices take turns, so that a spent budget leaves out none of the devices.
    """
    devices = [
        each for each in facts.devices_here if (each.provider, each.device_type) == (spec.provider, spec.device_type)
    ]
    if not devices:
        yield from ((each, _absence(facts, spec)) for each in _expand(spec, cores, demand, BUILT_IN))
    for runtime in dict.fromkeys(device.runtime for device in devices):
        of_key: dict[str, list[EpDevice]] = {}
        for device in devices:
            if device.runtime == runtime:
                of_key.setdefault(facts.key_of(device), []).append(device)
        why = {key: _unusable(alike) for key, alike in of_key.items()}
        yield from ((each, why[each.device]) for each in _expand(spec, cores, demand, runtime, of_key))


def _expand(
    spec: CandidateSpec, cores: int, demand: Demand, runtime: str, keys: Iterable[str] = ("",)
) -> Iterator[Candidate]:
    # The host's threads decide little where another processor computes: one value, the first, is enough there.
    threads = spec.threads if spec.device_type == "cpu" else spec.threads[:1]
    forced = {NO_CPU_FALLBACK} if demand.is_required and spec.provider != CPU_SPEC.provider else set()
    choices = product(spec.variants, threads, _combinations(spec.options), _combinations(spec.session_options), keys)
    for variant, number, options, session_options, key in choices:
        yield Candidate(
            provider=spec.provider,
            device_type=spec.device_type,
            variant=variant,
            threads=resolve_threads(number, cores),
            options=options,
            session_options=tuple(sorted({*session_options, *forced})),
            runtime=runtime,
            device=key,
        )


def _combinations(options: Mapping[str, str | tuple[str, ...]]) -> list[tuple[tuple[str, str], ...]]:
    """Return every combination of the values of each option, sorted by the options' names."""
    lists = [
        [(name, value) for value in ((values,) if isinstance(values, str) else values)]
        for name, values in sorted(options.items())
    ]
    return list(product(*lists))


def _plain_cpu(facts: Facts, manifest: Manifest, present: Collection[str] | None, cores: int) -> Iterator[Candidate]:
    """Yield the reference for a profile that lists none, or none that this bundle has."""
    names = [variant.name for variant in manifest.variants if present is None or variant.name in present]
    best = sorted(names, key=lambda name: name != "fp32")[:1]
    for candidate, why in _of_spec(facts, CPU_SPEC, cores, Demand()):
        if why is None:
            yield from (replace(candidate, variant=name) for name in best)


def _absence(facts: Facts, spec: CandidateSpec) -> _Why:
    devices = {(device.provider, device.device_type) for device in facts.devices_here}
    offered = ", ".join(f"{provider} ({kind})" for provider, kind in sorted(devices)) or "nothing"
    listed = next((each for each in facts.accelerators if each.provider == spec.provider), None)
    text = f"no {spec.device_type} device of {spec.provider} here; this device offers {offered}"
    if listed and listed.kind == spec.device_type:
        text += f". The system lists {listed.vendor} {listed.name}, but nothing that is installed drives it"
    return "absent", text


def _unusable(devices: list[EpDevice]) -> _Why | None:
    """Return why none of these devices, which nothing tells apart, can be used; one that works is enough."""
    reasons = [device.unusable for device in devices if device.unusable is not None]
    return ("unusable", f"present but unusable: {reasons[0]}") if len(reasons) == len(devices) else None


def _lack(manifest: Manifest, variant: str, present: Collection[str] | None) -> _Why | None:
    if manifest.variant(variant):
        is_here = present is None or variant in present
        return None if is_here else ("lacking", f"{variant} is not on this device: its files were not fetched")
    why = next((refused.reason for refused in manifest.refused if refused.name == variant), None)
    return "lacking", f"the builder left {variant} out: {why}" if why else f"the bundle has no {variant} variant"


def _misfit(manifest: Manifest, candidate: Candidate) -> _Why | None:
    variant = manifest.variant(candidate.variant)
    if candidate.provider not in FIXED_SHAPES_ONLY or variant is None or variant.is_fixed:
        return None
    return "lacking", f"{candidate.provider} compiles for fixed shapes, and the inputs of {candidate.variant} may vary"


def _group(candidate: Candidate, why: _Why) -> tuple[object, ...]:
    """Return what tells refusals apart: one line a device is enough, and one a variant where that is what lacks."""
    variant = candidate.variant if why[0] == "lacking" else ""
    return candidate.provider, candidate.device_type, candidate.runtime, candidate.device, variant
