"""The page: run folders in, one self-contained HTML file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedgs.errors import ConfigError, DataError
from fedgs.files import write_atomically
from fedgs.metrics.catalogue import METRICS, Metric
from fedgs.report import comparison, provenance
from fedgs.report.reading import read_figures, read_run
from fedgs.report.records import ADAPTED_MARK, External, Mean, Part, Run, Scores, SmallRule
from fedgs.report.rendering import CREDITS, MINUS, png_uri, rendered, require_extra

__all__ = ["write_explanation", "write_report"]

_HEADINGS = {
    "test_out": "Unseen hospital",
    "test_in": "Held-out images of the training hospitals",
    "external": "External hospitals",
    "validation": "Validation images",
}
_CODES = {"test_out": "out-test", "test_in": "in-test", "external": "external", "validation": "validation"}
_IMAGE_AREA = 512 * 512


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a score table that belong together: one part, or one site of a part.

    Attributes:
        heading: What the group is.
        code: The short name of the part that texts use.
        remark: How to take it, for instance ``optimistic``; may be empty.
        rows: Label and scores per run.
        differences: Label and difference per stratum.
    """

    heading: str
    code: str
    remark: str
    rows: Sequence[tuple[str, Scores]]
    differences: Sequence[tuple[str, Mapping[str, float | None]]] = ()


@dataclass(frozen=True, slots=True)
class OtherScores:
    """The table of scores beside Dice: a column per part and run, a row per score.

    Attributes:
        parts: Heading and code of each part, and the labels of its runs.
        rows: Each score with its means, in the order of the columns; None where a run lacks it.
    """

    parts: Sequence[tuple[str, str, Sequence[str]]]
    rows: Sequence[tuple[Metric, Sequence[Mean | None]]]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes a page about one run or several; it names no other file and makes no request.

    Args:
        runs: Folders of finished runs, baseline first by custom.
        out: The HTML file to write; its folder must exist.

    Returns:
        `out`.

    Raises:
        ConfigError: No run is given, one is given twice, or `out` cannot be written there.
        DataError: A run is missing or not finished.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    if not runs:
        raise ConfigError("a report needs at least one run folder, got none; name what 'fedgs train --out' wrote")
    if len({folder.resolve() for folder in runs}) < len(runs):
        raise ConfigError("a report got the same run folder twice; name every run once")
    require_extra()
    loaded = [read_run(folder) for folder in runs]
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"{out}: cannot be written, expected a file in a folder that exists; choose another place")
    write_atomically(out, rendered("page.html.j2", _content(loaded)))
    return out


def write_explanation(run: Path, place: Path) -> Path:
    """Writes the page about what a run's network looks at.

    Args:
        run: Folder of the run.
        place: Folder with the figures and their list; the page goes there, too.

    Returns:
        The page.

    Raises:
        DataError: The folder holds no figures.
    """
    loaded, explained = read_run(run), read_figures(place)
    if explained is None:
        raise DataError(f"{place}: holds no figures; make them with: fedgs explain {run}")
    label = f"{comparison.algorithm_label(loaded)}, {loaded.model}"
    content = {"label": label, "run": loaded, "explained": {label: explained}, "picture": png_uri}
    content |= {"credit": CREDITS.get(loaded.adapter, "")}
    write_atomically(place / "index.html", rendered("explain.html.j2", content))
    return place / "index.html"


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    named = dict(zip(comparison.labels(runs), runs, strict=True))
    first = next((run for run in runs if not run.published), runs[0])
    return {
        "runs": named,
        "first": first,
        "joined": _joined([comparison.algorithm_label(run) for run in runs]),
        "unlike": comparison.unlike_settings(runs),
        "seeds": _seeds(runs),
        "totals": _totals(first),
        "small": _rule_in_words(first.small_rule),
        "parts": _parts(named),
        "others": _others(named),
        "hospitals": _hospitals(named),
        "adapted": _adapted(named),
        "adapted_mark": ADAPTED_MARK,
        "federated": comparison.federated(runs),
        "crossed": {label: run.crossed for label, run in named.items() if run.crossed},
        "etas": _etas(named),
        "eta_ranges": _eta_ranges(named),
        "matched": _matched(named),
        "charts": _charts(named),
        "exhibits": _exhibits(runs),
        "explained": {label: run.explained for label, run in named.items() if run.explained},
        "picture": png_uri,
        "provenance": provenance,
        "codes": _CODES,
        "area": _IMAGE_AREA,
        "credit": CREDITS.get(first.adapter, ""),
    }


