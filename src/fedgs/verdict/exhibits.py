"""Images with small lesions as every arm marked them, for a page about a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from fedgs.data.images import as_picture, read_mask, shrunk
from fedgs.data.index import Index
from fedgs.errors import ConfigError
from fedgs.report.pictures import SIDE, Mask, Picture, picture_of
from fedgs.tables import read_csv
from fedgs.verdict.observed import Observed

__all__ = ["Exhibit", "exhibits"]


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An image in the runs of several arms that share hospital, fold and seed.

    Attributes:
        why: Why it is shown.
        case: Hospital and name of the image.
        lesion_area: Pixels of the 512 x 512 mask.
        run: What the runs share.
        dice: Per arm.
        picture: Image and outlines, the predictions in the order of the arms.
    """

    why: str
    case: tuple[str, str]
    lesion_area: int
    run: str
    dice: Sequence[float]
    picture: Picture


def exhibits(
    arms: Sequence[Sequence[Observed]], part: str, *, tiny: bool, index: Index | None = None, each: int = 2
) -> list[Exhibit]:
    """Picks the images with small lesions that fared worst, that changed most, and that fared best.

    Args:
        arms: Runs per arm, the two that are compared first; of every hospital and fold, those with the lowest seed that
            all arms have are looked at.
        part: Part of the split.
        tiny: Whether only images count whose lesions are small even together.
        index: Where images and the experts' masks are; without it, runs show the pictures that they kept, and cells of
            a study, which keep none, nothing.
        each: How many of each kind.

    Raises:
        ConfigError: The index holds other images.
        DataError: A picture cannot be read.
    """
    table = _table(arms, part, tiny=tiny, index=index)
    dice = table.filter(like="dice_")
    ranked = table.assign(mean=dice.mean(axis=1), change=(dice["dice_0"] - dice["dice_1"]).abs())
    orders = {
        "worst": ranked.sort_values(["mean", "lesion_area"], ascending=[True, False]),
        "changed most": ranked.sort_values("change", ascending=False),
        "best": ranked.sort_values("mean", ascending=False),
    }
    chosen: dict[int, str] = {}
    for why, ordered in orders.items():
        for row in [int(row) for row in ordered.index if row not in chosen][:each]:
            chosen[row] = why
    order = {why: place for place, why in enumerate(orders)}
    rows = sorted(chosen, key=lambda row: (order[chosen[row]], ranked.at[row, "mean"]))
    runs = {run.path.as_posix(): run for of_arm in arms for run in of_arm}
    shown = ranked.loc[rows].to_dict("records")
    return [_exhibit(chosen[row], about, runs, len(arms), index) for row, about in zip(rows, shown, strict=True)]


def _table(arms: Sequence[Sequence[Observed]], part: str, *, tiny: bool, index: Index | None) -> pd.DataFrame:
    """A row per image that all arms kept a picture of, with Dice and run of each."""
    shared = set.intersection(*({(run.block, run.seed) for run in of_arm} for of_arm in arms))
    first = {block: min(seed for other, seed in shared if other == block) for block, _ in shared}
    tables = []
    for number, of_arm in enumerate(arms):
        rows = [_of_run(run, part, tiny, index) for run in of_arm if first.get(run.block) == run.seed]
        table = pd.concat(rows, ignore_index=True)
        named = {name: f"{name}_{number}" for name in ("dice", "path", "picture")}
        tables.append(table.rename(columns=named).set_index(["block", "site", "case", "lesion_area"]))
    return pd.concat(tables, axis=1, join="inner").reset_index()


def _of_run(run: Observed, part: str, tiny: bool, index: Index | None) -> pd.DataFrame:
    scores = run.scores[(run.scores["part"] == part) & run.scores["is_tiny" if tiny else "is_small"]]
    own = scores.drop_duplicates(["site", "case"])[["site", "case", "lesion_area", "dice"]]
    kept = _kept(run.path / ("overlays" if index is None else "masks"))
    found = own.merge(kept, on=["site", "case"])
    return found.assign(block=run.block, path=run.path.as_posix())


def _kept(folder: Path) -> pd.DataFrame:
    path = folder / "cases.csv"
    table = read_csv(path, {}) if path.is_file() else pd.DataFrame(columns=["site", "case", "name"])
    return table[["site", "case", "name"]].rename(columns={"name": "picture"})


def _exhibit(
    why: str, row: Mapping[Any, Any], runs: Mapping[str, Observed], count: int, index: Index | None
) -> Exhibit:
    run = runs[row["path_0"]]
    files = [Path(row[f"path_{number}"]) for number in range(count)]
    names = [str(row[f"picture_{number}"]) for number in range(count)]
    if index is None:
        folder = files[0] / "overlays"
        marked = [file / "overlays" / f"{name}-prediction.png" for file, name in zip(files, names, strict=True)]
        with Image.open(folder / f"{names[0]}-image.jpg") as image:
            picture = picture_of(image, _read(folder / f"{names[0]}-truth.png"), [*map(_read, marked)])
    else:
        place = _row_of(index, row)
        marked = [file / "masks" / name for file, name in zip(files, names, strict=True)]
        truth = shrunk(index.mask(place), SIDE)
        picture = picture_of(as_picture(index.frame(place)), truth, [*map(_read, marked)])
    dice = [float(row[f"dice_{number}"]) for number in range(count)]
    shared = f"{run.block}, seed {run.seed}"
    return Exhibit(why, (str(row["site"]), str(row["case"])), int(row["lesion_area"]), shared, dice, picture)


def _row_of(index: Index, row: Mapping[Any, Any]) -> int:
    table = index.table
    found = table[(table["site"] == row["site"]) & (table["case"] == row["case"])]
    if len(found) != 1 or int(found["lesion_area"].iloc[0]) != int(row["lesion_area"]):
        raise ConfigError(
            f"{index.folder}: is not the data of these runs, it has no case '{row['case']}' of {row['site']} with a "
            f"lesion of {row['lesion_area']} pixels; give --data the index that they were trained with"
        )
    return int(found.index[0])


def _read(path: Path) -> Mask:
    return shrunk(read_mask(path), SIDE)
