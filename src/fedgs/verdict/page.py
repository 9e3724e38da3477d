"""The page about a comparison: verdict first, then what it rests on; one file that names no other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs.data.index import Index
from fedgs.report.provenance import without_paths
from fedgs.report.records import Mean
from fedgs.report.rendering import CREDITS, file_uri, rendered
from fedgs.tables import as_csv
from fedgs.verdict import drawing, methods, summaries
from fedgs.verdict.exhibits import exhibits
from fedgs.verdict.judging import EFFECT, PARTS, Comparison, Judged
from fedgs.verdict.observed import Observation, Observed, settings_apart
from fedgs.verdict.outcomes import MARGIN_OUTCOME, OUTCOMES, SHOWN
from fedgs.verdict.summaries import LikeForLike
from fedgs.verdict.telling import label_of, name_of, plainly, remarks, sentence, signed

__all__ = ["page"]

_GLYPHS = {"helps": "\N{BLACK UP-POINTING TRIANGLE}", "hurts": "\N{BLACK DOWN-POINTING TRIANGLE}"}
_EQUAL = "\N{BLACK DIAMOND}"
_MECHANISM = (
    ("eta", "mean eta", "How much a step counted."),
    ("ratio", "length of the update, 1 = with every eta 1", "How much longer the update became."),
    ("cosine", "cosine of the update and that with every eta 1", "1 means the same direction."),
)
_MOST_ARMS_IN_CURVES = 6
_MOST_ARMS_IN_PICTURES = 4


def page(comparison: Comparison, *, index: Index | None = None) -> str:
    """Writes the page.

    Args:
        comparison: The comparison.
        index: Images of the hospitals, for pictures of cells of a study, which keep none.

    Returns:
        HTML.

    Raises:
        ConfigError: The index holds other images than the runs were tested on.
    """
    return rendered("comparison.html.j2", _content(comparison, index), beside=Path(__file__).parent)


def _content(comparison: Comparison, index: Index | None) -> dict[str, Any]:
    first, observation = comparison.primary[0], comparison.observation
    groups = summaries.groups_of_arms(observation, [first.contrast.arm, first.contrast.baseline])
    parts = [first.part, *(part for part in PARTS if part != first.part)]
    shown = list(dict.fromkeys([first.outcome.name, *SHOWN[:2], *summaries.STRATA]))
    scores = summaries.scores_by_arm(groups, parts, shown)
    compared = [run for run in observation.runs if run.arm in groups[0].arms]
    mechanism = summaries.mechanism(_scaling(observation.runs))
    exhibited = list(groups[0].arms)[:_MOST_ARMS_IN_PICTURES]
    rows = [*comparison.primary, *([comparison.itself] if comparison.itself else [])]
    others = [each for each in comparison.further if (each.outcome.name, each.part) == (first.outcome.name, first.part)]
    return {
        "comparison": comparison,
        "observation": observation,
        "first": first,
        "title": f"{name_of(first.contrast.arm)} against {name_of(first.contrast.baseline)}",
        "verdicts": [_verdict(comparison, number) for number in range(len(comparison.primary))],
        "rows": rows,
        "others": others,
        "secondary": _secondary(comparison),
        "secondary_names": SHOWN[:2],
        "large": {
            label_of(each.contrast): large for each, large in zip(comparison.primary, comparison.large, strict=True)
        },
        "parts": {part: PARTS[part] for part in parts},
        "outcomes": {name: OUTCOMES[name] for name in shown},
        "groups": groups,
        "scores": _nested(scores),
        "mixed": {
            (number, arm, part): summaries.mixed_of(runs, part)
            for number, group in enumerate(groups)
            for arm, runs in group.arms.items()
            for part in parts
        },
        "by_site": _by_site(groups[0], first),
        "mechanism": mechanism.to_dict("records"),
        "charts": _charts(comparison, [*rows, *others], groups[0], mechanism, compared),
        "exhibits": exhibits(
            [observation.of(arm) for arm in exhibited], first.part, tiny=first.outcome.name == "dice_t", index=index
        ),
        "exhibited": exhibited,
        "pictures_given": index is not None,
        "methods": methods.paragraph(comparison),
        "bibtex": methods.bibtex(observation.runs),
        "settings": _settings(observation),
        "credit": " ".join(
            CREDITS[name] for name in sorted({run.adapter for run in observation.runs}) if name in CREDITS
        ),
        "tables": _tables(comparison, scores, mechanism, compared),
        "effect": EFFECT,
        "label_of": label_of,
        "name_of": name_of,
        "signed": signed,
        "span": _span,
    }


def _verdict(comparison: Comparison, number: int) -> dict[str, Any]:
    judged = comparison.primary[number]
    return {
        "judged": judged,
        "glyph": _GLYPHS.get(judged.verdict, _EQUAL),
        "plainly": plainly(comparison, number),
        "sentence": sentence(comparison, number),
        "remarks": remarks(comparison, number),
    }


def _secondary(comparison: Comparison) -> list[Judged]:
    """The primary contrasts in all other outcomes."""
    names = [each.contrast.name for each in comparison.primary]
    found = [each for each in comparison.further if each.contrast.name in names]
    return sorted(found, key=lambda each: names.index(each.contrast.name))


def _span(low: float, high: float, judged: Judged) -> str:
    if math.isnan(low):
        return "not known"
    return f"{signed(low, judged.outcome)} to {signed(high, judged.outcome)}"


def _scaling(runs: Sequence[Observed]) -> list[Observed]:
    """Runs whose updates are not what they would be with every eta 1."""
    return [
        run
        for run in runs
        if any(site.get("mean_eta", 1.0) != 1.0 for each in run.rounds for site in each["sites"].values())
    ]


def _nested(scores: pd.DataFrame) -> dict[tuple[int, str, str, str], Mean]:
    return {
        (row["group"], row["arm"], row["part"], row["outcome"]): Mean(
            None if math.isnan(row["mean"]) else row["mean"], row["n_cases"]
        )
        for row in scores.to_dict("records")
    }


def _by_site(group: LikeForLike, first: Judged) -> dict[str, dict[str, Mean]]:
    return {
        arm: {site: Mean(*summaries.mean_of(runs, first.outcome, first.part, site)) for site in first.data.sites}
        for arm, runs in group.arms.items()
    }


def _charts(
    comparison: Comparison,
    rows: Sequence[Judged],
    group: LikeForLike,
    mechanism: pd.DataFrame,
    compared: Sequence[Observed],
) -> dict[str, Any]:
    first, arms = comparison.primary[0], list(group.arms)
    primary = len(comparison.primary)
    bars = [
        drawing.Bar(
            label_of(each.contrast), each.estimate.difference, each.estimate.these, each.estimate.new, number < primary
        )
        for number, each in enumerate(rows)
    ]
    sites = sorted({site for each in rows for site in each.data.sites})
    heat = {
        label_of(each.contrast).replace(" \N{MINUS SIGN} ", "\n\N{MINUS SIGN} "): {
            site: (float(value), cases)
            for site, value, cases in zip(
                each.data.sites, each.estimate.site_differences, each.data.cases_of, strict=True
            )
        }
        for each in rows
    }
    cases, bins = summaries.sizes(group, first.part)
    contrast = first.contrast
    in_curves = arms[:_MOST_ARMS_IN_CURVES]
    found = [
        (name, title, summaries.curves(compared, name)) for name, title in (("dice_n", "Dice-N"), ("dice_t", "Dice-T"))
    ]
    scaled = list(dict.fromkeys(mechanism["arm"]))
    return {
        "forest": drawing.forest(
            bars,
            f"change of {first.outcome.title}, {PARTS[first.part]}",
            better="right" if first.outcome.higher_is_better else "left",
            effect=EFFECT if first.outcome.unit in ("", "%") else None,
        ),
        "heat": drawing.heat_map(heat, sites),
        "sizes": drawing.size_chart(bins, arms) if len(bins) else None,
        "changes": drawing.size_difference_chart(cases, contrast.arm, contrast.baseline) if len(cases) else None,
        "mechanism": [
            (name, about, drawing.mechanism_chart(mechanism, scaled, sorted(set(mechanism["site"])), column, name))
            for column, name, about in _MECHANISM
            if mechanism[column].notna().any()
        ],
        "curves": [
            (f"{title}, {block}", svg)
            for _, title, table in found
            for block in sorted(set(table["block"]))
            if (svg := drawing.curve_chart(table[table["block"] == block], in_curves)) is not None
        ],
    }


def _settings(observation: Observation) -> dict[str, Any]:
    """Settings that all runs share, and those of each arm that differ."""
    runs = observation.runs
    apart = settings_apart(runs)
    hidden = {*apart, "algorithm", "seed", "fold", "unseen_site", "data", "device", "init_from", "init_checkpoint"}
    shared = {name: _told(value) for name, value in sorted(runs[0].settings.items()) if name not in hidden}
    own = {
        arm: {
            name: _told(of.settings[name])
            for name in ("algorithm", *apart)
            if (of := observation.of(arm)[0]).settings.get(name) is not None
        }
        for arm in observation.arms
    }
    return {"shared": shared, "own": own}


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_told(each)}" for name, each in value.items())
    return without_paths(str(value))


def _tables(
    comparison: Comparison, scores: pd.DataFrame, mechanism: pd.DataFrame, compared: Sequence[Observed]
) -> dict[str, str]:
    """Files to download, as data URIs."""
    every = [*comparison.primary, *([comparison.itself] if comparison.itself else []), *comparison.further]
    large = [each for each in comparison.large if each is not None]
    hospitals = [
        {"contrast": label_of(each.contrast), "metric": each.outcome.name, "part": each.part, "site": site}
        | {"difference": float(value), "n_cases": cases}
        for each in every
        for site, value, cases in zip(each.data.sites, each.estimate.site_differences, each.data.cases_of, strict=True)
    ]
    runs = [
        {"arm": run.arm, "unseen_site": run.unseen_site or "", "fold": run.fold, "seed": run.seed}
        | {"converged": "" if run.converged is None else str(run.converged), "data": run.data, "start": run.start or ""}
        | {name: str(run.machine.get(name, "")) for name in ("fedgs", "torch", "device")}
        for run in comparison.observation.runs
    ]
    tables = {
        "verdicts": pd.DataFrame([_row(each) for each in [*every, *large]]),
        "scores": scores.drop(columns="group"),
        "hospitals": pd.DataFrame(hospitals),
        "mechanism": mechanism,
        "curves": summaries.curves(compared, "dice_n"),
        "runs": pd.DataFrame(runs),
    }
    return {name: file_uri(as_csv(table).encode(), "text/csv;charset=utf-8") for name, table in tables.items()}


def _row(judged: Judged) -> dict[str, Any]:
    found = judged.estimate
    nothing = (math.nan, math.nan)
    new = nothing if found.new is None else (found.new.low, found.new.high)
    return {
        "arm": judged.contrast.arm,
        "baseline": judged.contrast.baseline,
        "metric": judged.outcome.name,
        "part": judged.part,
        "verdict": "" if judged.outcome.name == MARGIN_OUTCOME else judged.verdict,
        "difference": found.difference,
        "low": found.interval.low,
        "high": found.interval.high,
        "level": judged.level,
        "these_low": found.these.low,
        "these_high": found.these.high,
        "new_low": new[0],
        "new_high": new[1],
        "n_cases": judged.data.cases,
        "n_sites": len(judged.data.sites),
        "seeds": len(judged.contrast.seeds),
    }