def _totals(run: Run) -> dict[str, int]:
    sites = run.sites.values()
    fields = ("cases", "lesion_free", "small", "tiny", "patients_known", "train", "validation", "test_in", "test_out")
    return {field: sum(getattr(site, field) for site in sites) for field in fields}


def _seeds(runs: Sequence[Run]) -> dict[str, list[int]]:
    names = dict.fromkeys(comparison.algorithm_label(run) for run in runs)
    return {name: sorted({run.seed for run in runs if comparison.algorithm_label(run) == name}) for name in names}


def _rule_in_words(rule: SmallRule) -> str:
    inverse = 1 / rule.fraction
    share = f"1/{inverse:.0f}" if abs(inverse - round(inverse)) < 1e-6 * inverse else f"{100 * rule.fraction:.3g} %"
    return {
        "components": f"at least one of its lesions covers no more than {share} of the image",
        "total": f"all its lesions together cover no more than {share} of the image",
    }.get(rule.kind, f"the rule '{rule.kind}' with {share} of the image says so")


def _parts(named: Mapping[str, Run]) -> list[Group]:
    runs, names = list(named.values()), list(named)
    optimistic = any(run.patients_unknown for run in runs)
    groups = []
    for part, heading in _HEADINGS.items():
        rows = [(label, run.parts[part].pooled) for label, run in named.items() if part in run.parts]
        differences = [
            (f"{names[each.run]} {MINUS} {comparison.algorithm_label(runs[each.baseline])}", each.pooled)
            for each in comparison.differences(runs, part)
        ]
        remark = {"test_in": "optimistic", "test_out": "primary"}.get(part, "") if optimistic else ""
        if part == "external":
            remark = _external_in_words([run.external for run in runs if run.external])
        unseen = sorted({str(run.unseen_site) for run in runs if part == "test_out" and run.unseen_site})
        if rows:
            groups.append(Group(" ".join([heading, ", ".join(unseen)]), _CODES[part], remark, rows, differences))
    return groups


def _external_in_words(externals: Sequence[External]) -> str:
    scored = list(dict.fromkeys(f"checkpoint {each.checkpoint}, round {each.round}" for each in externals))
    known = max((each.known_cases for each in externals), default=0)
    return "; ".join(scored) + (f"; {known} images known from training" if known else "")


def _others(named: Mapping[str, Run]) -> OtherScores | None:
    """Gives the scores beside Dice on test images; None where no run has any."""
    tested = [part for part in _HEADINGS if part != "validation"]
    parts = {part: [label for label, run in named.items() if part in run.parts] for part in tested}
    columns = [named[label].parts[part].other for part, labels in parts.items() for label in labels]
    rows = [(each, [column.get(each.name) for column in columns]) for each in METRICS]
    rows = [(each, means) for each, means in rows if any(mean and mean.n for mean in means)]
    groups = [(_HEADINGS[part], _CODES[part], labels) for part, labels in parts.items() if labels]
    return OtherScores(groups, rows) if rows else None


def _hospitals(named: Mapping[str, Run]) -> list[Group]:
    groups = []
    for part in ("test_in", "test_out", "external"):
        tested: dict[str, Part] = {label: run.parts[part] for label, run in named.items() if part in run.parts}
        for site in sorted({site for scores in tested.values() for site in scores.sites}):
            rows = [(label, scores.sites[site]) for label, scores in tested.items() if site in scores.sites]
            groups.append(Group(site, _CODES[part], "", rows))
    return groups


