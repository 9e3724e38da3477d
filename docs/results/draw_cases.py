"""Draws six flagged frames of the unseen hospital with the outlines of the expert and of two runs.

    python docs/results/draw_cases.py DATA BASELINE_RUN OTHER_RUN

From the highest over the median to the lowest mean Dice of the two runs; needs matplotlib and the whole run folders.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from PIL import Image

from fedgs.assembly import build_network, build_scorer
from fedgs.core import load
from fedgs.data.index import open_data
from fedgs.evaluation import Prediction
from fedgs.metrics.functional import confusion, dice
from fedgs.run_folder import RunFolder

mpl.use("agg")
from matplotlib import pyplot
from matplotlib.lines import Line2D

OUT = Path(__file__).parent / "polypgen-128" / "cases.png"
EXPERT, COLOURS = "#00c853", ("#0072b2", "#e69f00")
NAMES = ("FedAvg", "FedGS")


def main(data: Path, runs: list[Path]) -> None:
    """Predicts the flagged frames with both runs and draws six of them."""
    folders = [RunFolder(run) for run in runs]
    config = folders[0].config()
    index = open_data(data, size=config.data.size)
    table = index.table
    rows = table.index[(table["site"] == config.data.unseen_site) & table["is_small"]].tolist()
    predictions: dict[tuple[str, int], Prediction] = {}
    scores = pd.DataFrame(index=rows, columns=NAMES, dtype=float)
    for name, folder in zip(NAMES, folders, strict=True):
        model = build_network(folder.config(), index.channels)
        load(model, folder.load("last").server)
        for prediction in build_scorer(folder.config()).predict(model, index, rows):
            predictions[name, prediction.row] = prediction
            scores.loc[prediction.row, name] = dice(confusion(prediction.mask, prediction.truth))
    order = scores.mean(axis=1).sort_values().index
    count = len(order)
    chosen = [order[place] for place in (count - 1, count - 2, count * 3 // 4, count // 2, count // 4, 0)]
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
    for axis, row in zip(axes.flat, chosen, strict=True):
        with Image.open(index.source / table["image"][row]) as image:
            axis.imshow(image.convert("RGB").resize((512, 512)))
        axis.axis("off")
        axis.contour(predictions[NAMES[0], row].truth, [0.5], colors=EXPERT, linewidths=1.6)
        for name, colour in zip(NAMES, COLOURS, strict=True):
            if predictions[name, row].mask.any():
                axis.contour(predictions[name, row].mask, [0.5], colors=colour, linewidths=1.2)
        both = ", ".join(f"{name} {scores.loc[row, name]:.2f}" for name in NAMES)
        axis.set_title(f"lesion {table['lesion_area'][row] / 512**2:.1%} of the image\nDice: {both}", fontsize=8)
    lines = zip(("expert", *NAMES), (EXPERT, *COLOURS), strict=True)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(OUT, dpi=80)
    Image.open(OUT).convert("RGB").quantize(128).save(OUT, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
