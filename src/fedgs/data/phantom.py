"""Generated hospitals: frames with lesions whose size and colour differ by site, for demonstrations and tests."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedgs.data import folder as folder_layout
from fedgs.data.case import Case
from fedgs.data.pairing import contents
from fedgs.data.phantom_scene import Look, draw
from fedgs.errors import ConfigError, DataError
from fedgs.files import write_json

__all__ = ["LAYOUT", "MANIFEST_FILE", "SITES", "PhantomSite", "appearing", "find_cases", "generate", "looks_like"]

LAYOUT = "a phantom: an absent or empty folder, which is filled, or one that fedgs filled (phantom.json tells)"

MANIFEST_FILE = "phantom.json"

_FORMAT = 1
_MOST_FRAMES_PER_PATIENT = 4


@dataclass(frozen=True, slots=True)
class PhantomSite:
    """What distinguishes a generated hospital.

    Attributes:
        name: Name of the site.
        radii: Smallest and largest mean radius of a lesion, as shares of the frame's size.
        cast: Factor per colour channel: the camera of the site.
        aperture: Diameter of the round image in the square frame, as a share of its size; 1.5 fills the corners.
        second_lesion: Share of the frames with a second lesion, of the smallest size of the site.
        lesion_free: Share of the frames without any.
    """

    name: str
    radii: tuple[float, float]
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    aperture: float = 1.5
    second_lesion: float = 0.1
    lesion_free: float = 0.08


SITES = (
    PhantomSite("Alder", radii=(0.10, 0.22), cast=(1.05, 0.97, 0.92)),
    PhantomSite("Birch", radii=(0.06, 0.17), cast=(0.95, 1.0, 1.05), aperture=1.06),
    PhantomSite("Cedar", radii=(0.032, 0.075), cast=(0.98, 0.92, 0.80)),
)
"""The default hospitals: large lesions, mixed ones in a round image, and mostly small ones."""


def looks_like(source: Path) -> bool:
    """Whether a folder was filled by `generate`."""
    return (source / MANIFEST_FILE).is_file()


def find_cases(source: Path) -> list[Case]:
    """Finds the cases of a phantom, which is generated first where the folder is absent or empty.

    Raises:
        DataError: The folder holds something else, or a phantom of a newer version.
    """
    if not source.exists() or (source.is_dir() and not any(source.iterdir())):
        generate(source)
    if not looks_like(source):
        found = contents(source) if source.is_dir() else "a file"
        raise DataError(f"{source}: is or holds {found}; expected {LAYOUT}")
    _require_readable(source / MANIFEST_FILE)
    return folder_layout.find_cases(source)


def generate(
    folder: Path, *, seed: int = 0, sites: Sequence[PhantomSite] = SITES, cases_per_site: int = 50, size: int = 256
) -> None:
    """Fills a folder with generated sites in the layout of the `folder` adapter; equal arguments give equal bytes.

    Args:
        folder: Absent or empty; it appears all at once when everything is there.
        seed: Seed of everything drawn.
        sites: The hospitals.
        cases_per_site: Frames per site, at least 1.
        size: Height and width of the frames in pixels, at least 32.

    Raises:
        ConfigError: No site, two of one name, too few frames or too small ones.
        DataError: The folder holds something already.
    """
    if not sites or len({site.name for site in sites}) < len(sites) or cases_per_site < 1 or size < 32:
        raise ConfigError(
            f"phantom: expected sites of different names, at least 1 case per site and a size of at least 32; "
            f"got {[site.name for site in sites]}, {cases_per_site} and {size}"
        )
    with appearing(folder) as partial:
        _fill(partial, seed, sites, cases_per_site, size)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Gives a folder to be filled, which takes its place in one step when all is there.

    Args:
        folder: Absent or empty.

    Raises:
        DataError: The folder holds something already.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; choose a new folder for the phantom")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(folder: Path, seed: int, sites: Sequence[PhantomSite], cases_per_site: int, size: int) -> None:
    frames = [frame for site in sites for frame in _frames(site, seed, cases_per_site)]
    for site in sites:
        for kind in ("images", "masks"):
            (folder / site.name / kind).mkdir(parents=True)
    for frame in frames:
        frame.write(folder, seed, size)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("site", "case", "patient"))
    rows.writerows((frame.site, frame.case, frame.patient) for frame in frames)
    (folder / folder_layout.PATIENTS_FILE).write_text(table.getvalue(), encoding="utf-8")
    arguments = {"seed": seed, "cases_per_site": cases_per_site, "size": size, "sites": list(map(asdict, sites))}
    write_json(folder / MANIFEST_FILE, {"format": _FORMAT, **arguments})


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame before it is drawn."""

    site: str
    case: str
    patient: str
    look: Look

    def write(self, folder: Path, seed: int, size: int) -> None:
        """Draws and saves image and mask."""
        image, mask = draw(self.look, size, _generator(seed, self.site, self.case))
        for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
            Image.fromarray(pixels).save(folder / self.site / kind / f"{self.case}.png", compress_level=1)


def _frames(site: PhantomSite, seed: int, count: int) -> Iterator[_Frame]:
    """Frames of one patient after the other, 1 to 4 of each, which share the mucosa and the kind of lesion."""
    rng = _generator(seed, site.name)
    number, patient = 0, 0
    while number < count:
        patient += 1
        redness, tint = rng.uniform(-0.1, 0.1), rng.uniform(0.24, 0.44)
        typical = rng.uniform(0, 1)
        for _ in range(min(int(rng.integers(1, _MOST_FRAMES_PER_PATIENT + 1)), count - number)):
            number += 1
            radii = _radii(site, typical, rng)
            look = Look(radii, site.cast, site.aperture, redness, tint)
            yield _Frame(site.name, f"{site.name}-{number:04d}", f"P{patient:03d}", look)


def _radii(site: PhantomSite, typical: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Radii of the lesions of a frame, near those typical of the patient (0 smallest of the site, 1 largest)."""
    smallest, largest = site.radii
    position = float(np.clip(typical + rng.normal(0, 0.12), 0, 1))
    first = smallest * (largest / smallest) ** position
    kind = rng.uniform(0, 1)
    if kind < site.lesion_free:
        return ()
    return (first, smallest) if kind > 1 - site.second_lesion else (first,)


def _generator(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _require_readable(manifest: Path) -> None:
    try:
        version = json.loads(manifest.read_text(encoding="utf-8"))["format"]
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{manifest}: is damaged; delete {manifest.parent}, and it is generated again") from error
    if version != _FORMAT:
        raise DataError(f"{manifest}: format {version}, this version of fedgs reads {_FORMAT}; update fedgs")
