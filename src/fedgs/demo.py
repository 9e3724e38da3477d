"""What ``fedgs demo`` trains: two algorithms on generated images, small enough for two cores and four minutes."""

from __future__ import annotations

from pathlib import Path

from fedgs.config import RunConfig, configure

__all__ = ["DEMO_ALGORITHMS", "demo_config"]

DEMO_ALGORITHMS = ("fedavg-published", "fedgs")


def demo_config(algorithm: str, data: Path) -> RunConfig:
    """Gives the settings of the demo's run.

    Args:
        algorithm: Name of the algorithm.
        data: Folder of the phantom; it is generated there when missing.
    """
    return configure(
        data=str(data),
        adapter="phantom",
        algorithm=algorithm,
        size=64,
        model_options={"norm": "instance"},
        rounds=24,
        local_epochs=2,
        lr=2e-3,
        evaluate_every=4,
    )
