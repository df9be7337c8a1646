"""Draws one parcel: a small picture with transparency, sound or visibly damaged, and where its pixels are.

Everything follows from the numpy Generator that is handed in. Importing this loads numpy and cv2 only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Texture = NDArray[np.float32]

# Cardboard twice (most parcels), kraft paper, white and grey mailers, dark foil, blue and green crates. BGR.
COLOURS = (
    (98, 142, 184),
    (82, 122, 160),
    (120, 168, 205),
    (215, 220, 222),
    (150, 152, 150),
    (70, 66, 64),
    (150, 96, 58),
    (88, 120, 74),
)
SHADOW_OPACITY = 0.45
MAX_ANGLE_DEG = 14.0


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """A drawn parcel with its shadow.

    `premultiplied` is uint8 (h, w, 3) BGR times opacity, `transparency` uint16 (h, w, 1) from 0 (opaque) to 255,
    `body` bool (h, w) where the parcel itself is, without the shadow.
    """

    premultiplied: Image
    transparency: NDArray[np.uint16]
    body: NDArray[np.bool_]
    body_xyxy: tuple[int, int, int, int]
    """Extent of the body inside the sprite, upper bounds exclusive."""
    area_px: int
    """Pixels of the body."""


def as_pixel(position: Sequence[float] | NDArray[np.floating]) -> tuple[int, int]:
    """Return x, y as cv2's drawing wants them: cut to whole pixels."""
    return int(position[0]), int(position[1])


def draw_parcel(rng: np.random.Generator, width: int, height: int, *, is_damaged: bool) -> Sprite:
    """Draw a parcel of about width × height px, turned a little."""
    texture = _carton(rng, width, height)
    opacity = np.full((height, width), 255, np.uint8)
    for decoration, chance in ((_tape, 0.6), (_label, 0.7), (_print, 0.35)):
        if rng.random() < chance:
            decoration(rng, texture)
    if is_damaged:
        _damage(rng, texture, opacity)
    angle = float(rng.uniform(-MAX_ANGLE_DEG, MAX_ANGLE_DEG))
    return _assemble(np.clip(texture, 0, 255).astype(np.uint8), opacity, angle)


