"""How a box moves: a constant-velocity Kalman filter for many boxes at once.

SORT (Bewley et al. 2016) and ByteTrack (Zhang et al. 2022) use one filter with eight states a box and diagonal noise.
Diagonal noise never couples the four numbers of a box (centre x, centre y, width, height), so that filter *is* four
independent filters with two states each, and those have a closed form: no matrix is inverted, and all boxes go
through together. Time is in seconds, since frame rates vary and frames are left out; noise grows with the box's size.

The state is one float64 array (5, n, 4): position, rate, and the three numbers of each 2×2 covariance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

POSITION, RATE, VARIANCE, COVARIANCE, RATE_VARIANCE = range(5)

MEASUREMENT_STD = 0.05
"""Of a detector's box, as a share of the box's size (ByteTrack: 1/20)."""
FIRST_RATE_STD = 2.0
"""What a new box may move, in box sizes a second (ByteTrack: 10/160 a frame, at 30 frames a second)."""
ACCELERATION_STD = 1.0
"""How fast the rate wanders, in box sizes a second per √second: a person who turns round takes about one second."""


def begin(cxcywh: FloatArray) -> FloatArray:
    """Return the state of new boxes (n, 4) that stand still as far as is known."""
    scale = _scale(cxcywh)
    zeros = np.zeros_like(cxcywh)
    variance = np.broadcast_to((2 * MEASUREMENT_STD * scale) ** 2, cxcywh.shape)
    rate_variance = np.broadcast_to((FIRST_RATE_STD * scale) ** 2, cxcywh.shape)
    return np.stack([cxcywh, zeros, variance, zeros, rate_variance])


def predict(state: FloatArray, elapsed_s: float) -> None:
    """Move every box on by `elapsed_s` ≥ 0 seconds, in place (white-noise acceleration model)."""
    if elapsed_s == 0:
        return
    density = (ACCELERATION_STD * _scale(state[POSITION])) ** 2
    state[POSITION] += elapsed_s * state[RATE]
    np.maximum(state[POSITION, :, 2:], 1.0, out=state[POSITION, :, 2:])  # a shrinking box never turns inside out
    state[VARIANCE] += elapsed_s * (2 * state[COVARIANCE] + elapsed_s * state[RATE_VARIANCE])
    state[VARIANCE] += density * elapsed_s**3 / 3
    state[COVARIANCE] += elapsed_s * state[RATE_VARIANCE] + density * elapsed_s**2 / 2
    state[RATE_VARIANCE] += density * elapsed_s


def correct(state: FloatArray, rows: list[int], cxcywh: FloatArray) -> None:
    """Take the measured boxes (k, 4) into the state of `rows` (k different ones), in place."""
    position, rate, variance, covariance, rate_variance = state[:, rows]
    total = variance + (MEASUREMENT_STD * _scale(cxcywh)) ** 2
    gain, rate_gain = variance / total, covariance / total
    innovation = cxcywh - position
    state[POSITION, rows] = position + gain * innovation
    state[RATE, rows] = rate + rate_gain * innovation
    state[VARIANCE, rows] = (1 - gain) * variance
    state[COVARIANCE, rows] = (1 - gain) * covariance
    state[RATE_VARIANCE, rows] = rate_variance - rate_gain * covariance


def rescale(state: FloatArray, factor_x: float, factor_y: float) -> None:
    """Follow a frame whose width and height changed by these factors, in place."""
    factor = np.array([factor_x, factor_y, factor_x, factor_y])
    state[POSITION : RATE + 1] *= factor
    state[VARIANCE:] *= factor**2


def to_cxcywh(xyxy: FloatArray) -> FloatArray:
    """Return (n, 4) centre x, centre y, width, height of (n, 4) left, top, right, bottom."""
    size = xyxy[:, 2:] - xyxy[:, :2]
    return np.concatenate([xyxy[:, :2] + size / 2, size], axis=1)


def to_xyxy(cxcywh: FloatArray) -> FloatArray:
    """Return (n, 4) left, top, right, bottom of (n, 4) centre x, centre y, width, height."""
    half = cxcywh[:, 2:] / 2
    return np.concatenate([cxcywh[:, :2] - half, cxcywh[:, :2] + half], axis=1)


def _scale(cxcywh: FloatArray) -> FloatArray:
    """Return each box's size, the mean of its width and height, as (n, 1)."""
    return (cxcywh[:, 2:3] + cxcywh[:, 3:4]) / 2