def _adapted(named: Mapping[str, Run]) -> list[Group]:
    """Gives the scores of adapted networks, which stand in no other table; without differences between runs."""
    found = {label: run.adapted for label, run in named.items() if run.adapted}
    if not found:
        return []
    remark = _external_in_words([each.of for each in found.values()])
    rows = [(label, each.scores.pooled) for label, each in found.items()]
    groups = [Group("All external hospitals", "adapted", remark, rows)]
    for site in sorted({site for each in found.values() for site in each.scores.sites}):
        rows = [(label, each.scores.sites[site]) for label, each in found.items() if site in each.scores.sites]
        groups.append(Group(site, "adapted", "", rows))
    return groups


def _etas(named: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Mean eta per site over all rounds, by run, for the runs that scale anything at all."""
    found = {}
    for label, run in named.items():
        sites = sorted({site for round_ in run.history for site in round_.sites})
        means = {s: fmean(r.sites[s].mean_eta for r in run.history if s in r.sites) for s in sites}
        if any(value != 1.0 for value in means.values()):
            found[label] = means
    return found


def _eta_ranges(named: Mapping[str, Run]) -> list[str]:
    etas = _etas(named)
    ranges = []
    for algorithm in dict.fromkeys(comparison.algorithm_label(named[label]) for label in etas):
        runs = [etas[label] for label in etas if comparison.algorithm_label(named[label]) == algorithm]
        sites = {site: fmean(run[site] for run in runs if site in run) for run in runs for site in run}
        low, high = min(sites, key=sites.__getitem__), max(sites, key=sites.__getitem__)
        between = f"{sites[low]:.2f} ({low}) to {sites[high]:.2f} ({high})" if low != high else f"{sites[low]:.2f}"
        ranges.append(f"{algorithm} counted training steps more by a factor eta, by hospital on average {between}.")
    return ranges


def _matched(named: Mapping[str, Run]) -> dict[str, tuple[float, float]]:
    """Mean and lowest cosine of the directions sent and unscaled ones, by algorithm whose scales hardly turn them.

    Controls that scale a whole update are left out: theirs is 1, and is meant to be.
    """
    cosines: dict[str, list[float]] = {}
    for label in _etas(named):
        told = [site.cosine for each in named[label].history for site in each.sites.values() if site.cosine is not None]
        cosines.setdefault(comparison.algorithm_label(named[label]), []).extend(told)
    found = {name: comparison.nearly_matched(values) for name, values in cosines.items()}
    return {name: told for name, told in found.items() if told is not None}


def _charts(named: Mapping[str, Run]) -> dict[str, Any]:
    from fedgs.report import charts

    curves = [
        ("Dice-N in validation", "All images with a lesion.", charts.score_chart(named, "dice_n")),
        ("Dice-S in validation", "Images with a small lesion.", charts.score_chart(named, "dice_s")),
        ("Training loss", "Mean over hospitals; thin lines are single hospitals.", charts.loss_chart(named)),
        ("Length of the updates", "Mean over hospitals; thin lines are single hospitals.", charts.length_chart(named)),
    ]
    scaled = _etas(named)
    top = max([1.1, *(s.mean_eta for label in scaled for r in named[label].history for s in r.sites.values())])
    return {
        "curves": [curve for curve in curves if curve[2] is not None],
        "eta": {label: charts.eta_chart(named[label], top=top) for label in scaled},
    }


def _exhibits(runs: Sequence[Run]) -> list[dict[str, Any]]:
    from fedgs.report.pictures import picture_of_case

    return [
        {"rank": each.rank, "overlays": each.overlays, "picture": picture_of_case(each.overlays)}
        for each in comparison.exhibits(runs)
    ]


def _joined(names: Sequence[str]) -> str:
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} and {last}" if most else last
