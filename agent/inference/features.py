"""A Window becomes the model's input tensor: the window itself, or features of it in the bundle's order.

Everything is vectorised, computed in float64 and given as float32. Features do not depend on the values' offset
(gravity, a sensor's bias) except `mean`, `rms`, `peak` and `crest_factor`. A window of one constant value has
features too, all finite: ratios that would divide by zero are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import Feature, SignalInput
from agent.errors import BundleError
from agent.sources.sample import Window

BANDS = 8
"""Bands of equal width from 0 to half the rate. Octaves would put seven of the eight below the resonances that
bearing and gear faults excite."""
_FLOOR = 1e-12
"""Added to an energy before its logarithm is taken, so that silence is -12 and not minus infinity."""
_LOW_CUT = 8
"""The envelope is taken of the upper seven eighths of the spectrum: below are the shaft's own harmonics."""


def signal_tensor(window: Window, signal: SignalInput) -> NDArray[np.float32]:
    """Return the input tensor of one window.

    float32: (1, channels * features), channel by channel, each in the bundle's order of features; or without
    features (1, window_size, channels), or (1, channels, window_size) with the layout NCW.

    Raises:
        BundleError: the window is not what the bundle wants. Windows are made from the same SignalInput, so this
            is a golden sample of another shape.
    """
    expected = (signal.window_size, len(signal.channels))
    if window.values.shape != expected:
        raise BundleError(f"the window has shape {window.values.shape}, expected {expected}", where=window.source)
    if not signal.features:
        values = window.values if signal.layout == "NWC" else window.values.T
        return np.ascontiguousarray(values, np.float32)[None]
    channels = [features(window.values[:, at], signal.features) for at in range(expected[1])]
    return np.concatenate(channels)[None]


def features(values: NDArray[np.float32], names: tuple[Feature, ...]) -> NDArray[np.float32]:
    """Return the named features of one channel, float32 (len(names),). `values` is (size,) without NaN."""
    spectra = _Channel(values)
    return np.array([_FEATURES[name](spectra) for name in names], np.float32)


class _Channel:
    """One channel's values and what several features share; each part is computed when it is first asked for."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.raw = values.astype(np.float64)

    @cached_property
    def mean(self) -> float:
        return float(self.raw.mean())

    @cached_property
    def centred(self) -> NDArray[np.float64]:
        return self.raw - self.mean

    @cached_property
    def squares(self) -> NDArray[np.float64]:
        return self.centred * self.centred

    @cached_property
    def variance(self) -> float:
        variance = float(self.squares.mean())
        # Where only the last bit of a float32 flickers, the sensor is still; the flicker has moments that mean nothing.
        return variance if variance > (1e-6 * abs(self.mean)) ** 2 else 0.0

    @cached_property
    def peak(self) -> float:
        return float(np.max(np.abs(self.raw)))

    @cached_property
    def rms(self) -> float:
        return float(np.sqrt(np.mean(self.raw**2)))

    @cached_property
    def band_energies(self) -> NDArray[np.float64]:
        """Mean square in each band, (8,); together the variance (Parseval), measured through a Hann window.

        P. D. Welch, "The use of fast Fourier transform for the estimation of power spectra", IEEE Trans. Audio and
        Electroacoustics 15, 1967: the periodogram is divided by the sum of the squared window.
        """
        size = len(self.raw)
        taper = _hann(size)
        power = np.abs(np.fft.rfft(self.centred * taper)) ** 2 / (size * np.sum(taper**2))
        power[1:] *= 2  # the negative frequencies
        if size % 2 == 0:
            power[-1] /= 2
        edges = np.linspace(0, len(power), BANDS + 1).astype(int)
        total = np.concatenate([[0.0], np.cumsum(power)])
        return np.asarray(np.maximum(np.diff(total[edges]), 0.0))

    @cached_property
    def envelope_peak_ratio(self) -> float:
        """Highest line of the squared envelope's amplitude spectrum over the median line; about 3 for noise.

        The analytic signal by FFT (S. L. Marple, "Computing the discrete-time analytic signal via FFT", IEEE Trans.
        Signal Processing 47, 1999); the squared envelope because it is the one without aliasing (D. Ho and
        R. B. Randall, "Optimisation of bearing diagnostic techniques using simulated and actual bearing fault
        signals", Mechanical Systems and Signal Processing 14, 2000). Impacts at a fixed rate show as a line there.
        """
        size = len(self.raw)
        if self.variance == 0 or size < 4 * _LOW_CUT:
            return 0.0
        spectrum = np.fft.fft(self.centred)
        analytic = np.zeros_like(spectrum)
        kept = slice(size // (2 * _LOW_CUT), (size + 1) // 2)
        analytic[kept] = 2 * spectrum[kept]
        squared = np.abs(np.fft.ifft(analytic)) ** 2
        lines = np.abs(np.fft.rfft(squared - squared.mean()))[1 : size // (2 * _LOW_CUT)]
        middle = float(np.median(lines))
        return float(lines.max()) / middle if middle > 0 else 0.0

    def moment(self, order: Literal[3, 4]) -> float:
        """Return the standardised central moment; 0 for a constant. Products, as numpy's power is 20 × slower."""
        if self.variance == 0:
            return 0.0
        power = self.squares * (self.squares if order == 4 else self.centred)
        return float(power.mean() / self.variance ** (order / 2))


@lru_cache(maxsize=8)
def _hann(size: int) -> NDArray[np.float64]:
    return np.hanning(size + 1)[:size] if size > 1 else np.ones(size)


def _band(number: int) -> Callable[[_Channel], float]:
    return lambda channel: float(np.log10(channel.band_energies[number] + _FLOOR))


# Moments and crest factor as ISO 13373-2:2016 and R. B. Randall, "Vibration-based Condition Monitoring" (2011,
# chapter 3) define them. Kurtosis is Pearson's: 3 for Gaussian noise, rising with impacts.
_FEATURES: dict[Feature, Callable[[_Channel], float]] = {
    "mean": lambda channel: channel.mean,
    "std": lambda channel: float(np.sqrt(channel.variance)),
    "rms": lambda channel: channel.rms,
    "peak": lambda channel: channel.peak,
    "crest_factor": lambda channel: channel.peak / channel.rms if channel.rms > 0 else 0.0,
    "kurtosis": lambda channel: channel.moment(4),
    "skewness": lambda channel: channel.moment(3),
    "band_energy_0": _band(0),
    "band_energy_1": _band(1),
    "band_energy_2": _band(2),
    "band_energy_3": _band(3),
    "band_energy_4": _band(4),
    "band_energy_5": _band(5),
    "band_energy_6": _band(6),
    "band_energy_7": _band(7),
    "envelope_peak_ratio": lambda channel: channel.envelope_peak_ratio,
}
