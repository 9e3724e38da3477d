"""What a person wants to know about an index before training on it."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from fedgs.data.index import Index
from fedgs.data.lesions import MASK_SIZE, SmallRule
from fedgs.data.linked import near_rows

__all__ = ["IndexSummary", "SiteSummary", "summarise"]

Name = tuple[str, str]

_LARGE_MM = 20
_SHOWN = 3
_WIDTH = 100
_IMPLAUSIBLE_SHARE = 0.8
_NEAR_SHARE, _NEAR_CASES = 0.1, 5


@dataclass(frozen=True, slots=True)
class SiteSummary:
    """Counts of one site.

    Attributes:
        site: Name of the site.
        cases: Images.
        patients: Different known patients.
        cases_with_patient: Images whose patient is known.
        lesions: Lesions in all masks together.
        small_cases: Images flagged small.
        tiny_cases: Images flagged small that are small as a whole.
        empty_masks: Images without any lesion.
        sizes: Image sizes as (width, height, images), the commonest first.
    """

    site: str
    cases: int
    patients: int
    cases_with_patient: int
    lesions: int
    small_cases: int
    tiny_cases: int
    empty_masks: int
    sizes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """Counts per site, duplicates and oddities of an index.

    Attributes:
        sites: One per site, sorted by name.
        small_rule: The rule behind the counts of small images.
        duplicates_within: Groups of (site, case) with the same pixels, each in one site.
        duplicates_between: The same, each over several sites.
        near_within: Groups of (site, case) that show the same picture in other pixels, each in one site.
        near_between: The same, each over several sites.
        oddities: What deserves a look, a sentence each.
        volumes: What became of volumes, a sentence each; none where the source holds images.
    """

    sites: tuple[SiteSummary, ...]
    small_rule: SmallRule
    duplicates_within: tuple[tuple[Name, ...], ...]
    duplicates_between: tuple[tuple[Name, ...], ...]
    near_within: tuple[tuple[Name, ...], ...]
    near_between: tuple[tuple[Name, ...], ...]
    oddities: tuple[str, ...]
    volumes: tuple[str, ...] = ()

    @property
    def cases_without_patient(self) -> int:
        """Images whose patient is unknown, so that no split can keep their patients apart."""
        return sum(site.cases - site.cases_with_patient for site in self.sites)

    def as_text(self) -> str:
        """The summary as a table and sentences, at most 100 columns wide where names allow it."""
        wrapper = textwrap.TextWrapper(_WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        return "\n".join([*_table(self), "", *(line for text in _sentences(self) for line in wrapper.wrap(text))])


def summarise(index: Index) -> IndexSummary:
    """Counts what is in an index; reads nothing but its table."""
    table = index.table
    equal, near = tuple(_duplicates(table, "image_hash")), tuple(_near_duplicates(table))
    sites = tuple(_site(str(name), rows) for name, rows in table.groupby("site", sort=True))
    return IndexSummary(
        sites=sites,
        small_rule=index.small_rule,
        duplicates_within=tuple(group for group in equal if not _is_between_sites(group)),
        duplicates_between=tuple(group for group in equal if _is_between_sites(group)),
        near_within=tuple(group for group in near if not _is_between_sites(group)),
        near_between=tuple(group for group in near if _is_between_sites(group)),
        oddities=(
            *(oddity for site in sites for oddity in _oddities_of_site(site, table)),
            *(oddity for group in near for oddity in _oddities_of_group(group, sites)),
            *_oddities(table),
        ),
        volumes=tuple(_volumes(index)),
    )


def _site(name: str, rows: pd.DataFrame) -> SiteSummary:
    sizes = Counter[tuple[int, int]](zip(rows["width"].tolist(), rows["height"].tolist(), strict=True))
    return SiteSummary(
        site=name,
        cases=len(rows),
        patients=int(rows["patient"].nunique()),
        cases_with_patient=int(rows["patient"].notna().sum()),
        lesions=int(rows["lesion_count"].sum()),
        small_cases=int(rows["is_small"].sum()),
        tiny_cases=int(rows["is_tiny"].sum()),
        empty_masks=int((rows["lesion_area"] == 0).sum()),
        sizes=tuple((width, height, count) for (width, height), count in sizes.most_common()),
    )


def _volumes(index: Index) -> Iterator[str]:
    """How many slices of how many volumes are used, and what a small slice tells of the lesion that it cuts."""
    if index.volumes is None or index.slices is None:
        return
    found, rules = index.volumes, index.slices
    how = "all" if rules.slices == "all" else f"those with more than {rules.least_pixels} pixels of the target"
    slices = f"{found['slices'].sum():,} slices, of which {len(index):,} are used"
    yield (
        f"{len(found)} volumes of {slices}: {how}; the target "
        f"has label {rules.label}, {rules.window[0]:g} to {rules.window[1]:g} are shown as black to white"
    )
    if unused := int((found["used"] == 0).sum()):
        yield f"{unused} volumes have no slice that is used; they are scored as volumes all the same"
    small = index.table[index.table["is_small"]]
    if len(small):
        large = int((small["diameter_mm"] > _LARGE_MM).sum())
        yield (
            f"Of {len(small):,} small slices {large:,} ({large / len(small):.0%}) cut a lesion of more than "
            f"{_LARGE_MM} mm: such a slice is small because it meets the lesion at its end"
        )


def _duplicates(table: pd.DataFrame, column: str) -> Iterator[tuple[Name, ...]]:
    repeated = table[table.duplicated(column, keep=False)]
    for _, rows in repeated.groupby(column, sort=False):
        yield tuple(zip(rows["site"], rows["case"], strict=True))


def _near_duplicates(table: pd.DataFrame) -> Iterator[tuple[Name, ...]]:
    for rows in near_rows(table):
        yield tuple(zip(table["site"].iloc[rows], table["case"].iloc[rows], strict=True))


def _is_between_sites(group: Sequence[Name]) -> bool:
    return len({site for site, _ in group}) > 1


def _oddities_of_site(site: SiteSummary, table: pd.DataFrame) -> Iterator[str]:
    rows = table[table["site"] == site.site]
    if len(site.sizes) > 1:
        width, height, count = site.sizes[0]
        yield f"{site.site}: {len(site.sizes)} image sizes; {count} of {site.cases} images are {width} x {height}"
    if site.empty_masks == site.cases:
        yield f"{site.site}: no mask holds a lesion; lesions are non-zero there, and above 127 in JPEG"
    large = rows[rows["lesion_area"] > _IMPLAUSIBLE_SHARE * MASK_SIZE**2]
    if len(large):
        yield f"{site.site}: lesions cover over {_IMPLAUSIBLE_SHARE:.0%} of the image in {_cases(large)}; inverted?"
    speckled = rows[rows["specks"] > 0]
    if len(speckled):
        yield f"{site.site}: specks of under 4 pixels in {_cases(speckled)} do not count as lesions"


def _oddities_of_group(group: Sequence[Name], sites: Sequence[SiteSummary]) -> Iterator[str]:
    for site in sites:
        count = sum(name == site.site for name, _ in group)
        if count >= _NEAR_CASES and count > _NEAR_SHARE * site.cases:
            yield (
                f"{site.site}: {count} of {site.cases} images are near duplicates of each other and stay in one part; "
                "see the contact sheet: if a drawing in every image is all that they share, crop it away"
            )


def _oddities(table: pd.DataFrame) -> Iterator[str]:
    if table["channels"].nunique() > 1:
        yield f"grey and colour mixed: {_cases(table[table['channels'] == 1])} of {len(table)} are grey"
    with_lesion = table[table["lesion_area"] > 0].drop_duplicates("image_hash")
    if "volume" in table:  # neighbouring slices may well have one mask
        with_lesion = with_lesion.drop_duplicates(["site", "volume", "mask_hash"])
    for group in _duplicates(with_lesion, "mask_hash"):
        yield f"one mask for {len(group)} different images: {_names(group)}"


def _table(summary: IndexSummary) -> Iterator[str]:
    header = ("site", "cases", "patients", "unknown", "lesions", "small", "", "small as a whole", "empty masks")
    total = [sum(column) for column in zip(*(_counts(site) for site in summary.sites), strict=True)]
    rows = [(site.site, *_cells(_counts(site))) for site in summary.sites]
    rows = [header, *rows, ("all", *_cells(total))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _counts(site: SiteSummary) -> list[int]:
    unknown = site.cases - site.cases_with_patient
    return [site.cases, site.patients, unknown, site.lesions, site.small_cases, site.tiny_cases, site.empty_masks]


def _cells(counts: Sequence[int]) -> list[str]:
    cases, patients, unknown, lesions, small, tiny, empty = counts
    numbers = [f"{number:,}" for number in (cases, patients, unknown, lesions, small)]
    return [*numbers, f"{small / cases:.1%}", f"{tiny:,}", f"{empty:,}"]


def _sentences(summary: IndexSummary) -> Iterator[str]:
    rule = summary.small_rule
    what = "its smallest lesion covers" if rule.kind == "components" else "its lesions together cover"
    yield f"small: {what} at most 1/{1 / rule.fraction:g} of the image; unknown: its patient is not known"
    yield from summary.volumes
    if summary.cases_without_patient:
        yield (
            f"Patients are unknown for {summary.cases_without_patient:,} cases: parts of one site may share a patient "
            "there, so scores on held-out images of training sites are optimistic; trust an unseen site."
        )
    for kind, groups in (
        ("Equal images within sites", summary.duplicates_within),
        ("Equal images between sites", summary.duplicates_between),
        ("Near duplicates within sites", summary.near_within),
        ("Near duplicates between sites", summary.near_between),
    ):
        if groups:
            yield f"{kind}: {len(groups)} groups, {sum(map(len, groups))} images"
            yield from (f"  {_names(group)}" for group in groups[:_SHOWN])
            if len(groups) > _SHOWN:
                yield f"  and {len(groups) - _SHOWN} groups more"
        else:
            yield f"{kind}: none"
    if summary.oddities:
        yield "Worth a look:"
        yield from (f"  {oddity}" for oddity in summary.oddities)


def _names(group: Sequence[Name]) -> str:
    shown = ", ".join(f"{site}/{case}" for site, case in group[:_SHOWN])
    return shown + (f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else "")


def _cases(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]["case"]
    return f"1 case ({first})" if len(rows) == 1 else f"{len(rows)} cases ({first}, …)"
