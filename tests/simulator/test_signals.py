"""The generated bearing: the ground truth that sensor tests lean on must itself be true."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.signals import BLOCK, FAULT_KINDS, BearingSignal, Geometry

RATE_HZ = 8192.0


def envelope_spectrum(values: np.ndarray, low_hz: float, high_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """Squared envelope's amplitude spectrum in the band, made here from first principles."""
    spectrum = np.fft.fft(values)
    frequency = np.fft.fftfreq(len(values), 1 / RATE_HZ)
    spectrum[(frequency < low_hz) | (frequency > high_hz)] = 0
    squared = np.abs(np.fft.ifft(spectrum)) ** 2
    return np.fft.rfftfreq(len(values), 1 / RATE_HZ), np.abs(np.fft.rfft(squared - squared.mean()))


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_any_stretch_agrees_with_the_whole_to_the_bit(kind):
    """A replay or a second reader that saw other values would make the truth worthless."""
    signal = BearingSignal(seed=3, kind=kind, fault_at_s=0.1, growth_s=0.2, missing=0.02)
    whole = signal.values(0, 6 * BLOCK)
    for start, count in ((0, 1), (BLOCK - 1, 2), (777, 3000), (5 * BLOCK, BLOCK)):
        np.testing.assert_array_equal(signal.values(start, count), whole[start : start + count])
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(BearingSignal(**_same(signal)).values(0, 6 * BLOCK), whole)


def _same(signal: BearingSignal) -> dict[str, object]:
    return {name: getattr(signal, name) for name in signal.__slots__}


def test_noise_flows_over_the_seams_of_blocks():
    """A click every 1024 values would be a fault of its own, and a model would learn it."""
    noise = BearingSignal().values(0, 600 * BLOCK) - BearingSignal(noise=0.0).values(0, 600 * BLOCK)

    def correlation(at: int) -> float:
        return float(np.corrcoef(noise[at::BLOCK][1:-1], noise[at + 3 :: BLOCK][1 : len(noise[at::BLOCK]) - 1])[0, 1])

    assert correlation(BLOCK - 2) == pytest.approx(correlation(BLOCK // 2), abs=0.15)


def test_seeds_differ():
    """Held-out seeds are only held out if they are other signals."""
    one, two = (BearingSignal(seed=seed).values(0, 4096) for seed in (1, 2))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.7  # the shaft is common, its phase and the noise are not


def test_before_the_fault_nothing_differs_from_healthy():
    """A fault that leaks into its past would let a detector cheat."""
    healthy = BearingSignal(seed=5).values(0, 4 * BLOCK)
    for kind in ("outer", "inner", "imbalance"):
        faulty = BearingSignal(seed=5, kind=kind, fault_at_s=4 * BLOCK / RATE_HZ).values(0, 4 * BLOCK)
        np.testing.assert_array_equal(faulty, healthy)


def test_geometry_gives_the_published_ratios_of_the_skf_6205():
    """The manufacturer's multiples of shaft speed for this bearing are 3.5848 (outer) and 5.4152 (inner)."""
    assert Geometry().bpfo_hz(1.0) == pytest.approx(3.5848, abs=5e-4)
    assert Geometry().bpfi_hz(1.0) == pytest.approx(5.4152, abs=5e-4)


@pytest.mark.parametrize("kind", ["outer", "inner"])
def test_race_fault_shows_at_its_ball_pass_frequency(kind):
    """An analyst with an envelope spectrum must find the fault where the textbook says."""
    signal = BearingSignal(seed=2, kind=kind)
    expected_hz = signal.geometry.bpfo_hz(29.2) if kind == "outer" else signal.geometry.bpfi_hz(29.2)
    frequency, lines = envelope_spectrum(signal.values(BLOCK, 32768), 1800, 3400)
    searched = (frequency > 60) & (frequency < 250)  # between the shaft's modulation and the second harmonics
    assert frequency[searched][np.argmax(lines[searched])] == pytest.approx(expected_hz, abs=0.5)


def test_inner_race_is_modulated_by_the_shaft_and_outer_is_not():
    """The side bands at shaft speed are what tells the two races apart."""
    ratios = {}
    for kind in ("outer", "inner"):
        frequency, lines = envelope_spectrum(BearingSignal(seed=2, kind=kind).values(BLOCK, 32768), 1800, 3400)
        ratios[kind] = lines[np.argmin(abs(frequency - 29.2))] / lines.max()
    assert ratios["inner"] > 5 * ratios["outer"]


def test_imbalance_raises_the_first_order_only():
    """Imbalance is a once-per-turn force."""
    at = round(29.2 * 32768 / RATE_HZ)
    spectra = [np.abs(np.fft.rfft(BearingSignal(seed=2, kind=kind).values(0, 32768))) for kind in ("none", "imbalance")]
    assert spectra[1][at] > 5 * spectra[0][at]
    assert spectra[1][4 * at :].sum() == pytest.approx(spectra[0][4 * at :].sum(), rel=0.2)


def test_looseness_brings_half_orders():
    """Sub-harmonics are the sign of looseness."""
    at = round(0.5 * 29.2 * 32768 / RATE_HZ)
    spectra = [np.abs(np.fft.rfft(BearingSignal(seed=2, kind=kind).values(0, 32768))) for kind in ("none", "looseness")]
    assert spectra[1][at - 1 : at + 2].max() > 10 * spectra[0][at - 1 : at + 2].max()


def test_severity_grows_and_truth_tells_it():
    """Rules with hysteresis are tested against this ramp."""
    signal = BearingSignal(kind="outer", fault_at_s=2.0, growth_s=4.0, severity=0.8)
    assert (signal.truth(0, 8192).kind, signal.truth(0, 8192).severity) == ("healthy", 0.0)
    assert signal.truth(8192, 8192).kind == "healthy"
    half = signal.truth(round(3 * RATE_HZ), round(RATE_HZ))
    assert (half.kind, half.severity) == ("outer", pytest.approx(0.4))
    assert signal.truth(round(9 * RATE_HZ), 8192).severity == pytest.approx(0.8)
    energies = [signal.values(round(at * RATE_HZ), 8192).std() for at in (1, 3, 5, 7)]
    assert energies == sorted(energies)


def test_missing_values_come_in_bursts_at_the_asked_share():
    """Lost packets, not lost values: policies that only survive single holes must fail here."""
    values = BearingSignal(missing=0.05).values(0, 200 * BLOCK)
    missing = np.isnan(values)
    assert missing.mean() == pytest.approx(0.05, abs=0.01)
    assert np.diff(np.flatnonzero(np.diff(missing.astype(int)))).min() >= 16


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "rust"}, {"rate_hz": 1000.0}, {"missing": 1.0}, {"seed": -1}],
    ids=["fault", "rate", "missing", "seed"],
)
def test_impossible_signals_are_refused(wrong):
    """A resonance above half the rate would fold to a lie."""
    with pytest.raises(ValueError, match=r"\d|rust"):
        BearingSignal(**wrong)
