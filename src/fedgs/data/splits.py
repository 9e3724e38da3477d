"""Which case is trained on, validated on and tested on.

Cases that cannot be told apart from each other, because they show the same patient, are the same image or are near
duplicates, form a group, and a group is never divided between training, validation and test. Everything here is a
function of the index's table: columns ``site``, ``case``, ``patient``, ``is_small``, ``lesion_area``, ``image_hash``,
``near_hash`` and, for the published split, ``image``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedgs.data.linked import linked_rows, near_rows
from fedgs.errors import ConfigError, DataError, unknown_choice
from fedgs.tables import read_csv

__all__ = [
    "FOLDS",
    "PARTS",
    "Leaks",
    "leaks",
    "parts_of_volumes",
    "published_split",
    "read_split",
    "split_cases",
    "unknown_patients",
]

FOLDS = 5
PARTS = ("train", "validation", "test_in", "test_out", "excluded")
VALIDATION_SHARE = 1 / 8
"""Of what a fold does not test: 10 % of a site for validation beside 70 % for training."""

_SMALL, _FREE = 1, 2  # Positions in the counts of a group: (cases, cases with a small lesion, lesion-free cases).
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Leaks:
    """How much one part of a split tells about another.

    Attributes:
        patients: Per site, patients with cases in more than one of train, validation, test_in and test_out.
        known_patients: Per site, all patients that are known, leaking or not.
        duplicates: Per site, images (by hash) with identical copies in more than one of these parts; a copy in another
            site counts at both.
        near_duplicates: Per site, groups of near duplicates with cases in more than one of these parts; a group that
            reaches into another site counts at both. Identical copies alone are no such group.
    """

    patients: Mapping[str, int]
    known_patients: Mapping[str, int]
    duplicates: Mapping[str, int]
    near_duplicates: Mapping[str, int]

    def __bool__(self) -> bool:
        """Whether there is any leak."""
        return any(any(found.values()) for found in (self.patients, self.duplicates, self.near_duplicates))


def split_cases(table: pd.DataFrame, *, fold: int = 0, unseen_site: str | None = None, seed: int = 0) -> pd.DataFrame:
    """Divides the cases so that no patient, no duplicate and no near duplicate stands on both sides.

    Cases of one patient of a site, and equal images or near duplicates (also in different sites), are one group; a
    group has one part only. Every group of the seen sites is tested in exactly one of the five folds. What a fold does
    not test is divided 7 : 1 into training and validation, so that a site has about 70 / 10 / 20 % of its cases in
    train / validation / test_in; large groups make this coarser.

    Small lesions come first, then sizes, then lesion-free cases. For a site with k groups that hold a small lesion,
    none of which reaches into another site:

    * min(k, 5) of the five test parts hold a small lesion; the groups that hold most of them are placed first, each
      where fewest stand, so that they spread as evenly as that greedy order can;
    * k >= 3: training and validation of every fold hold one;
    * k = 2: training of every fold does, and validation of the three folds that test neither;
    * k = 1: training of the four folds that do not test it does.

    Groups that reach into several sites are placed the same way, by the sum over their sites, without that promise. A
    site with fewer groups than parts is no error: training is served before validation, and some test parts stay
    empty (a site that is one single patient is all training in four folds and all test in the fifth).

    An unseen site is `test_out` as a whole. Cases of other sites that share a group with it are `excluded`: to train
    on them would make the site seen.

    Args:
        table: The index's table; its row order does not matter.
        fold: Fold to test, 0 to 4.
        unseen_site: Site to leave out, or None.
        seed: Seed of the split, unrelated to the seed of a run.

    Returns:
        Columns site, case, patient and part, a row per case sorted by (site, case): the order of an index's table.

    Raises:
        ConfigError: `fold` is out of range; `unseen_site` is unknown or the only site.
    """
    cases = _checked(table, fold, unseen_site)
    unseen = (cases["site"] == unseen_site).to_numpy(dtype=bool)
    part = np.where(unseen, "test_out", "train").astype(object)
    seen: list[_Group] = []
    for group in _groups(cases):
        if not unseen[group.rows].any():
            seen.append(group)
        else:
            part[group.rows[~unseen[group.rows]]] = "excluded"
    tested_in = _deal_folds(seen, seed)
    rest = [group for group, tested in zip(seen, tested_in, strict=True) if tested != fold]
    for group, tested in zip(seen, tested_in, strict=True):
        if tested == fold:
            part[group.rows] = "test_in"
    for group in _choose_validation(rest, (seed, fold)):
        part[group.rows] = "validation"
    return _with_parts(cases, part)


def published_split(table: pd.DataFrame, *, fold: int, unseen_site: str | None = None) -> pd.DataFrame:
    """Divides the cases as the FedGS publication did for PolypGen, patient leaks included.

    Per site the image file names are sorted and cut into five consecutive folds (the first n mod 5 of them one longer);
    the fold's cases are shuffled by ``RandomState(0)``, and the first half of the shuffled, rounded up, is the test
    part, the other half validation. This is scikit-learn's unshuffled ``KFold(5)`` followed by
    ``train_test_split(test_size=0.5, random_state=0)``. Use `leaks` to count what it mixes.

    Args:
        table: The index's table; its row order does not matter.
        fold: Fold to hold out, 0 to 4.
        unseen_site: Site to leave out as `test_out`, or None.

    Returns:
        Columns site, case, patient and part, a row per case sorted by (site, case).

    Raises:
        ConfigError: `fold` is out of range; `unseen_site` is unknown or the only site.
        DataError: A seen site has fewer than 10 cases, so that a held-out fifth cannot be halved.
    Source: Schutte et al., FedGS, arXiv 2408.11701.
    """
    cases = _checked(table, fold, unseen_site)
    part = np.full(len(cases), "train", dtype=object)
    names = np.array([PurePosixPath(str(image)).name for image in cases["image"]], dtype=object)
    for site, found in cases.groupby("site").indices.items():
        if site == unseen_site:
            part[found] = "test_out"
            continue
        if len(found) < 2 * FOLDS:
            raise DataError(
                f"site '{site}': the published split needs at least {2 * FOLDS} cases to halve each fifth, "
                f"found {len(found)}; use the default split or leave the site out"
            )
        held_out = np.array_split(found[np.argsort(names[found], kind="stable")], FOLDS)[fold]
        shuffled = held_out[np.random.RandomState(0).permutation(len(held_out))]
        half = (len(shuffled) + 1) // 2
        part[shuffled[:half]] = "test_in"
        part[shuffled[half:]] = "validation"
    return _with_parts(cases, part)


def parts_of_volumes(
    volumes: pd.DataFrame, table: pd.DataFrame, split: pd.DataFrame, *, fold: int, unseen_site: str | None
) -> pd.Series:
    """Gives every volume the part of its slices.

    A volume of which no slice is used, as one without tumour, has that of the other volumes of its patient. Where there
    are none it is `test_out` at the unseen site; elsewhere such volumes are dealt to the five folds in turn, and those
    that this fold does not test are `train`, although nothing of them is trained on.

    Args:
        volumes: Columns site, volume and patient.
        table: The index's table, with the column volume.
        split: Parts of its rows.
        fold: Fold that is tested.
        unseen_site: Site that was left out, or None.

    Returns:
        Part by row of `volumes`.
    """
    rows = table.assign(part=split["part"].to_numpy())
    of_volume = rows.groupby(["site", "volume"])["part"].first().to_dict()
    of_patient = rows.groupby(["site", "patient"])["part"].first().to_dict()
    dealt: dict[str, int] = {}

    def part_of(site: str, volume: str, patient: str) -> str:
        known = of_volume.get((site, volume)) or of_patient.get((site, patient))
        if known:
            return str(known)
        if site == unseen_site:
            return "test_out"
        dealt[site] = dealt.get(site, -1) + 1
        return "test_in" if dealt[site] % FOLDS == fold else "train"

    columns = (volumes[name].tolist() for name in ("site", "volume", "patient"))
    return pd.Series([part_of(*of) for of in zip(*columns, strict=True)], index=volumes.index, dtype=object)


def leaks(table: pd.DataFrame, split: pd.DataFrame) -> Leaks:
    """Counts the patients, the exact duplicates and the near duplicates that stand in more than one part.

    Args:
        table: The index's table.
        split: Columns site, case and part, with exactly the cases of the table; `excluded` cases are in no part.

    Returns:
        The counts per site, with a zero for a site without leaks.
    """
    columns = ["site", "case", "patient", "image_hash", "near_hash"]
    cases = table[columns].merge(split[["site", "case", "part"]], on=["site", "case"])
    sites = _sites(table)
    used = cases[cases["part"] != "excluded"]
    parts_of_patient = used.groupby(["site", "patient"])["part"].nunique().rename("parts").reset_index()
    parts_of_image = used.groupby("image_hash")["part"].nunique()
    copied = used[used["image_hash"].isin(parts_of_image.index[parts_of_image > 1])]
    near = [used.iloc[rows] for rows in near_rows(used)]
    spread = [site for group in near if group["part"].nunique() > 1 for site in group["site"].unique()]
    return Leaks(
        patients=_count_by_site(sites, parts_of_patient.loc[parts_of_patient["parts"] > 1, "site"]),
        known_patients=_count_by_site(sites, table[["site", "patient"]].dropna().drop_duplicates()["site"]),
        duplicates=_count_by_site(sites, copied[["site", "image_hash"]].drop_duplicates()["site"]),
        near_duplicates=_count_by_site(sites, pd.Series(spread, dtype=object)),
    )


def read_split(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Reads the split that another run has stored.

    Args:
        path: A CSV file with the columns site, case and part.
        table: The index's table of the data to be split.

    Returns:
        Columns site, case, patient (of the table) and part, a row per case sorted by (site, case).

    Raises:
        DataError: The file cannot be read, lacks a column, holds an unknown part or a case twice, or its cases are not
            those of the table; the message names some.
    """
    stored = read_csv(path, {})
    missing = [column for column in ("site", "case", "part") if column not in stored]
    if missing:
        raise DataError(f"{path}: lacks the column '{missing[0]}'; expected site,case,patient,part as a run writes it")
    unknown = sorted(set(stored["part"]) - set(PARTS))
    if unknown:
        raise DataError(f"{path}: unknown part '{unknown[0]}'; a part is one of {', '.join(PARTS)}")
    cases = _sorted(table)
    names = pd.MultiIndex.from_frame(stored[["site", "case"]])
    _check_same_cases(path, names, pd.MultiIndex.from_frame(cases[["site", "case"]]))
    part = dict(zip(names, stored["part"], strict=True))
    return _with_parts(cases, [part[name] for name in zip(cases["site"], cases["case"], strict=True)])


