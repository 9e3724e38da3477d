"""What a user may choose of how masks are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedgs.errors import ConfigError, unknown_choice
from fedgs.run_folder import CHECKPOINTS

__all__ = ["PredictOptions"]

_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How masks are made, and what is written beside them.

    Attributes:
        checkpoint: ``"best"``, ``"best_small"`` or ``"last"``.
        site: Hospital whose own parts of the network are taken; None for a hospital that the run does not know.
        tta: Average over the image and its flips (test-time augmentation).
        threshold: A pixel is lesion where its probability is above this, in (0, 1).
        min_lesion: Connected components of fewer pixels, at the input's own size, are dropped.
        largest_component: Keep the largest component of an input alone.
        precision: ``"fp32"`` or ``"bf16"``; None takes the run's.
        batch_size: Images per forward pass; None takes the run's.
        device: Where to compute; it need not be where the run was trained.
        overlay: Also write pictures with outlines.
        probabilities: Also write what the threshold was held against.

    Raises:
        ConfigError: A value cannot be.
    """

    checkpoint: str = "best"
    site: str | None = None
    tta: bool = False
    threshold: float = 0.5
    min_lesion: int = 0
    largest_component: bool = False
    precision: str | None = None
    batch_size: int | None = None
    device: str = "auto"
    overlay: bool = False
    probabilities: bool = False

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        if self.checkpoint not in CHECKPOINTS:
            raise unknown_choice("checkpoint", self.checkpoint, CHECKPOINTS)
        if self.precision not in (None, *_PRECISIONS):
            raise unknown_choice("precision", self.precision, _PRECISIONS)
        if not 0 < self.threshold < 1:
            raise ConfigError(f"--threshold must be a probability between 0 and 1, got {self.threshold}")
        if self.min_lesion < 0:
            raise ConfigError(f"--min-lesion must be a number of pixels, 0 or above, got {self.min_lesion}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")

    def of_masks(self) -> Mapping[str, Any]:
        """What decides how a mask comes out, for comparison; the network decides the rest."""
        names = ("checkpoint", "site", "tta", "threshold", "min_lesion", "largest_component")
        return {name: getattr(self, name) for name in names}
