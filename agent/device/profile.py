"""A device profile: how to recognise a kind of device, and what to try on it. The format of device_profiles/*.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Provider = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+ExecutionProvider$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(_Strict):
    """Conditions on Facts; all that are given must hold. A profile with more conditions is more specific."""

    os: Literal["linux", "windows", "macos", "android"] | None = None
    architecture: str | None = None
    board: str | None = None
    """A substring of the board's model, case-insensitive."""
    cpu_vendor: str | None = None
    cpu_features: frozenset[str] = frozenset()
    """All of these ISA features are present."""
    provider: Provider | None = None
    """An EP device of this provider is present."""
    device_type: Literal["cpu", "gpu", "npu"] | None = None


class CandidateSpec(_Strict):
    """One thing to try. Variants are tried in the order given; those that a bundle lacks are passed over."""

    provider: Provider
    device_type: Literal["cpu", "gpu", "npu"] = "cpu"
    variants: tuple[str, ...]
    threads: tuple[int | Literal["half", "physical"], ...] = ("half", "physical")
    """Intra-op threads: a number, or relative to the physical cores that this process may use."""
    options: dict[str, str | tuple[str, ...]] = {}
    """The provider's own options. A list is tried value by value: each combination is a candidate."""
    session_options: dict[str, str | tuple[str, ...]] = {}
    """ONNX Runtime's session configuration entries; a list is tried value by value."""


class Limits(_Strict):
    """What a candidate may use."""

    memory_mb: int = 1024
    p99_ms: float | None = None
    trial_s: float = 20.0
    """Wall time of one trial without compiling."""
    compile_s: float = 60.0
    """Wall time that making a session may take, the first time: an accelerator compiles, the plain CPU does not."""
    celsius: float | None = None
    """A candidate that heats the hottest thermal zone above this is refused."""


class Tune(_Strict):
    """Whether candidates are measured, or taken in the order listed."""

    mode: Literal["measured", "as-listed"] = "measured"
    budget_s: float = 60.0
    """For one model, compiling left out."""
    objective: Literal["latency", "throughput", "power"] = "latency"
    """Where the operator's file says nothing."""


class Profile(_Strict):
    """One kind of device."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    description: str
    match: Match = Match()
    runtimes: tuple[str, ...] = ()
    """Plugin libraries beside those that are found by themselves, as `plugin:<path of the library>`."""
    candidates: tuple[CandidateSpec, ...]
    limits: Limits = Limits()
    tune: Tune = Tune()
