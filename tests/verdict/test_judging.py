"""Which verdict a comparison comes to, and what is said beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedgs.errors import ConfigError, DataError
from fedgs.study.plan import Primary
from fedgs.verdict.intervals import Interval
from fedgs.verdict.judging import Needed, compare, verdict_of
from fedgs.verdict.methods import paragraph
from fedgs.verdict.observed import Observation
from fedgs.verdict.outcomes import OUTCOMES, as_numbers
from fedgs.verdict.telling import as_json, plainly, remarks, sentence
from observed_runs import PRIMARY, SETTINGS, SITES, observed, study

ARMS = {"fedavg-published": 0.0, "matched-site": 0.0, "fedgs": 0.0, "fedgs-gradient": 0.0}


def without(observation: Observation, arm: str, **options: float) -> Observation:
    """The study with other runs of an arm."""
    runs = [observed(arm, run.unseen_site, run.seed, **options) if run.arm == arm else run for run in observation.runs]
    return replace(observation, runs=runs)


def test_a_gain_in_all_hospitals_helps_and_a_loss_hurts() -> None:
    found = compare(study(ARMS | {"fedgs": 0.1, "fedgs-gradient": -0.1}))
    first, second = found.primary
    assert (first.verdict, second.verdict) == ("helps", "hurts")
    assert first.estimate.difference == pytest.approx(0.1, abs=0.02)
    assert first.data.cases == sum(count // 3 for count in SITES.values())
    assert first.level == second.level == 0.975
    assert "changes Dice-T by +0." in sentence(found)
    assert "against a matched step (95 % interval, 97.5 % for each of 2 contrasts, +0." in sentence(found)
    assert "2 seeds, 56 images): helps; to detect 0.02" in sentence(found)
    assert remarks(found) == []


def test_a_gain_is_the_mean_of_differences_by_case() -> None:
    runs = study(ARMS | {"fedgs": 0.1})
    tables = [
        run.scores.query("is_tiny").assign(arm=run.arm, seed=run.seed)
        for run in runs.runs
        if run.arm in ("fedgs", "matched-site")
    ]
    of_case = pd.concat(tables).groupby(["arm", "site", "case"])["dice"].mean().unstack("arm")
    expected = (of_case["fedgs"] - of_case["matched-site"]).mean()
    assert compare(runs).primary[0].estimate.difference == pytest.approx(expected)


def test_a_gain_in_small_lesions_that_costs_large_ones_is_undecided() -> None:
    found = compare(without(study(ARMS), "fedgs", gain=0.1, large=-0.02))
    assert found.primary[0].estimate.interval.low > 0
    assert found.primary[0].verdict == "undecided"
    assert "Dice-L may have fallen by more than 0.01: its interval begins at" in " ".join(remarks(found))
    assert compare(without(study(ARMS), "fedgs", gain=0.1, large=-0.005)).primary[0].verdict == "helps"


def test_arms_that_give_the_same_scores_are_undecided() -> None:
    runs = study(ARMS)
    same = [replace(run, scores=observed("matched-site", run.unseen_site, run.seed).scores) for run in runs.runs]
    found = compare(replace(runs, runs=same))
    assert {each.verdict for each in (*found.primary, *found.further)} == {"undecided"}
    assert found.primary[0].estimate.interval == Interval(0, 0)
    json.dumps(as_json(found), allow_nan=False)


def test_constant_scores_that_differ_are_decided_by_what_they_are() -> None:
    runs = study(ARMS)
    flat = [replace(run, scores=run.scores.assign(dice=0.5 if run.arm == "fedgs" else 0.4)) for run in runs.runs]
    found = compare(replace(runs, runs=flat)).primary[0]
    assert found.verdict == "helps"
    assert found.estimate.interval.low == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("hd95", np.inf, "expected hd95 of 0 to inf"),
        ("hd95", -1.0, "expected hd95 of 0 to inf"),
        ("surface_dice", 3.0, "expected surface_dice of 0 to 1"),
        ("lesions_small", -1, "expected lesions_small of 0 to inf"),
        ("lesions_small", 2, "expected lesions_small of at most as many as lesions"),
        ("found_10", 2, "expected found_10 of at most as many as lesions"),
        ("found_small_50", 1, "expected found_small_50 of at most as many as found_50"),
        ("false_small_10", 2, "expected false_small_10 of at most as many as predicted_lesions"),
        ("lesion_area", 0, "expected is_small of False without a lesion"),
        ("is_small", False, "expected is_tiny of False unless is_small"),
    ],
)
def test_scores_that_cannot_be_are_refused(name: str, value: float, said: str) -> None:
    spoilt = study(ARMS).runs[2].scores.copy()
    spoilt[name] = spoilt[name].astype(float if name in ("hd95", "surface_dice") else object)
    spoilt.loc[0, name] = value
    with pytest.raises(DataError, match=f"{said}, but site 'C1', case 'C1-000' has"):
        as_numbers(spoilt)


def test_a_gain_beside_no_large_lesion_is_undecided() -> None:
    runs = study(ARMS | {"fedgs": 0.1})
    none = [
        replace(run, scores=run.scores[run.scores["lesion_area"] < 20000].reset_index(drop=True)) for run in runs.runs
    ]
    found = compare(replace(runs, runs=none))
    assert found.primary[0].estimate.interval.low > 0
    assert (found.primary[0].verdict, found.large[0]) == ("undecided", None)
    assert "there is no image with large lesions only, which may have lost by it" in plainly(found)
    assert "so nothing can help" in " ".join(remarks(found))


def test_equal_scores_need_no_larger_study() -> None:
    runs = study(ARMS)
    same = [replace(run, scores=observed("matched-site", run.unseen_site, run.seed).scores) for run in runs.runs]
    found = compare(replace(runs, runs=same))
    assert "All scores of the two are equal, as if they were one run." in remarks(found)
    assert "how large a study should be cannot be told where nothing differs" in sentence(found)


def test_only_runs_with_images_that_count_are_told() -> None:
    """A hospital without any tiny lesion has runs with three seeds and adds nothing."""
    runs = study(ARMS, seeds=[0])
    more = [
        replace(run, seed=seed, converged=None, scores=run.scores.assign(is_tiny=False))
        for run in runs.runs
        if run.unseen_site == "C5"
        for seed in (0, 1, 2)
    ]
    found = compare(replace(runs, runs=[*(run for run in runs.runs if run.unseen_site != "C5"), *more]))
    assert found.primary[0].contrast.seeds == [0]
    assert as_json(found)["seeds"] == [0]
    assert "; 1 seed, " in sentence(found)
    told = " ".join(remarks(found))
    assert "no image there counts: without C5, fold 0." in told
    assert "converged" not in told


def test_a_control_that_has_not_converged_counts_as_well() -> None:
    runs = study(ARMS)
    late = [replace(run, converged=run.arm != "matched-site") for run in runs.runs]
    found = compare(replace(runs, runs=late))
    assert found.primary[0].converged is False
    assert "Not converged: without C1" in " ".join(remarks(found))


def test_no_arm_is_left_out_without_a_word() -> None:
    arms = {"fedgs": 0.1, "matched-site": 0.0, "shuffled-scale": 0.0, "fedavg": 0.0}
    found = compare(replace(study(arms), primary=None))
    pairs = {(each.contrast.arm, each.contrast.baseline) for each in (*found.primary, *found.further)}
    assert {arm for pair in pairs for arm in pair} == set(arms)
    assert ("shuffled-scale", "matched-site") in pairs


def test_a_baseline_passes_over_arms_of_a_study_with_other_networks() -> None:
    runs = study(ARMS)
    other = {**SETTINGS, "model_options": {"norm": "batch"}}
    mixed = [replace(run, settings=other | {"algorithm": "fedbn"}, arm="fedbn") for run in study({"fedbn": 0.0}).runs]
    found = compare(replace(runs, runs=[*runs.runs, *mixed]), baseline="fedavg-published")
    assert [each.contrast.arm for each in found.primary] == ["matched-site", "fedgs", "fedgs-gradient"]
    assert "fedbn - fedavg-published" in found.unlike
    with pytest.raises(ConfigError, match="model_options"):
        compare(replace(runs, primary=None, runs=[*runs.runs, *mixed]), baseline="fedavg-published")


def test_scores_that_are_no_number_are_refused() -> None:
    runs = study(ARMS)
    spoilt = runs.runs[2].scores.copy()
    spoilt.loc[0, "dice"] = np.nan
    with pytest.raises(DataError, match=r"expected Dice in \[0, 1\], but site 'C1', case 'C1-000' has nan"):
        as_numbers(spoilt)


def test_one_seed_is_said() -> None:
    found = compare(study(ARMS | {"fedgs": 0.1}, seeds=[3]))
    assert found.primary[0].contrast.seeds == [3]
    assert "1 seed, " in sentence(found)
    assert "over cases only and knows nothing of other runs" in " ".join(remarks(found))


@pytest.mark.parametrize(("sites", "verdict"), [(1, "undecided"), (3, "undecided"), (4, "helps")])
def test_one_seed_and_few_hospitals_decide_nothing(sites: int, verdict: str) -> None:
    found = compare(study(ARMS | {"fedgs": 0.2}, seeds=[0], sites=list(SITES)[:sites]))
    assert found.primary[0].estimate.these.low > 0
    assert found.primary[0].verdict == verdict
    told = " ".join(remarks(found))
    assert ("decide nothing: another run may differ by as much" in told) is (verdict == "undecided")
    assert "Dice-L may have fallen" not in told


def test_fewer_than_four_hospitals_speak_for_themselves_only() -> None:
    found = compare(study(ARMS | {"fedgs": 0.1}, sites=["C1", "C5"]))
    assert found.primary[0].estimate.new is None
    assert "helps, for these hospitals only; " in sentence(found)


@pytest.mark.parametrize(
    ("sites", "seeds", "here", "elsewhere", "said"),
    [
        (1, 2, 13, None, "about 13 patients with such images in this hospital, for a verdict on it alone"),
        (1, 2, 1, None, "about 1 patient with such images in this hospital, for a verdict on it alone"),
        (
            *(1, 1, 13, None),
            "about 13 patients with such images in this hospital, for a verdict on it alone, if runs with other seeds "
            "differed in nothing",
        ),
        (1, 2, None, None, "no number of patients in this hospital would suffice"),
        (
            *(2, 2, 1300, (8, 210)),
            "about 210 patients with such images in 8 hospitals; about 1,300 patients with such images in all of these "
            "2 hospitals, for a verdict on them alone",
        ),
        (
            *(3, 2, None, (8, 210)),
            "about 210 patients with such images in 8 hospitals; no number of patients in these 3 hospitals would "
            "suffice",
        ),
        (
            *(5, 1, 130, (4, 120)),
            "about 120 patients with such images in 4 hospitals; about 130 patients with such images in all of these 5 "
            "hospitals",
        ),
        (5, 2, None, None, "no number of patients in these 5 hospitals would suffice"),
    ],
)
def test_what_a_study_would_need_is_said(
    sites: int, seeds: int, here: int | None, elsewhere: tuple[int, int] | None, said: str
) -> None:
    found = compare(study(ARMS, sites=list(SITES)[:sites], seeds=list(range(seeds))))
    needs = Needed(*(elsewhere or (None, None)), here)
    told = sentence(replace(found, needed=[needs] * 2))
    only = ", for these hospitals only" if sites < 4 else ""
    assert told.endswith(f": undecided{only}; to detect 0.02 with a chance of 80 %, {said}.")


def test_what_a_study_would_need_counts_every_hospital() -> None:
    """However little patients differ, there is one in each; and a hospital tells nothing of others."""
    flat = [replace(run, scores=run.scores.assign(dice=0.5)) for run in study(ARMS).runs]
    assert compare(replace(study(ARMS), runs=flat)).needed[0].here == len(SITES)
    one = compare(study(ARMS, sites=["C5"])).needed[0]
    assert (one.sites, one.patients) == (None, None)


def test_what_a_study_would_need_is_not_told_from_single_patients() -> None:
    one = study(ARMS)
    single = [replace(run, scores=run.scores.assign(group=run.scores["site"])) for run in one.runs]
    told = sentence(compare(replace(one, runs=single)))
    assert told.endswith(
        "how large a study should be cannot be told, as no hospital has two patients with such images."
    )


def test_runs_without_an_unseen_hospital_are_compared_on_held_out_images() -> None:
    runs = [observed(arm, None, seed, gain=gain) for seed in (0, 1) for arm, gain in (("fedgs", 0.1), ("fedavg", 0))]
    found = compare(Observation("two", runs))
    assert found.primary[0].part == "test_in"
    assert sentence(found).startswith("On held-out images of 5 hospitals, FedGS changes")
    told = " ".join(remarks(found))
    assert "cannot be attributed to scaling alone: so do weights of hospitals" in told
    assert "What decides was not declared before these runs." in told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"model": "utnet"}}, r"model: 'utnet' for fedgs, 'unet' for matched-site"),
        ({"settings": {"rounds": 60}}, r"rounds: 60 for fedgs, 30 for matched-site"),
        ({"data": "other"}, r"images, masks, flags or split"),
        ({"start": "0" * 64}, r"the weights they started from"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_unless_it_is_asked_for(changes: dict, said: str) -> None:
    runs = study(ARMS)
    spoilt = [
        replace(run, **{k: {**run.settings, **v} if k == "settings" else v for k, v in changes.items()})
        if run.arm == "fedgs"
        else run
        for run in runs.runs
    ]
    with pytest.raises(ConfigError, match=said):
        compare(replace(runs, runs=spoilt))
    found = compare(replace(runs, runs=spoilt), anyway=True)
    assert "should not be compared, and was on request" in remarks(found)[0]


def test_another_cause_is_named() -> None:
    runs = study(ARMS)
    other = [replace(run, settings={**run.settings, "lr": 0.1}) if run.arm == "fedgs" else run for run in runs.runs]
    assert "cannot be attributed to scaling alone: so do lr differ" in " ".join(
        remarks(compare(replace(runs, runs=other)))
    )


def test_what_is_not_converged_tuned_or_there_is_said() -> None:
    runs = study(ARMS)
    late = [replace(run, converged=run.unseen_site != "C2") for run in runs.runs]
    found = compare(replace(runs, runs=late, missing=["a"], failed={"b": "nan"}, untuned=["fedgs"]))
    told = " ".join(remarks(found))
    assert "Not converged: without C2, fold 0. A difference may be one of speed." in told
    assert "Not tuned: fedgs." in told
    assert "2 cells of the plan are not there, 1 of them failed." in told


def test_cells_that_only_one_arm_has_do_not_enter() -> None:
    whole = study(ARMS)
    lost = [run for run in whole.runs if (run.arm, run.unseen_site, run.seed) != ("fedgs", "C3", 1)]
    found = compare(replace(whole, runs=lost)).primary[0]
    assert found.contrast.unseen_sites == list(SITES)
    assert len(found.contrast.pairs) == 9


def test_other_images_are_refused() -> None:
    runs = study(ARMS)
    fewer = [replace(run, scores=run.scores.iloc[1:]) if run.arm == "fedgs" else run for run in runs.runs]
    with pytest.raises(DataError, match=r"did not score the same images in test_out"):
        compare(replace(runs, runs=fewer))


def test_no_small_lesion_in_a_part_is_refused_with_the_outcomes_that_can_be() -> None:
    runs = study(ARMS)
    none = [replace(run, scores=run.scores.query("not is_tiny")) for run in runs.runs]
    with pytest.raises(
        DataError, match=r"no out-test image counts in Dice-T.*another --metric, one of: dice_s, dice_l"
    ):
        compare(replace(runs, runs=none))
    assert compare(replace(runs, runs=none), metric="dice_l").primary[0].outcome.name == "dice_l"


def test_a_metric_that_was_not_declared_is_marked() -> None:
    found = compare(study(ARMS), metric="dice_s")
    assert "What decides was not declared before these runs." in remarks(found)
    with pytest.raises(ConfigError, match="unknown metric 'dice_x'"):
        compare(study(ARMS), metric="dice_x")


def test_the_baseline_can_be_chosen() -> None:
    found = compare(study(ARMS), baseline="fedavg-published")
    assert [(each.contrast.arm, each.contrast.baseline) for each in found.primary] == [
        (arm, "fedavg-published") for arm in ("matched-site", "fedgs", "fedgs-gradient")
    ]
    assert found.primary[0].level == pytest.approx(1 - 0.05 / 3)
    with pytest.raises(ConfigError, match="unknown arm for --baseline 'fedavg'"):
        compare(study(ARMS), baseline="fedavg")
    with pytest.raises(ConfigError, match="there is one arm only"):
        compare(study({"fedgs": 0.0}))


def test_all_others_share_another_5_percent() -> None:
    found = compare(study(ARMS))
    levels = {each.level for each in found.further}
    assert len(levels) == 1
    assert levels.pop() >= 1 - 0.05 / len(found.further)
    assert len(found.further) > 40
    primary = {(each.contrast.arm, each.contrast.baseline) for each in found.primary}
    assert not [
        each
        for each in found.further
        if (each.contrast.arm, each.contrast.baseline) in primary
        and (each.part, each.outcome.name) == ("test_out", "dice_t")
    ]


def test_the_baseline_against_itself_is_its_seeds_that_no_other_arm_has() -> None:
    runs = study(ARMS)
    again = [observed("fedavg-published", site, seed) for site in ("C5", "C3") for seed in (2, 3)]
    found = compare(replace(runs, runs=[*runs.runs, *again]))
    assert found.itself is not None
    assert found.itself.contrast.seeds == [0, 1]
    assert found.itself.contrast.unseen_sites == ["C3", "C5"]
    assert {other.seed for _, other in found.itself.contrast.pairs} == {2, 3}
    assert compare(runs).itself is None


def test_lower_can_be_better() -> None:
    fewer = OUTCOMES["false_lesions_10"]
    assert verdict_of(Interval(-2, -1), fewer) == "helps"
    assert verdict_of(Interval(1, 2), fewer) == "hurts"
    assert verdict_of(Interval(-1, 2), fewer) == "undecided"
    assert verdict_of(Interval(float("nan"), float("nan")), fewer) == "undecided"
    assert verdict_of(Interval(1, 2), OUTCOMES["dice_t"]) == "helps"


def test_what_is_written_is_what_was_found() -> None:
    found = compare(study(ARMS | {"fedgs": 0.1}))
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    first = found.primary[0]
    assert told["verdict"] == "helps"
    assert told["difference"] == first.estimate.difference
    assert told["interval"] == [first.estimate.interval.low, first.estimate.interval.high]
    assert (told["n_cases"], told["n_sites"], told["seeds"], told["folds"]) == (56, 5, [0, 1], [0])
    assert told["primary"][0]["non_inferior"] is True
    assert {each["metric"] for each in told["further"]} >= {"dice_s", "lesion_sensitivity_small_10", "false_lesions_10"}
    assert PRIMARY.margin == told["margin"]


def test_an_arm_that_hardly_turns_the_updates_is_called_a_matched_step_before_all_else() -> None:
    def turned(cosine: float) -> list[str]:
        rounds = [{"round": 1, "sites": {"C1": {"cosine": cosine}, "C2": {"cosine": None}}}]
        runs = study(ARMS, sites=("C1", "C2"))
        return remarks(compare(replace(runs, runs=[replace(run, rounds=rounds) for run in runs.runs])))

    assert turned(0.9951)[0].startswith("FedGS is nearly a matched step in these runs: the cosine of the updates")
    assert "is 0.9951 on average, 0.9951 at the lowest" in turned(0.9951)[0]
    assert "matched step" not in " ".join(turned(0.9899) + turned(1.0))


def test_further_contrasts_that_differ_in_more_than_the_algorithm_are_left_out_and_named() -> None:
    own = study(ARMS, sites=("C1", "C2"))
    other = [observed("fedbn", site, seed, settings={"model": "other"}) for site in ("C1", "C2") for seed in (0, 1)]
    found = compare(replace(own, runs=[*own.runs, *other]))
    assert found.obstacles == {}
    assert list(found.unlike) == ["fedbn - fedavg-published"]
    assert "fedbn" not in {each.contrast.arm for each in found.further}
    assert "should not be compared" not in " ".join([sentence(found), *remarks(found)])


def test_a_declared_contrast_keeps_its_direction_with_two_arms_alone() -> None:
    primary = Primary("dice_t", (("matched-site", "fedavg-published"),), 0.01)
    found = compare(study({"fedavg-published": 0.0, "matched-site": 0.1}, primary=primary))
    assert (found.primary[0].contrast.arm, found.primary[0].verdict, found.declared) == ("matched-site", "helps", True)


def test_a_baseline_of_ones_own_was_not_declared() -> None:
    found = compare(study(ARMS, sites=("C1", "C2")), baseline="fedavg-published")
    assert not found.declared
    assert "What decides was not declared before these runs." in remarks(found)


def test_contrasts_that_are_declared_and_have_no_runs_yet_share_the_error_all_the_same() -> None:
    arms = {name: gain for name, gain in ARMS.items() if name != "fedgs-gradient"}
    found = compare(study(arms, sites=("C1", "C2")))
    assert found.primary[0].level == 0.975
    assert "(95 % interval, 97.5 % for each of 2 contrasts, " in sentence(found)
    assert "each interval is one of 97.5 %" in paragraph(found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"large": -0.02}, "does better than a matched step"),
        ({"large": 0.0, "seeds": (0,), "sites": ("C1", "C2")}, "since one run per arm in so few hospitals cannot tell"),
    ],
)
def test_plain_words_do_not_contradict_their_own_numbers(options: dict, said: str) -> None:
    large = options.pop("large")
    found = compare(without(study(ARMS, **options), "fedgs", gain=0.1, large=large))
    assert found.primary[0].estimate.interval.low > 0
    assert found.primary[0].verdict == "undecided"
    assert said in plainly(found)
    assert "cannot be told" not in plainly(found)


def test_hospitals_with_one_seed_borrow_the_variance_of_runs_from_others() -> None:
    runs = [run for run in study(ARMS).runs if (run.unseen_site, run.seed) != ("C5", 1)]
    found = compare(Observation("Half", runs, PRIMARY))
    assert found.primary[0].estimate.components.run > 0
    assert found.primary[0].estimate.decides
    assert "; 1 to 2 seeds, " in sentence(found)
    assert "Some hospitals have one seed only" in " ".join(remarks(found))


def test_hospitals_that_one_arm_lacks_are_named() -> None:
    runs = [run for run in study(ARMS).runs if (run.arm, run.unseen_site) != ("matched-site", "C5")]
    assert "only one of the two arms has runs there: without C5, fold 0." in " ".join(
        remarks(compare(Observation("Fewer", runs, PRIMARY)))
    )


def test_scores_of_lesions_are_told_apart_by_the_overlap_that_counts() -> None:
    titles = [outcome.title for outcome in OUTCOMES.values()]
    assert len(titles) == len(set(titles))
    assert "Sensitivity, small lesions (IoU above 0.1)" in titles


def test_a_case_has_one_group_in_all_runs() -> None:
    runs = study(ARMS, sites=("C1", "C2"))
    old = [replace(run, scores=run.scores.assign(group=None)) if run.seed else run for run in runs.runs]
    found, whole = compare(replace(runs, runs=old)).primary[0], compare(runs).primary[0]
    assert found.estimate.difference == pytest.approx(whole.estimate.difference)
    assert found.data.weight.tolist() == whole.data.weight.tolist()