def _carton(rng: np.random.Generator, width: int, height: int) -> Texture:
    """Return the lit top and the darker front face of an undamaged, empty-sided parcel."""
    colour = np.array(COLOURS[rng.integers(len(COLOURS))], np.float32) * rng.uniform(0.75, 1.15)
    colour += rng.uniform(-10, 10, 3).astype(np.float32)
    texture = np.empty((height, width, 3), np.float32)
    texture[:] = colour
    across = np.linspace(-1, 1, width, dtype=np.float32) * rng.uniform(-0.12, 0.12)
    down = np.linspace(-1, 1, height, dtype=np.float32) * rng.uniform(-0.10, 0.10)
    texture *= (1 + across[None, :, None]) * (1 + down[:, None, None])
    grain = rng.normal(0, 4, (max(2, height // 3), max(2, width // 3), 1)).astype(np.float32)
    texture += cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    face = int(height * rng.uniform(0.06, 0.2))
    texture[height - face :] *= 0.68
    cv2.rectangle(texture, (0, 0), (width - 1, height - 1), tuple(float(value) for value in colour * 0.6), 1)
    return texture


def _tape(rng: np.random.Generator, texture: Texture) -> None:
    """Stick a glossy strip along or across."""
    height, width = texture.shape[:2]
    tint = np.array((150, 190, 215) if rng.random() < 0.6 else (190, 190, 190), np.float32)
    if rng.random() < 0.5:
        middle, half = int(height * rng.uniform(0.3, 0.6)), max(2, height // 18)
        strip = texture[middle - half : middle + half]
    else:
        middle, half = int(width * rng.uniform(0.3, 0.7)), max(2, width // 18)
        strip = texture[:, middle - half : middle + half]
    strip += (tint - strip) * rng.uniform(0.3, 0.6)


def _label(rng: np.random.Generator, texture: Texture) -> None:
    """Glue on a white label with lines of text and a barcode."""
    height, width = texture.shape[:2]
    w, h = int(width * rng.uniform(0.28, 0.45)), int(height * rng.uniform(0.25, 0.42))
    x, y = int(rng.uniform(0.06, 0.9) * (width - w)), int(rng.uniform(0.06, 0.75) * (height - h))
    white = float(rng.uniform(205, 250))
    texture[y : y + h, x : x + w] = white
    bars = rng.random(w - 4) < 0.5
    texture[y + h // 2 : y + h - 2, x + 2 : x + w - 2][:, bars] = 35.0
    for row in range(y + 3, y + h // 2 - 1, 4):
        end = x + 3 + int((w - 6) * rng.uniform(0.4, 1.0))
        texture[row : row + 1, x + 3 : end] = 90.0


def _print(rng: np.random.Generator, texture: Texture) -> None:
    """Print a logo: a ring or "this side up" arrows, even in tone and sharp, so that dark alone is no damage."""
    height, width = texture.shape[:2]
    ink = tuple(float(value) for value in rng.uniform(20, 110, 3))
    x, y = int(width * rng.uniform(0.2, 0.8)), int(height * rng.uniform(0.25, 0.7))
    size = max(4, int(min(width, height) * rng.uniform(0.08, 0.15)))
    if rng.random() < 0.5:
        cv2.circle(texture, (x, y), size, ink, max(1, size // 3), cv2.LINE_AA)
        return
    for dx in (-size, size):
        cv2.arrowedLine(texture, (x + dx, y + size), (x + dx, y - size), ink, max(1, size // 3), cv2.LINE_AA, 0, 0.5)


def _damage(rng: np.random.Generator, texture: Texture, opacity: Image) -> None:
    """Do one or two kinds of harm."""
    kinds: tuple[Callable[[np.random.Generator, Texture, Image], None], ...] = (_crush, _tear, _stain, _dent)
    for index in rng.choice(len(kinds), size=1 if rng.random() < 0.65 else 2, replace=False):
        kinds[index](rng, texture, opacity)


def _blob(rng: np.random.Generator, centre: tuple[float, float], radius: float, roughness: float) -> NDArray[np.int32]:
    """Return an irregular closed outline, int32 (points, 2)."""
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    radii = radius * (1 + rng.uniform(-roughness, roughness, angles.size))
    outline = np.stack((centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)), axis=1)
    return outline.astype(np.int32)


def _crush(rng: np.random.Generator, texture: Texture, opacity: Image) -> None:
    """Push a corner in: part of it is gone, creases run from it, the board around it is darker and lighter."""
    height, width = texture.shape[:2]
    right, bottom = rng.random() < 0.5, rng.random() < 0.5
    reach_x, reach_y = width * rng.uniform(0.25, 0.42), height * rng.uniform(0.25, 0.42)
    corner = np.array((width if right else 0, height if bottom else 0), np.float32)
    inward = np.array((-1 if right else 1, -1 if bottom else 1), np.float32)
    along = np.linspace(0, 1, 7)
    edge = np.stack((reach_x * along, reach_y * (1 - along)), axis=1)
    edge *= (1 + rng.uniform(-0.25, 0.05, (7, 1))).astype(np.float32)
    line = corner + inward * edge
    cut = corner + inward * edge * rng.uniform(0.55, 0.7)
    folded = np.concatenate((line, cut[::-1])).astype(np.int32)
    tone = texture[height // 2, width // 2]
    cv2.fillPoly(texture, [folded], tuple(float(value) for value in tone * rng.uniform(0.35, 0.5)))
    cv2.polylines(texture, [line.astype(np.int32)], False, tuple(float(v) for v in tone * 1.35 + 20), 2, cv2.LINE_AA)
    for _ in range(3):
        tip = corner + inward * np.array((reach_x, reach_y)) * rng.uniform(0.7, 1.5, 2)
        start = line[rng.integers(1, 6)]
        cv2.line(texture, as_pixel(start), as_pixel(tip), tuple(float(v) for v in tone * 0.45), 1, cv2.LINE_AA)
    cv2.fillPoly(opacity, [np.concatenate((cut, corner[None])).astype(np.int32)], 0)


def _tear(rng: np.random.Generator, texture: Texture, _opacity: Image) -> None:
    """Rip the side open: a jagged dark hole with a pale rim of torn board."""
    height, width = texture.shape[:2]
    length = rng.uniform(0.4, 0.65) * max(width, height)
    thickness = rng.uniform(0.12, 0.2) * min(width, height)
    angle = rng.uniform(0, np.pi)
    direction = np.array((np.cos(angle), np.sin(angle)))
    normal = np.array((-direction[1], direction[0]))
    centre = np.array((width, height)) * rng.uniform(0.35, 0.65, 2)
    along = np.linspace(-0.5, 0.5, 9)[:, None]
    bulge = thickness * (1 - (2 * along) ** 2) * rng.uniform(0.4, 1.2, (9, 1))
    upper = centre + along * length * direction + normal * bulge
    lower = centre + along * length * direction - normal * bulge * rng.uniform(0.3, 1.0, (9, 1))
    hole = np.concatenate((upper, lower[::-1])).astype(np.int32)
    rim = tuple(float(value) for value in rng.uniform(185, 235, 3))
    cv2.polylines(texture, [hole], True, rim, max(2, int(thickness * 0.35)), cv2.LINE_AA)
    cv2.fillPoly(texture, [hole], tuple(float(value) for value in rng.uniform(10, 45, 3)))


def _stain(rng: np.random.Generator, texture: Texture, _opacity: Image) -> None:
    """Soak a patch: darker, soft inside, with a still darker tide line."""
    height, width = texture.shape[:2]
    radius = rng.uniform(0.24, 0.36) * min(width, height) * 1.15
    centre = (width * rng.uniform(0.25, 0.75), height * rng.uniform(0.25, 0.75))
    wet = np.zeros((height, width), np.float32)
    outline = _blob(rng, centre, radius, 0.35)
    cv2.fillPoly(wet, [outline], 1.0)
    for _ in range(3):
        spot = _blob(rng, (centre[0] + rng.normal(0, radius), centre[1] + rng.normal(0, radius)), radius * 0.2, 0.3)
        cv2.fillPoly(wet, [spot], 1.0)
    soft = cv2.GaussianBlur(wet, (0, 0), 1.5 + radius * 0.05)
    tide = np.clip(soft * (1 - soft) * 4, 0, 1)
    depth = float(rng.uniform(0.4, 0.55))
    texture *= (1 - depth * soft - 0.22 * tide)[..., None] * np.array((0.92, 1.0, 1.04), np.float32) ** soft[..., None]


def _dent(rng: np.random.Generator, texture: Texture, _opacity: Image) -> None:
    """Press a hollow in: one flank in shadow, the other in the light, creases around it."""
    height, width = texture.shape[:2]
    rx, ry = width * rng.uniform(0.2, 0.32), height * rng.uniform(0.2, 0.32)
    cx, cy = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = (x - cx) / rx, (y - cy) / ry
    distance = u * u + v * v
    slope = (u * np.cos(angle) + v * np.sin(angle)) * np.exp(-(distance**2))
    texture *= np.clip(1 + rng.uniform(0.75, 1.0) * slope, 0.25, 1.7)[..., None].astype(np.float32)
    for turn in rng.uniform(0, 2 * np.pi, 4):
        inner = (cx + 0.5 * rx * np.cos(turn), cy + 0.5 * ry * np.sin(turn))
        outer = (cx + 1.2 * rx * np.cos(turn + 0.3), cy + 1.2 * ry * np.sin(turn + 0.3))
        cv2.line(texture, as_pixel(inner), as_pixel(outer), (30.0, 34.0, 38.0), 1, cv2.LINE_AA)


def _assemble(texture: Image, opacity: Image, angle_deg: float) -> Sprite:
    """Turn the parcel, lay its shadow beneath, and note where it is."""
    height, width = texture.shape[:2]
    margin = 10
    cos, sin = abs(np.cos(np.radians(angle_deg))), abs(np.sin(np.radians(angle_deg)))
    size = (int(width * cos + height * sin) + 2 * margin, int(width * sin + height * cos) + 2 * margin)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, 1.0)
    matrix[:, 2] += (size[0] / 2 - width / 2, size[1] / 2 - height / 2)
    colour = cv2.warpAffine(texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(opacity, matrix, size, flags=cv2.INTER_LINEAR)
    fallen = cv2.GaussianBlur(np.roll(alpha, (5, 4), (0, 1)), (0, 0), 3.0).astype(np.float32) / 255
    solid = alpha.astype(np.float32) / 255
    total = solid + SHADOW_OPACITY * fallen * (1 - solid)
    body = alpha > 127
    columns, rows = np.flatnonzero(body.any(0)), np.flatnonzero(body.any(1))
    return Sprite(
        premultiplied=(colour * solid[..., None] + 0.5).astype(np.uint8),
        transparency=(255 * (1 - total) + 0.5).astype(np.uint16)[..., None],
        body=body,
        body_xyxy=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        area_px=int(np.count_nonzero(body)),
    )
