"""The plan, as values: which provider, variant and threads run a bundle on this device, and why.

Pure: facts, profile, manifest and measurements in; plan and reasons out. Measuring is `agent.trial`'s work.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a bundle."""

    provider: str
    device_type: str
    variant: str
    threads: int
    """Intra-op threads; inter-op is 1 and execution is sequential."""
    options: tuple[tuple[str, str], ...] = ()
    session_options: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """A short name for tables, such as `CPU int8 ×2`."""
        return f"{self.provider.removesuffix('ExecutionProvider')} {self.variant} ×{self.threads}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a trial found. Times are of `session.run` on golden samples (or zeros), in milliseconds."""

    runs: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    load_ms: float
    cpu_ms_per_run: float
    peak_rss_bytes: int
    nodes: dict[str, int] = field(default_factory=dict)
    """Graph nodes by the provider that ran them, from ONNX Runtime's own assignment record."""
    golden_agreement: float | None = None
    """Mean agreement with the golden answers, 0 to 1 (`agent.inference.golden`); None where the bundle has none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate with what became of it: measured, or refused with a reason."""

    candidate: Candidate
    measurement: Measurement | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The choice, with every number and every refusal. Stored under `key`."""

    fingerprint: str
    bundle_digest: str
    runtime_version: str
    profile: str
    chosen: Candidate
    reason: str
    outcomes: tuple[Outcome, ...]
    made_at: str
    """RFC 3339 UTC."""

    @property
    def key(self) -> str:
        return plan_key(self.fingerprint, self.bundle_digest, self.runtime_version)


def plan_key(fingerprint: str, bundle_digest: str, runtime_version: str) -> str:
    """Return the name under which a plan is stored: it is void when any of the three changes."""
    return f"{fingerprint}-{bundle_digest[:16]}-ort{runtime_version}"
