"""Writes tables and curves of a results page from the committed summary.json, scores.csv and rounds.jsonl of its runs.

    python docs/results/generate.py            # rewrites the pages and the curves
    python docs/results/generate.py --check    # fails if a table on a page is not what the runs say

A page `NAME.md` has its runs in the folder `NAME/`, others as ELSEWHERE says. A table stands between
`<!-- table: KIND RUN... -->` and `<!-- end -->`, KIND being one of the functions in TABLES.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent
MIXED = HERE / "polypgen-mixed.csv"
"""Site and case of the images of PolypGen flagged small that hold a large lesion too, as their index tells."""
PARTS = {"test_out": "out-test", "test_in": "in-test", "validation": "validation"}
STRATA = {"dice": "Dice", "dice_n": "Dice-N", "dice_s": "Dice-S", "dice_t": "Dice-T", "dice_l": "Dice-L"}
LABELLED = {"disentanglement-128"}
"""Pages whose runs differ in more than the algorithm."""
ARMS = ("fedavg-published", "matched-global", "matched-site", "fedgs", "matched-gradient", "fedgs-gradient")
"""The order in which the arms of a study are shown; others follow by name."""
ELSEWHERE = {"README.md": "polypgen-128", "plan-a-study.md": "verdict-simulations"}
"""Folders of pages that are not results themselves."""
BLOCK = re.compile(r"(<!-- table: (\w+) ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def mean(of: Mapping[str, Any]) -> str:
    return "-" if of["mean"] is None else f"{of['mean']:.3f} ({of['n']})"


def summary_of(run: Path) -> dict[str, Any]:
    """What summary.json holds; with the images that have small and large lesions counted, where it is an older one."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    if "dice_m" not in summary["test_in"]:
        table = pd.read_csv(run / "scores.csv", dtype={"site": str, "case": str})
        table = table[table["round"] == summary["round"]].merge(pd.read_csv(MIXED, dtype=str))
        table = table.drop_duplicates(["part", "site", "case"])
        for part in PARTS:
            of_part = table[table["part"] == part]
            summary[part]["dice_m"] = {"n": len(of_part)}
            for site, means in summary[part]["sites"].items():
                means["dice_m"] = {"n": int((of_part["site"] == site).sum())}
    return summary


def small(means: Mapping[str, Any]) -> str:
    """Dice-S with how many of its images hold a large lesion too."""
    mixed = means["dice_m"]["n"]
    return (
        mean(means["dice_s"]).replace(")", f", {mixed} with a large one)")
        if means["dice_s"]["n"]
        else mean(means["dice_s"])
    )


def strata(means: Mapping[str, Any], names: Sequence[str] = tuple(STRATA)) -> list[str]:
    return [small(means) if name == "dice_s" else mean(means[name]) for name in names]


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *body)]
    return "\n".join(lines) + "\n"


def label(path: Path) -> str:
    """The algorithm of a run, with what the name of its folder adds to it."""
    algorithm = str(summary_of(path)["algorithm"])
    return f"{algorithm}, {path.name.removeprefix(algorithm).strip('-')}" if path.parent.name in LABELLED else algorithm


def scores(runs: Mapping[str, Path]) -> str:
    """Means after the last round, recomputed from scores.csv and held against summary.json."""
    body = []
    for part, title in PARTS.items():
        for path in runs.values():
            summary = summary_of(path)
            table = pd.read_csv(path / "scores.csv")
            last = table[(table["round"] == summary["round"]) & (table["part"] == part)]
            if "network" in last:  # where sites share nothing, a case is scored by several networks
                last = last.groupby(["site", "case"], as_index=False).agg(
                    {"dice": "mean"} | dict.fromkeys(("lesion_area", "is_small", "is_tiny"), "first")
                )
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
            body.append([title, label(path), *strata(summary[part]), mean(free)])
    return rows(["images", "algorithm", *STRATA.values(), "false alarms on lesion-free"], body)


def hospitals(runs: Mapping[str, Path]) -> str:
    """Dice-N and Dice-S per hospital after the last round."""
    summaries = [summary_of(path) for path in runs.values()]
    body = []
    for part in ("test_in", "test_out"):
        for site in summaries[0][part]["sites"]:
            of_site = [s[part]["sites"][site] for s in summaries]
            cells = [cell for name in ("dice_n", "dice_s") for means in of_site for cell in strata(means, [name])]
            body.append([f"{site} ({PARTS[part]})", *cells])
    names = [label(path) for path in runs.values()]
    return rows(["hospital", *(f"{STRATA[k]} {name}" for k in ("dice_n", "dice_s") for name in names)], body)


