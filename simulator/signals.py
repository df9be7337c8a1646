"""Vibration of a rolling-element bearing, generated, with the truth of what is wrong with it.

Takes a seed, a rate and a fault; gives any stretch of the signal, float32 in m/s², and the truth about that
stretch. Sample n is a function of (seed, n) alone: blocks may be asked for in any order, any number of times,
and agree to the last bit. It refuses unknown faults and rates too low to carry the resonance.

The model is the usual one of the field (R. B. Randall, J. Antoni, "Rolling element bearing diagnostics: a
tutorial", Mechanical Systems and Signal Processing 25, 2011): shaft harmonics, noise shaped by a structural
resonance, and for a race fault a train of impacts, each of which makes that resonance ring and die away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

FaultKind = Literal["none", "outer", "inner", "imbalance", "looseness"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

BLOCK = 1024
"""Values that share one noise generator; a block costs about 0.1 ms to make."""
_RING_TAPS = 96
"""Length of the resonance's response to noise; at the default damping it has died to 1 % by then."""
_IMPACT_SLIP = 0.012
"""Rolling elements slip: impacts come 1–2 % of their period early or late (Randall and Antoni, section 2.1)."""
_IMPACT_LIFE_S = 0.02
_MISSING_BURST = 16
"""Values lost together: a dropped packet, not a dropped value."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A bearing. The defaults are an SKF 6205: the drive-end bearing of the Case Western Reserve data."""

    elements: int = 9
    element_diameter_mm: float = 7.94
    pitch_diameter_mm: float = 39.04
    contact_angle_rad: float = 0.0

    def _ratio(self) -> float:
        return self.element_diameter_mm / self.pitch_diameter_mm * float(np.cos(self.contact_angle_rad))

    def bpfo_hz(self, shaft_hz: float) -> float:
        """Ball-pass frequency of the outer race: n/2 · f · (1 - d/D · cos φ) (Randall and Antoni 2011, eq. 1)."""
        return self.elements / 2 * shaft_hz * (1 - self._ratio())

    def bpfi_hz(self, shaft_hz: float) -> float:
        """Ball-pass frequency of the inner race: n/2 · f · (1 + d/D · cos φ) (Randall and Antoni 2011, eq. 2)."""
        return self.elements / 2 * shaft_hz * (1 + self._ratio())


@dataclass(frozen=True, slots=True)
class Truth:
    """What a stretch of the signal is: `kind` is `healthy` or the fault, `severity` from 0 to 1 at its end."""

    kind: str
    severity: float


