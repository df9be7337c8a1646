"""The plot of `holdfast bench` as an SVG of its own: no fonts, scripts or files from elsewhere; light and dark.

A row for each candidate: a point at p50, a tick at p95, a line to p99. The axis begins at 0; where the slowest is more than
`LINEAR_UP_TO` times slower than the fastest it is logarithmic, and says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from agent.cli.benchreport import Report
from agent.device.planning.plan import Measurement, Outcome
from agent.log import printable

LINEAR_UP_TO = 20.0
"""On a linear axis a candidate that is this much faster than the slowest is a dot of a few pixels at its left end."""

_AXIS, _NUMBERS, _ROW, _TOP = 490, 120, 28, 64
_CHARACTER = 8
"""Pixels that a bold letter takes at most on average; names decide how wide the plot is."""
_SMALL_CHARACTER = 6.5
"""Pixels that a letter of a reason takes on average; reasons wrap at the plot's width."""
_LONGEST_REASON = 360
_STYLE = """
    text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
    .title { font-size: 15px; font-weight: 600; }
    .quiet { fill: #59636e; font-size: 12px; }
    .grid { stroke: #d1d9e0; }
    .bar { stroke: #0969da; stroke-width: 6; stroke-linecap: round; }
    .tick { stroke: #0969da; stroke-width: 2; }
    .point { fill: #0969da; }
    .chosen .bar, .chosen .tick { stroke: #1a7f37; } .chosen .point { fill: #1a7f37; } .chosen text { font-weight: 600; }
    .refused { opacity: 0.5; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; } .quiet { fill: #9198a1; } .grid { stroke: #3d444d; } .ground { fill: #0d1117; }
      .bar, .tick { stroke: #4493f8; } .point { fill: #4493f8; }
      .chosen .bar, .chosen .tick { stroke: #3fb950; } .chosen .point { fill: #3fb950; }
    }"""


@dataclass(frozen=True, slots=True)
class Scale:
    """Milliseconds to a place from 0 (left) to 1 (right)."""

    low_ms: float
    """0 on a linear axis."""
    high_ms: float

    @classmethod
    def of(cls, measured: Sequence[Measurement]) -> Scale:
        """Return the axis that shows all of `measured`."""
        high_ms = max((each.p99_ms for each in measured), default=1.0) or 1.0
        low_ms = min((each.p50_ms for each in measured), default=0.0)
        if low_ms > 0 and high_ms > LINEAR_UP_TO * low_ms:
            return cls(10 ** math.floor(math.log10(low_ms)), 10 ** math.ceil(math.log10(high_ms)))
        return cls(0.0, high_ms)

    @property
    def is_logarithmic(self) -> bool:
        """Whether each step to the right is a factor."""
        return self.low_ms > 0

    def place(self, ms: float) -> float:
        """Return where `ms` lies."""
        if not self.is_logarithmic:
            return min(1.0, max(0.0, ms / self.high_ms))
        ms = min(max(ms, self.low_ms), self.high_ms)
        return math.log(ms / self.low_ms) / math.log(self.high_ms / self.low_ms)

    def ticks(self) -> list[float]:
        """Return round numbers for the axis: powers of ten, or four to eight steps of 1, 2 or 5."""
        if self.is_logarithmic:
            first, last = round(math.log10(self.low_ms)), round(math.log10(self.high_ms))
            return [10.0**power for power in range(first, last + 1)]
        rough = self.high_ms / 8
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        return [number * step for number in range(int(self.high_ms / step) + 1)]


def ms(value: float) -> str:
    """Return milliseconds with the digits that a measurement has."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def svg(report: Report) -> str:
    """Return the plot as the text of an SVG file."""
    rows, reasons = report.measured, report.unmeasured
    scale = Scale.of([each.measurement for each in rows if each.measurement is not None])
    left = 28 + _CHARACTER * max((len(report.names[each.candidate]) for each in rows), default=20)
    width = left + _AXIS + _NUMBERS
    bottom = _TOP + _ROW * len(rows)
    lines = [line for each in reasons for line in _wrapped(f"{report.names[each.candidate]}: {each.refusal}", width)]
    height = bottom + 44 + 18 * len(lines)
    title = f"{report.bundle} on {report.device}"
    note = f"milliseconds a run{', logarithmic' if scale.is_logarithmic else ''}: ● p50, | p95, line to p99"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">',
        f"  <title>{_escaped(title)}</title>",
        f"  <desc>{_escaped(report.plan.reason)}</desc>",
        f"  <style>{_STYLE}\n  </style>",
        f'  <rect class="ground" width="{width}" height="{height}" fill="#ffffff"/>',
        _text(16, 26, title, "title"),
        _text(16, 46, note, "quiet"),
        *_grid(scale, left, bottom),
        *(_row(report, each, scale, left, _TOP + _ROW * number) for number, each in enumerate(rows)),
        *(_text(16 + indent, bottom + 48 + 18 * number, line, "quiet") for number, (indent, line) in enumerate(lines)),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _grid(scale: Scale, left: int, bottom: int) -> list[str]:
    lines = []
    for tick_ms in scale.ticks():
        x = left + _AXIS * scale.place(tick_ms)
        lines.append(f'  <line class="grid" x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>')
        lines.append(_text(x, bottom + 16, f"{tick_ms:g}", "quiet", "middle"))
    return lines


def _row(report: Report, outcome: Outcome, scale: Scale, left: int, top: int) -> str:
    measured = outcome.measurement
    assert measured is not None
    y = top + _ROW / 2
    p50, p95, p99 = (
        left + _AXIS * scale.place(each_ms) for each_ms in (measured.p50_ms, measured.p95_ms, measured.p99_ms)
    )
    is_chosen = outcome.candidate == report.plan.chosen
    kind = "chosen" if is_chosen else "refused" if outcome.refusal else "passed"
    return "\n".join(
        [
            f'  <g class="{kind}">',
            f"    <title>{_escaped(outcome.refusal or kind)}</title>",
            "  " + _text(left - 12, y + 4, report.names[outcome.candidate], "", "end"),
            f'    <line class="bar" x1="{p50:.1f}" y1="{y:.1f}" x2="{p99:.1f}" y2="{y:.1f}"/>',
            f'    <line class="tick" x1="{p95:.1f}" y1="{y - 8:.1f}" x2="{p95:.1f}" y2="{y + 8:.1f}"/>',
            f'    <circle class="point" cx="{p50:.1f}" cy="{y:.1f}" r="6"/>',
            "  "
            + _text(left + _AXIS + _NUMBERS - 16, y + 4, f"{ms(measured.p50_ms)}–{ms(measured.p99_ms)}", "", "end"),
            "  </g>",
        ]
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'  <text x="{x:.1f}" y="{y:.1f}"{style} text-anchor="{anchor}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """Return a text for XML, which has no control characters at all, not even as entities."""
    return escape(printable(text).encode("utf-8", "replace").decode())


def _wrapped(text: str, width: int) -> list[tuple[int, str]]:
    """Return the lines of a reason, each with its indent in pixels."""
    whole = textwrap.shorten(text, _LONGEST_REASON, placeholder=" …")
    lines = textwrap.wrap(whole, int((width - 48) / _SMALL_CHARACTER))
    return [(16 if number else 0, line) for number, line in enumerate(lines)]