def etas(runs: Mapping[str, Path]) -> str:
    """Mean scale and length of the direction per hospital, averaged over the rounds."""
    body = []
    for path in runs.values():
        records = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
        for site in records[0]["sites"]:
            of_site = [record["sites"][site] for record in records]
            eta, length = (sum(r[k] for r in of_site) / len(of_site) for k in ("mean_eta", "direction_norm"))
            body.append([label(path), site, f"{eta:.3f}", f"{length:.2f}", str(of_site[0]["steps"])])
    return rows(["algorithm", "hospital", "mean eta", "mean length of the direction", "steps per round"], body)


def mechanism(runs: Mapping[str, Path]) -> str:
    """Per hospital, means over the rounds of eta, of |G|/|G0|, and of the cosine of G and G0 with its range."""
    body = []
    for name, path in runs.items():
        records = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
        for site in records[0]["sites"]:
            of_site = [record["sites"][site] for record in records]
            eta, ratio, cosine = (
                sum(r[k] for r in of_site) / len(of_site) for k in ("mean_eta", "norm_ratio", "cosine")
            )
            low, high = min(r["cosine"] for r in of_site), max(r["cosine"] for r in of_site)
            scales = [record["server"]["scale"] for record in records if record["server"]]
            server = f"{sum(scales) / len(scales):.3f}" if scales else "1"
            spread = f"{cosine:.4f} ({low:.4f} to {high:.4f})"
            shown = name.rpartition("/")[2].replace("-beta1-", ", beta1 ")
            body.append([shown, site, f"{eta:.3f}", f"{ratio:.3f}", server, spread])
    return rows(
        ["algorithm", "hospital", "mean eta", "length of G by G0", "server's factor", "cosine of G and G0 (range)"],
        body,
    )


def unseen(runs: Mapping[str, Path]) -> str:
    """Means on the unseen hospital alone."""
    summaries = [summary_of(path) for path in runs.values()]
    body = [[label(path), *strata(s["test_out"])] for path, s in zip(runs.values(), summaries, strict=True)]
    return rows([f"unseen hospital {summaries[0]['unseen_site']}", *STRATA.values()], body)


def crossed(runs: Mapping[str, Path]) -> str:
    """Dice-N where hospitals share nothing: a row per network, a column per hospital whose images it marks."""
    (path,) = runs.values()
    summary = summary_of(path)
    sites = sorted({site for networks in summary["cross"].values() for site in networks})
    body = [
        [network, *(mean(of_site[site]["dice_n"]) if site in of_site else "-" for site in sites)]
        for network, of_site in summary["cross"].items()
    ]
    return rows(["network of", *(f"on {site}" for site in sites)], body)


def cells(groups: Mapping[str, Path]) -> str:
    """Of groups of cells of a study, a row per arm: means on test images after the last round."""
    body: list[list[str]] = []
    several = len(groups) > 1
    for group in groups.values():
        out = [group.name.removeprefix("without-").partition("-")[0]] if several else []
        for path in sorted(group.iterdir(), key=lambda path: ARMS.index(path.name) if path.name in ARMS else len(ARMS)):
            summary = summary_of(path)
            for part in ("test_out", "test_in"):
                body.append([*out, path.name, PARTS[part], *strata(summary[part])])
    head = [*(["left out"] if several else []), "arm", "images", *STRATA.values()]
    return rows(head, sorted(body, key=lambda row: [*PARTS.values()].index(row[head.index("images")])))


