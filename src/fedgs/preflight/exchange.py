"""The JSON of counts that hospitals may exchange: written, read with suspicion, and joined."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from fedgs.data.lesions import SmallRule
from fedgs.errors import ConfigError, DataError
from fedgs.files import write_json
from fedgs.preflight.counts import AREA_BINS, AtSize, Preflight, SiteCounts

__all__ = ["FEWEST", "merge", "read_counts", "suppressed", "write_counts"]

FORMAT = 1
FEWEST = 5
"""Counts above 0 and below this are suppressed on request."""

_SUMS = ("difficulty", "difficulty_squares")
_WITHIN = {  # what cannot be more than what
    "lesion_free": "images",
    "small": "images",
    "tiny": "small",
    "mixed": "small",
    "small_lesions": "lesions",
    "duplicates": "images",
    "near_duplicates": "images",
    "specks": "images",
    "implausible": "images",
}


def suppressed(preflight: Preflight) -> Preflight:
    """Gives the counts with every one from 1 to 4 left out, and what could tell it."""
    return replace(preflight, sites={name: _suppressed(site) for name, site in preflight.sites.items()}, vanished=())


def _suppressed(site: SiteCounts) -> SiteCounts:
    if site.images < FEWEST:
        raise ConfigError(f"the site has {site.images} images, and fewer than {FEWEST} cannot be hidden; leave it out")
    plain = {name: _hidden(getattr(site, name)) for name in (*_WITHIN, "lesions")}
    sums = {name: None if plain["small"] is None else getattr(site, name) for name in _SUMS}
    sizes = {side: AtSize(_hidden(at.vanished), _hidden(at.emptied), at.smallest) for side, at in site.sizes.items()}
    return replace(site, areas=_hidden_bins(site.areas), sizes=sizes, **plain, **sums)  # type: ignore[arg-type]


def _hidden(count: int | None) -> int | None:
    return None if count is not None and 0 < count < FEWEST else count


def _hidden_bins(counts: Sequence[int | None]) -> list[int | None]:
    """Hides small bins; where that is one alone, which the sum would tell, the smallest of the others as well."""
    hidden = [_hidden(count) for count in counts]
    if hidden.count(None) == 1 and (others := [count for count in hidden if count]):
        hidden[hidden.index(min(others))] = None
    return hidden


def write_counts(preflight: Preflight, path: Path) -> None:
    """Writes the counts as JSON; no case is named in it."""
    rule = preflight.rule
    sites = {
        name: {
            **{key: value for key, value in asdict(site).items() if key != "sizes"},
            "sizes": {str(side): asdict(at) for side, at in site.sizes.items()},
        }
        for name, site in preflight.sites.items()
    }
    content = {
        "format": FORMAT,
        "size": preflight.size,
        "batch_size": preflight.batch_size,
        "small_rule": {"kind": rule.kind, "fraction": rule.fraction, "base": rule.base},
        "sites": sites,
    }
    write_json(path, content)


def read_counts(path: Path) -> Preflight:
    """Reads counts that a hospital sent.

    Raises:
        DataError: It is missing, no JSON, does not follow the schema, or holds counts that cannot be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        return _read(content)
    except (
        OSError,
        UnicodeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        ConfigError,
    ) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path}: not what 'fedgs preflight' writes ({reason}); ask the hospital for the file as it was written"
        ) from error