@dataclass(frozen=True, slots=True)
class BearingSignal:
    """One bearing on one machine. Values are float32, (count,), m/s², NaN where missing.

    Raises:
        ValueError: the fault is unknown, or the rate cannot carry the resonance.
    """

    seed: int = 1
    rate_hz: float = 8192.0
    kind: FaultKind = "none"
    fault_at_s: float = 0.0
    """The fault begins here."""
    growth_s: float = 0.0
    """Seconds from its begin to its full severity; 0: it is there at once."""
    severity: float = 1.0
    """Full severity; 1 is a spall that anybody can hear, 0.3 one that instruments find."""
    shaft_hz: float = 29.2
    noise: float = 0.35
    """Standard deviation of the noise, m/s²."""
    missing: float = 0.0
    """Share of the values that are missing, in bursts."""
    resonance_hz: float = 2600.0
    damping: float = 0.04
    geometry: Geometry = Geometry()

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"the fault is one of {', '.join(FAULT_KINDS)}, not {self.kind!r}")
        if self.rate_hz < 2.5 * self.resonance_hz:
            raise ValueError(
                f"{self.rate_hz:g} Hz cannot carry a resonance at {self.resonance_hz:g} Hz; "
                f"{2.5 * self.resonance_hz:g} Hz or more can"
            )
        if not 0 <= self.missing < 1:
            raise ValueError(f"missing is a share from 0 to below 1, not {self.missing:g}")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more, not {self.seed}")

    def values(self, start: int, count: int) -> NDArray[np.float32]:
        """Return `count` values from sample number `start` on, float32 (count,), NaN where missing."""
        first, last = start // BLOCK, (start + max(count, 1) - 1) // BLOCK
        blocks = [self._block(index) for index in range(first, last + 1)]
        offset = start - first * BLOCK
        return np.concatenate(blocks)[offset : offset + count]

    def truth(self, start: int, count: int) -> Truth:
        """Return what the stretch of `count` values from sample `start` on is."""
        severity = float(self._severity(np.array([(start + count) / self.rate_hz]))[0])
        return Truth(self.kind, severity) if self.kind != "none" and severity > 0 else Truth("healthy", 0.0)

    def _severity(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        since = at_s - self.fault_at_s
        grown = np.clip(since / self.growth_s, 0, 1) if self.growth_s > 0 else (since > 0).astype(np.float64)
        return np.asarray(self.severity * grown, dtype=np.float64)

    def _block(self, index: int) -> NDArray[np.float32]:
        at_s = (index * BLOCK + np.arange(BLOCK)) / self.rate_hz
        values = self._shaft(at_s) + self._noise(index)
        if self.kind in ("outer", "inner"):
            values += self._impacts(at_s)
        out = values.astype(np.float32)
        if self.missing > 0:
            lost = _chance(self.seed, 7, index * (BLOCK // _MISSING_BURST) + np.arange(BLOCK // _MISSING_BURST))
            out[np.repeat(lost < self.missing, _MISSING_BURST)] = np.nan
        return out

    def _shaft(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shaft harmonics, and what imbalance and looseness make of them.

        Imbalance raises the first order; looseness raises many orders and half orders, and flattens the
        peaks (ISO 13373-3:2015 lists these signs by fault).
        """
        phases = 2 * np.pi * _chance(self.seed, 1, np.arange(16))
        turn = 2 * np.pi * self.shaft_hz * at_s
        values = sum(
            (amplitude * np.sin(order * turn + phases[order]) for order, amplitude in ((1, 0.5), (2, 0.2), (3, 0.1))),
            start=np.zeros_like(turn),
        )
        severity = self._severity(at_s)
        if self.kind == "imbalance":
            values = values + 4.0 * severity * np.sin(turn + phases[1])
        elif self.kind == "looseness":
            for order in range(1, 12):
                values = values + 2.2 * severity / np.sqrt(order) * np.sin(0.5 * order * turn + phases[order])
            limit = 1.5 + 2.0 * severity
            values = np.clip(values, -limit, limit)
        return np.asarray(values)

    def _ring(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the resonance's answer to a unit impact at time 0; zero before it."""
        omega = 2 * np.pi * self.resonance_hz
        since = np.maximum(at_s, 0.0)
        return np.asarray(np.exp(-self.damping * omega * since) * np.sin(omega * since))

    def _noise(self, index: int) -> NDArray[np.float64]:
        """White noise plus noise that the structure's resonance has shaped."""
        before = self._white(index - 1)[-(_RING_TAPS - 1) :]
        white = np.concatenate([before, self._white(index)])
        ring = self._ring(np.arange(_RING_TAPS) / self.rate_hz)
        shaped = np.convolve(white, ring / np.sqrt(np.sum(ring**2)), mode="valid")
        return np.asarray(self.noise * (0.8 * white[_RING_TAPS - 1 :] + 0.6 * shaped))

    def _white(self, index: int) -> NDArray[np.float64]:
        if index < 0:
            return np.zeros(BLOCK)
        return np.random.default_rng((self.seed, index)).standard_normal(BLOCK)

    def _impacts(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Impacts of the rolling elements on a spall.

        On the inner race the spall passes through the load zone once a turn, which modulates the impacts with
        the shaft frequency; on the outer race it stays where the load is (Randall and Antoni 2011, fig. 2).
        """
        geometry = self.geometry
        rate_hz = geometry.bpfo_hz(self.shaft_hz) if self.kind == "outer" else geometry.bpfi_hz(self.shaft_hz)
        first = max(0, int((at_s[0] - _IMPACT_LIFE_S) * rate_hz) - 1)
        number = np.arange(first, int(at_s[-1] * rate_hz) + 2)
        hit_s = (number + _IMPACT_SLIP * (2 * _chance(self.seed, 2, number) - 1)) / rate_hz
        strength = self._severity(hit_s) * (6.0 + 3.0 * _chance(self.seed, 3, number))
        if self.kind == "inner":
            strength = strength * (0.55 + 0.45 * np.cos(2 * np.pi * self.shaft_hz * hit_s))
        since = at_s[None, :] - hit_s[:, None]
        rung = np.where(since >= 0, self._ring(since), 0.0)
        return np.asarray(strength @ rung)


def _chance(seed: int, purpose: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each index, the same each time: SplitMix64's finaliser (Steele et al. 2014)."""
    mixed_seed = (seed * 0x9E3779B97F4A7C15 + purpose * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mixed_seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)).astype(np.float64) / 2.0**53)