def unknown_patients(table: pd.DataFrame) -> dict[str, int]:
    """Counts, per site, the cases whose patient is not known and therefore cannot be kept on one side."""
    return _count_by_site(_sites(table), table.loc[table["patient"].isna(), "site"])


@dataclass(frozen=True, slots=True)
class _Group:
    """Cases that share a part: their rows, and (cases, small, lesion-free) per site."""

    rows: npt.NDArray[np.intp]
    counts: Mapping[str, Counts]
    name: str


def _groups(cases: pd.DataFrame) -> list[_Group]:
    sites = cases["site"].to_numpy(dtype=object)
    kinds = np.ones((len(cases), 3), dtype=np.int64)
    kinds[:, _SMALL] = cases["is_small"].to_numpy(dtype=bool)
    kinds[:, _FREE] = cases["lesion_area"].to_numpy() == 0
    groups = []
    for rows in linked_rows(cases):
        counts = {str(site): kinds[rows[sites[rows] == site]].sum(0) for site in sorted(set(sites[rows]))}
        groups.append(_Group(rows, counts, f"{sites[rows[0]]}\0{cases['case'].iat[rows[0]]}"))
    return groups


def _deal_folds(groups: Sequence[_Group], seed: int) -> list[int]:
    """The fold that tests each group: the largest first, each to the fold that holds least of what it brings."""
    totals = _totals(groups)
    loads = {site: np.zeros((FOLDS, 3), np.int64) for site in totals}
    folds = [0] * len(groups)

    def weight(position: int) -> tuple[int, int, int, int]:
        cases, small, free = np.sum(list(groups[position].counts.values()), axis=0).tolist()
        return -small, -cases, -free, _draw(seed, groups[position].name)

    for position in sorted(range(len(groups)), key=weight):
        group = groups[position]
        share = np.zeros((FOLDS, 3))
        for site, count in group.counts.items():
            share += (count > 0) * loads[site] / np.maximum(totals[site], 1)
        rank = [(share[fold, _SMALL], share[fold].sum(), _draw(seed, group.name, fold), fold) for fold in range(FOLDS)]
        folds[position] = min(rank)[-1]
        for site, count in group.counts.items():
            loads[site][folds[position]] += count
    return folds


