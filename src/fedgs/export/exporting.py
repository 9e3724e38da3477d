"""``fedgs export``: a finished run's network as a file or folder that works without this package."""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedgs.assembly import resolve
from fedgs.config import configure
from fedgs.errors import ConfigError, unknown_choice
from fedgs.export.bundle import write_bundle
from fedgs.export.card import as_markdown, hashes_of, make_card
from fedgs.export.deployed import exported, load_network, require_parity
from fedgs.export.onnx_file import OPSET, require_onnx, run_onnx, write_onnx
from fedgs.export.preprocessing import Preprocessing
from fedgs.export.program import run_program, write_program
from fedgs.export.sample import Sample, read_sample
from fedgs.files import TEMPORARY_SUFFIX, write_atomically, write_json
from fedgs.finished import read_finished
from fedgs.models import segment
from fedgs.run_folder import CHECKPOINTS, RunFolder

__all__ = ["FORMATS", "export_run"]

FORMATS: Mapping[str, str] = {"onnx": ".onnx", "torch-export": ".pt2", "monai-bundle": ""}
"""Forms of an export, and how the name of the file ends; a bundle is a folder."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What is written: the network, its card, and images to check it on."""

    network: torch.nn.Module
    preprocessing: Preprocessing
    sample: Sample
    card: dict[str, Any]


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    form: str,
    checkpoint: str = "best",
    site: str | None = None,
    licence: str | None = None,
    comparison: Path | str | None = None,
) -> Mapping[str, Any]:
    """Writes a finished run's network, with its model card, for use without this package.

    What was written is opened again and compared with the network on two images before it gets its name.

    Args:
        run: Folder of the run; nothing is written to it.
        out: File that ends in ``.onnx`` or ``.pt2``, whose card gets the same name with ``.card.md`` and ``.card.json``
            after it; or the bundle's folder.
        form: ``"onnx"``, ``"torch-export"`` or ``"monai-bundle"``.
        checkpoint: ``"best"``, ``"best_small"`` or ``"last"``.
        site: Whose network, where hospitals have networks of their own.
        licence: Of the weights; the card says "not stated" without it.
        comparison: comparison.json of the study that the run's settings are of; its intervals go on the card.

    Returns:
        The card.

    Raises:
        ConfigError: No run, an unfinished one, an unknown form, checkpoint or site, or a place that is taken.
        CheckpointError: The run or the comparison was altered.
        ExportError: The network cannot be written in this form, or gives other probabilities afterwards.
        TrainingError: The network gives no numbers.
        MissingExtraError: onnx, onnxruntime or onnxscript is not installed.
    """
    out = Path(out)
    if form not in FORMATS:
        raise unknown_choice("format", form, FORMATS)
    if form == "onnx":
        require_onnx()
    _require_place(out, form)
    folder = RunFolder(Path(run))
    config = resolve(configure(folder.config(), device="cpu"))
    if checkpoint not in CHECKPOINTS:
        raise unknown_choice("checkpoint", checkpoint, CHECKPOINTS)
    finished = read_finished(folder, config, checkpoint)
    finished.require_images("export")
    network = load_network(finished, site)
    given = Path(comparison) if comparison else None
    card = make_card(finished, network, checkpoint=checkpoint, site=site, licence=licence, comparison=given)
    preprocessing = Preprocessing(config.data.size, finished.channels)
    sample = read_sample(config, folder.split(), finished.channels)
    work = _Work(network, preprocessing, sample, card)
    with _staged(out) as part:
        part.mkdir()
        if form == "monai-bundle":
            return _publish_bundle(part, out, work, licence)
        return _publish_file(part, out, work, form)


def _publish_file(part: Path, out: Path, work: _Work, form: str) -> Mapping[str, Any]:
    """Writes model and card into a folder of their own, then moves them; the model comes last and counts."""
    images = work.preprocessing.apply(work.sample.images)
    with torch.no_grad():
        expected = segment(work.network, images)
    described = _described(work.card)
    program, path = exported(work.network, images), part / out.name
    if form == "onnx":
        runtime, run_file = f"onnxruntime (opset {OPSET})", run_onnx
        write_onnx(path, program, images, described)
    else:
        runtime, run_file = "torch.export", run_program
        write_program(path, program, described)
    gap = max(require_parity(expected[:count], run_file(path, images[:count]), runtime) for count in (2, 1))
    parity = {"runtime": runtime, "sample": work.sample.told, "largest_difference": gap}
    card = {**work.card, "parity": parity, "files": hashes_of(part)}
    texts = _beside(part / out.name)
    write_json(texts[1], card)
    write_atomically(texts[0], as_markdown(card))
    _move([*zip(texts, _beside(out), strict=True), (path, out)])
    return card


def _publish_bundle(part: Path, out: Path, work: _Work, licence: str | None) -> Mapping[str, Any]:
    card = write_bundle(part, work.network, work.preprocessing, work.sample, work.card, name=out.name, licence=licence)
    part.rename(out)
    return card


def _described(card: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the file itself: how to use it, and whose it is."""
    names = (
        "preprocessing",
        "network",
        "training",
        "intended_use",
        "licence_of_weights",
        "weights_sha256",
        "written_by",
    )
    return {name: card[name] for name in names}


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.card.md"), path.with_name(f"{path.name}.card.json")


def _require_place(out: Path, form: str) -> None:
    suffix = FORMATS[form]
    if suffix and out.suffix.lower() != suffix:
        raise ConfigError(f"{out}: --format {form} writes a file; give --out a name that ends in {suffix}")
    if not suffix and out.suffix.lower() in FORMATS.values() and out.suffix:
        raise ConfigError(f"{out}: a bundle is a folder; give --out a name without {out.suffix}")
    for path in (out, *(_beside(out) if suffix else ())):
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path}: exists already; choose another --out, or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder; make it, or choose another --out")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Gives the name of a folder beside the place; whatever is left in it at the end is removed."""
    part = out.with_name(f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        yield part
    except RuntimeError as error:  # of torch's own writers, where the disk is full
        if shutil.disk_usage(out.parent).free < 2**20 or "file write failed" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(out)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move(pairs: list[tuple[Path, Path]]) -> None:
    """Moves files to their names; when one cannot be, those before it are taken back."""
    done: list[Path] = []
    try:
        for source, target in pairs:
            source.rename(target)
            done.append(target)
    except BaseException:
        for target in done:
            target.unlink(missing_ok=True)
        raise
