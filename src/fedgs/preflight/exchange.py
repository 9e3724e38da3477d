"""The JSON of counts that hospitals may exchange: written, read with suspicion, and joined."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from fedgs.data.lesions import MASK_SIZE, SmallRule
from fedgs.errors import ConfigError, DataError
from fedgs.files import write_json
from fedgs.preflight.counts import AREA_BINS, IMPLAUSIBLE, AtSize, Preflight, SiteCounts

__all__ = ["FEWEST", "merge", "read_counts", "suppressed", "write_counts"]

FORMAT = 1
FEWEST = 5
"""Counts above 0 and below this are suppressed on request."""

_MOST = 10**9
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
    return replace(
        preflight,
        sites={name: _suppressed(preflight.rule, site) for name, site in preflight.sites.items()},
        vanished=(),
    )


def _suppressed(rule: SmallRule, site: SiteCounts) -> SiteCounts:
    if site.images < FEWEST:
        raise ConfigError(f"the site has {site.images} images, and fewer than {FEWEST} cannot be hidden; leave it out")
    counts = {part: (getattr(site, part), getattr(site, whole)) for part, whole in _WITHIN.items()}
    at_sizes = {f"vanished@{side}": (at.vanished, site.lesions) for side, at in site.sizes.items()}
    almost = [name for name, (count, of) in (counts | at_sizes).items() if _is_almost_all(count, of)]
    almost += [part for part in ("tiny", "mixed") if _is_almost_all(getattr(site, part), site.images)]
    plain = {part: None if part in almost else _hidden(count) for part, (count, _) in counts.items()}
    plain["lesions"] = _hidden(site.lesions)
    surely, maybe = _small_bins(rule)
    areas = [_hidden(count) for count in site.areas]
    if not any(count != 0 for count in areas[surely:maybe]):  # else the sum over small lesions tells no bin
        for segment in (range(maybe), range(maybe, AREA_BINS)):
            if not _hide_what_sums_tell(areas, segment):
                plain["small_lesions"] = None
    _hide_what_sums_tell(areas, range(AREA_BINS))
    sizes = {
        side: AtSize(None if f"vanished@{side}" in almost else _hidden(at.vanished), _hidden(at.emptied), at.smallest)
        for side, at in site.sizes.items()
    }
    return replace(
        site,
        areas=areas,
        sizes=sizes,
        almost_all=tuple(dict.fromkeys(almost)),
        **plain,  # type: ignore[arg-type]
        **_suppressed_sums(site, plain["small"] is None, "small" in almost),  # type: ignore[arg-type]
    )


def _suppressed_sums(site: SiteCounts, is_hidden: bool, is_almost_all: bool) -> dict[str, float | None]:
    """Leaves out the sums over the small images where their number is hidden and these would tell it."""
    difficulty, squares = site.difficulty, site.difficulty_squares
    if not is_hidden or difficulty is None or squares is None:
        return {"difficulty": difficulty, "difficulty_squares": squares}
    most = site.images - (FEWEST - 1)  # no small image counts 1, so there are more of them than either number
    if not is_almost_all or difficulty > most:
        return {"difficulty": None, "difficulty_squares": None}
    return {"difficulty": difficulty, "difficulty_squares": squares if difficulty**2 <= most * squares else None}


def _hidden(count: int | None) -> int | None:
    return None if count is not None and 0 < count < FEWEST else count


def _is_almost_all(count: int | None, of: int | None) -> bool:
    """Whether a count tells that what is left of the whole without it is small, and is not small itself."""
    return count is not None and of is not None and count >= FEWEST and 0 < of - count < FEWEST


def _hide_what_sums_tell(areas: list[int | None], segment: range) -> bool:
    """Hides a second bin where one is hidden alone, which a sum would tell; False where there is no other to hide."""
    inside = [areas[place] for place in segment]
    if inside.count(None) != 1:
        return True
    others = [count for count in inside if count]
    if others:
        areas[segment[inside.index(min(others))]] = None
    return bool(others)


def _small_bins(rule: SmallRule) -> tuple[int, int]:
    """Bins up to which all lesions are small, and up to which some may be."""
    limit = int(rule.fraction * MASK_SIZE**2 * (1 + 1e-9))
    surely = sum(2 ** (place + 1) - 1 <= limit for place in range(AREA_BINS))
    return surely, sum(2**place <= limit for place in range(AREA_BINS))


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
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, object_pairs_hook=_once)
        return _read(content)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file of counts that 'fedgs preflight' wrote") from error
    except (
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
    return replace(first, sites=dict(sorted(sites.items())), vanished=())


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"'{repeated[0]}' stands there twice")
    return dict(pairs)


def _read(content: Any) -> Preflight:
    _require_object("the file", content)
    if isinstance(content["format"], bool) or content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}, this version reads {FORMAT}")
    known = {"format", "size", "batch_size", "small_rule", "sites"}
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"unknown entry '{unknown[0]}'")
    _require_object("small_rule", content["small_rule"])
    if content["small_rule"].keys() != {"kind", "fraction", "base"}:
        raise ValueError(f"small_rule has {', '.join(content['small_rule'])}, expected kind, fraction and base")
    rule = SmallRule(**content["small_rule"])
    _require_object("sites", content["sites"])
    size, batch_size = (_whole(name, content[name], least=1) for name in ("size", "batch_size"))
    if not content["sites"]:
        raise ValueError("there is no site")
    sites = {str(name): _site(str(name), site, size, rule) for name, site in sorted(content["sites"].items())}
    return Preflight(size, batch_size, rule, sites)


def _require_object(what: str, value: object) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no object of JSON but {value!r:.40}")


def _site(name: str, content: Any, size: int, rule: SmallRule) -> SiteCounts:
    if not name.strip() or not name.isprintable():
        raise ValueError(f"a site is called {name!r}; expected a name that can be printed")
    _require_object(f"site '{name}'", content)
    names = {field.name for field in fields(SiteCounts)}
    content = {"almost_all": []} | content  # files of earlier versions lack it
    if content.keys() != names:
        odd = sorted(content.keys() ^ names)
        raise ValueError(f"site '{name}': {'unknown' if odd[0] in content else 'lacks'} '{odd[0]}'")
    images = _whole(f"site '{name}': images", content["images"], least=1)
    plain = {key: _count(f"site '{name}': {key}", content[key]) for key in (*_WITHIN, "lesions")}
    for key, kind in (("areas", list), ("almost_all", list), ("sizes", dict)):
        if not isinstance(content[key], kind):
            raise ValueError(f"site '{name}': {key} is {content[key]!r:.40}")
    areas = [_count(f"site '{name}': areas", count) for count in content["areas"]]
    small = images if "small" in content["almost_all"] else plain["small"]
    sums = {key: _sum(f"site '{name}': {key}", content[key], small, plain["small"] is None) for key in _SUMS}
    sizes = {_side(name, side): _at(f"site '{name}', {side} pixels", at) for side, at in content["sizes"].items()}
    almost = tuple(content["almost_all"])
    site = SiteCounts(images=images, areas=areas, sizes=sizes, almost_all=almost, **plain, **sums)  # type: ignore[arg-type]
    _require_possible(name, site, size, rule)
    return site


def _require_possible(name: str, site: SiteCounts, size: int, rule: SmallRule) -> None:
    """Refuses what no images can have; whatever is suppressed is not compared."""
    if size not in site.sizes:
        raise ValueError(f"site '{name}': sizes lacks {size}, the size of the training images")
    if len(site.areas) != AREA_BINS:
        raise ValueError(f"site '{name}': areas has {len(site.areas)} bins, not {AREA_BINS}")
    counted = [area for area in site.areas if area is not None]
    if site.lesions is not None and len(counted) == AREA_BINS and sum(counted) != site.lesions:
        raise ValueError(f"site '{name}': areas add up to {sum(counted)}, not to its {site.lesions} lesions")
    for what, least, most in _pairs(site, rule):
        if least is not None and most is not None and least > most:
            raise ValueError(f"site '{name}': {what} is {least:g}, of {most:g}")
    for what in ("duplicates", "near_duplicates"):
        if getattr(site, what) == 1:
            raise ValueError(f"site '{name}': {what} is 1, but an image is none of itself")
    hidden = {key for key in _WITHIN if getattr(site, key) is None}
    hidden |= {f"vanished@{side}" for side, at in site.sizes.items() if at.vanished is None}
    if odd := [key for key in site.almost_all if key not in hidden]:
        raise ValueError(f"site '{name}': almost_all names {odd[0]!r}, which is not hidden")
    for side, at in site.sizes.items():
        _require_smallest(f"site '{name}': ", side, at, site)


def _require_smallest(where: str, side: int, at: AtSize, site: SiteCounts) -> None:
    lesions, most = site.lesions, min(side**2, _most_of_smallest(site, at))
    if at.smallest is not None and not 1 <= at.smallest <= most:
        raise ValueError(f"{where}the smallest lesion at {side} pixels has {at.smallest}, of at most {most}")
    if side == MASK_SIZE and at.vanished:
        raise ValueError(f"{where}{at.vanished} lesions vanish at {side} pixels, at which they are counted")
    if None not in (at.vanished, lesions) and (at.smallest is None) != (at.vanished == lesions):
        raise ValueError(
            f"{where}at {side} pixels {at.vanished} of {lesions} lesions vanish, and the smallest that is left has "
            f"{at.smallest}"
        )


def _most_of_smallest(site: SiteCounts, at: AtSize) -> int:
    """The most pixels that the smallest lesion left can have: no more than at 512, and as many vanish as say so."""
    if at.vanished is None or None in site.areas:
        return MASK_SIZE**2
    upto = 0
    for place, count in enumerate(site.areas):
        upto += count or 0
        if upto > at.vanished:
            return int(2 ** (place + 1) - 1)
    return MASK_SIZE**2


def _pairs(site: SiteCounts, rule: SmallRule) -> Iterator[tuple[str, float | None, float | None]]:
    """What cannot be more than what."""
    for part, whole in _WITHIN.items():
        yield f"{part} (of {whole})", getattr(site, part), getattr(site, whole)
    with_lesions = _less(site.images, site.lesion_free)
    yield "images with lesions (of lesions)", with_lesions, site.lesions
    yield "small (of images with lesions)", site.small, with_lesions
    yield "small (of small lesions)", site.small, site.small_lesions
    if site.tiny is not None and site.mixed is not None:
        yield "tiny and mixed (of small)", site.tiny + site.mixed, site.small
    if with_lesions == 0:
        yield "lesions (of no image with one)", site.lesions, 0
    surely, maybe = _small_bins(rule)
    if None not in (small := site.areas[:maybe]):
        yield "areas of small lesions (of small lesions)", sum(small[:surely]), site.small_lesions  # type: ignore[arg-type]
        yield "small_lesions (of areas that may be small)", site.small_lesions, sum(small)  # type: ignore[arg-type]
    if site.implausible and None not in site.areas:
        pixels = sum(count * (2 ** (place + 1) - 1) for place, count in enumerate(site.areas))
        yield "pixels of implausible images (of all lesions)", site.implausible * IMPLAUSIBLE * MASK_SIZE**2, pixels
    yield "implausible (of images with lesions that are not tiny)", site.implausible, _less(with_lesions, site.tiny)
    for side, at in site.sizes.items():
        yield f"vanished lesions at {side} pixels", at.vanished, site.lesions
        yield f"emptied images at {side} pixels (of images with lesions)", at.emptied, with_lesions
        yield f"emptied images at {side} pixels (of lesions that vanish)", at.emptied, at.vanished
    if site.difficulty is not None and site.difficulty_squares is not None:
        yield "difficulty_squares, of numbers below 1,", site.difficulty_squares, site.difficulty
        if site.small:
            least = site.difficulty**2 / site.small
            yield "the least that difficulty_squares can be", least, site.difficulty_squares * (1 + 1e-9)


def _less(whole: int | None, part: int | None) -> int | None:
    return None if whole is None or part is None else whole - part


def _side(name: str, side: str) -> int:
    if not side.isascii() or not side.isdigit() or not int(side):
        raise ValueError(f"site '{name}': sizes has {side!r}, expected sides in pixels")
    return int(side)


def _at(where: str, content: Any) -> AtSize:
    _require_object(where, content)
    if content.keys() != {"vanished", "emptied", "smallest"}:
        raise ValueError(f"{where}: expected vanished, emptied and smallest, got {', '.join(sorted(content))}")
    return AtSize(*(_count(f"{where}: {name}", content[name]) for name in ("vanished", "emptied", "smallest")))


def _sum(where: str, value: object, small: int | None, may_be_hidden: bool) -> float | None:
    if value is None and may_be_hidden:
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
    if value > _MOST:
        raise ValueError(f"{where} is more than {_MOST:,}")
    return value
