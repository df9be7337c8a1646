"""Generated pictures with their truth: a conveyor that carries parcels, some of them damaged.

A scene is a pure function of its seed and the frame's index: any frame can be asked for at any time, and comes out
byte-equal for the same seed, size, rate and libraries. Importing this loads numpy and cv2 only, so that a training
script can use it without the agent's dependencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from simulator.parcels import Sprite, as_pixel, draw_parcel

Image = NDArray[np.uint8]
Label = Literal["parcel", "damaged"]
LABELS: tuple[Label, ...] = ("parcel", "damaged")

DAMAGED_SHARE = 0.4
LEAST_WIDTH, LEAST_HEIGHT = 160, 120
# Lengths below are for a picture 360 px high and scale with it.
SLOT_PX = 145
LARGEST_PX = 190
_BELT_STREAM, _NOISE_STREAM, _PARCEL_STREAM = 1, 2, 3
"""Second word of each generator's seed, so that what one draws never moves another."""


@dataclass(frozen=True, slots=True)
class TruthBox:
    """One parcel that can be seen in a frame."""

    xyxy_px: tuple[float, float, float, float]
    """Its extent, cut at the picture's edge but not at parcels that lie over it."""
    label: Label
    object_id: int
    """The same in every frame of the scene."""
    visible_share: float
    """Share of the parcel's pixels, above 0 and up to 1, that is inside the picture and not covered."""


@dataclass(frozen=True, slots=True, eq=False)
class _Parcel:
    """A parcel's place on the belt. `x`, `y` is the sprite's upper left corner when the belt has moved 0 px."""

    object_id: int
    label: Label
    x: int
    y: int
    sprite: Sprite


