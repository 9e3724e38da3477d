"""Generated CT of the abdomen: bodies with livers, and tumours whose size differs by site, drawn in world coordinates.

A volume is drawn on a grid of its own (rotated, flipped, anisotropic) by asking for every voxel what is at its place in
the patient, so that image, mask and affine agree whatever the orientation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["LIVER", "TUMOUR", "Ball", "Grid", "Patient", "draw_ct", "draw_grid", "draw_patient", "generator"]

LIVER, TUMOUR = 1, 2
"""Labels of the masks, as in LiTS."""

Field = NDArray[np.float32]

_FIELD_OF_VIEW_MM = 380.0
_COVER_MM = 170.0
_AIR, _FAT, _MUSCLE, _BONE, _VESSEL = -1000.0, -95.0, 55.0, 420.0, 170.0


@dataclass(frozen=True, slots=True)
class Ball:
    """An ellipsoid with a bumpy surface.

    Attributes:
        centre: (x, y, z) in mm, to the left, to the back and to the head of the patient.
        radii: (x, y, z) in mm.
        bumps: How far its surface is off an ellipsoid, as a share of its radii.
        seed: Of the bumps.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    bumps: float = 0.0
    seed: int = 0

    def depth(self, x: Field, y: Field, z: Field) -> Field:
        """How deep places lie inside: 1 at the centre, 0 on the surface, below 0 outside."""
        u, v, w = ((at - of) / radius for at, of, radius in zip((x, y, z), self.centre, self.radii, strict=True))
        distance = np.sqrt(u * u + v * v + w * w)
        if self.bumps:
            a, b, c = np.random.default_rng(self.seed).uniform(0, 2 * np.pi, 3)
            distance -= self.bumps * (np.sin(3 * u + a) * np.cos(2.5 * v + b) + np.sin(3.5 * w + c)) / 2
        return np.asarray(1 - distance, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Patient:
    """What lies where, in HU.

    Attributes:
        body: The trunk.
        liver: The liver.
        tumours: In the liver.
        liver_hu: Attenuation of the liver.
        tumour_hu: Attenuation of the tumours.
        noise_hu: Standard deviation of the noise.
        shift_hu: Added to all tissue: the scanner of the site.
    """

    body: Ball
    liver: Ball
    tumours: tuple[Ball, ...]
    liver_hu: float
    tumour_hu: float
    noise_hu: float
    shift_hu: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the voxels of a volume are.

    Attributes:
        shape: Voxels along its three axes.
        affine: From voxels to mm to the right, to the front and to the head (RAS), (4, 4), float64.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def generator(seed: int, *names: str) -> np.random.Generator:
    """Makes a generator that is the same for the same names, whatever else is drawn."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def draw_patient(
    radii_mm: tuple[float, float], tumours: int, noise_hu: float, shift_hu: float, rng: np.random.Generator
) -> Patient:
    """Draws a patient.

    Args:
        radii_mm: Smallest and largest radius of a tumour.
        tumours: How many; 0 for none.
        noise_hu: Standard deviation of the noise.
        shift_hu: Added to all tissue.
        rng: Source of everything else.
    """
    wide, deep = rng.uniform(145, 170), rng.uniform(100, 125)
    liver = Ball(
        (-0.38 * wide + rng.uniform(-6, 6), rng.uniform(-14, 6), rng.uniform(-10, 10)),
        (rng.uniform(68, 80), rng.uniform(58, 70), rng.uniform(58, 72)),
        bumps=0.16,
        seed=int(rng.integers(1 << 30)),
    )
    found: list[Ball] = []
    for _ in range(tumours):
        smallest, largest = radii_mm
        radius = float(smallest * (largest / smallest) ** rng.uniform(0, 1))
        direction = rng.normal(size=3)
        reach = rng.uniform(0, 0.62) / np.linalg.norm(direction)
        x, y, z = (c + r * reach * d for c, r, d in zip(liver.centre, liver.radii, direction, strict=True))
        stretch = rng.uniform(0.8, 1.25, 3) * radius
        bumps = int(rng.integers(1 << 30))
        found.append(Ball((x, y, z), (stretch[0], stretch[1], stretch[2]), bumps=0.12, seed=bumps))
    return Patient(
        body=Ball((0.0, 0.0, 0.0), (wide, deep, 900.0)),
        liver=liver,
        tumours=tuple(found),
        liver_hu=float(rng.uniform(95, 120)),
        tumour_hu=float(rng.uniform(35, 65)),
        noise_hu=noise_hu,
        shift_hu=shift_hu,
    )


def draw_grid(size: int, slice_mm: float, rng: np.random.Generator, *, oblique: bool = True) -> Grid:
    """Draws the grid of a scan: any of the 48 orders and directions of the axes, and a slight rotation.

    Args:
        size: Voxels along either side of an axial slice.
        slice_mm: Distance of the axial slices.
        rng: Source of order, directions and rotation.
        oblique: Whether axes may be rotated by a few degrees against the patient's.
    """
    pixel = _FIELD_OF_VIEW_MM / size
    counts, spacing = (size, size, round(_COVER_MM / slice_mm)), np.array([pixel, pixel, slice_mm])
    order, signs = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
    axes = np.zeros((3, 3))
    for axis, world in enumerate(order):
        axes[world, axis] = signs[axis] * spacing[world]
    rotation = _rotation(rng.uniform(-4, 4, 3)) if oblique else np.eye(3)
    axes = rotation @ axes
    shape = (counts[order[0]], counts[order[1]], counts[order[2]])
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ (np.array(shape) - 1) / 2 + rng.uniform(-3, 3, 3)
    return Grid(shape, affine)


def draw_ct(patient: Patient, grid: Grid, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draws image and mask of a patient.

    Args:
        patient: What lies where.
        grid: Where the voxels are.
        rng: Source of the noise.

    Returns:
        Image in HU and mask (0, `LIVER`, `TUMOUR`), both of the grid's shape.
    """
    x, y, z = _places(grid)
    skin = patient.body.depth(x, y, z)
    hu = np.where(skin > 0, np.where(skin < 0.16, _FAT, _MUSCLE - 8), _AIR).astype(np.float32)
    for organ, value in _organs(patient):
        hu[organ.depth(x, y, z) > 0] = value
    in_liver = (patient.liver.depth(x, y, z) > 0) & (skin > 0.2)
    hu[in_liver] = patient.liver_hu
    mask = np.where(in_liver, LIVER, 0).astype(np.uint8)
    for tumour in patient.tumours:
        depth = tumour.depth(x, y, z)
        inside = (depth > 0) & in_liver
        hu[inside] = patient.tumour_hu + 18 * (1 - np.clip(4 * depth[inside], 0, 1))
        mask[inside] = TUMOUR
    noise = ndimage.gaussian_filter(rng.normal(0, 1, grid.shape).astype(np.float32), 0.6)
    blurred = ndimage.gaussian_filter(hu, 0.5)
    blurred += (patient.noise_hu / float(noise.std())) * noise + np.where(skin > 0, patient.shift_hu, 0).astype(
        np.float32
    )
    return np.clip(np.round(blurred), -1024, 3071).astype(np.int16), mask


def _organs(patient: Patient) -> list[tuple[Ball, float]]:
    """Spine, vessels, spleen, kidneys, stomach with a bubble of air: all that might be taken for something."""
    wide, deep = patient.body.radii[0], patient.body.radii[1]
    return [
        (Ball((0.0, 0.62 * deep, 0.0), (20.0, 20.0, 900.0)), _BONE),
        (Ball((0.0, 0.62 * deep, 0.0), (8.0, 9.0, 900.0)), _MUSCLE - 20),
        (Ball((6.0, 0.36 * deep, 0.0), (11.0, 11.0, 900.0)), _VESSEL),
        (Ball((0.6 * wide, 0.3 * deep, 15.0), (32.0, 26.0, 42.0), 0.1, 1), 110.0),
        (Ball((0.42 * wide, 0.42 * deep, -50.0), (25.0, 25.0, 46.0)), 150.0),
        (Ball((-0.42 * wide, 0.46 * deep, -62.0), (25.0, 25.0, 46.0)), 150.0),
        (Ball((0.4 * wide, -0.28 * deep, 10.0), (48.0, 34.0, 50.0), 0.15, 2), 25.0),
        (Ball((0.4 * wide, -0.5 * deep, 20.0), (26.0, 10.0, 30.0), 0.1, 3), _AIR),
    ]


def _places(grid: Grid) -> tuple[Field, Field, Field]:
    """Where the voxels are in mm to the left, to the back and to the head."""
    i, j, k = (np.arange(count, dtype=np.float32) for count in grid.shape)
    axes, origin = grid.affine[:3, :3].astype(np.float32), grid.affine[:3, 3].astype(np.float32)

    def along(row: int) -> Field:
        parts = axes[row, 0] * i[:, None, None] + axes[row, 1] * j[None, :, None] + axes[row, 2] * k[None, None, :]
        return np.asarray(parts + origin[row], dtype=np.float32)

    return -along(0), -along(1), along(2)


def _rotation(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z, dtype=np.float64)
