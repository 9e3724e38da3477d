"""The network of a run as it leaves the package: from images to probabilities, and nothing else."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fedgs.core import load
from fedgs.errors import ConfigError, ExportError, TrainingError, unknown_choice
from fedgs.finished import Finished
from fedgs.models import segment
from fedgs.models.instance_norm import with_plain_instance_norm
from fedgs.own import own_in, parts_of_sites, personal_in
from fedgs.scoring import networks_for

__all__ = [
    "TOLERANCE",
    "Probabilities",
    "checksum_of",
    "exported",
    "load_network",
    "plainly",
    "quiet",
    "require_parity",
    "reason_of",
]

TOLERANCE = 1e-4
"""How far a probability may be off after the export."""

_QUIET: Mapping[str, type[Warning]] = {
    ".*isinstance.treespec, LeafSpec.*is deprecated": FutureWarning,  # of torch, when it copies a program
    ".*torch.jit.* is deprecated": DeprecationWarning,  # what MONAI Label and Deploy load is TorchScript all the same
    ".*__array_wrap__ must accept context": DeprecationWarning,  # of MONAI's SwinUNETR, when it is traced
}


class Probabilities(nn.Module):
    """Maps images (B, C, H, W) to probabilities (B, classes, H, W), whatever the network gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Gives probabilities, float32."""
        return segment(self.network, images)


def load_network(finished: Finished, site: str | None) -> nn.Module:
    """Gives the network of a run with the weights of its checkpoint.

    Args:
        finished: The run.
        site: Whose own parts are taken; None where hospitals share all that segments.

    Raises:
        ConfigError: Hospitals have networks of their own and none of them is named, or one that is not among them; or
            one is named although they share theirs.
    """
    network, state = finished.network(), finished.state
    shared = parts_of_sites(network)  # of an image that is taken apart, what makes it again is not exported
    kept = {name for name, memory in state.memories.items() if personal_in(memory) or own_in(memory).keys() - shared}
    if site is None and kept:
        raise ConfigError(
            f"algorithm '{finished.config.algorithm.algorithm}' leaves every hospital a network of its own; "
            f"say whose with --site: {', '.join(sorted(kept))}"
        )
    if site is not None and not kept:
        raise ConfigError("all hospitals of this run segment by one network; leave --site out")
    if site is not None and site not in kept:
        raise unknown_choice("site", site, kept)
    own = next(iter(networks_for(state, site or "").values()), {})
    load(network, state.server, own)
    return network.eval().requires_grad_(False)


def checksum_of(network: nn.Module) -> str:
    """Gives the SHA-256 of a network's weights and buffers by name, whatever file they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plainly(network: nn.Module) -> Probabilities:
    """Gives a network in the form that every exporter takes; its layout of memory changes in place."""
    contiguous: nn.Module = with_plain_instance_norm(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Probabilities(contiguous).eval()


def exported(network: nn.Module, images: Tensor) -> ExportedProgram:
    """Gives the graph of a network, of any number of images of one size, with no trace of where it was made.

    Args:
        network: In evaluation mode on the CPU; its layout of memory changes.
        images: An example, (2, C, H, W).

    Raises:
        ExportError: What the network does cannot be written as a graph.
    """
    plain = plainly(network)
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(plain, (images,), dynamic_shapes=({0: batch},))
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise ExportError(
            f"the network cannot be written as a graph for any number of images ({reason_of(error)}); train one whose "
            "steps do not depend on the values of an image"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def reason_of(error: BaseException) -> str:
    """Gives the first line of what an exporter says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200] if lines else ''}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the warnings that exporters are known to give and that nobody who exports can do anything about."""
    with warnings.catch_warnings():
        for message, category in _QUIET.items():
            warnings.filterwarnings("ignore", message, category)
        yield


def require_parity(expected: Tensor, found: Tensor, runtime: str) -> float:
    """Compares probabilities before and after the export.

    Args:
        expected: By the network of the run.
        found: By what was written.
        runtime: What computed them, for messages.

    Returns:
        The largest difference.

    Raises:
        TrainingError: The network itself gives no numbers.
        ExportError: They differ by more than `TOLERANCE`.
    """
    if not expected.isfinite().all():
        raise TrainingError(
            "expected a probability per pixel, the network gave what is no number; its training has diverged: take "
            "another --checkpoint, or train again with a smaller --lr"
        )
    gap = float((expected - found).abs().max()) if expected.shape == found.shape else float("inf")
    if not gap <= TOLERANCE:
        raise ExportError(
            f"{runtime} gives other probabilities than the network (expected a difference of at most {TOLERANCE:g}, "
            f"got {gap:.3g}), so nothing was written; try another --format, or another version of torch or {runtime}"
        )
    return gap
