"""One line for each number that was promised: ours, what it is held against, the ratio, the goal, and whether it is met.

Pure arithmetic and text. Ours and the peer's are measured in turns, so that noise meets both; a ratio is the median of
the rounds' ratios, not the ratio of two medians, since what slows a round slows both of its halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

HEADINGS = ("figure", "ours", "held against", "ratio", "goal", "verdict")


@dataclass(frozen=True, slots=True)
class Goal:
    """What is promised of one figure: a bound on ours, on ours ÷ peer, or on ours − peer."""

    of: Literal["value", "ratio", "difference"]
    sense: Literal["≥", "≤"]
    bound: float
    unit: str = ""

    def judged(self, ours: Sequence[float], peer: Sequence[float]) -> float:
        """Return the number that is held against the bound: a median over the rounds."""
        if self.of == "value":
            return median(ours)
        rounds = zip(ours, peer, strict=True)
        return median([a / b for a, b in rounds] if self.of == "ratio" else [a - b for a, b in rounds])

    def is_met(self, ours: Sequence[float], peer: Sequence[float]) -> bool:
        """Whether the promise is kept."""
        found = self.judged(ours, peer)
        return found >= self.bound if self.sense == "≥" else found <= self.bound

    def __str__(self) -> str:
        what = {"value": "", "ratio": " ×", "difference": " more"}[self.of]
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.sense} {_number(self.bound)}{unit}{what}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured line. `ours` and `peer` hold one number a round, in the order of the rounds."""

    name: str
    unit: str
    ours: Sequence[float]
    goal: Goal | None
    """None: a figure that stands there for comparison, without a promise."""
    peer: Sequence[float] = ()
    peer_name: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios; None without a peer or with a peer of zero."""
        if len(self.ours) != len(self.peer) or not all(self.peer):
            return None
        return median(a / b for a, b in zip(self.ours, self.peer, strict=True))

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where nothing was promised."""
        if self.goal is None:
            return ""
        return "met" if self.goal.is_met(self.ours, self.peer) else "missed"

    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        peer = f"{self.peer_name} {spread(self.peer, self.unit)}".strip() if self.peer else self.peer_name
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        return (self.name, spread(self.ours, self.unit), peer, ratio, str(self.goal or ""), self.verdict)


@dataclass(frozen=True, slots=True)
class Missing:
    """A line that could not be measured here, and why."""

    name: str
    why: str
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        return (self.name, "", self.why.splitlines()[0], "", "", "not measured")


Line = Figure | Missing


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return the median and, for several rounds, the smallest and the largest: `612 (598–640) fps`."""
    text = _number(median(values))
    if len(values) > 1:
        text += f" ({_number(min(values))}–{_number(max(values))})"
    return f"{text} {unit}".strip()


def render(lines: Sequence[Line], machine: str) -> str:
    """Return the whole table, with the machine above it and notes below."""
    rows = [HEADINGS, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    text = [machine, ""]
    for number, row in enumerate(rows):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            text.append("  ".join("─" * width for width in widths))
    text += [""] + [f"{line.name}: {line.note}" for line in lines if line.note]
    return "\n".join([*text, summary(lines)])


def summary(lines: Sequence[Line]) -> str:
    """Return the count of verdicts."""
    verdicts = [line.cells()[-1] for line in lines]
    missed = [line.name for line in lines if isinstance(line, Figure) and line.verdict == "missed"]
    text = f"{verdicts.count('met')} met, {len(missed)} missed, {verdicts.count('not measured')} not measured"
    return f"{text}; missed: {', '.join(missed)}" if missed else text


def _number(value: float) -> str:
    """Three significant figures, thousands with a comma, no exponent before it is needed."""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
