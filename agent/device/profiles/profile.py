"""A device profile: how to recognise a kind of device, and what to try on it. The format of device_profiles/*.yaml.

A file is for a processor or board, or with `accelerator:` for what one execution provider drives. A device has one
profile of the first kind and one of the second for each provider that it offers; `Composed` is the sum of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from agent import yamlfile
from agent.bundle.manifest import VariantName
from agent.device.profiles.provideroptions import PROVIDERS

ANY = "any"
"""In place of a provider's name, in the profile for those that no other is for."""


def _provider(name: str) -> str:
    if name == ANY or re.fullmatch(f"[A-Za-z0-9]+{_ENDING}", name):
        return name
    meant = yamlfile.nearest(name, [known.removesuffix(_ENDING) for known in PROVIDERS])
    raise ValueError(f"is no provider's name: these end in `{_ENDING}`, as `{meant or 'MyNpu'}{_ENDING}` does")


_ENDING = "ExecutionProvider"
Provider = Annotated[str, AfterValidator(_provider)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Match(_Strict):
    """Conditions on Facts; all that are given must hold. `agent.device.profiles.selection` says which match is more specific."""

    os: Literal["linux", "windows", "macos", "android"] | None = None
    architecture: str | None = None
    board: str | None = None
    """A substring of the board's model, case-insensitive."""
    cpu_vendor: str | None = None
    cpu_features: frozenset[str] = frozenset()
    """All of these ISA features are present."""


class CandidateSpec(_Strict):
    """One thing to try. Variants are tried in the order given; those that a bundle lacks are passed over."""

    provider: Provider
    device_type: Literal["cpu", "gpu", "npu"] = "cpu"
    variants: tuple[VariantName, ...]
    threads: tuple[int | Literal["half", "physical"], ...] = ("half", "physical")
    """Intra-op threads: a number, or relative to the physical cores that this process may use."""
    options: dict[str, str | tuple[str, ...]] = {}
    """The provider's own options. A list is tried value by value: each combination is a candidate."""
    session_options: dict[str, str | tuple[str, ...]] = {}
    """ONNX Runtime's session configuration entries; a list is tried value by value."""


class Limits(_Strict):
    """What a candidate may use."""

    memory_mb: Annotated[int, Field(gt=0)] = 1024
    p99_ms: Annotated[float, Field(gt=0)] | None = None
    trial_s: Annotated[float, Field(gt=0)] = 20.0
    """Wall time of one trial without compiling."""
    compile_s: Annotated[float, Field(gt=0)] = 60.0
    """Wall time that making a session may take, the first time: an accelerator compiles, the plain CPU does not."""
    celsius: float | None = None
    """A candidate that heats the hottest thermal zone above this is refused."""


class Tune(_Strict):
    """Whether candidates are measured, or taken in the order listed."""

    mode: Literal["measured", "as-listed"] = "measured"
    budget_s: Annotated[float, Field(ge=0)] = 60.0
    """For one model, compiling left out."""
    objective: Literal["latency", "throughput", "power"] = "latency"
    """Where the operator's file says nothing."""


class Profile(_Strict):
    """One kind of processor or board, or what to try with one accelerator's provider."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    description: str
    accelerator: Provider | None = None
    """Holds where this provider offers a device, whichever processor there is beside it; `any`: where one does that no other
    profile is for; None: for a processor or board."""
    match: Match = Match()
    runtimes: tuple[str, ...] = ()
    """Plugin libraries beside those that are found by themselves, as `plugin:<path of the library>`."""
    candidates: tuple[CandidateSpec, ...]
    limits: Limits = Limits()
    tune: Tune = Tune()
    """Only in a profile for a processor or board: there is one time budget and one objective for a device."""

    def for_provider(self, provider: str) -> Profile:
        """Return a profile for `any` accelerator as that of this provider."""
        candidates = tuple(each.model_copy(update={"provider": provider}) for each in self.candidates)
        return self.model_copy(update={"accelerator": provider, "candidates": candidates})

    def limits_for(self, provider: str) -> Limits:  # noqa: ARG002  `Composed` needs it
        """Return the limits that candidates of this provider have to keep."""
        return self.limits


class Composed(Profile):
    """The profile of a processor and those of its accelerators as one; made by `compose`, never read from a file."""

    name: str
    """Of all parts, such as `x86-64-avx512-vnni+openvino`."""
    accelerator_limits: dict[str, Limits] = {}
    """By provider."""

    def limits_for(self, provider: str) -> Limits:
        """Return the limits of the part that brings this provider's candidates."""
        return self.accelerator_limits.get(provider, self.limits)


def compose(processor: Profile, accelerators: Sequence[Profile]) -> Profile:
    """Return one profile: the accelerators' candidates in the order given, then the processor's.

    Memory and times belong to whoever uses them: each part's `memory_mb`, `trial_s` and `compile_s` hold for its own
    candidates. `p99_ms` and `celsius` are promises of the whole device: the tighter of a part's and the processor's
    holds. `tune` is the processor's; `runtimes` are the caller's to say.
    """
    if not accelerators:
        return processor
    parts = (*accelerators, processor)
    return Composed(
        name="+".join(dict.fromkeys(part.name for part in (processor, *accelerators))),
        description=", ".join(dict.fromkeys(part.description for part in (processor, *accelerators))),
        match=processor.match,
        candidates=tuple(candidate for part in parts for candidate in part.candidates),
        limits=processor.limits,
        tune=processor.tune,
        accelerator_limits={
            part.accelerator: _within(part.limits, processor.limits) for part in accelerators if part.accelerator
        },
    )


def _within(limits: Limits, device: Limits) -> Limits:
    return limits.model_copy(
        update={
            "p99_ms": _tighter(limits.p99_ms, device.p99_ms),
            "celsius": _tighter(limits.celsius, device.celsius),
        }
    )


def _tighter(first: float | None, second: float | None) -> float | None:
    return min((each for each in (first, second) if each is not None), default=None)
