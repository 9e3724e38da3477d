"""Data of several hospitals: adapters find cases, the index reads each once, splits and batches build on it."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

from fedgs.data import folder, lits, phantom, polypgen
from fedgs.data.case import Adapter, Case
from fedgs.data.pairing import contents, require_folder
from fedgs.errors import ConfigError, DataError, unknown_choice

__all__ = ["ADAPTERS", "detect", "find_cases"]

ADAPTERS: dict[str, Adapter] = {
    "folder": folder.find_cases,
    "lits": lits.find_cases,
    "phantom": phantom.find_cases,
    "polypgen": polypgen.find_cases,
}
"""The adapters by name; each finds the cases of a source folder."""

WITH_SITES = {"lits": lits.find_cases}
"""Those that also take a table of sites."""


def detect(source: Path) -> str:
    """Tells which adapter fits a source folder, by its layout.

    Raises:
        DataError: No such folder, or no adapter fits; the message shows what was found and every layout.
    """
    layouts = f"one of\n  {folder.LAYOUT}\n  {polypgen.LAYOUT}\n  {lits.LAYOUT}"
    require_folder(source, layouts)
    for name, module in (("phantom", phantom), ("polypgen", polypgen), ("lits", lits), ("folder", folder)):
        if module.looks_like(source):
            return name
    raise DataError(f"{source}: holds {contents(source)}; expected {layouts}")


def find_cases(source: Path, adapter: str | None = None, sites: Path | None = None) -> list[Case]:
    """Finds the cases of a source folder.

    Args:
        source: Folder in the layout of the adapter.
        adapter: Name of an adapter; None chooses it by the layout.
        sites: Table that says which hospital a volume is of, with the columns case and site, and optionally patient.

    Returns:
        The cases, sorted by (site, name).

    Raises:
        ConfigError: No adapter has this name, or it takes no such table.
        DataError: The folder does not have the layout.
    """
    name = detect(source) if adapter is None else adapter
    if name not in ADAPTERS:
        raise unknown_choice("adapter", name, ADAPTERS)
    find = ADAPTERS[name]
    if sites is not None:
        if name not in WITH_SITES:
            raise ConfigError(
                f"the adapter '{name}' takes no table of sites; its folders say which hospital a case is of"
            )
        find = partial(WITH_SITES[name], sites=sites)
    cases = sorted(find(source), key=lambda case: (case.site, case.name))
    for one, other in pairwise(cases):
        if (one.site, one.name) == (other.site, other.name):
            raise DataError(f"{one.image} and {other.image} are both case '{one.name}' of '{one.site}'; rename one")
    return cases
