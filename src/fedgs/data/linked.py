"""Which cases cannot be told apart from each other, so that they must stand on one side of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fedgs.data.near import near_groups

__all__ = ["group_names", "linked_rows", "near_rows", "shown_among"]

Rows = npt.NDArray[np.intp]
Labels = npt.NDArray[np.int32]


def linked_rows(cases: pd.DataFrame) -> list[Rows]:
    """Groups the cases of one patient of a site, equal images and near duplicates, directly or by way of others.

    Args:
        cases: Columns site, case, patient, image_hash and near_hash.

    Returns:
        Positions of the rows of each group, ascending; the groups in the order of their first rows.
    """
    return _members(_linked(cases, ["image_hash"], ["site", "patient"]).tolist())


def group_names(cases: pd.DataFrame) -> list[str]:
    """Names the group of `linked_rows` that each case is in, by the first case of the group.

    Args:
        cases: Columns site, case, patient, image_hash and near_hash.

    Returns:
        ``SITE/CASE`` per row; so a case that is like no other has its own name.
    """
    names = [""] * len(cases)
    for rows in linked_rows(cases):
        first = cases.iloc[rows[0]]
        for row in rows:
            names[row] = f"{first['site']}/{first['case']}"
    return names


def shown_among(cases: pd.DataFrame, others: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tells which cases show what others show: equal images and near duplicates, directly or by way of others.

    Args:
        cases: Columns image_hash and near_hash.
        others: The same columns.

    Returns:
        (cases,): whether the picture is among the others.
    """
    columns = ["image_hash", "near_hash"]
    labels = _linked(pd.concat([others[columns], cases[columns]], ignore_index=True), ["image_hash"])
    return np.isin(labels[len(others) :], labels[: len(others)])


def near_rows(cases: pd.DataFrame) -> list[Rows]:
    """Groups the near duplicates; what is nothing but copies of one image is left out.

    Args:
        cases: Columns image_hash and near_hash.

    Returns:
        Positions of the rows of each group, ascending; the groups in the order of their first rows.
    """
    images = cases["image_hash"].to_numpy(dtype=object)
    groups = _members(near_groups(cases["near_hash"].tolist()))
    return [rows for rows in groups if len(set(images[rows])) > 1]


def _linked(cases: pd.DataFrame, *alike: list[str]) -> Labels:
    """One label per case; near duplicates share theirs, and cases that are alike and known in all of some columns."""
    rows = np.arange(len(cases))
    near = near_groups(cases["near_hash"].tolist())
    links = [np.array([row if twin is None else twin for row, twin in enumerate(near)], dtype=np.intp)]
    for names in alike:
        known = cases[names].notna().all(axis=1).to_numpy()
        keys = [cases[name].to_numpy()[known] for name in names]
        first = rows.copy()
        first[known] = pd.Series(rows[known]).groupby(keys).transform("min")
        links.append(first)
    ends = np.tile(rows, len(links)), np.concatenate(links)
    labels: Labels = connected_components(coo_array((np.ones(ends[0].size), ends), shape=(rows.size, rows.size)))[1]
    return labels


def _members(labels: Sequence[int | None]) -> list[Rows]:
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            members.setdefault(label, []).append(row)
    return [np.array(rows, dtype=np.intp) for rows in members.values()]
