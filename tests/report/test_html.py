"""The page: what it says, what it must never hold, and that it depends on nothing but the runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest

from fedgs.errors import ConfigError, DataError, MissingExtraError
from fedgs.files import sealed
from fedgs.metrics.catalogue import METRICS
from fedgs.metrics.table import STRATA
from fedgs.report.html import write_report
from fedgs.report.reading import read_run

EN_DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
VOID = {"meta", "br", "link", "img", "input", "hr"}
LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "ping", "manifest"}


class Page(HTMLParser):
    """Tags, attributes, ids and text of a page; complains about tags that do not close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(pair, out) == out
    return out.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_small(page):
    assert page.startswith("<!DOCTYPE html>")
    assert Page(page).open == []
    assert len(page.encode()) < 1_000_000


def test_nothing_refers_outside(page):
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.tags} & {"link", "script", "iframe", "object", "embed", "base", "form", "img"}
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in parsed.tags:
        assert not LOADING & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        reference = attrs.get("href")
        if reference is not None:
            assert reference.startswith("data:image/jpeg;base64,") if tag == "image" else reference[1:] in ids
        assert "xlink:href" not in attrs
    assert not re.search(r"https?://|//[a-z]+\.", page)
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "default-src 'none'" in page


def test_every_score_stands_there_with_its_count(page, pair):
    parsed = Page(page)
    for folder in pair:
        for name, part in read_run(folder).parts.items():
            for scores in (part.pooled, *(part.sites.values() if name != "validation" else ())):
                for stratum in ("dice", "dice_n", "dice_s", "dice_t", "dice_l"):
                    mean = scores[stratum]
                    shown = EN_DASH if mean.mean is None else f"{mean.mean:.3f}"
                    small = stratum == "dice_s" and mean.n
                    more = f"<small>{scores['dice_m'].n} with a large one</small>" if small else ""
                    assert f"<td>{shown}<small>n = {mean.n}</small>{more}</td>" in page
    assert "False alarm" in parsed.text


def test_adapted_scores_stand_apart_and_change_nothing_else(build_run, tmp_path):
    runs = [build_run(name, algorithm=name, rounds=2, overlays=False) for name in ("fedavg", "fedgs")]
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        about = {"checkpoint": "best", "round": 1, "known_cases": 0, "known_cases_of_site": {}}
        (run / "summary.json").write_text(json.dumps(sealed(summary | {"external": about | summary["test_in"]})))
    before = write_report(runs, tmp_path / "before.html").read_text()

    adapted = {name: {"mean": 0.4321, "n": 77} for name in STRATA}
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        about = {"checkpoint": "last", "round": 2, "known_cases": 3, "known_cases_of_site": {"New": 3}}
        other = {"pooled": {"iou": {"mean": 0.4321, "n": 77}}, "sites": {}}
        content = {**about, **adapted, "sites": {"New": adapted}, "other": other}
        (run / "summary.json").write_text(json.dumps(sealed(summary | {"adapted": content})))
    after = write_report(runs, tmp_path / "after.html").read_text()

    (section,) = re.findall(r'<section id="adapted">.*?</section>\n\n', after, re.DOTALL)
    (link,) = re.findall(r' *<li><a href="#adapted">.*?</li>\n', after)
    assert after.replace(section, "").replace(link, "").split() == before.split()
    text = Page(section).text
    assert text.count("0.432") == 2 * 2 * 5  # runs, all and one hospital, strata of Dice
    assert "New (adapted)" in text
    assert "checkpoint last, round 2; 3 images known from training" in text
    assert "statistics re-estimated from the hospital's own unlabelled images; not comparable with the others" in text
    assert MINUS not in text  # no differences


def test_scores_beside_dice_stand_there_with_their_counts_and_in_words(page, pair):
    text = Page(page).text
    for folder in pair:
        for part in ("test_in", "test_out"):
            other = read_run(folder).parts[part].other
            assert set(other) == {metric.name for metric in METRICS}
            for metric in METRICS:
                mean = other[metric.name]
                shown = {"px": f"{mean.mean:.1f} px", "per image": f"{mean.mean:.2f}", "%": f"{100 * mean.mean:.2f} %"}
                assert f"<td>{shown.get(metric.unit, f'{mean.mean:.3f}')}<small>n = {mean.n}</small></td>" in page
    assert all(f"{metric.about} n counts {metric.over}." in text for metric in METRICS)


def test_runs_of_an_earlier_version_have_no_other_scores(build_run, tmp_path):
    old, new = (build_run(name, algorithm=name, rounds=2, overlays=False) for name in ("fedavg", "fedgs"))
    summary = json.loads((old / "summary.json").read_text())
    for part in ("validation", "test_in", "test_out"):
        del summary[part]["other"]
    (old / "summary.json").write_text(json.dumps(sealed(summary)))
    assert "Other scores" not in Page(write_report([old], tmp_path / "a.html").read_text()).text
    text = Page(write_report([old, new], tmp_path / "b.html").read_text()).text
    assert f"IoU higher is better {EN_DASH} n = 0 0." in text


