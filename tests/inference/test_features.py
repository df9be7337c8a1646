"""Features: each against its definition, written out slowly here, on signals with known answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import numpy as np
import pytest

from agent.bundle.manifest import Feature, SignalInput
from agent.errors import BundleError
from agent.inference.features import features, signal_tensor
from agent.sources.sample import Window

NAMES: tuple[Feature, ...] = get_args(Feature)
BANDS = tuple(f"band_energy_{number}" for number in range(8))
RATE_HZ = 8192
SIZE = 4096


def noise(seed: int = 1, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def tone(hertz: float, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(SIZE) / RATE_HZ)).astype(np.float32)


def of(values: np.ndarray, *names: str) -> list[float]:
    return features(values, names).tolist()  # type: ignore[arg-type]


def test_time_domain_features_follow_their_definitions():
    values = noise() * 2 + 1
    exact = values.astype(np.float64)
    centred = exact - exact.mean()
    rms = np.sqrt((exact**2).mean())
    expected = {
        "mean": exact.mean(),
        "std": exact.std(),
        "rms": rms,
        "peak": abs(exact).max(),
        "crest_factor": abs(exact).max() / rms,
        "kurtosis": (centred**4).mean() / exact.var() ** 2,
        "skewness": (centred**3).mean() / exact.std() ** 3,
    }
    np.testing.assert_allclose(of(values, *expected), list(expected.values()), rtol=1e-5)


def test_sine_has_the_textbook_values():
    """RMS 1/√2, crest factor √2, kurtosis 1.5: what every vibration engineer checks first."""
    np.testing.assert_allclose(
        of(tone(100), "rms", "crest_factor", "kurtosis", "skewness"), [0.5**0.5, 2**0.5, 1.5, 0], atol=1e-3
    )


@pytest.mark.parametrize("band", range(8))
def test_a_tone_lies_in_its_own_band(band):
    """Bands are 512 Hz wide at this rate; a Hann window keeps the rest 40 dB down."""
    energies = of(tone(512 * band + 256, amplitude=2.0), *BANDS)
    assert int(np.argmax(energies)) == band
    assert energies[band] == pytest.approx(np.log10(2.0), abs=0.01)  # mean square of amplitude 2
    assert max(energies[:band] + energies[band + 1 :]) < energies[band] - 4


def test_bands_together_are_the_variance():
    """Parseval: no energy is lost or invented, whatever the window's size."""
    for size in (4096, 4095, 1000):
        values = noise(2, size)
        assert np.sum(10.0 ** np.array(of(values, *BANDS))) == pytest.approx(values.var(), rel=0.08)


def test_envelope_peak_ratio_finds_impacts_and_not_noise():
    """A train of rings at 100 Hz stands out of its own envelope's spectrum; noise does not."""
    at = np.arange(SIZE)
    ring = np.exp(-np.arange(60) / 10) * np.sin(2 * np.pi * 2600 / RATE_HZ * np.arange(60))
    train = np.convolve((at % 82 == 0).astype(float), ring)[:SIZE]
    quiet = [of(noise(seed), "envelope_peak_ratio")[0] for seed in range(5)]
    assert max(quiet) < 6
    assert of((train * 6 + noise()).astype(np.float32), "envelope_peak_ratio")[0] > 3 * max(quiet)


def test_the_ratio_ignores_amplitude_and_shaft_harmonics():
    """It is a ratio, and of the spectrum's upper part: louder or unbalanced machines are not cracked ones."""
    (plain,) = of(noise(), "envelope_peak_ratio")
    assert of(noise() * 50, "envelope_peak_ratio")[0] == pytest.approx(plain, rel=1e-4)
    assert of(noise() + tone(30, 20), "envelope_peak_ratio")[0] == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("offset", [0.0, 9.81, -1e4])
def test_a_constant_has_finite_features(offset):
    """A dead sensor gives an answer, not NaN."""
    found = dict(zip(NAMES, features(np.full(SIZE, offset, np.float32), NAMES), strict=True))
    assert all(np.isfinite(list(found.values())))
    assert [found[name] for name in ("std", "kurtosis", "skewness", "envelope_peak_ratio")] == [0, 0, 0, 0]


def test_a_flickering_last_bit_is_a_constant_too():
    """The moments of rounding are large and mean nothing."""
    values = np.full(SIZE, 9.81, np.float32)
    values[::97] = np.nextafter(values[::97], np.float32(10))
    assert of(values, "std", "kurtosis", "skewness", "envelope_peak_ratio") == [0, 0, 0, 0]


def test_an_offset_moves_only_what_it_should():
    """Gravity on the sensor's axis is no fault."""
    ignored = tuple(name for name in NAMES if name not in ("mean", "rms", "peak", "crest_factor"))
    np.testing.assert_allclose(of(noise() + 9.81, *ignored), of(noise(), *ignored), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64])
def test_short_windows_have_finite_features(size):
    """A bundle for one value a minute has windows of a few values."""
    assert np.isfinite(features(noise(3, size), NAMES)).all()


def window(values: np.ndarray) -> Window:
    return Window("pump", 0, datetime(2026, 3, 1, tzinfo=UTC), 0.0, values, RATE_HZ, 0.0)


def wanted(**more: object) -> SignalInput:
    return SignalInput.model_validate({"rate_hz": RATE_HZ, "window_size": SIZE, "hop_size": SIZE, **more})


def test_features_come_in_the_bundles_order_channel_by_channel():
    """Another order is another model's input: the commonest silent fault."""
    values = np.stack([noise(1), noise(2) * 3], axis=1)
    tensor = signal_tensor(window(values), wanted(channels=["x", "y"], features=["std", "mean"]))
    assert (tensor.shape, tensor.dtype) == ((1, 4), np.float32)
    np.testing.assert_allclose(
        tensor[0], [values[:, 0].std(), values[:, 0].mean(), values[:, 1].std(), values[:, 1].mean()], atol=1e-5
    )


def test_without_features_the_window_itself_goes_in():
    values = np.stack([noise(1), noise(2)], axis=1)
    tensor = signal_tensor(window(values), wanted(channels=["x", "y"]))
    assert (tensor.shape, tensor.dtype, tensor.flags.c_contiguous) == ((1, SIZE, 2), np.float32, True)
    np.testing.assert_array_equal(tensor[0], values)


def test_channels_come_first_where_the_bundle_says_so():
    """PyTorch's Conv1d; of as many values as channels no shape would tell."""
    values = np.stack([noise(1), noise(2)], axis=1)
    tensor = signal_tensor(window(values), wanted(channels=["x", "y"], layout="NCW"))
    assert (tensor.shape, tensor.flags.c_contiguous) == ((1, 2, SIZE), True)
    np.testing.assert_array_equal(tensor[0].T, values)


def test_a_window_of_another_shape_is_refused():
    """A golden sample that was recorded for another bundle."""
    with pytest.raises(BundleError, match=r"\(100, 1\), expected \(4096, 1\)"):
        signal_tensor(window(noise(1, 100)[:, None]), wanted(features=["std"]))
