"""What must be equal for a run to go on, and what differs where it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pandas as pd

from fedgs.assembly import NAMED_SPLITS
from fedgs.config import RunConfig, configure, differences
from fedgs.data.index import Index
from fedgs.errors import ConfigError
from fedgs.run_folder import RunFolder

__all__ = ["describe_cases", "refuse_other_cases", "refuse_other_settings", "refuse_other_split"]

_SHOWN = 3
_ANEW = "or start a new run with another --out"


def describe_cases(index: Index, split: pd.DataFrame) -> dict[str, object]:
    """Tells, for environment.json, with which cases, flags and parts a run began."""
    return {"data": _fingerprint(index, split), "small_rule": str(index.small_rule), "channels": index.channels}


def refuse_other_settings(folder: RunFolder, config: RunConfig) -> None:
    """Compares settings with those of a run; its data, and a split that it was given, may have moved since.

    Raises:
        ConfigError: They differ; the message lists every setting that does.
    """
    stored = folder.config()
    moved = {"data": stored.data.data}
    if not {stored.data.split, config.data.split} & NAMED_SPLITS:
        moved["split"] = stored.data.split
    if stored.data.split not in NAMED_SPLITS and config.data.unseen_site is None:
        moved["unseen_site"] = stored.data.unseen_site
    changed = differences(stored, configure(config, **moved))
    if changed:
        raise ConfigError(
            f"{folder.path}: cannot go on, its settings differ: {'; '.join(changed)}. Leave these flags out, {_ANEW}"
        )


def refuse_other_cases(folder: RunFolder, index: Index) -> None:
    """Compares cases with those that a run began with.

    Raises:
        ConfigError: They differ; the message lists how, and names some.
    """
    changed = list(_changes(folder, index))
    if changed:
        raise ConfigError(
            f"{folder.path}: cannot go on, the images, masks or flags are not those that it began with: "
            f"{'; '.join(changed)}. Restore the data, {_ANEW}"
        )


def refuse_other_split(folder: RunFolder, index: Index, split: pd.DataFrame) -> None:
    """Compares the parts of the cases with those that a run began with.

    Raises:
        ConfigError: They differ.
    """
    if folder.environment().get("data") != _fingerprint(index, split):
        raise ConfigError(
            f"{folder.path}: cannot go on, the flags or the parts of its cases are not those that it began with. "
            f"Restore its split.csv and environment.json from a copy, {_ANEW}"
        )


def _changes(folder: RunFolder, index: Index) -> Iterator[str]:
    names, hashes = ["site", "case"], ["image_hash", "mask_hash"]
    before = folder.split().set_index(names)
    after = index.table.set_index(names)
    yield from _some("removed", before.index.difference(after.index))
    yield from _some("added", after.index.difference(before.index))
    common = before.index.intersection(after.index)
    for column in hashes:
        if column in before:
            other = before.loc[common, column].to_numpy() != after.loc[common, column].to_numpy()
            yield from _some(f"{column.removesuffix('_hash')} changed", common[other])
    for name, now in (("small_rule", str(index.small_rule)), ("channels", index.channels)):
        then = folder.environment().get(name, now)
        if then != now:
            yield f"{name}: {then} -> {now}"


def _some(what: str, cases: pd.Index) -> Iterator[str]:
    if len(cases):
        shown = ", ".join(f"'{case}' ({site})" for site, case in cases[:_SHOWN])
        yield f"{what}: {shown}" + (f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else "")


def _fingerprint(index: Index, split: pd.DataFrame) -> str:
    columns = index.table[["site", "case", "image_hash", "mask_hash", "is_small", "is_tiny", "lesion_area"]]
    text = f"{index.small_rule} {index.channels}\n{columns.assign(part=split['part']).to_csv(index=False)}"
    return hashlib.sha256(text.encode()).hexdigest()
