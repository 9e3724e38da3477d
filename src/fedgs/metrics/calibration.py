"""Whether a probability means what it says, near the lesion: far from it nearly everything is certain and right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedgs.errors import DataError, ShapeError
from fedgs.metrics.masks import Mask, box_around, require_pair

__all__ = ["calibration_error"]


def calibration_error(
    probability: NDArray[np.floating],
    prediction: Mask,
    truth: Mask,
    *,
    band: int,
    bins: int = 15,
) -> float:
    """Expected calibration error (ECE) of the foreground around prediction and truth.

    ECE = sum over bins b of  n_b / n * | mean probability in b - share of true foreground in b |

    over the n elements that lie in prediction or truth or at most `band` rows, columns (and slices) away from them. The
    bins divide [0, 1] evenly; each holds its lower end, the last one 1 as well.

    Args:
        probability: Of foreground, (H, W) or (D, H, W), in [0, 1].
        prediction: Predicted foreground, the same shape, bool.
        truth: True foreground, the same shape, bool.
        band: Width of the band, in elements, at least 0.
        bins: How many, at least 1.

    Returns:
        In [0, 1]; nan where prediction and truth are both empty, for then there is no band.

    Raises:
        ShapeError: Shapes differ, or a mask is not bool.
        DataError: A probability is not a number in [0, 1], or `band` or `bins` is too small.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, of the probability of one class; the band
    after Maier-Hein, Reinke et al., Nature Methods 21 (2024), 195-212, who warn of background that outweighs all else.
    """
    require_pair(prediction, truth)
    if band < 0 or bins < 1:
        raise DataError(f"expected a band of at least 0 elements and at least 1 bin, got {band} and {bins}")
    if probability.shape != truth.shape:
        raise ShapeError(f"expected probabilities of the masks' shape {truth.shape}, got {probability.shape}")
    wrong = ~((probability >= 0) & (probability <= 1))
    if wrong.any():
        raise DataError(
            f"expected probabilities in [0, 1], but {int(wrong.sum())} of {wrong.size} are not, such as "
            f"{probability[wrong][0]}; take the softmax or sigmoid of logits, and look for a network that diverged"
        )
    marked = prediction | truth
    if not marked.any():
        return float("nan")
    box = box_around(marked, margin=band)
    near = ndimage.maximum_filter(marked[box].view(np.uint8), size=2 * band + 1, mode="constant") > 0
    given = probability[box][near].astype(np.float64)
    bin_of = np.minimum((given * bins).astype(np.intp), bins - 1)
    expected, observed = (np.bincount(bin_of, values, minlength=bins) for values in (given, truth[box][near]))
    return float(np.abs(expected - observed).sum() / given.size)
