"""Writes tables and curves of a results page from the committed summary.json, scores.csv and rounds.jsonl of its runs.

    python docs/results/generate.py            # rewrites the pages and the curves
    python docs/results/generate.py --check    # fails if a table on a page is not what the runs say

A page `NAME.md` has its runs in the folder `NAME/`, the README in `polypgen-128/`. A table stands between
`<!-- table: KIND RUN... -->` and `<!-- end -->`, KIND being one of the functions in TABLES.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent
PARTS = {"test_out": "out-test", "test_in": "in-test", "validation": "validation"}
STRATA = {"dice": "Dice", "dice_n": "Dice-N", "dice_s": "Dice-S", "dice_t": "Dice-T", "dice_l": "Dice-L"}
BLOCK = re.compile(r"(<!-- table: (\w+) ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def mean(of: Mapping[str, Any]) -> str:
    return "-" if of["mean"] is None else f"{of['mean']:.3f} ({of['n']})"


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *body)]
    return "\n".join(lines) + "\n"


def scores(runs: Mapping[str, Path]) -> str:
    """Means after the last round, recomputed from scores.csv and held against summary.json."""
    body = []
    for part, title in PARTS.items():
        for path in runs.values():
            summary = json.loads((path / "summary.json").read_text())
            table = pd.read_csv(path / "scores.csv")
            last = table[(table["round"] == summary["round"]) & (table["part"] == part)]
            masks = {
                "dice": last["dice"] >= 0,
                "dice_n": last["lesion_area"] > 0,
                "dice_s": last["is_small"],
                "dice_t": last["is_tiny"],
                "dice_l": (last["lesion_area"] > 0) & ~last["is_small"],
            }
            for name, mask in masks.items():
                again = last.loc[mask, "dice"]
                stored = summary[part][name]
                if len(again) != stored["n"] or (len(again) and abs(again.mean() - stored["mean"]) > 1e-9):
                    raise SystemExit(f"{path}: scores.csv and summary.json disagree on {part} {name}")
            free = summary[part]["lesion_free"]
            body.append([title, summary["algorithm"], *(mean(summary[part][name]) for name in STRATA), mean(free)])
    return rows(["images", "algorithm", *STRATA.values(), "false alarms on lesion-free"], body)


def hospitals(runs: Mapping[str, Path]) -> str:
    """Dice-N and Dice-S per hospital after the last round."""
    summaries = [json.loads((path / "summary.json").read_text()) for path in runs.values()]
    body = []
    for part in ("test_in", "test_out"):
        for site in summaries[0][part]["sites"]:
            cells = [mean(s[part]["sites"][site][name]) for name in ("dice_n", "dice_s") for s in summaries]
            body.append([f"{site} ({PARTS[part]})", *cells])
    names = [s["algorithm"] for s in summaries]
    return rows(["hospital", *(f"{STRATA[k]} {name}" for k in ("dice_n", "dice_s") for name in names)], body)


def etas(runs: Mapping[str, Path]) -> str:
    """Mean scale and length of the direction per hospital, averaged over the rounds."""
    body = []
    for path in runs.values():
        records = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
        algorithm = json.loads((path / "summary.json").read_text())["algorithm"]
        for site in records[0]["sites"]:
            of_site = [record["sites"][site] for record in records]
            eta, length = (sum(r[k] for r in of_site) / len(of_site) for k in ("mean_eta", "direction_norm"))
            body.append([algorithm, site, f"{eta:.3f}", f"{length:.2f}", str(of_site[0]["steps"])])
    return rows(["algorithm", "hospital", "mean eta", "mean length of the direction", "steps per round"], body)


def unseen(runs: Mapping[str, Path]) -> str:
    """Means on the unseen hospital alone."""
    summaries = [json.loads((path / "summary.json").read_text()) for path in runs.values()]
    body = [[s["algorithm"], *(mean(s["test_out"][name]) for name in STRATA)] for s in summaries]
    return rows([f"unseen hospital {summaries[0]['unseen_site']}", *STRATA.values()], body)


TABLES: dict[str, Callable[[Mapping[str, Path]], str]] = {
    "scores": scores,
    "unseen": unseen,
    "hospitals": hospitals,
    "etas": etas,
}


def rendered(page: Path) -> str:
    """The page with every table made anew."""
    folder = HERE / "polypgen-128" if page.name == "README.md" else page.with_suffix("")

    def replace(match: re.Match[str]) -> str:
        runs = {name: folder / name for name in match[3].split()}
        return match[1] + TABLES[match[2]](runs) + match[4]

    return BLOCK.sub(replace, page.read_text())


def draw_curves(folder: Path, runs: Mapping[str, str]) -> None:
    """Validation Dice-N and Dice-S per round, as an SVG beside the runs."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "fedgs", "font.size": 9, "axes.spines.top": False}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
    for run, colour in runs.items():
        table = pd.read_csv(folder / run / "scores.csv").query("part == 'validation'")
        label = json.loads((folder / run / "summary.json").read_text())["algorithm"]
        for axis, title, chosen in (
            (axes[0], "Dice-N (all with a lesion)", table[table["lesion_area"] > 0]),
            (axes[1], "Dice-S (flagged small)", table[table["is_small"]]),
        ):
            series = chosen.groupby("round")["dice"].mean()
            axis.plot(series.index, series, color=colour, label=label)
            axis.set(title=f"{title}, n = {len(chosen) // len(series)}", xlabel="round", ylim=(0, 1))
            axis.spines["right"].set_visible(False)
    axes[0].set_ylabel("validation Dice")
    axes[0].legend(frameon=False)
    figure.savefig(folder / "curves.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    stale = []
    for page in (*sorted(HERE.glob("*.md")), HERE.parents[1] / "README.md"):
        text = rendered(page)
        if "--check" in sys.argv:
            stale += [page.name] if text != page.read_text() else []
        else:
            page.write_text(text)
    if stale:
        raise SystemExit(f"stale tables on {', '.join(stale)}; run: python docs/results/generate.py")
    if "--check" not in sys.argv:
        draw_curves(HERE / "polypgen-128", {"fedavg-published-unet": "#0072b2", "fedgs-unet": "#d55e00"})


if __name__ == "__main__":
    main()