def _choose_validation(groups: Sequence[_Group], salt: tuple[int, int]) -> list[_Group]:
    """The groups to validate on, so that each site keeps training cases, with a small lesion if it has any."""
    reaching: dict[str, list[_Group]] = {}
    for group in sorted(groups, key=lambda group: (len(group.counts), _draw(*salt, group.name))):
        for site in group.counts:
            reaching.setdefault(site, []).append(group)
    left = {site: np.sum([_presence(group.counts[site]) for group in own], axis=0) for site, own in reaching.items()}
    chosen: dict[str, _Group] = {}
    for site, own in sorted(reaching.items()):
        counts = np.stack([group.counts[site] for group in own])
        target = counts.sum(0) * VALIDATION_SHARE
        load = counts[[group.name in chosen for group in own]].sum(0)
        alike = _alike(own, site, chosen)
        while alike:
            firsts = sorted(alike)
            spared = _spared([own[first] for first in firsts], counts[firsts], site, left)
            if (pick := _best_addition(counts[firsts], load, target, spared)) is None:
                break
            taken, others = own[firsts[pick]], alike.pop(firsts[pick])
            if others:
                alike[others.pop()] = others
            chosen[taken.name] = taken
            load = load + taken.counts[site]
            for reached, count in taken.counts.items():
                left[reached] = left[reached] - _presence(count)
    return list(chosen.values())


