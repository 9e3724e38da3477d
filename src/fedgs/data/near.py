"""Near duplicates: frames that show the same picture although their pixels differ.

A frame is hashed by the signs of its lowest cosine frequencies. Two frames are near duplicates where their hashes
differ in few bits; near duplicates of near duplicates are of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fedgs.data.images import as_picture

__all__ = ["MOST_BITS", "MOST_COARSE_BITS", "hash_distance", "near_groups", "near_hash", "near_pairs"]

MOST_BITS = 80
"""Near duplicates differ in at most so many of the 255 bits of their hashes.

Measured on 1,449 frames of five hospitals (docs/adr/0005-near-duplicates.md): a frame that was encoded again as JPEG
of quality 20 or 50, scaled by 0.5 or 0.9, or made 15 % darker differs from itself in 4 to 9 bits (median), at most 26
(99 %) and 68 (all). Of 876,203 pairs of different patients or hospitals the nearest three
differ in 80, 84 and 85.
"""

MOST_COARSE_BITS = 11
"""And in at most so many of the 63 bits of the lowest frequencies, which alone lead the search.

The copies named above differ in at most 6 of them. Of the 876,203 pairs of different patients or hospitals one lies
within 11 (it differs in 97 of all bits), so that none meets both conditions. Of the other pairs 16 do, and each shows
one scene.
"""

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]
Wanted = Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.bool_]]

_GRID = 128
_SQUARE = 32
_FREQUENCIES, _COARSE = 16, 8
_LEFT_OUT = 0.2
_DARK, _LIT = 0.2, 0.4
_LEAST_CONTRAST = 4.0
_WORDS, _BANDS, _BAND_BITS = 16, 4, 16
# At most 11 differing bits over four bands leave one band with at most 2.
_BAND_DISTANCE = MOST_COARSE_BITS // _BANDS
_CANDIDATES, _FEW = 2**21, 256
_ONES = np.array([value.bit_count() for value in range(2**_BAND_BITS)], dtype=np.uint8)
_LOW = np.add.outer(np.arange(_FREQUENCIES) // _COARSE, np.arange(_FREQUENCIES) // _COARSE).astype(bool)
_ORDER = np.argsort(_LOW.ravel(), kind="stable")


def near_hash(image: NDArray[np.uint8]) -> str:
    """Hashes what a frame shows, so that a copy of it that was encoded or scaled anew has nearly the same hash.

    The frame's brightness, averaged down to 32 x 32, is transformed by a discrete cosine transform, of which the signs
    of the 16 x 16 lowest frequencies are kept; a factor on all levels leaves them alone. Only the middle of the view is
    looked at. Along each axis it begins and ends where 20 % and 80 % of the lit pixels have passed, which leaves out
    dark borders, however wide, and most of what a device draws beside the view, alike for all its frames.

    What changes dark and bright levels unlike (an offset, contrast, gamma) or adds a bright border moves the view, and
    many such copies are missed (docs/adr/0005-near-duplicates.md).

    Args:
        image: (H, W, C), uint8, C = 1 or 3.

    Returns:
        64 hexadecimal digits, the lowest frequencies first; empty for a frame that is black or nearly constant there,
        which would resemble every other such frame.
    """
    height, width = image.shape[:2]
    picture = as_picture(image).convert("L")
    steps = max(1, width // (2 * _GRID)), max(1, height // (2 * _GRID))
    picture = (picture.reduce(steps) if max(steps) > 1 else picture).resize((_GRID, _GRID), Image.Resampling.BOX)
    square = np.asarray(picture.resize((_SQUARE, _SQUARE), Image.Resampling.BILINEAR, box=_view(picture)), np.float64)
    if square.std() < _LEAST_CONTRAST:
        return ""
    waves = dctn(square, norm="ortho")[:_FREQUENCIES, :_FREQUENCIES]
    return np.packbits((waves > 0).ravel()[_ORDER]).tobytes().hex()


def near_pairs(hashes: Sequence[str]) -> NDArray[np.intp]:
    """Finds all near duplicates.

    Exact, without comparing all with all: hashes whose first 64 bits differ in at most 11 have a quarter of these in
    which they differ in at most 2, and such quarters are looked up.

    Args:
        hashes: By `near_hash`; an empty one is no near duplicate of anything.

    Returns:
        (pairs, 2): positions in `hashes`, the lower one first, sorted.
    """
    rows = np.array([row for row, text in enumerate(hashes) if text], dtype=np.intp)
    found = [np.empty((0, 2), dtype=np.intp)]
    found += [np.stack(pair, axis=1) for pair in _near(_words([hashes[row] for row in rows]))]
    return rows[np.unique(np.concatenate(found), axis=0)]


def near_groups(hashes: Sequence[str]) -> list[int | None]:
    """Tells which frames are near duplicates of each other, directly or by way of others.

    Args:
        hashes: By `near_hash`.

    Returns:
        Per frame the lowest position in its group, None where it has no near duplicate.
    """
    texts, first, which, counts = np.unique(
        np.array(hashes, dtype=np.str_), return_index=True, return_inverse=True, return_counts=True
    )
    filled = np.flatnonzero(texts != "")
    labels = np.arange(len(texts))

    def apart(one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Pairs that are connected already are passed over, else many frames of one scene would cost their square."""
        return np.asarray(labels[filled[one]] != labels[filled[other]])

    for one, other in _near(_words(texts[filled].tolist()), apart):
        links = coo_array((np.ones(len(one)), (labels[filled[one]], labels[filled[other]])), shape=(len(texts),) * 2)
        labels[:] = connected_components(links, directed=False)[1][labels]
    lowest = np.full(len(texts), len(hashes))
    np.minimum.at(lowest, labels, first)
    sizes = np.bincount(labels, weights=counts, minlength=len(texts))
    has_twin = (sizes[labels] > 1) & (texts != "")
    return [int(lowest[labels[text]]) if has_twin[text] else None for text in which.tolist()]


