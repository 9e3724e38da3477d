"""One seed for every purpose, derived from the run's seed by names alone.

A seed depends on (seed, fold, round, site) and the like, never on the algorithm, a path, the clock or the order in
which sites train; two algorithms with equal settings therefore see the same batches.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["derive", "generator"]


def derive(seed: int, *parts: str | int) -> int:
    """Gives the seed that belongs to some names.

    Args:
        seed: The seed of the run.
        *parts: What the randomness is for, for instance ``"batches", fold, round, site``.

    Returns:
        An integer in [0, 2**63), equal on every machine and in every process.

    >>> derive(0, "batches", 1, "C1") == derive(0, "batches", 1, "C1") != derive(0, "batches", 1, "C2")
    True
    """
    text = "\0".join(f"{type(part).__name__}:{part}" for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: str | int) -> torch.Generator:
    """Gives a generator on the CPU that starts from `derive(seed, *parts)`."""
    return torch.Generator().manual_seed(derive(seed, *parts))