def _alike(own: Sequence[_Group], site: str, chosen: Mapping[str, _Group]) -> dict[int, list[int]]:
    """Groups between which only their order decides: the position of the first, and those of the others backwards."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for position in range(len(own) - 1, -1, -1):
        group = own[position]
        if group.name not in chosen:
            key = tuple(group.counts[site].tolist()) if len(group.counts) == 1 else (position,)
            alike.setdefault(key, []).append(position)
    return {positions.pop(): positions for positions in alike.values()}


def _best_addition(counts: Counts, load: Counts, target: npt.NDArray[np.float64], candidates: Flags) -> int | None:
    """The candidate that brings the taken cases nearest to their target; None where each leads further away.

    The first group with a small lesion, and the first group at all, is taken at any price.
    """
    scale = np.maximum(target, 1)
    distance = (np.abs(load + counts - target) / scale).sum(1)
    limit = float((np.abs(load - target) / scale).sum()) - 1e-9
    with_small = candidates & (counts[:, _SMALL] > 0)
    if load[_SMALL] == 0 and with_small.any():
        candidates, limit = with_small, np.inf
    elif not load.any():
        limit = np.inf
    distance[~candidates] = np.inf
    pick = int(np.argmin(distance))
    return pick if distance[pick] < limit else None


def _spared(own: Sequence[_Group], counts: Counts, site: str, left: Mapping[str, Counts]) -> Flags:
    """Flag per group of a site: training keeps another group, and another with small lesions where this one has any."""
    spared = _kept_without(counts, left[site])
    for position in range(len(own) - 1, -1, -1):
        if len(own[position].counts) == 1:
            break  # Groups that reach into several sites stand last.
        spared[position] = all(_kept_without(count, left[reached]) for reached, count in own[position].counts.items())
    return spared


def _kept_without(counts: Counts, left: Counts) -> Flags:
    return np.asarray(((counts[..., : _SMALL + 1] == 0) | (left > 1)).all(-1))


def _presence(count: Counts) -> Counts:
    """How a group counts among the groups of a site: (1, 1 if it holds a small lesion)."""
    return (count[: _SMALL + 1] > 0).astype(np.int64)


def _totals(groups: Iterable[_Group]) -> dict[str, Counts]:
    totals: dict[str, Counts] = {}
    for group in groups:
        for site, count in group.counts.items():
            totals[site] = totals.get(site, 0) + count
    return totals


def _draw(*parts: str | int) -> int:
    """A number that depends on nothing but its arguments, to break ties by."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")


def _checked(table: pd.DataFrame, fold: int, unseen_site: str | None) -> pd.DataFrame:
    if isinstance(fold, bool) or fold not in range(FOLDS):
        raise ConfigError(f"fold: expected a whole number from 0 to {FOLDS - 1}, got {fold!r}")
    sites = _sites(table)
    if unseen_site is not None and unseen_site not in sites:
        raise unknown_choice("site", unseen_site, sites)
    if sites == [unseen_site]:
        raise ConfigError(f"unseen site '{unseen_site}' is the only site; leave it seen, or index data of more sites")
    return _sorted(table)


def _check_same_cases(path: Path, stored: pd.MultiIndex, cases: pd.MultiIndex) -> None:
    for problem, names, remedy in (
        ("holds twice", stored[stored.duplicated()], "keep one row per case"),
        ("lacks", cases.difference(stored), "use the split of the same data, or make a new one"),
        ("holds cases that are not in the data", stored.difference(cases), "give it to the data it was made from"),
    ):
        if len(names):
            some = ", ".join("/".join(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
            raise DataError(f"{path}: {problem}: {some} ({len(names)} of {len(cases)} cases); {remedy}")


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["site", "case"], kind="stable", ignore_index=True)


def _with_parts(cases: pd.DataFrame, part: Sequence[str] | npt.NDArray[np.object_]) -> pd.DataFrame:
    return cases[["site", "case", "patient"]].assign(part=list(part))


def _sites(table: pd.DataFrame) -> list[str]:
    return sorted(str(site) for site in table["site"].unique())


def _count_by_site(sites: Iterable[str], found: pd.Series[str]) -> dict[str, int]:
    counts = found.value_counts()
    return {site: int(counts.get(site, 0)) for site in sites}