def _near(words: NDArray[np.uint16], wanted: Wanted = lambda one, other: np.ones(len(one), bool)) -> Iterator[Pairs]:
    """Near pairs among the candidates that are wanted, in blocks; a pair may come up several times."""
    for band in range(_BANDS):
        for one, other in _candidates(words[:, band]):
            kept = wanted(one, other)
            one, other = one[kept], other[kept]
            coarse = _distance(words[one, :_BANDS], words[other, :_BANDS]) <= MOST_COARSE_BITS
            one, other = one[coarse], other[coarse]
            near = _distance(words[one], words[other]) <= MOST_BITS
            if near.any():
                yield one[near], other[near]


def hash_distance(one: str, other: str) -> int:
    """Number of bits in which two hashes differ.

    >>> hash_distance("0f" * 32, "0e" * 32)
    32
    """
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _view(picture: Image.Image) -> tuple[float, float, float, float]:
    """The middle of the lit part: left, top, right and bottom in pixels, moving smoothly with the picture."""
    levels = np.asarray(picture, dtype=np.float64)
    # Weighted by itself, so that neither a dark border nor the exposure counts.
    brightness = (levels**2).sum() / max(levels.sum(), 1)
    lit = np.clip((levels - _DARK * brightness) / max((_LIT - _DARK) * brightness, 1e-9), 1e-3, 1)
    (left, right), (top, bottom) = (_middle(lit.sum(axis)) for axis in (0, 1))
    return left, top, right, bottom


def _middle(mass: NDArray[np.float64]) -> tuple[float, float]:
    passed = np.concatenate(([0.0], np.cumsum(mass)))
    start, end = np.interp([_LEFT_OUT * passed[-1], (1 - _LEFT_OUT) * passed[-1]], passed, np.arange(len(passed)))
    return float(start), float(end)


def _words(hashes: Sequence[str]) -> NDArray[np.uint16]:
    """(hashes, 16): the bits of each in words; the first four are the lowest frequencies."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint16).reshape(len(hashes), _WORDS)


def _distance(one: NDArray[np.uint16], other: NDArray[np.uint16]) -> NDArray[np.int64]:
    return np.asarray(_ONES[one ^ other].sum(axis=1), dtype=np.int64)


def _candidates(keys: NDArray[np.uint16]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs of positions, the lower one first, whose keys differ in at most `_BAND_DISTANCE` bits; in blocks."""
    if len(keys) <= _FEW:  # Then comparing all with all is faster than looking anything up.
        yield np.triu_indices(len(keys), 1)
        return
    order = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[order], np.arange(2**_BAND_BITS + 1))
    for flipped in range(_BAND_DISTANCE + 1):
        for bits in combinations(range(_BAND_BITS), flipped):
            partners = (keys ^ np.uint16(sum(1 << bit for bit in bits))).astype(np.intp)
            counts = starts[partners + 1] - starts[partners]
            # Blocks bound the memory where many frames resemble each other.
            blocks = np.flatnonzero(np.diff(np.cumsum(counts) // _CANDIDATES)) + 1
            for rows in np.split(np.arange(len(keys)), blocks):
                many = counts[rows]
                one = np.repeat(rows, many)
                within = np.arange(len(one)) - np.repeat(np.cumsum(many) - many, many)
                other = order[np.repeat(starts[partners[rows]], many) + within]
                yield one[one < other], other[one < other]
