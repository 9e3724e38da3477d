"""Which cases cannot be told apart from each other, so that they must stand on one side of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedgs.data.near import near_groups

__all__ = ["linked_rows", "near_rows"]

Rows = npt.NDArray[np.intp]


def linked_rows(cases: pd.DataFrame) -> list[Rows]:
    """Groups the cases of one patient of a site, equal images and near duplicates, directly or by way of others.

    Args:
        cases: Columns site, case, patient, image_hash and near_hash.

    Returns:
        Positions of the rows of each group, ascending; the groups in the order of their first rows.
    """
    parent = list(range(len(cases)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[tuple[object, ...], int] = {}
    patients = zip(cases["site"], cases["patient"], strict=True)
    near = near_groups(cases["near_hash"].tolist())
    links = zip(patients, zip(cases["image_hash"], strict=True), zip(near, strict=True), strict=True)
    for row, links_of_row in enumerate(links):
        for link in links_of_row:
            if not pd.isna(link[-1]):
                a, b = root(row), root(first.setdefault(link, row))
                parent[max(a, b)] = min(a, b)
    return _members([root(row) for row in range(len(cases))])


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


def _members(labels: Sequence[int | None]) -> list[Rows]:
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            members.setdefault(label, []).append(row)
    return [np.array(rows, dtype=np.intp) for rows in members.values()]
