"""What `holdfast bench` found, as one value: tables, plot and JSON come from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from agent.device.planning.plan import Candidate, Outcome, Plan, labels
from agent.trial.variants import VariantRow, verdict, yardstick_of


@dataclass(frozen=True, slots=True)
class Report:
    """One comparison."""

    bundle: str
    """Name and version."""
    device: str
    rounds: int
    plan: Plan
    """What the planner would choose from these figures; it is not stored."""
    variants: tuple[VariantRow, ...]

    @property
    def measured(self) -> list[Outcome]:
        """What has figures: those that passed, best first, then the refused by p99."""
        places = {candidate: place for place, candidate in enumerate(self.plan.ranked)}
        found = [(each, each.measurement) for each in self.plan.outcomes if each.measurement is not None]
        found.sort(key=lambda pair: (places.get(pair[0].candidate, len(places)), pair[1].p99_ms))
        return [each for each, _ in found]

    @property
    def unmeasured(self) -> list[Outcome]:
        """What was refused before it had figures."""
        return [each for each in self.plan.outcomes if each.measurement is None]

    @property
    def names(self) -> dict[Candidate, str]:
        """A distinct name for each candidate."""
        return labels(each.candidate for each in self.plan.outcomes)

    @property
    def verdict(self) -> str:
        """What the variants mean here, in one sentence."""
        return verdict(self.variants, self.plan.chosen, yardstick_of(self.plan.outcomes, self.plan.demand))

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
            "demand": asdict(self.plan.demand),
            "measured_at": self.plan.made_at,
            "rounds": self.rounds,
            "chosen": named[self.plan.chosen],
            "reason": self.plan.reason,
            "verdict": self.verdict,
            "outcomes": [
                {"name": named[each.candidate], **asdict(each)} for each in [*self.measured, *self.unmeasured]
            ],
            "variants": [
                {**asdict(row), "best": named[row.best.candidate] if row.best else None} for row in self.variants
            ],
        }
