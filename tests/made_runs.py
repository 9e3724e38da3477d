"""Synthetic run folders: made-up numbers in the layout of a real run, the same in every session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fedgs.files import sealed
from fedgs.metrics.catalogue import other_scores
from fedgs.metrics.table import summarise, with_details

SITES = {"C1": 0.10, "C2": 0.06, "C3": 0.08, "C4": 0.09, "C5": 0.30}
"""Share of small lesions per site."""
SKILL = {"fedgs": 0.03, "fedavg-published": 0.0, "fedavg": -0.01}


def make_cases(sites: dict[str, float], unseen: str | None, per_site: int) -> pd.DataFrame:
    """One row per case with its properties and its part of the split."""
    rng = np.random.default_rng(7)
    rows = []
    for site, share in sites.items():
        for number in range(per_site):
            draw = rng.random()
            kind = "free" if draw < 0.08 else "small" if draw < 0.08 + share else "large"
            area = {"free": 0, "small": int(rng.integers(60, 6000)), "large": int(rng.integers(9000, 90000))}[kind]
            inside = ["train"] * 6 + ["validation", "validation", "test_in", "test_in"]
            rows.append(
                {
                    "site": site,
                    "case": f"{site}_frame_{number:04d}",
                    "patient": f"{number // 3}" if site in ("C1", "C4") else "",
                    "part": "test_out" if site == unseen else inside[int(rng.integers(10))],
                    "is_small": kind == "small",
                    "is_tiny": kind == "small" and area <= 1747,
                    "is_mixed": kind == "small" and area > 4000,
                    "lesion_area": area,
                }
            )
    return pd.DataFrame(rows)


def make_scores(cases: pd.DataFrame, part: str, skill: float, round_: int, seed: int) -> pd.DataFrame:
    """Dice that grows with rounds and lesion size."""
    rng = np.random.default_rng([seed, round_, len(part)])
    rows = cases[cases["part"] == part]
    learnt = 1 - np.exp(-round_ / 6)
    level = np.where(rows["is_small"], 0.62 + 2 * skill, np.where(rows["lesion_area"] > 0, 0.82 + skill / 3, 0.9))
    dice = np.clip(learnt * level + rng.normal(0, 0.13, len(rows)), 0, 1)
    free = rows["lesion_area"] == 0
    dice = np.where(free, (dice > 0.5).astype(float), dice)
    scores = rows.assign(
        round=round_, dice=dice, tp=100, fn=20, fp=np.where(free, (dice < 0.5) * 50, 20), pixels=512**2, network=""
    )
    scores["size_quartile"] = np.where(free, 0, 1 + np.digitize(rows["lesion_area"], (9000, 30000, 60000)))
    return with_details(scores.assign(**make_details(dice, free, rng)))


def make_details(dice: np.ndarray, free: pd.Series, rng: np.random.Generator) -> dict[str, Any]:
    """Columns of boundaries, lesions and calibration that go with a Dice; nothing is marked where it is below 0.1."""
    missed, off = dice < 0.1, 60 * (1 - dice)
    undefined, count = missed | free, (~free).astype(int)
    false = rng.poisson(0.4, len(dice))
    found = {name: (dice > above).astype(int) * count for name, above in ((10, 0.18), (50, 0.66))}
    small = (np.arange(len(dice)) % 2).astype(int)
    return {
        "diagonal": np.hypot(512, 512),
        **{name: np.where(undefined, np.nan, share * off) for name, share in (("hd95", 1), ("assd", 0.2))},
        "surface_dice": np.where(free & missed, np.nan, np.where(free, 0, dice**2)),
        "ece": np.where(free, np.nan, 0.3 * (1 - dice)),
        **{"lesions": count, "lesions_small": count * small, "predicted_lesions": found[10] + false},
        **{f"found_{name}": each for name, each in found.items()},
        **{f"found_small_{name}": each * small for name, each in found.items()},
        **{f"false_small_{name}": (false + found[10] - each) // 2 for name, each in found.items()},
    }


def write_overlays(folder: Path, scores: pd.DataFrame, seed: int) -> None:
    """Textured frames with an ellipse each, and a prediction that is as wrong as its Dice says."""
    folder.mkdir()
    y, x = np.mgrid[:256, :256] / 256
    rows = []
    for number, row in enumerate(scores[scores["is_small"]].head(24).to_dict("records")):
        rng = np.random.default_rng(number)
        noise = np.asarray(Image.fromarray(rng.integers(0, 255, (9, 9), np.uint8)).resize((256, 256), 3)) / 255
        cx, cy = rng.uniform(0.25, 0.75, 2)
        radius = max(np.sqrt(row["lesion_area"] / np.pi) / 512, 0.015)
        truth = np.hypot((x - cx) / 1.2, (y - cy) * 1.2) < radius
        shade = (0.55 + 0.35 * noise - 0.5 * np.hypot(x - 0.5, y - 0.5))[..., None] * np.array([235, 120, 95])
        frame = np.clip(shade + truth[..., None] * np.array([25, 30, 25]), 0, 255).astype(np.uint8)
        shift = (1 - row["dice"]) * radius * np.random.default_rng([number, seed]).choice([-1.4, 1.4])
        found = np.hypot((x - cx - shift) / 1.2, (y - cy - shift / 3) * 1.2) < radius * (1.3 - 0.3 * row["dice"])
        name = f"{number:02d}"
        Image.fromarray(frame).save(folder / f"{name}-image.jpg", quality=90)
        Image.fromarray(truth.astype(np.uint8) * 255).save(folder / f"{name}-truth.png")
        Image.fromarray((found & (row["dice"] > 0.15)).astype(np.uint8) * 255).save(folder / f"{name}-prediction.png")
        rows.append({**{k: row[k] for k in ("part", "site", "case", "is_tiny", "lesion_area", "dice")}, "name": name})
    columns = ["part", "site", "case", "is_tiny", "lesion_area", "dice", "name"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cases.csv", index=False)


def round_line(number: int, train: dict[str, int], algorithm: str, scores: pd.DataFrame, seed: int) -> dict[str, Any]:
    """One line of rounds.jsonl; validation in every round but the second."""
    rng = np.random.default_rng([seed, number, 5])
    sites = {}
    for site, count in train.items():
        eta = 1.0 + (algorithm == "fedgs") * max(0.0, 2 * SITES.get(site, 0.1) + rng.normal(0, 0.015))
        loss = 0.25 + 0.6 * np.exp(-number / 5) + rng.normal(0, 0.012)
        sites[site] = {
            "steps": count // 4,
            "examples": count,
            "loss": float(loss),
            "terms": {"dice": float(loss)},
            "mean_eta": float(eta),
            "cosine": float(1 - 0.01 * (eta - 1)),
            "direction_norm": float(eta * (0.2 + 0.3 * np.exp(-number / 8))),
            "seconds": 3.2,
        }
    validation = None if number == 2 else summarise(scores)
    return {"round": number, "seconds": 12.5, "sites": sites, "validation": validation}


def describe_data(cases: pd.DataFrame) -> dict[str, Any]:
    """The ``data`` entry of summary.json."""
    sites = {
        site: {
            "cases": len(rows),
            "patients_known": int((rows["patient"] != "").sum()),
            "lesion_free": int((rows["lesion_area"] == 0).sum()),
            "small": int(rows["is_small"].sum()),
            "tiny": int(rows["is_tiny"].sum()),
            **{part: int((rows["part"] == part).sum()) for part in ("train", "validation", "test_in", "test_out")},
        }
        for site, rows in cases.groupby("site")
    }
    return {
        "source": "polypgen",
        "adapter": "polypgen",
        "small_rule": {"kind": "components", "fraction": 1 / 150, "base": 100.0},
        "sites": sites,
        "patients_unknown": int((cases["patient"] == "").sum()),
        "leaks": {"patients": 0, "duplicates": 0},
    }


def means_of_part(scores: pd.DataFrame) -> dict[str, Any]:
    return {**summarise(scores), "other": other_scores(scores)}


def write_run(
    folder: Path,
    *,
    algorithm: str = "fedgs",
    seed: int = 0,
    rounds: int = 12,
    unseen: str | None = "C5",
    overlays: bool = True,
    sites: dict[str, float] | None = None,
    per_site: int = 120,
) -> Path:
    """Writes one finished run folder."""
    (folder / "checkpoints").mkdir(parents=True)
    cases = make_cases(SITES if sites is None else sites, unseen, per_site)
    skill = SKILL.get(algorithm, 0.01)
    parts = ("validation", "test_in", "test_out")
    scored = {
        number: {part: make_scores(cases, part, skill, number, seed) for part in parts}
        for number in range(1, rounds + 1)
    }
    train = {site: int(n) for site, n in cases[cases["part"] == "train"].groupby("site").size().items()}
    lines = [round_line(number, train, algorithm, scored[number]["validation"], seed) for number in scored]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pd.concat(scored[rounds].values()).to_csv(folder / "scores.csv", index=False)
    cases[["site", "case", "patient", "part"]].to_csv(folder / "split.csv", index=False)
    means = {part: means_of_part(scored[rounds][part]) for part in parts}
    settings = {"algorithm": algorithm, "model": "unet", "size": 128, "seed": seed, "fold": 0, "unseen_site": unseen}
    summary = {
        "format": 1,
        **settings,
        "rounds": rounds,
        "round": rounds,
        "seconds": 12.5 * rounds,
        "files": {},
        "data": describe_data(cases),
        **means,
        "best": {"round": rounds - 1, **means},
        "best_small": None if means["validation"]["dice_s"]["n"] == 0 else {"round": rounds - 2, **means},
    }
    (folder / "summary.json").write_text(json.dumps(sealed(summary)))
    (folder / "config.toml").write_text(
        '[data]\ndata = "/home/someone/secret place/polypgen"\nadapter = "polypgen"\nsize = 128\nfold = 0\n'
        + (f'unseen_site = "{unseen}"\n' if unseen else "")
        + 'split = "/srv/secret/split.csv"\n\n[model]\nmodel = "unet"\n\n[model.model_options]\nnorm = "group"\n\n'
        f'[algorithm]\nalgorithm = "{algorithm}"\n\n[training]\nlocal_epochs = 1\nbatch_size = 4\nlr = 0.0001\n'
        f'objective = "dice_batch"\ndevice = "auto"\n\n[federation]\nrounds = {rounds}\nseed = {seed}\n'
    )
    environment = {
        "fedgs": "0.1.0",
        "python": "3.11.2",
        "torch": "2.13.0",
        "host": "secret-host",
        "executable": "/opt/secret/bin/python",
        "device": "cpu",
        "cores": 2,
    }
    (folder / "environment.json").write_text(json.dumps(sealed(environment)))
    if overlays:
        tests = pd.concat([scored[rounds]["test_in"], scored[rounds]["test_out"]])
        write_overlays(folder / "overlays", tests, seed)
    return folder
