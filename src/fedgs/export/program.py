"""A network as a .pt2 file, which torch alone opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fedgs.export.deployed import quiet

__all__ = ["DESCRIPTION", "run_program", "write_program"]

DESCRIPTION = "fedgs.json"
"""Name of what describes the network inside the file; `torch.export.load(path, extra_files={DESCRIPTION: ""})`."""


def write_program(path: Path, program: ExportedProgram, described: Mapping[str, Any]) -> None:
    """Writes one file, weights and description included."""
    with quiet():
        torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(described, indent=2)})


def run_program(path: Path, images: Tensor) -> Tensor:
    """Gives the probabilities that the file computes."""
    with quiet(), torch.no_grad():
        probabilities: Tensor = torch.export.load(path).module()(images)
    return probabilities
