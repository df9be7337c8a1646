"""A bundle's variants side by side on this device: speed, size and accuracy, and one sentence of what that means. Pure.

The accuracy is the builder's, on all of the bundle's golden samples, by the task's metric; the agreement with the golden
answers is this device's own. The speed is that of the variant's best candidate, by the figure that the choice goes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.bundle.manifest import Manifest, Variant
from agent.device.planning.objective import Yardstick
from agent.device.planning.plan import Candidate, Demand, Outcome

REFERENCE = "fp32"
UNTRIED = "not measured: no candidate here is of it"


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One variant."""

    name: str
    size_bytes: int | None
    """None for a variant that the builder left out."""
    best: Outcome | None
    """Its fastest candidate that passed, else the fastest that was measured; None where none was measured."""
    figure: float | None
    """What the choice goes by (`Yardstick.figure`); less is better."""
    speed_up: float | None
    """fp32's figure ÷ this one's."""
    metric: str | None
    value: float | None
    lost_points: float | None
    """Hundredths of the metric that it lost against fp32 in the builder; below 0: it gained."""
    refusal: str | None
    """Why none of its candidates can be chosen."""


def yardstick_of(outcomes: Sequence[Outcome], demand: Demand) -> Yardstick:
    """Return what the choice among these goes by."""
    return Yardstick.of(demand, [each.measurement for each in outcomes if each.measurement is not None])


def side_by_side(outcomes: Sequence[Outcome], manifest: Manifest, demand: Demand) -> tuple[VariantRow, ...]:
    """Return fp32, the other variants in the manifest's order, then those that the builder left out."""
    yardstick = yardstick_of(outcomes, demand)
    ordered = sorted(manifest.variants, key=lambda variant: variant.name != REFERENCE)
    found: dict[str, Outcome | None] = {variant.name: _best(variant.name, outcomes, yardstick) for variant in ordered}
    reference = found.get(REFERENCE)
    base = yardstick.figure(reference.measurement) if reference and reference.measurement else None
    rows = [_row(variant, found[variant.name], outcomes, base, yardstick) for variant in ordered]
    left_out = [
        VariantRow(
            each.name, None, None, None, None,
            each.accuracy.metric if each.accuracy else None,
            each.accuracy.value if each.accuracy else None,
            each.accuracy.drop * 100 if each.accuracy else None,
            f"left out by the builder: {each.reason}",
        )
        for each in manifest.refused
    ]  # fmt: skip
    return (*rows, *left_out)


def verdict(rows: Sequence[VariantRow], chosen: Candidate, yardstick: Yardstick) -> str:
    """Return what the variants mean here, in one sentence.

    For example `int8 is 0.97 × as fast as fp32 here and loses 0.4 points: fp32 is chosen.`
    """
    others = [row for row in rows if row.name != REFERENCE]
    if not others:
        return f"The bundle has no other variant than {chosen.variant}."
    compared = [row for row in others if row.speed_up is not None]
    if not compared:
        reasons = sorted((row.refusal for row in others if row.refusal), key=UNTRIED.__eq__)
        reason = reasons[0] if reasons else "fp32 was not measured"
        return f"{chosen.variant} is chosen; no other variant could be compared with fp32 here: {reason}."
    told = next((row for row in compared if row.name == chosen.variant), None)
    told = told or max(compared, key=lambda row: (row.refusal is None, row.speed_up or 0.0))
    refused = f", and is refused ({told.refusal})" if told.refusal else ""
    return f"{told.name} {_speed(told, yardstick)} and {_loss(told)}{refused}: {chosen.variant} is chosen."


def _row(
    variant: Variant, best: Outcome | None, outcomes: Sequence[Outcome], base: float | None, yardstick: Yardstick
) -> VariantRow:
    own = yardstick.figure(best.measurement) if best and best.measurement else None
    accuracy = variant.accuracy
    refused = [each.refusal for each in outcomes if each.candidate.variant == variant.name and each.refusal]
    return VariantRow(
        name=variant.name,
        size_bytes=variant.model.size_bytes + sum(blob.size_bytes for blob in variant.external_data.values()),
        best=best,
        figure=own,
        speed_up=base / own if base is not None and own else None,
        metric=accuracy.metric if accuracy else None,
        value=accuracy.value if accuracy else None,
        lost_points=accuracy.drop * 100 if accuracy else None,
        refusal=best.refusal if best else (refused[0] if refused else UNTRIED),
    )


def _best(name: str, outcomes: Sequence[Outcome], yardstick: Yardstick) -> Outcome | None:
    measured = [each for each in outcomes if each.candidate.variant == name and each.measurement is not None]

    def order(each: Outcome) -> tuple[bool, float]:
        assert each.measurement is not None
        return each.refusal is not None, yardstick.figure(each.measurement)

    return min(measured, key=order, default=None)


def _speed(row: VariantRow, yardstick: Yardstick) -> str:
    assert row.speed_up is not None
    match yardstick.objective:
        case "throughput":
            return f"makes {row.speed_up:.2f} × as many runs a second as fp32 here"
        case "power":
            return f"takes {1 / row.speed_up:.2f} × the {yardstick.name} of fp32 here"
        case "latency":
            return f"is {row.speed_up:.2f} × as fast as fp32 here"


def _loss(row: VariantRow) -> str:
    if row.lost_points is None:
        return "what it loses was not measured when the bundle was built"
    if abs(row.lost_points) < 0.05:
        return "loses nothing"
    return f"{'loses' if row.lost_points > 0 else 'gains'} {abs(row.lost_points):.1f} points"
