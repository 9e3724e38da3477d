"""What a run folder tells, as frozen records; pictures are named by their path and not loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "ADAPTED_MARK",
    "PARTS",
    "Adapted",
    "Checkpoint",
    "External",
    "Figure",
    "Figures",
    "Mean",
    "Overlay",
    "Part",
    "Round",
    "Run",
    "Scores",
    "Site",
    "SiteRound",
    "SmallRule",
]

PARTS = ("test_in", "test_out", "external", "validation")
"""Parts of the data that a run may have scores for, and which may stand side by side."""

ADAPTED_MARK = (
    "adapted: statistics re-estimated from the hospital's own unlabelled images; not comparable with the others"
)
"""What stands wherever adapted scores are shown."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over images, or over lesions, and how many they are; None where there is none."""

    mean: float | None
    n: int


Scores = Mapping[str, Mean]
"""A mean per stratum; the keys are `fedgs.metrics.table.STRATA`, less `dice_m` in runs of earlier versions."""


@dataclass(frozen=True, slots=True)
class Part:
    """Scores of one part of the data.

    Attributes:
        pooled: Means over all its images.
        sites: The same per site.
        other: Scores beside Dice by name, see `fedgs.metrics.catalogue.METRICS`; only those that were computed.
    """

    pooled: Scores
    sites: Mapping[str, Scores]
    other: Scores = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True when the part holds no image."""
        return self.pooled["dice"].n == 0


@dataclass(frozen=True, slots=True)
class SmallRule:
    """What counts as a small lesion: a rule (``components`` or ``total``), a share of the image, and eta's base."""

    kind: str
    fraction: float
    base: float


@dataclass(frozen=True, slots=True)
class Site:
    """What one site brought: counts of cases, by property and by part of the split."""

    cases: int
    patients_known: int
    lesion_free: int
    small: int
    tiny: int
    train: int
    validation: int
    test_in: int
    test_out: int


@dataclass(frozen=True, slots=True)
class SiteRound:
    """What one site did in one round; the norm of its direction is in units of the weights.

    `cosine` is that of its direction and the same with every eta 1; None where a run of an earlier version lacks it.
    """

    steps: int
    examples: int
    loss: float
    mean_eta: float
    direction_norm: float
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One finished round; `validation` is None where it was not evaluated."""

    number: int
    seconds: float
    sites: Mapping[str, SiteRound]
    validation: Part | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The round that a checkpoint was kept from, and its scores by part."""

    round: int
    parts: Mapping[str, Part]


@dataclass(frozen=True, slots=True)
class Overlay:
    """A test case with a small lesion: what it is and where its three pictures lie.

    Attributes:
        part: Part of the split.
        site: Name of the site.
        case: Name of the case within its site.
        lesion_area: Pixels of the 512 x 512 mask.
        dice: Dice of the run's last round, in [0, 1].
        image: JPEG.
        truth: PNG, grey, foreground 255.
        prediction: PNG like `truth`.
    """

    part: str
    site: str
    case: str
    lesion_area: int
    dice: float
    image: Path
    truth: Path
    prediction: Path

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same case in another run."""
        return self.part, self.site, self.case


@dataclass(frozen=True, slots=True)
class External:
    """What scores of external hospitals are of.

    Attributes:
        checkpoint: Name of the checkpoint.
        round: Its round.
        known_cases: Images that the run was trained or selected on, which are no external test.
    """

    checkpoint: str
    round: int
    known_cases: int


@dataclass(frozen=True, slots=True)
class Adapted:
    """Scores of networks that were adapted to the hospital that they are scored on; not one of the `PARTS`.

    Attributes:
        of: What they are of.
        scores: The scores.
    """

    of: External
    scores: Part


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture that `fedgs explain` made.

    Attributes:
        kind: ``look``, ``content`` or ``styles``.
        title: What is seen.
        path: PNG.
        about: What was written beside it.
    """

    kind: str
    title: str
    path: Path
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Figures:
    """What `fedgs explain` made: the pictures and the checkpoint and data that they are of."""

    checkpoint: str
    round: int
    source: str
    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, as its folder tells it.

    Attributes:
        name: Name of the folder.
        source: Name of the data's folder.
        patients_unknown: Cases whose patient is not known.
        leaks: What stands in more than one part of the split: known "patients", "duplicates" (images with identical
            copies) and groups of "near_duplicates", where they were counted.
        parts: Scores of the last round by part; parts without images are absent.
        crossed: Where sites share nothing, scores of test images by site of the network and site of the images.
        best: Round with the best validation Dice over all images.
        best_small: Likewise for small lesions; None where validation has none.
        external: What the external scores are of; None where there are none.
        adapted: Scores of external hospitals after adapting to them, kept apart; None where there are none.
        explained: Figures of what the network looks at; None where there are none.
        split: Checksum of the split; equal for equal splits.
        config: The resolved settings, nested as in config.toml.
        environment: Versions and machine, as in environment.json.
    """

    name: str
    algorithm: str
    model: str
    size: int
    seed: int
    fold: int
    unseen_site: str | None
    rounds: int
    source: str
    adapter: str
    small_rule: SmallRule
    sites: Mapping[str, Site]
    patients_unknown: int
    leaks: Mapping[str, int]
    parts: Mapping[str, Part]
    crossed: Mapping[str, Mapping[str, Scores]]
    best: Checkpoint | None
    best_small: Checkpoint | None
    external: External | None
    adapted: Adapted | None
    history: Sequence[Round]
    overlays: Sequence[Overlay]
    explained: Figures | None
    split: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def published(self) -> Mapping[str, str] | None:
        """File, checksum and form of a published checkpoint that this is; None for what was trained here."""
        origin: Mapping[str, str] | None = self.environment.get("published")
        return origin
