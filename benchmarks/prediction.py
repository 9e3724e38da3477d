"""`fedgs predict` with the UTNet at 512 px, PNG in to PNG out, against the bare network on images that lie ready."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.inference import discs, trained
from benchmarks.measure import Row, against, announce, paired
from benchmarks.training_step import has_fast_bf16
from fedgs import models
from fedgs.data.augment import denormalise
from fedgs.evaluation import lesion_probabilities
from fedgs.prediction.networks import Member, Networks
from fedgs.prediction.options import PredictOptions
from fedgs.prediction.pipeline import Predicted, predict_sources
from fedgs.prediction.sources import find_inputs

BATCH, SIZE, WIDTH, HEIGHT = 4, 512, 1920, 1080


def run(*, quick: bool) -> Iterator[Row]:
    """Measures float32, and bf16 where the processor has it; quick at 256 px."""
    size, count = 256 if quick else SIZE, 3 * BATCH
    announce("a UTNet is trained for a moment, and frames are drawn")
    state = trained("utnet", 5 if quick else 20)
    with tempfile.TemporaryDirectory() as folder:
        source, images = Path(folder) / "frames", discs(torch.Generator().manual_seed(7), count, size).images
        _write(source, images)
        for precision in ("fp32", "bf16") if has_fast_bf16() else ("fp32",):
            model = models.build("utnet", in_channels=3, image_size=size)
            model.load_state_dict(state)
            autocast = torch.bfloat16 if precision == "bf16" else None
            member = Member(model.to(memory_format=torch.channels_last).eval(), precision, autocast, "")
            networks = Networks([member], size, 3, BATCH, torch.device("cpu"), tta=False)
            yield _row(networks, images, source, Path(folder) / precision, repeats=2 if quick else 3)


def _write(folder: Path, images: Tensor) -> None:
    """Writes images as PNG files of the size of an endoscope's frames."""
    folder.mkdir()
    for number, pixels in enumerate(denormalise(images).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")


def _row(networks: Networks, images: Tensor, source: Path, out: Path, repeats: int) -> Row:
    sources = find_inputs([source], out, PredictOptions()).sources
    marked = 0

    def predict() -> None:
        nonlocal marked
        outcomes = list(predict_sources(sources, networks, PredictOptions(), out))
        marked = sum(outcome.pixels for outcome in outcomes if isinstance(outcome, Predicted))

    found = paired({"ours": predict, "bare": lambda: _look(networks, images.split(BATCH))}, repeats=repeats, warmup=1)
    ours, bare = (found[way] / len(sources) for way in ("ours", "bare"))
    share = 100 * marked / (len(sources) * WIDTH * HEIGHT)
    what = f"predict, utnet {networks.size} px, {networks.members[0].precision}, an image from PNG to PNG"
    return against(what, ours, bare, at_most=1.15, note=f"{WIDTH} x {HEIGHT} pixels, {share:.1f} % marked")


@torch.inference_mode()
def _look(networks: Networks, batches: Sequence[Tensor]) -> None:
    (member,) = networks.members
    for batch in batches:
        lesion_probabilities(member.model, batch, member.autocast)
