"""Charts are plain SVG that takes its colours from the page and shows the numbers of the run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from fedgs.report import charts
from fedgs.report.reading import read_run


@pytest.fixture(scope="module")
def runs(pair):
    return {folder.name: read_run(folder) for folder in pair}


def drawn(runs):
    return [
        charts.score_chart(runs, "dice_n"),
        charts.score_chart(runs, "dice_s"),
        charts.loss_chart(runs),
        charts.length_chart(runs),
        charts.eta_chart(runs["fedgs"], top=1.5),
    ]


def test_charts_are_well_formed_small_and_refer_to_themselves_only(runs):
    seen = set()
    for svg in drawn(runs):
        root = ElementTree.fromstring(svg)
        ids = {element.get("id") for element in root.iter() if element.get("id")}
        targets = {element.get("href")[1:] for element in root.iter() if element.get("href")}
        assert targets <= ids
        assert not ids & seen
        seen |= ids
        assert "http" not in svg
        assert "#00fe" not in svg
        assert "var(--" in svg
        assert len(svg) < 60_000


def test_charts_are_the_same_every_time(runs):
    assert drawn(runs) == drawn(runs)


def test_the_map_of_eta_ends_each_row_in_its_mean(runs):
    run = runs["fedgs"]
    svg = charts.eta_chart(run, top=1.5)
    for site in ("C1", "C2", "C3", "C4"):
        mean = sum(each.sites[site].mean_eta for each in run.history) / len(run.history)
        assert f">{mean:.2f}</text>" in svg
        assert f"> {site}</text>" in svg


def test_names_in_any_script_are_drawn_without_a_warning(runs):
    run = runs["fedgs"]
    history = [replace(each, sites={"東京 病院": each.sites["C1"], "مستشفى": each.sites["C2"]}) for each in run.history]
    assert "> 東京 病院</text>" in charts.eta_chart(replace(run, history=history), top=1.5)
    assert "مستشفى" in charts.loss_chart({"مستشفى": run})


def test_a_site_that_skips_rounds_leaves_gaps(runs):
    run = runs["fedgs"]
    sparse = [
        replace(each, sites={name: site for name, site in each.sites.items() if name != "C2" or each.number % 2})
        for each in run.history
    ]
    for svg in drawn({"fedgs": replace(run, history=sparse)}):
        assert "nan" not in svg.lower()


def test_no_value_no_chart(runs):
    run = runs["fedgs"]
    silent = replace(run, history=[replace(each, validation=None) for each in run.history])
    assert charts.score_chart({"fedgs": silent}, "dice_n") is None
    assert charts.loss_chart({"fedgs": replace(run, history=())}) is None
    assert charts.eta_chart(replace(run, history=()), top=2.0) is None


def test_labels_are_text_not_markup_and_not_mathematics(runs):
    svg = charts.loss_chart({'<script>&"$x_1$': runs["fedgs"], "_hidden": runs["fedavg-published"]})
    texts = ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag == "text"]
    assert any('<script>&"$x_1$' in text for text in texts)
    assert any("_hidden" in text for text in texts)
    assert "<script" not in svg
