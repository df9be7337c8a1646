"""What `holdfast bench` found, as one value: tables, plot and JSON come from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agent.device.plan import Candidate, Objective, Outcome, Plan
from agent.trial.variants import VariantRow, verdict


@dataclass(frozen=True, slots=True)
class Report:
    """One comparison."""

    bundle: str
    """Name and version."""
    device: str
    objective: Objective
    rounds: int
    plan: Plan
    """What the planner would choose from these figures; it is not stored."""
    variants: tuple[VariantRow, ...]

    @property
    def measured(self) -> list[Outcome]:
        """What has figures: the chosen one first, then by p99, the refused last."""
        found = [each for each in self.plan.outcomes if each.measurement is not None]
        return sorted(found, key=self._order)

    @property
    def unmeasured(self) -> list[Outcome]:
        """What was refused before it had figures."""
        return [each for each in self.plan.outcomes if each.measurement is None]

    @property
    def names(self) -> dict[Candidate, str]:
        """A distinct name for each candidate."""
        return names([each.candidate for each in self.plan.outcomes])

    @property
    def verdict(self) -> str:
        """What the variants mean here, in one sentence."""
        return verdict(self.variants, self.plan.chosen, self.objective)

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-ready values."""
        named = self.names
        return {
            "bundle": self.bundle,
            "bundle_digest": self.plan.bundle_digest,
            "device": self.device,
            "fingerprint": self.plan.fingerprint,
            "runtime_version": self.plan.runtime_version,
            "profile": self.plan.profile,
            "objective": self.objective,
            "measured_at": self.plan.made_at,
            "rounds": self.rounds,
            "chosen": named[self.plan.chosen],
            "reason": self.plan.reason,
            "verdict": self.verdict,
            "outcomes": [
                {"name": named[each.candidate], **asdict(each)} for each in [*self.measured, *self.unmeasured]
            ],
            "variants": [_variant(row, named) for row in self.variants],
        }

    def _order(self, outcome: Outcome) -> tuple[bool, bool, float]:
        p99_ms = outcome.measurement.p99_ms if outcome.measurement else 0.0
        return outcome.candidate != self.plan.chosen, outcome.refusal is not None, p99_ms


def names(found: Sequence[Candidate]) -> dict[Candidate, str]:
    """Return a name for each candidate: its label, with what tells it from others where labels are the same."""
    labels = [candidate.label for candidate in found]
    return {
        candidate: candidate.label if labels.count(candidate.label) == 1 else _with_settings(candidate)
        for candidate in found
    }


def _with_settings(candidate: Candidate) -> str:
    settings = [f"{key}={value}" for key, value in (*candidate.options, *candidate.session_options)]
    return f"{candidate.label} ({', '.join([candidate.runtime, *settings])})"


def _variant(row: VariantRow, named: dict[Candidate, str]) -> dict[str, object]:
    return {**asdict(row), "best": named[row.best.candidate] if row.best else None}
