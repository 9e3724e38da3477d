"""Drawn frames that look like a colonoscopy: mucosa, folds, lesions, and what is easily taken for a lesion.

Everything is drawn from one numpy generator, in a fixed order, on float32 arrays with x to the right and y downwards,
both in units of the frame's size and centred on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter

__all__ = ["Look", "draw"]

Field = NDArray[np.float32]
Colour = tuple[float, float, float]

_MUCOSA = np.array([0.86, 0.52, 0.42], dtype=np.float32)
_BLOOD = np.array([0.62, 0.20, 0.17], dtype=np.float32)
_WHITE = np.ones(3, dtype=np.float32)
_RESIDUE = np.array([0.72, 0.58, 0.25], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Look:
    """What the frames of one patient have in common.

    Attributes:
        radii: Mean radius of each lesion, as a share of the frame's size.
        cast: Factor per colour channel: the camera of the site.
        aperture: Radius of the round image in the square frame, as a share of its size; 1 fills it.
        redness: How red the mucosa is, about -0.1 to 0.1.
        tint: How much redder than the mucosa the lesions are, about 0.2 to 0.5.
    """

    radii: tuple[float, ...]
    cast: Colour
    aperture: float
    redness: float
    tint: float


@dataclass(slots=True)
class _Scene:
    """The surface while it is drawn: its height and its colour per pixel."""

    x: Field
    y: Field
    height: Field
    albedo: Field
    rng: np.random.Generator

    @property
    def size(self) -> int:
        return len(self.x)


def draw(look: Look, size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draws a frame and the mask of its lesions.

    Args:
        look: What the frame has in common with others.
        size: Height and width in pixels.
        rng: Source of everything else.

    Returns:
        (size, size, 3), uint8, and (size, size), bool.
    """
    scene = _mucosa(look, size, rng)
    lumen = _lumen(scene)
    _folds(scene, lumen)
    _residue(scene)
    mask = np.zeros((size, size), dtype=bool)
    for radius in look.radii:
        mask |= _lesion(scene, lumen, radius, look)
    colour = _lit(scene, lumen)
    _bubbles(scene, colour)
    return _photographed(scene, colour, look), mask & (_distance(scene) < look.aperture / 2)


def _mucosa(look: Look, size: int, rng: np.random.Generator) -> _Scene:
    """Smooth relief, uneven redness and a net of vessels."""
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    height = 0.05 * _noise(rng, size, 3) + 0.012 * _noise(rng, size, 9) + 0.0022 * _noise(rng, size, 40)
    red = 0.15 + look.redness + 0.09 * _noise(rng, size, 4) + 0.04 * _noise(rng, size, 24)
    vessels = np.exp(-np.square(_noise(rng, size, 7) / 0.05)) + 0.6 * np.exp(-np.square(_noise(rng, size, 15) / 0.09))
    red = red + 0.18 * vessels * np.clip(0.5 + _noise(rng, size, 5), 0, 1)
    return _Scene(x, y, height, _mix(np.broadcast_to(_MUCOSA, (size, size, 3)), _BLOOD, red), rng)


def _lumen(scene: _Scene) -> Field:
    """Distance from the dark end of the bowel, 0 in its middle and about 1 at the far side of the frame."""
    angle, offset = scene.rng.uniform(0, 2 * math.pi), scene.rng.uniform(0.15, 0.6)
    x, y = scene.x - offset * math.cos(angle), scene.y - offset * math.sin(angle)
    stretch = scene.rng.uniform(0.7, 1.3)
    return _field(np.hypot(x * stretch, y / stretch) * (1 + 0.12 * _noise(scene.rng, scene.size, 4)))


def _folds(scene: _Scene, lumen: Field) -> None:
    """Curved ridges around the lumen, each over a part of its circle."""
    for radius in np.cumsum(scene.rng.uniform(0.12, 0.3, size=3)).tolist():
        width, strength = scene.rng.uniform(0.015, 0.035), scene.rng.uniform(0.015, 0.045)
        part = np.clip(0.3 + 1.2 * _noise(scene.rng, scene.size, 3), 0, 1)
        scene.height += strength * part * np.exp(-np.square((lumen - radius) / width))


def _lesion(scene: _Scene, lumen: Field, radius: float, look: Look) -> NDArray[np.bool_]:
    """A dome before everything else, with an uneven outline, its own grain and a colour near that around it."""
    inside = _blob(scene, radius, reach=min(look.aperture, 1) / 2 - 0.5 * radius, unevenness=0.10)
    depth = np.clip(inside, 0, 1)
    dome = min(0.6 * radius, 0.07) * depth * (2 - depth)
    before = np.clip(depth * radius * 40, 0, 1)
    scene.height += 0.85 * before * (scene.height[inside > 0].mean() - scene.height)
    lumen += 0.2 * before
    scene.height += dome + 0.0025 * _noise(scene.rng, scene.size, 60) * (inside > 0)
    edge = np.clip(inside * (radius * scene.size / 2) + 0.5, 0, 1)
    grain = 0.05 + 0.08 * _noise(scene.rng, scene.size, 48) + 0.06 * _noise(scene.rng, scene.size, 12)
    scene.albedo = _mix(scene.albedo, _BLOOD, edge * (look.tint + grain))
    rim = max(0.1 * radius, 0.008)
    scene.albedo *= (1 - 0.35 * np.exp(-np.square(inside * radius / rim + 0.5)))[:, :, np.newaxis]
    return inside > 0