class ConveyorScene:
    """A belt that runs from left to right for ever, seen from above.

    Args:
        seed: Decides everything: the hall, the belt, its speed, the light, and every parcel.
        width: Of the picture in pixels, at least LEAST_WIDTH.
        height: Of the picture in pixels, at least LEAST_HEIGHT; lengths scale with it.
        fps: Frames per second; the belt's speed is in pixels per second.
    """

    def __init__(self, seed: int, width: int = 640, height: int = 360, fps: float = 15.0) -> None:
        if width < LEAST_WIDTH or height < LEAST_HEIGHT or fps <= 0 or seed < 0:
            least = f"{LEAST_WIDTH}×{LEAST_HEIGHT}"
            raise ValueError(f"needs seed ≥ 0, fps > 0 and {least} pixels, not {seed}, {fps}, {width}×{height}")
        self.seed, self.width, self.height, self.fps = seed, width, height, fps
        self._scale = height / 360
        rng = np.random.default_rng((seed, _BELT_STREAM))
        self._speed_px_s = float(rng.uniform(70, 160)) * self._scale
        self._belt_top = int(height * rng.uniform(0.09, 0.2))
        self._belt_bottom = int(height * rng.uniform(0.82, 0.93))
        self._gain = float(rng.uniform(0.7, 1.15))
        self._phases = rng.uniform(0, 2 * np.pi, 2)
        self._hall = self._draw_hall(rng)
        self._belt = self._draw_belt(rng)
        self._light = self._draw_light(rng)
        self._noise = self._draw_noise(rng)
        self._slots = lru_cache(maxsize=self._slots_in_view() + 2)(self._fill_slot)

    def frame(self, index: int) -> tuple[Image, tuple[TruthBox, ...]]:
        """Return frame `index` (≥ 0) as uint8 (height, width, 3) BGR, and the parcels that can be seen in it."""
        pixels = self._empty_belt(index)
        truth = self._place_parcels(pixels, index)
        return self._take_picture(pixels, index), truth

    def empty(self, index: int) -> Image:
        """Return the same moment with no parcel on the belt."""
        return self._take_picture(self._empty_belt(index), index)

    def _slots_in_view(self) -> int:
        """Return the most slots whose parcels can reach into one picture."""
        return math.ceil((self.width / self._scale + 2 * LARGEST_PX) / SLOT_PX) + 2

    def _moved_px(self, index: int) -> int:
        """Return how far the belt has come; whole pixels, the same for belt and parcels."""
        return round(self._speed_px_s * index / self.fps)

    def _empty_belt(self, index: int) -> Image:
        pixels = self._hall.copy()
        start = -self._moved_px(index) % (self._belt.shape[1] - self.width)
        pixels[self._belt_top : self._belt_bottom] = self._belt[:, start : start + self.width]
        return pixels

    def _place_parcels(self, pixels: Image, index: int) -> tuple[TruthBox, ...]:
        """Draw the parcels into `pixels`, the later id on top."""
        moved = self._moved_px(index)
        slot_px, reach = SLOT_PX * self._scale, LARGEST_PX * self._scale
        # Slot k sits at moved + width - k * slot_px, so the picture is full from the first frame on.
        first = max(0, int((moved - reach) / slot_px))
        last = int((moved + self.width + reach) / slot_px) + 1
        owner = np.zeros(pixels.shape[:2], np.uint8)
        shown = []
        for slot in range(first, last + 1):
            for parcel in self._slots(slot):
                region = self._overlap(parcel, moved)
                if region is not None:
                    shown.append((parcel, region))
                    _blend(pixels, owner, parcel.sprite, region, len(shown))
        boxes = (self._truth(owner, parcel, region, mark) for mark, (parcel, region) in enumerate(shown, 1))
        return tuple(box for box in boxes if box is not None)

    def _overlap(self, parcel: _Parcel, moved: int) -> tuple[int, int, int, int] | None:
        """Return the sprite's left, top and the part of it that is inside the picture as x0, x1; None for no part."""
        left = parcel.x + moved
        x0, x1 = max(0, -left), min(parcel.sprite.body.shape[1], self.width - left)
        return (left, parcel.y, x0, x1) if x0 < x1 else None

    def _truth(self, owner: Image, parcel: _Parcel, region: tuple[int, int, int, int], mark: int) -> TruthBox | None:
        """Return what of the parcel can be seen; None where nothing of it can."""
        left, top, x0, x1 = region
        sprite = parcel.sprite
        seen = np.count_nonzero(owner[top : top + sprite.body.shape[0], left + x0 : left + x1] == mark)
        if seen == 0:
            return None
        bx0, by0, bx1, by1 = sprite.body_xyxy
        box = (max(0, left + bx0), top + by0, min(self.width, left + bx1), top + by1)
        xyxy = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
        return TruthBox(xyxy, parcel.label, parcel.object_id, min(1.0, seen / sprite.area_px))

    def _fill_slot(self, slot: int) -> tuple[_Parcel, ...]:
        """Return the parcels of one stretch of belt: none, one, or two side by side."""
        rng = np.random.default_rng((self.seed, _PARCEL_STREAM, slot))
        chance = rng.random()
        count = 0 if chance < 0.12 else 1 if chance < 0.72 else 2
        return tuple(self._make_parcel(rng, slot, lane, count) for lane in range(count))

    def _make_parcel(self, rng: np.random.Generator, slot: int, lane: int, count: int) -> _Parcel:
        scale, belt = self._scale, self._belt_bottom - self._belt_top
        tallest = (118 if count == 1 else 84) * scale
        width, height = int(rng.uniform(58, 138) * scale), int(rng.uniform(0.5, 1.0) * tallest)
        label: Label = "damaged" if rng.random() < DAMAGED_SHARE else "parcel"
        sprite = draw_parcel(rng, width, height, is_damaged=label == "damaged")
        rows, columns = sprite.body.shape
        lane_px = belt / count
        spare = max(0.0, lane_px - rows)
        y = self._belt_top + int(lane * lane_px + rng.uniform(0, 1) * spare)
        x = int(self.width - slot * SLOT_PX * scale + rng.uniform(-52, 52) * scale - columns / 2)
        return _Parcel(slot * 2 + lane, label, x, min(max(0, y), self.height - rows), sprite)

    def _take_picture(self, pixels: Image, index: int) -> Image:
        """Add what the lamp and the sensor do: light that drifts and flickers, a lit middle, noise."""
        seconds = index / self.fps
        drift = 0.10 * np.sin(2 * np.pi * seconds / 23.0 + self._phases[0])
        flicker = 0.02 * np.sin(2 * np.pi * seconds / 0.7 + self._phases[1])
        lit = cv2.multiply(pixels, self._light, scale=self._gain * (1 + drift + flicker) / 200)
        rng = np.random.default_rng((self.seed, _NOISE_STREAM, index))
        dy, dx = (int(value) for value in rng.integers(0, 64, 2))
        brighter, darker = (tile[dy : dy + self.height, dx : dx + self.width] for tile in self._noise)
        cv2.add(lit, brighter, dst=lit)
        cv2.subtract(lit, darker, dst=lit)
        return np.asarray(lit, np.uint8)

    def _draw_hall(self, rng: np.random.Generator) -> Image:
        """Draw what stands still: wall, posts, boxes along the wall, and the rollers at the belt's edges."""
        width, height = self.width, self.height
        hall = _cloud(rng, width, height, rng.uniform(50, 160) + rng.uniform(-22, 22, 3), 14)
        for _ in range(int(rng.integers(2, 6))):
            x, w = int(rng.uniform(0, width)), int(rng.uniform(8, 60) * self._scale)
            y = 0 if rng.random() < 0.5 else self._belt_bottom
            colour = tuple(float(value) for value in rng.uniform(20, 200, 3))
            cv2.rectangle(hall, (x, y), (x + w, y + int(rng.uniform(10, 70) * self._scale)), colour, -1)
        steel = rng.uniform(90, 190)
        step, radius = max(6, int(rng.uniform(14, 26) * self._scale)), max(3, int(7 * self._scale))
        for edge in (self._belt_top - radius // 2, self._belt_bottom + radius // 2):
            cv2.line(hall, (0, edge), (width, edge), (steel * 0.6,) * 3, max(2, 2 * radius))
            for x in range(0, width + step, step):
                cv2.circle(hall, (x, edge), radius, (steel,) * 3, -1, cv2.LINE_AA)
                cv2.circle(hall, (x, edge), radius, (steel * 0.4,) * 3, 1, cv2.LINE_AA)
        return hall

    def _draw_belt(self, rng: np.random.Generator) -> Image:
        """Draw a loop of belt, with one picture's width of its start repeated at its end."""
        height, length = self._belt_bottom - self._belt_top, 2 * self.width
        base = rng.uniform(28, 105) + rng.uniform(-14, 14, 3)
        belt = _cloud(rng, length, height, base, 6)
        for _ in range(int(rng.integers(4, 14))):  # scuffs
            start = rng.uniform((0, 0), (length, height))
            end = start + rng.normal(0, 60 * self._scale, 2)
            tone = tuple(float(value) for value in base * rng.uniform(0.6, 1.5))
            cv2.line(belt, as_pixel(start), as_pixel(end), tone, int(rng.integers(1, 4)), cv2.LINE_AA)
        for _ in range(int(rng.integers(0, 7))):  # oil and dust
            axes = as_pixel(rng.uniform((6, 4), (40, 22)) * self._scale)
            tone = tuple(float(value) for value in base * rng.uniform(0.65, 1.35))
            cv2.ellipse(belt, as_pixel(rng.uniform((0, 0), (length, height))), axes, 0, 0, 360, tone, -1, cv2.LINE_AA)
        cv2.line(belt, (0, 0), (0, height), tuple(float(value) for value in base * 0.55), 4)  # where the loop is sewn
        return np.concatenate((belt, belt[:, : self.width]), axis=1)

    def _draw_light(self, rng: np.random.Generator) -> Image:
        """Draw the lamp's pool and the shadow of a beam, 200 meaning full light."""
        y, x = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)
        u = (x / self.width - rng.uniform(0.2, 0.8)) ** 2 + (y / self.height - rng.uniform(0.2, 0.8)) ** 2
        light = 200 * (1 - rng.uniform(0.1, 0.6) * u)
        if rng.random() < 0.5:
            middle, half = rng.uniform(0.1, 0.9) * self.width, rng.uniform(10, 40) * self._scale
            beam = np.exp(-((np.abs(x + 0.3 * y - middle) / half) ** 4))
            light *= 1 - rng.uniform(0.15, 0.4) * beam
        return np.repeat(np.clip(light, 0, 255).astype(np.uint8)[..., None], 3, axis=2)

    def _draw_noise(self, rng: np.random.Generator) -> tuple[Image, Image]:
        """Return tiles, larger than the picture, to add and to subtract; each frame cuts them elsewhere."""
        shape = (self.height + 64, self.width + 64, 3)
        noise = rng.standard_normal(shape, np.float32) * np.float32(rng.uniform(2.0, 7.0))
        return np.maximum(noise, 0).astype(np.uint8), np.maximum(-noise, 0).astype(np.uint8)


def _blend(pixels: Image, owner: Image, sprite: Sprite, region: tuple[int, int, int, int], mark: int) -> None:
    """Lay the sprite over the picture, and write `mark` into `owner` where its body is."""
    left, top, x0, x1 = region
    rows = slice(top, top + sprite.body.shape[0])
    under = pixels[rows, left + x0 : left + x1]
    shade = sprite.transparency[:, x0:x1]
    under[:] = ((under * shade) >> 8) + sprite.premultiplied[:, x0:x1]
    owner[rows, left + x0 : left + x1][sprite.body[:, x0:x1]] = mark


def _cloud(rng: np.random.Generator, width: int, height: int, colour: NDArray[np.float64], contrast: float) -> Image:
    """Return an uneven surface of about that BGR colour."""
    coarse = rng.normal(0, contrast, (max(2, height // 24), max(2, width // 24), 1)).astype(np.float32)
    fine = rng.normal(0, contrast / 3, (max(2, height // 3), max(2, width // 3), 1)).astype(np.float32)
    relief = np.zeros((height, width), np.float32)
    for part in (coarse, fine):
        relief += cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(relief[..., None] + colour, 0, 255).astype(np.uint8)
