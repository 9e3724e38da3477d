"""The page about a comparison: what stands there is what was computed, and nothing leads out of it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedgs.data.index import Index, build_index
from fedgs.errors import ConfigError
from fedgs.verdict.judging import Comparison, compare
from fedgs.verdict.methods import bibtex, paragraph
from fedgs.verdict.observed import Observation, Observed
from fedgs.verdict.outcomes import OUTCOMES
from fedgs.verdict.page import page
from fedgs.verdict.summaries import curves, groups_of_arms, mean_of, mechanism, sizes
from fedgs.verdict.telling import as_json, plainly, remarks, sentence
from observed_runs import observed, study
from runs import make_phantom

ARMS = {"fedavg-published": 0.0, "matched-site": 0.01, "fedgs": 0.1, "fedgs-gradient": -0.1}


def rounds_of(run: Observed, count: int = 3) -> list[dict[str, Any]]:
    eta = 1.2 if run.arm.startswith("fedgs") else 1.0
    site = {"mean_eta": eta, "norm_ratio": eta + 0.1, "cosine": 0.99}
    others = [name for name in ("C1", "C2", "C3") if name != run.unseen_site]
    return [
        {
            "round": number,
            "sites": {name: {**site, "cosine": 0.99 - 0.01 * number} for name in others},
            "validation": {"dice_n": {"mean": 0.5 + 0.1 * number + 0.01 * run.seed, "n": 9}},
        }
        for number in range(1, count + 1)
    ]


def with_rounds(observation: Observation) -> Observation:
    return replace(observation, runs=[replace(run, rounds=rounds_of(run)) for run in observation.runs])


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    runs = [observed("fedavg-published", site, seed) for site in ("C4", "C5") for seed in (2, 3)]
    own = with_rounds(study(ARMS))
    return compare(replace(own, runs=[*own.runs, *(replace(run, rounds=rounds_of(run)) for run in runs)]))


@pytest.fixture(scope="module")
def text(comparison: Comparison) -> str:
    return page(comparison)


def plain(html: str) -> str:
    """What a reader sees."""
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&#39;", "'"), ("&#34;", '"'), ("&amp;", "&")):
        html = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", "", html, flags=re.DOTALL).replace(entity, sign)
    return " ".join(html.split())


def downloads(html: str) -> dict[str, pd.DataFrame]:
    """The tables inside the file."""
    found = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="([^"]+)"', html)
    return {name: pd.read_csv(io.BytesIO(base64.b64decode(content)), na_filter=False) for content, name in found}


def test_verdicts_sentences_and_remarks_stand_there(comparison: Comparison, text: str) -> None:
    shown = plain(text)
    for number, judged in enumerate(comparison.primary):
        assert sentence(comparison, number) in shown
        assert plainly(comparison, number) in shown
        assert all(remark in shown for remark in remarks(comparison, number))
        assert f'<article class="verdict {judged.verdict}">' in text
    assert [each.verdict for each in comparison.primary] == ["helps", "hurts"]
    assert "the baseline against itself, with other seeds" in shown
    assert paragraph(comparison) in shown
    assert " ".join(bibtex(comparison.observation.runs).split()) in shown


def test_nothing_leads_out_of_the_file_and_it_is_small(text: str) -> None:
    assert set(re.findall(r'(?:href|src)="([^"]{1,5})', text)) <= {"data:"} | {
        href[:5] for href in re.findall(r'href="(#[^"]*)"', text)
    }
    assert "url(http" not in text
    assert "<script" not in text
    assert "@import" not in text
    assert len(text) < 10e6
    assert "default-src 'none'" in text


def test_tables_inside_the_file_hold_the_numbers_of_the_json(comparison: Comparison, text: str) -> None:
    tables, told = downloads(text), as_json(comparison)
    assert set(tables) == {f"{name}.csv" for name in ("verdicts", "scores", "hospitals", "mechanism", "curves", "runs")}
    verdicts = tables["verdicts.csv"]
    for row, each in zip(verdicts.to_dict("records"), [*told["primary"], told["itself"]], strict=False):
        assert [row["arm"], row["baseline"]] == each["contrast"]
        assert (row["verdict"], row["n_cases"]) == (each["verdict"], each["n_cases"])
        assert [row["low"], row["high"]] == pytest.approx(each["interval"])
        assert row["difference"] == pytest.approx(each["difference"])
    assert len(tables["runs.csv"]) == len(comparison.observation.runs)
    first = tables["hospitals.csv"].query("contrast == @verdicts.arm[0] + ' \N{MINUS SIGN} ' + @verdicts.baseline[0]")
    first = first[(first["metric"] == "dice_t") & (first["part"] == "test_out")]
    assert {row["site"]: (row["difference"], row["n_cases"]) for row in first.to_dict("records")} == {
        site: (pytest.approx(each["difference"]), each["n_cases"]) for site, each in told["sites"].items()
    }


def test_means_of_arms_differ_by_the_difference(comparison: Comparison) -> None:
    first = comparison.primary[0]
    groups = groups_of_arms(comparison.observation, ["fedgs", "matched-site", "fedgs-gradient"])
    assert [list(group.arms) for group in groups] == [["fedgs", "matched-site", "fedgs-gradient", "fedavg-published"]]
    runs = groups[0].arms
    ours, cases = mean_of(runs["fedgs"], first.outcome, "test_out")
    theirs, _ = mean_of(runs["matched-site"], first.outcome, "test_out")
    assert ours is not None
    assert theirs is not None
    assert ours - theirs == pytest.approx(first.estimate.difference)
    assert cases == first.data.cases
    assert len(runs["fedavg-published"]) == 10  # its runs with seeds of its own are no part of this


def test_a_mean_averages_a_case_over_its_runs_first() -> None:
    runs = [observed("fedgs", "C1", 0), observed("fedgs", "C1", 1), observed("fedgs", "C2", 0)]
    of_case = pd.concat(run.scores for run in runs).query("is_tiny").groupby(["site", "case"])["dice"].mean()
    assert mean_of(runs, OUTCOMES["dice_t"], "test_out") == (pytest.approx(of_case.mean()), len(of_case))
    assert mean_of(runs, OUTCOMES["dice_t"], "test_out", "C2") == (pytest.approx(of_case["C2"].mean()), 8)
    assert mean_of(runs, OUTCOMES["dice_t"], "test_in") == (None, 0)


def test_arms_with_other_runs_stand_apart() -> None:
    observation = study(ARMS, sites=("C1", "C2", "C3"))
    fewer = [observed("fedbn", site, 0) for site in ("C1", "C2")]
    groups = groups_of_arms(replace(observation, runs=[*observation.runs, *fewer]), ["fedgs", "matched-site"])
    assert [list(group.arms) for group in groups] == [
        ["fedgs", "matched-site", "fedavg-published", "fedgs-gradient"],
        ["fedgs", "matched-site", "fedbn"],
    ]
    assert (groups[1].blocks, groups[1].seeds) == (["without C1, fold 0", "without C2, fold 0"], [0])
    assert [len(runs) for runs in groups[1].arms.values()] == [2, 2, 2]
    assert "only such rows may be set beside each other" in page(
        compare(replace(observation, runs=[*observation.runs, *fewer]))
    )


def test_the_scores_are_of_the_runs_that_the_first_verdict_counts() -> None:
    observation = study(ARMS, sites=("C1", "C2", "C3"))
    fewer = [run for run in observation.runs if (run.arm, run.unseen_site) != ("fedgs-gradient", "C3")]
    found = compare(replace(observation, runs=fewer))
    groups = groups_of_arms(found.observation, ["fedgs", "matched-site"])
    assert [list(group.arms) for group in groups] == [
        ["fedgs", "matched-site", "fedavg-published"],
        ["fedgs", "matched-site", "fedgs-gradient"],
    ]
    first = downloads(page(found))["scores.csv"].query("part == 'test_out' and outcome == 'dice_t' and arm == 'fedgs'")
    assert first["n_cases"].iloc[0] == found.primary[0].data.cases


def test_mechanism_and_curves_are_means_over_rounds_and_seeds(comparison: Comparison) -> None:
    runs = comparison.observation.runs
    row = mechanism(runs).query("arm == 'fedgs' and site == 'C1'").iloc[0]
    assert (row["eta"], row["ratio"]) == (pytest.approx(1.2), pytest.approx(1.3))
    assert (row["cosine"], row["lowest"]) == (pytest.approx(0.97), pytest.approx(0.96))
    table = curves([run for run in runs if run.arm == "fedgs"], "dice_n")
    last = table.query("block == 'without C1, fold 0' and round == 3").iloc[0]
    assert [last["mean"], last["low"], last["high"], last["seeds"]] == [
        pytest.approx(0.805),
        pytest.approx(0.80),
        pytest.approx(0.81),
        2,
    ]


def test_sizes_hold_every_lesion_once_in_bins_of_equal_size(comparison: Comparison) -> None:
    group = groups_of_arms(comparison.observation, ["fedgs", "matched-site"])[0]
    cases, bins = sizes(group, "test_out")
    assert len(cases) == bins["n"].sum() == 112
    assert bins["n"].max() - bins["n"].min() <= 1
    assert cases["share"].isin([300 / 512**2, 20000 / 512**2]).all()
    assert (bins["fedgs"] * bins["n"]).sum() == pytest.approx(cases["fedgs"].sum())


def test_what_is_missing_failed_or_not_converged_is_said() -> None:
    runs = study(ARMS, sites=("C1", "C3", "C4", "C5"))
    slow = [replace(run, converged=run.unseen_site != "C3") for run in runs.runs]
    found = compare(
        replace(runs, runs=slow, missing=["cells/a/fedgs"], failed={"cells/b/fedgs": "no <b>space</b> left"})
    )
    html = page(found)
    assert '<span class="tag">not converged</span>' in html
    assert "helps, not converged;" in sentence(found)
    assert as_json(found)["converged"] is False
    assert "cells/a/fedgs" in html
    assert "failed, no &lt;b&gt;space&lt;/b&gt; left" in html
    assert "2 of the plan not there" in html


def test_few_hospitals_one_seed_and_nothing_scaled_make_a_page_too() -> None:
    html = plain(page(compare(study(ARMS, seeds=(0,), sites=("C4", "C5")))))
    assert "for these hospitals only" in html
    assert "fewer than 4 hospitals" in html
    assert "One seed: the interval for these hospitals is over cases only" in html
    assert "Nothing was scaled" in html
    assert "There is no comparison of the baseline with itself" in html
    assert "There are no pictures" in html


def test_arms_that_do_not_differ_say_so() -> None:
    runs = [replace(observed("matched-site", site, 0), arm=arm) for site in ("C1", "C2") for arm in ("a", "b")]
    found = compare(Observation("Two names", runs))
    assert "did not differ in any of these images" in plainly(found)
    assert plain(page(found)).count("undecided") > 1


def test_names_are_text_and_not_markup() -> None:
    runs = study({"fedgs": 0.0, "<i>$x$</i>": 0.0}, primary=None)
    html = page(compare(replace(runs, name="<script>alert(1)</script>")))
    assert "<script" not in html
    assert "<i>$x$" not in html
    assert "&lt;i&gt;$x$&lt;/i&gt;" in html


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    return build_index(make_phantom(folder / "phantom", 12), folder / "index", size=64)


def cells(index: Index, folder: Path) -> Observation:
    """Two arms whose scores and masks are of the images of an index."""
    small = index.table[index.table["is_small"]]
    runs = []
    for arm in ("fedgs", "matched-site"):
        place = folder / arm
        (place / "masks").mkdir(parents=True)
        run = observed(arm, None, 0)
        scores = run.scores.iloc[np.zeros(len(small), int)].reset_index(drop=True)
        scores = scores.assign(**{name: small[name].to_numpy() for name in ("site", "case", "lesion_area", "is_small")})
        scores["is_tiny"] = True
        scores["dice"] = np.linspace(0, 1 if arm == "fedgs" else 0.9, len(small))
        scores["group"] = scores["case"]
        names = [f"{row:05d}.png" for row in small.index]
        small[["site", "case"]].assign(part="test_in", name=names).to_csv(place / "masks" / "cases.csv", index=False)
        for row, name in zip(small.index, names, strict=True):
            Image.fromarray(index.mask(row)).save(place / "masks" / name)
        runs.append(replace(run, scores=scores, path=place))
    return Observation("Cells", runs)


def test_pictures_of_cells_come_from_the_index(index: Index, tmp_path: Path) -> None:
    found = compare(cells(index, tmp_path))
    html = page(found, index=index)
    shown = re.findall(r'<span class="rank">([a-z ]+)</span><h3>([^<]+)</h3>', html)
    assert {why for why, _ in shown} <= {"worst", "changed most", "best"}
    ordered = index.table[index.table["is_small"]].reset_index(drop=True)
    worst = ordered.iloc[0]
    assert shown[0] == ("worst", f"{worst['site']}: {worst['case']}")
    assert len({case for _, case in shown}) == len(shown) == min(6, len(ordered))
    truths = re.findall(r'<path class="truth" d="(M[^"]{20,})"/>', html)
    predictions = re.findall(r'<path class="prediction" d="(M[^"]{20,})"/>', html)
    assert truths == predictions  # each arm marked what the expert did
    assert len(truths) == 2 * len(shown)


def test_an_index_of_other_images_is_refused(index: Index, tmp_path: Path) -> None:
    found = compare(cells(index, tmp_path))
    other = build_index(make_phantom(tmp_path / "other", 12, seed=5), tmp_path / "index", size=64)
    with pytest.raises(ConfigError, match="is not the data of these runs"):
        page(found, index=other)


def test_the_paragraph_names_what_was_done() -> None:
    told = paragraph(compare(study(ARMS)))
    assert "Each of 5 hospitals (C1, C2, C3, C4, C5) was left out of training and tested on" in told
    assert "2 seeds (0, 1)" in told
    assert "The network was unet at 128 x 128 pixels, trained for 30 rounds, batches of 4" in told
    assert "learning rate 0.001, from random weights" in told
    assert "was Dice-T on 56 images of the out-test part, declared before the runs." in told
    assert "patients within hospitals and seeds within runs were resampled independently (crossed)" in told
    assert "a t interval was taken on the hospitals' means" in told
    few = paragraph(compare(study(ARMS, seeds=(0,), sites=("C1", "C2")), baseline="matched-site", metric="hd95_missed"))
    assert "; outcome and contrasts were not declared before." in few
    assert "with one seed nothing is known of how runs differ. There are too few hospitals" in few
    assert "The 2 primary contrasts share an error of 5 % (each interval is one of 97.5 %)" in told
    falling = study(ARMS)
    falling = replace(
        falling,
        runs=[
            replace(run, start="abc", settings={**run.settings, "lr_first": 1.0, "lr_last": 0.1})
            for run in falling.runs
        ],
    )
    assert "learning rate 0.001 falling to 0.0001, from weights trained before, shared by the arms" in paragraph(
        compare(falling)
    )