def test_differences_carry_a_sign_and_no_claim(page, pair):
    baseline, scaled = (read_run(folder).parts["test_out"].pooled for folder in pair)
    for stratum in ("dice", "dice_n", "dice_s"):
        expected = f"{scaled[stratum].mean - baseline[stratum].mean:+.3f}".replace("-", MINUS)
        assert f"<td>{expected}</td>" in page
    text = Page(page).text
    assert f"FedGS {MINUS} FedAvg (published)" in text
    assert "support no claim" in text
    assert not re.search(r"significan|outperform|superior|better than", text)


def test_cautions_come_before_any_dice(page):
    text = Page(page).text
    table = text.index("Mean per image")
    for caution in (
        "One seed proves nothing",
        "Few small lesions",
        "Patients are unknown for 360 of 600 images",
        "in-test scores are optimistic",
        "are the primary ones",
        "A gain may only be a larger step",
        "FedGS is nearly a matched step here",
    ):
        assert text.index(caution) < table


@pytest.mark.parametrize(("cosine", "is_told"), [(0.9991, True), (0.95, False), (1.0, False), (None, False)])
def test_that_scales_hardly_turn_a_direction_is_told_first(cosine, is_told, pair, tmp_path):
    runs = [shutil.copytree(run, tmp_path / run.name) for run in pair]
    for run in runs:
        records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
        for record in records:
            for site in record["sites"].values():
                site["cosine"] = cosine
        (run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = Page(write_report(runs, tmp_path / "page.html").read_text()).text
    told = "FedGS is nearly a matched step here"
    assert (told in text) is is_told
    assert (f"{cosine} on average, {cosine} at the lowest" in text) is is_told
    assert "FedAvg (published) is nearly" not in text
    if is_told:
        assert text.index("Before you read the numbers") < text.index(told) < text.index("One seed proves nothing")


def test_every_chart_is_there_under_its_name(page):
    headings = re.findall(r"<h3>([^<]*)</h3>", page[page.index('id="training"') : page.index('id="data"')])
    expected = ["Dice-N in validation", "Dice-S in validation", "Training loss", "Length of the updates", "FedGS"]
    assert headings == expected
    assert page.count('class="chart" role="img" aria-label=') == len(expected)
    assert "FedAvg (published) scales nothing" in Page(page).text


def test_counts_of_the_data_stand_in_the_summary(page, pair):
    sites = read_run(pair[0]).sites.values()
    text = Page(page).text
    small, free = sum(site.small for site in sites), sum(site.lesion_free for site in sites)
    assert f"600 images of 5 hospitals; {small} of them show a small lesion" in text
    assert f"and {free} show no lesion" in text
    assert "C5 took no part in training" in text
    assert "covers no more than 1/150 of the image" in text


def test_cases_are_shown_for_every_run_with_size_and_dice(page, pair):
    text = Page(page).text
    assert all(rank in text for rank in ("worst", "median", "best"))
    assert "enlarged beside it" in text
    assert page.count("data:image/jpeg") == 6
    assert page.count('role="img" aria-label="FedGS: Dice') == 6
    assert len(re.findall(r"Lesion: \d+\.\d\d % of the image", text)) == 6


def test_the_page_tells_how_to_reproduce_it_and_not_where_it_was_made(page, pair):
    text = html.unescape(Page(page).text)
    assert "fedgs train --data polypgen --adapter polypgen --algorithm fedgs" in text
    assert "torch: 2.13.0" in text
    assert "secret" not in page
    assert "/home/" not in page
    assert str(pair[0].parent) not in page


def test_the_same_runs_give_the_same_page(page, pair, tmp_path):
    assert write_report(pair, tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_one_run_alone(pair, tmp_path):
    text = Page(write_report([pair[1]], tmp_path / "a.html").read_text()).text
    assert "This page shows FedGS: one training run" in text
    assert "It was trained with one seed: one seed proves nothing" in text
    assert "Differences are" not in text


def test_a_run_without_pictures_unseen_hospital_or_scaling(build_run, tmp_path):
    folder = build_run("run", algorithm="fedavg", unseen=None, overlays=False, rounds=1)
    text = Page(write_report([folder], tmp_path / "a.html").read_text()).text
    assert "the run kept no pictures" in text
    assert "All hospitals took part in training" in text
    assert "Without an unseen hospital there are no out-test scores" in text
    assert "Nothing was scaled" in text
    assert "larger step" not in text
    assert "(out-test)" not in text


def test_known_patients_need_no_warning(build_run, tmp_path):
    folder = build_run("run", rounds=1, overlays=False)
    summary = json.loads((folder / "summary.json").read_text())
    summary["data"]["patients_unknown"] = 0
    (folder / "summary.json").write_text(json.dumps(sealed(summary)))
    text = Page(write_report([folder], tmp_path / "a.html").read_text()).text
    assert "The patient is known for every image" in text
    assert "optimistic" not in text


def test_a_split_that_leaks_is_called_so(build_run, tmp_path):
    run = build_run("one")
    assert "The split leaks" not in write_report([run], tmp_path / "sound.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    for leaks, text in (
        ({"patients": 7, "duplicates": 1}, "7 known patients, 1 image with identical copies and 0 groups"),
        ({"patients": 0, "duplicates": 0, "near_duplicates": 3}, "3 groups of near duplicates stand"),
    ):
        summary["data"]["leaks"] = leaks
        (run / "summary.json").write_text(json.dumps(sealed(summary)))
        page = write_report([run], tmp_path / "leaking.html").read_text()
        assert "The split leaks" in page
        assert text in page


def test_where_nothing_is_shared_the_page_tells_whose_network_marks_whose_images(build_run, tmp_path):
    run, federated = (build_run(name, algorithm=name, rounds=2, overlays=False) for name in ("local", "fedgs"))
    summary = json.loads((run / "summary.json").read_text())
    of_site = summary["test_in"]["sites"]
    summary["cross"] = {"C1": {site: of_site[site] for site in ("C1", "C2")}, "C2": {"C1": of_site["C1"]}}
    (run / "summary.json").write_text(json.dumps(sealed(summary)))
    text = Page(write_report([run, federated], tmp_path / "a.html").read_text()).text
    assert "Every hospital alone: whose network on whose images" in text
    assert "C5 has no network of its own" in text
    own, other = (f"{of_site[site]['dice_n']['mean']:.3f} n = {of_site[site]['dice_n']['n']}" for site in ("C1", "C2"))
    nothing = " ".join([EN_DASH] * 3)
    assert f"Network of C1 C2 C3 C4 C5 C1 {own} {other} {nothing} C2 {own} {EN_DASH} {nothing}" in text
    assert "in which hospitals trained one network together" not in text
    alone = Page(write_report([federated], tmp_path / "b.html").read_text()).text
    assert "in which hospitals trained one network together" in alone
    assert "whose network on whose images" not in alone


def test_several_seeds_are_told_apart(build_run, tmp_path):
    runs = [
        build_run(f"{name}-{seed}", algorithm=name, seed=seed, rounds=3, overlays=False)
        for name in ("fedavg-published", "fedgs")
        for seed in (0, 1)
    ]
    text = Page(write_report(runs, tmp_path / "a.html").read_text()).text
    assert "one seed proves nothing" not in text.lower()
    assert "FedGS has 2 seeds" in text
    assert f"FedGS · seed 1 {MINUS} FedAvg (published)" in text


def test_runs_that_are_not_alike_are_called_so(pair, build_run, tmp_path):
    other = build_run("other", algorithm="fedgs", rounds=2, unseen="C1")
    text = Page(write_report([pair[0], other], tmp_path / "a.html").read_text()).text
    assert "These runs are not like for like. They differ in unseen hospital, split, number of rounds." in text
    assert "Differences are" not in text


def test_names_from_data_are_text_only(build_run, tmp_path):
    evil = "<img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}$x$"
    folder = build_run("<b>run</b>", sites={evil: 0.4, "C5": 0.4}, rounds=2, algorithm="<i>mine</i>")
    page = write_report([folder], tmp_path / "a.html").read_text()
    parsed = Page(page)
    assert not [tag for tag, _ in parsed.tags if tag in ("img", "i")]
    assert "<img" not in page
    assert "<b>run" not in page
    assert "<i>" not in page
    assert evil in parsed.text


def test_an_extra_that_is_missing_is_named(pair, tmp_path, monkeypatch):
    for package in ("jinja2", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtraError, match=r"pip install 'fedgs\[report\]'"):
                write_report(pair, tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_mistakes_leave_the_old_page_as_it_was(pair, tmp_path):
    out = tmp_path / "a.html"
    out.write_text("old")
    with pytest.raises(ConfigError, match="at least one run folder"):
        write_report([], out)
    with pytest.raises(ConfigError, match="same run folder twice"):
        write_report([pair[0], pair[0].parent / "fedgs" / ".." / pair[0].name], out)
    with pytest.raises(DataError, match="no such run folder"):
        write_report([pair[0], tmp_path / "none"], out)
    assert out.read_text() == "old"
    with pytest.raises(ConfigError, match="cannot be written, expected a file in a folder that exists"):
        write_report(pair, tmp_path / "no" / "a.html")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(pair, tmp_path)