def merge(several: Sequence[tuple[Path, Preflight]]) -> Preflight:
    """Joins what hospitals counted apart.

    Raises:
        ConfigError: They counted with other settings, or two sites have one name.
    """
    first_path, first = several[0]
    sites: dict[str, SiteCounts] = {}
    for path, each in several:
        for name in ("size", "batch_size", "rule"):
            if getattr(each, name) != getattr(first, name):
                raise ConfigError(
                    f"{path}: was counted with {name} {getattr(each, name)}, {first_path} with {getattr(first, name)}; "
                    "let all hospitals count with the same settings"
                )
        for site, counts in each.sites.items():
            if site in sites:
                raise ConfigError(f"{path}: there is a site '{site}' already; give every hospital a name of its own")
            sites[site] = counts
    return replace(first, sites=dict(sorted(sites.items())), vanished=(), oddities=())


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _read(content: Mapping[str, Any]) -> Preflight:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}, this version reads {FORMAT}")
    known = {"format", "size", "batch_size", "small_rule", "sites"}
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"unknown entry '{unknown[0]}'")
    rule = SmallRule(**content["small_rule"])
    size, batch_size = (_whole(name, content[name], least=1) for name in ("size", "batch_size"))
    if not content["sites"]:
        raise ValueError("there is no site")
    sites = {str(name): _site(str(name), site, size) for name, site in sorted(content["sites"].items())}
    return Preflight(size, batch_size, rule, sites)


def _site(name: str, content: Mapping[str, Any], size: int) -> SiteCounts:
    names = {field.name for field in fields(SiteCounts)}
    if content.keys() != names:
        odd = sorted(content.keys() ^ names)
        raise ValueError(f"site '{name}': {'unknown' if odd[0] in content else 'lacks'} '{odd[0]}'")
    images = _whole(f"site '{name}': images", content["images"], least=1)
    plain = {key: _count(f"site '{name}': {key}", content[key]) for key in (*_WITHIN, "lesions")}
    areas = [_count(f"site '{name}': areas", count) for count in content["areas"]]
    sums = {key: _sum(f"site '{name}': {key}", content[key], plain["small"]) for key in _SUMS}
    sizes = {int(side): _at(f"site '{name}', {side} pixels", at) for side, at in content["sizes"].items()}
    site = SiteCounts(images=images, areas=areas, sizes=sizes, **plain, **sums)  # type: ignore[arg-type]
    _require_possible(name, site, size)
    return site


def _require_possible(name: str, site: SiteCounts, size: int) -> None:
    if size not in site.sizes:
        raise ValueError(f"site '{name}': sizes lacks {size}, the size of the training images")
    pairs = [(f"{part} (of {whole})", getattr(site, part), getattr(site, whole)) for part, whole in _WITHIN.items()]
    for side, at in site.sizes.items():
        pairs.append((f"vanished lesions at {side} pixels", at.vanished, site.lesions))
        pairs.append((f"emptied images at {side} pixels", at.emptied, site.images))
    pairs.append(("difficulty_squares, of numbers below 1,", site.difficulty_squares, site.difficulty))
    for what, least, most in pairs:
        if least is not None and most is not None and least > most:
            raise ValueError(f"site '{name}': {what} is {least}, of {most}")
    if len(site.areas) != AREA_BINS:
        raise ValueError(f"site '{name}': areas has {len(site.areas)} bins, not {AREA_BINS}")
    counted = [area for area in site.areas if area is not None]
    if site.lesions is not None and len(counted) == AREA_BINS and sum(counted) != site.lesions:
        raise ValueError(f"site '{name}': areas add up to {sum(counted)}, not to its {site.lesions} lesions")


def _at(where: str, content: Mapping[str, Any]) -> AtSize:
    if content.keys() != {"vanished", "emptied", "smallest"}:
        raise ValueError(f"{where}: expected vanished, emptied and smallest, got {', '.join(sorted(content))}")
    return AtSize(*(_count(f"{where}: {name}", content[name]) for name in ("vanished", "emptied", "smallest")))


def _sum(where: str, value: object, small: int | None) -> float | None:
    if value is None and small is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where} must be a number, got {value!r}")
    if not 0 <= value <= (small or 0) or (small and not value):
        raise ValueError(f"{where} is {value}, of {small} small images")
    return float(value)


def _count(where: str, value: object) -> int | None:
    return None if value is None else _whole(where, value)


def _whole(where: str, value: object, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where} must be a whole number of at least {least}, got {value!r}")
    return value
