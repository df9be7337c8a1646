"""Windows of generated bearings with their truth: training, held-out and golden ones never share a seed or a speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from agent.bundle.manifest import SignalInput
from agent.inference.features import features
from simulator.signals import BearingSignal, FaultKind

HERE = Path(__file__).resolve().parent
TRAINING_SEEDS = range(100_000, 100_080)
VALIDATION_SEEDS = range(200_000, 200_040)
HELD_OUT_SEEDS = range(300_000, 300_060)
GOLDEN_SEEDS = range(400_000, 400_004)
TRAINING_SPEEDS_HZ = ((20.0, 27.0), (30.0, 35.0))
HELD_OUT_SPEEDS_HZ = ((27.0, 30.0),)
SEVERITIES = (0.03, 0.6)
"""From a trace that only statistics see to what an instrument sees at once; the model is never shown any."""
GOLDEN_SEVERITIES = (0.3, 0.6)
"""Golden samples are there to show that a device computes the same answer, so theirs is beyond doubt."""
FAULTS: tuple[FaultKind, ...] = ("outer", "inner", "imbalance", "looseness")


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """`values` float32 (n, window_size); `kinds`: "none" for healthy, else the fault; `severities` from 0 to 1."""

    values: NDArray[np.float32]
    kinds: tuple[str, ...]
    severities: NDArray[np.float64]

    @property
    def unusual(self) -> NDArray[np.bool_]:
        return np.array(self.kinds) != "none"


def read_input() -> SignalInput:
    """Return the `input` of bundle.yaml: rate, window and features have one home."""
    return SignalInput.model_validate(yaml.safe_load((HERE / "bundle.yaml").read_text(encoding="utf-8"))["input"])


def draw(
    seeds: range,
    speeds_hz: tuple[tuple[float, float], ...],
    kinds: tuple[FaultKind, ...],
    windows_each: int,
    severities: tuple[float, float] = SEVERITIES,
) -> Windows:
    """Draw one machine a seed and kind, each with its own speed, noise, resonance and severity.

    One seed's machine is the same in every kind, so that a healthy and a broken one differ by the fault alone.
    """
    signal = read_input()
    values, names, found = [], [], []
    for seed in seeds:
        for kind in kinds:
            chance = np.random.default_rng((seed, 0xBEA4))
            low, high = speeds_hz[seed % len(speeds_hz)]
            severity = chance.uniform(*severities)
            machine = BearingSignal(
                seed=seed,
                rate_hz=signal.rate_hz,
                kind=kind,
                severity=severity,
                shaft_hz=chance.uniform(low, high),
                noise=chance.uniform(0.25, 0.45),
                resonance_hz=chance.uniform(2450, 2750),
            )
            # The first block has no noise before it; start where the signal is in full swing.
            first = signal.window_size
            run = machine.values(first, windows_each * signal.window_size)
            values.append(run.reshape(windows_each, signal.window_size))
            names += [kind] * windows_each
            found += [0.0 if kind == "none" else severity] * windows_each
    return Windows(np.concatenate(values), tuple(names), np.array(found))


def feature_table(windows: Windows) -> NDArray[np.float32]:
    """Return the features of each window as the agent computes them, float32 (n, features)."""
    names = read_input().features
    return np.stack([features(values, names) for values in windows.values])