def _residue(scene: _Scene) -> None:
    """Flat yellowish blobs of the same shapes as lesions, and dark red patches."""
    for _ in range(scene.rng.integers(0, 5)):
        inside = _blob(scene, scene.rng.uniform(0.02, 0.11), reach=0.5, unevenness=0.25)
        colour = _RESIDUE if scene.rng.random() < 0.35 else _BLOOD
        cover = np.clip(inside * 2.5, 0, 1) * scene.rng.uniform(0.3, 0.6)
        scene.albedo = _mix(scene.albedo, colour, cover * (0.9 + 0.3 * _noise(scene.rng, scene.size, 30)))


def _lit(scene: _Scene, lumen: Field) -> Field:
    """Shades the relief by a lamp beside the lens; wet places that face it shine."""
    dy, dx = np.gradient(scene.height * scene.size)
    light = scene.rng.uniform(-0.45, 0.45, size=2).tolist()
    facing = (1 - dx * light[0] - dy * light[1]) / np.sqrt(1 + dx * dx + dy * dy) / math.hypot(1, *light)
    depth = np.clip(lumen / scene.rng.uniform(0.22, 0.4), 0, 1)
    near = (0.10 + 0.90 * depth * depth * (3 - 2 * depth)) * (1.08 - 0.9 * np.square(_distance(scene)))
    colour = scene.albedo * (np.clip(facing, 0, None) * near)[:, :, np.newaxis]
    tilt = np.square(dx - 0.35 * light[0] - 0.25 * _noise(scene.rng, scene.size, 26)) + np.square(
        dy - 0.35 * light[1] - 0.25 * _noise(scene.rng, scene.size, 26)
    )
    shine = np.clip(1.25 * np.exp(-tilt / 0.004) * near - 0.25, 0, 1)
    wet = np.clip(3 * _noise(scene.rng, scene.size, 6), 0, 1)
    return _mix(colour, _WHITE, shine * wet * 0.9)


def _bubbles(scene: _Scene, colour: Field) -> None:
    """A few bubbles: a bright thin rim and a glint, in a cluster."""
    centre = scene.rng.uniform(-0.4, 0.4, size=2)
    for _ in range(scene.rng.integers(0, 9)):
        (x, y), radius = (centre + scene.rng.normal(0, 0.06, size=2)).tolist(), scene.rng.uniform(0.008, 0.035)
        near = np.abs(scene.x[0] - x) < 1.5 * radius, np.abs(scene.x[0] - y) < 1.5 * radius
        window = np.ix_(near[1], near[0])
        right, down = scene.x[window] - x, scene.y[window] - y
        distance = np.hypot(right, down) / radius
        rim = 0.55 * np.exp(-np.square((distance - 1) * (radius * scene.size / 0.9)))
        glint = 0.9 * np.exp(-np.square(np.hypot(right / radius + 0.4, down / radius + 0.4) / 0.3))
        dimmed = colour[window] * (1 - 0.12 * (distance < 1))[:, :, np.newaxis]
        colour[window] = _mix(dimmed, _WHITE, 0.85 * (rim + glint))


def _photographed(scene: _Scene, colour: Field, look: Look) -> NDArray[np.uint8]:
    """Cast, exposure, blur, noise and the round aperture of the site's camera."""
    exposed = colour * np.array(look.cast, dtype=np.float32) * scene.rng.uniform(0.95, 1.2)
    levels = np.clip(255 * np.power(np.clip(exposed, 0, 1), 0.9), 0, 255).astype(np.uint8)
    blurred = Image.fromarray(levels).filter(ImageFilter.GaussianBlur(scene.rng.uniform(0.3, 0.9) * scene.size / 256))
    grain = 2.5 * scene.rng.standard_normal(size=(scene.size, scene.size, 1), dtype=np.float32)
    opening = np.clip((look.aperture / 2 - _distance(scene)) * scene.size, 0, 1)[:, :, np.newaxis]
    photograph: NDArray[np.uint8] = np.clip((np.asarray(blurred) + grain) * opening, 0, 255).astype(np.uint8)
    return photograph


def _blob(scene: _Scene, radius: float, *, reach: float, unevenness: float) -> Field:
    """1 in the middle of an uneven ellipse, 0 on its outline, below 0 outside."""
    rng = scene.rng
    angle, place = rng.uniform(0, 2 * math.pi), 0.9 * reach * math.sqrt(rng.uniform(0, 1))
    x, y = scene.x - place * math.cos(angle), scene.y - place * math.sin(angle)
    turn, stretch = rng.uniform(0, math.pi), math.sqrt(rng.uniform(0.7, 1))
    x, y = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    around = np.arctan2(y / stretch, x * stretch)
    outline = np.ones_like(around)
    for waves in range(2, 6):
        outline += 2 * unevenness * rng.normal() / waves * np.cos(waves * around + rng.uniform(0, 2 * math.pi))
    return _field(1 - np.hypot(x * stretch, y / stretch) / (radius * np.clip(outline, 0.4, 1.6)))


def _noise(rng: np.random.Generator, size: int, cells: int) -> Field:
    """Smooth noise of mean 0 and deviation about 0.5 with about `cells` bumps across the frame."""
    grid = rng.normal(0, 0.65, size=(cells + 3, cells + 3)).astype(np.float32)
    box = (1.5, 1.5, cells + 1.5, cells + 1.5)
    return _field(np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=box)))


def _distance(scene: _Scene) -> Field:
    return _field(np.hypot(scene.x, scene.y))


def _mix(colour: Field, other: Field, share: Field) -> Field:
    """`colour` with a share of `other` in it, (H, W, 3)."""
    weight = np.clip(share, 0, 1)[:, :, np.newaxis]
    return _field(colour * (1 - weight) + other * weight)


def _field(values: ArrayLike) -> Field:
    return np.asarray(values, dtype=np.float32)