def trials(groups: Mapping[str, Path]) -> str:
    """Of searches of a study, a row per trial: validation Dice-N, mean over the last quarter of the rounds."""
    body = []
    for group in groups.values():
        for path in sorted(group.iterdir()):
            records = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
            curve = [record["validation"]["dice_n"]["mean"] for record in records]
            quarter = curve[-(len(curve) // 4) :]
            body.append([group.name, path.name, str(len(curve)), f"{sum(quarter) / len(quarter):.4f}"])
    return rows(["search", "choice", "rounds", "validation Dice-N"], body)


def convergence(tables: Mapping[str, Path]) -> str:
    """Of studies, by study.csv, how much the baseline rose over the last quarter of the rounds, a row per hospital."""
    body = []
    for table in tables.values():
        cells = pd.read_csv(table)
        for _, cell in cells[(cells["state"] == "finished") & (cells["arm"] == "fedavg-published")].iterrows():
            verdict = {"True": "yes", "False": "no"}.get(str(cell["converged"]), "not known")
            gain = "-" if pd.isna(cell["gain"]) else f"{cell['gain']:+.4f}"
            body.append([cell["unseen_site"], str(cell["seed"]), cell["start"], gain, verdict])
    return rows(["left out", "seed", "from", "validation Dice-N over the last quarter", "converged"], body)


def precision(runs: Mapping[str, Path]) -> str:
    """Dice-N of every seed in float32 and in bf16, and how their differences compare with the range over seeds."""
    body = []
    for part in ("test_in", "test_out"):
        found: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for path in runs.values():
            kind = "bf16" if "-bf16-" in path.name else "fp32"
            found[kind].append(json.loads((path / "summary.json").read_text())[part]["dice_n"]["mean"])
        for kind, values in found.items():
            spread = max(values) - min(values)
            cells = [f"{value:.4f}" for value in values]
            body.append([PARTS[part], kind, *cells, f"{sum(values) / len(values):.4f}", f"{spread:.4f}"])
        differences = [abs(b - f) for f, b in zip(found["fp32"], found["bf16"], strict=True)]
        of_means = abs(sum(found["bf16"]) - sum(found["fp32"])) / len(differences)
        cells = [f"{difference:.4f}" for difference in differences]
        body.append([PARTS[part], "absolute difference", *cells, f"{of_means:.4f}", ""])
    return rows(["images", "Dice-N in", "seed 0", "seed 1", "seed 2", "mean", "range"], body)


def verdicts(files: Mapping[str, Path]) -> str:
    """What a comparison says of its primary outcome: primary contrasts, the baseline against itself, all others."""
    told = json.loads(next(iter(files.values())).read_text())
    itself = [told["itself"]] if told["itself"] else []
    others = [each for each in told["further"] if (each["metric"], each["part"]) == (told["metric"], told["part"])]
    return rows(
        ["contrast", "difference", "these hospitals", "a new hospital", "verdict", "images", "hospitals", "seeds"],
        [
            [
                (f"**{name}**" if each in told["primary"] else name),
                f"{each['difference']:+.4f}",
                between(each["these_hospitals"]),
                between(each["new_hospital"]),
                each["verdict"] + (", not converged" if each["converged"] is False else ""),
                f"{each['n_cases']}",
                f"{each['n_sites']}",
                f"{len(each['seeds'])}",
            ]
            for each in [*told["primary"], *itself, *others]
            for name in [" - ".join(each["contrast"])]
        ],
    )


def differences(files: Mapping[str, Path]) -> str:
    """The primary contrasts hospital by hospital."""
    told = json.loads(next(iter(files.values())).read_text())
    sites = list(told["sites"])
    return rows(
        ["contrast", *(f"{site} ({told['sites'][site]['n_cases']})" for site in sites)],
        [
            [" - ".join(each["contrast"]), *(f"{each['sites'][site]['difference']:+.4f}" for site in sites)]
            for each in told["primary"]
        ],
    )


def secondary(files: Mapping[str, Path]) -> str:
    """The primary contrasts in other outcomes, with the hull of both intervals, which are simultaneous."""
    told = json.loads(next(iter(files.values())).read_text())
    contrasts = [each["contrast"] for each in told["primary"]]
    found = [each for each in told["further"] if each["contrast"] in contrasts]
    return rows(
        ["contrast", "score", "images of", "difference", "interval", "verdict", "images"],
        [
            [
                " - ".join(each["contrast"]),
                each["metric"],
                PARTS[each["part"]],
                f"{each['difference']:+.4f}",
                between(each["interval"]),
                each["verdict"],
                f"{each['n_cases']}" + (f", {each['n_mixed']} with a large one" if each.get("n_mixed") else ""),
            ]
            for each in sorted(found, key=lambda each: contrasts.index(each["contrast"]))
        ],
    )


def between(interval: Sequence[float | None] | None) -> str:
    return "-" if interval is None or None in interval else f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def records_of(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Simulated studies, a record per design, with what was not given at its default."""
    lines = [line for path in files.values() for line in path.read_text().splitlines()]
    return [{"level": 0.95, "contrasts": 1, "effect": 0.0} | json.loads(line) for line in lines]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def grid(
    files: Mapping[str, Path],
    row: Mapping[str, Callable[[dict[str, Any]], str]],
    column: Callable[[dict[str, Any]], str],
    cell: Callable[[dict[str, Any]], str],
) -> str:
    """A table of simulated studies: what tells its rows apart, what its columns, and what stands in a cell."""
    columns: list[str] = []
    body: dict[tuple[str, ...], dict[str, str]] = {}
    for record in records_of(files):
        columns += [column(record)] if column(record) not in columns else []
        body.setdefault(tuple(of(record) for of in row.values()), {})[column(record)] = cell(record)
    return rows([*row, *columns], [[*key, *(cells.get(name, "") for name in columns)] for key, cells in body.items()])


def patients_of(record: Mapping[str, Any]) -> str:
    patients = record["patients"]
    return f"{patients[0]} each" if len({*patients}) == 1 else ", ".join(map(str, patients))


def half_width(record: Mapping[str, Any]) -> str:
    return f"{record['found']['half_width']:.3f}"


SIZE: dict[str, Callable[[dict[str, Any]], str]] = {
    "hospitals": lambda record: str(len(record["patients"])),
    "seeds": lambda record: str(record["seeds"]),
}
SPREAD: dict[str, Callable[[dict[str, Any]], str]] = {
    "SD of hospitals": lambda record: f"{record['site']:g}",
    "of runs": lambda record: f"{record['run']:g}",
    "of patients": lambda record: f"{record['patient']:g}",
}


def coverage(files: Mapping[str, Path]) -> str:
    """How often intervals held the truth, in percent; columns by what moves runs, or by the effect where it differs."""
    names = {"effect": "effect", "seed": "SD of seeds", "run": "SD of runs"}
    by = next(name for name in names if len({record[name] for record in records_of(files)}) > 1)
    return grid(
        files,
        SIZE | {"SD of hospitals": SPREAD["SD of hospitals"]},
        lambda record: f"{names[by]} {record[by]:g}",
        lambda record: " / ".join(percent(record["found"][name]) for name in ("these", "new", "decides")),
    )


def chances(files: Mapping[str, Path]) -> str:
    """How often arms that do not differ were told apart, in percent: helps and hurts."""
    return grid(
        files,
        SPREAD | {"hospitals": SIZE["hospitals"]},
        lambda record: (
            f"{record['seeds']} seed{'s' * (record['seeds'] > 1)}, "
            f"{record['contrasts']} contrast{'s' * (record['contrasts'] > 1)}"
        ),
        lambda record: f"{percent(record['found']['helps'])} / {percent(record['found']['hurts'])}",
    )


def power(files: Mapping[str, Path]) -> str:
    """How often an effect was seen, in percent."""
    return grid(
        files,
        SPREAD | SIZE | {"patients": patients_of, "half-width": half_width},
        lambda record: f"effect {record['effect']:g}",
        lambda record: percent(record["found"]["helps"]),
    )


def margins(files: Mapping[str, Path]) -> str:
    """How often large lesions that lose nothing passed, in percent."""
    return grid(
        files,
        SPREAD | SIZE | {"half-width": half_width},
        lambda record: "passed",
        lambda record: percent(record["found"]["no_worse"]),
    )


def needs(files: Mapping[str, Path]) -> str:
    """How many hospitals with so many patients each `fedgs compare` would ask for, had a study these spreads."""
    import numpy as np

    from fedgs.verdict.intervals import Components
    from fedgs.verdict.judging import needed
    from fedgs.verdict.simulation import Design, Spread, drawn

    spreads = list(dict.fromkeys(Spread(*(r[name] for name in Spread.__slots__)) for r in records_of(files)))
    body = []
    for spread, seeds in product(spreads, (1, 2, 3, 5)):
        told = []
        for effect, patients in product((0.02, 0.05), (10, 40)):
            ((data, _),) = drawn(Design((patients,) * 5, seeds), spread, (0.0,), np.random.default_rng(0))
            run, site = spread.run**2, spread.site**2
            patient = spread.patient**2 + spread.noise**2 / seeds
            found = Components(patient, *((run, site) if seeds > 1 else (float("nan"), site + run)))
            told.append(str(needed(data, found, 0.95, effect).sites or "no number"))
        body.append([f"{spread.site:g}", f"{spread.run:g}", f"{spread.patient:g}", str(seeds), *told])
    columns = [f"{effect:g}, {patients} each" for effect, patients in product((0.02, 0.05), (10, 40))]
    return rows([*SPREAD, "seeds", *columns], body)


TABLES: dict[str, Callable[[Mapping[str, Path]], str]] = {
    "scores": scores,
    "unseen": unseen,
    "hospitals": hospitals,
    "etas": etas,
    "crossed": crossed,
    "mechanism": mechanism,
    "cells": cells,
    "trials": trials,
    "convergence": convergence,
    "verdicts": verdicts,
    "differences": differences,
    "secondary": secondary,
    "precision": precision,
    "coverage": coverage,
    "chances": chances,
    "power": power,
    "margins": margins,
    "needs": needs,
}


def rendered(page: Path) -> str:
    """The page with every table made anew."""
    folder = HERE / ELSEWHERE.get(page.name, page.stem)

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
    others = (HERE.parents[1] / "README.md", HERE.parent / "how-to" / "plan-a-study.md")
    for page in (*sorted(HERE.glob("*.md")), *others):
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
