"""A plan says all before the first run, and what it cannot say is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedgs.algorithms import build
from fedgs.errors import ConfigError
from fedgs.study.plan import Cell, Plan, Trial, Trunk
from fedgs.study.reading import read_plan

PRIMARY = {"outcome": "dice_t", "contrasts": [["fedgs", "matched-site"]], "margin": 0.01}
CELLS = {"arms": ["fedgs", "matched-site"], "unseen_sites": ["Alder", "Cedar"], "seeds": [0, 1], "folds": [0, 2]}
PLAN: dict[str, Any] = {"primary": PRIMARY, "cells": [CELLS]}
TUNE: dict[str, Any] = {"fold": 1, "seed": 9, "search": {"fedgs": {"lr": [1.0]}}}


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "plan.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def made(folder: Path, **changes: Any) -> Plan:
    return read_plan(written(folder, PLAN | changes))


def test_the_grid_is_whole_and_the_first_seed_comes_first(tmp_path: Path) -> None:
    cells = made(tmp_path).cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    assert cells[:2] == [Cell("fedgs", "Alder", 0, 0), Cell("matched-site", "Alder", 0, 0)]
    assert len({cell.path for cell in cells}) == len(cells)


def test_a_hospital_may_have_any_name(tmp_path: Path) -> None:
    long = [
        "東京大学医学部附属病院消化器内科・内視鏡診療部門",
        "東京大学医学部附属病院消化器内科・内視鏡診療部門二",
        "a/b:c*?",
        "..",
        "x" * 400,
    ]
    paths = [cell.path for cell in made(tmp_path, cells=[CELLS | {"unseen_sites": long}]).cells()]
    assert len(set(paths)) == len(paths)
    assert all(part.isascii() and len(part) < 150 for path in paths for part in path.split("/"))
    assert not any(set(path) & set(':*?\\"<>|') or "/../" in path for path in paths)


def test_a_cell_that_two_tables_name_runs_once(tmp_path: Path) -> None:
    again = {"arms": ["fedgs", "local"], "unseen_sites": ["Alder"], "seeds": [0]}
    assert len(made(tmp_path, cells=[CELLS, again]).cells()) == 16 + 1


def test_settings_come_from_all_then_the_arm_then_the_tuning_then_the_grid(tmp_path: Path) -> None:
    tune = {"fold": 1, "seed": 9, "rounds": 2, "search": {"fedgs": {"lr": [0.5, 0.25]}}}
    plan = made(tmp_path, settings={"lr": 1.0, "size": 64}, arms={"fedgs": {"batch_size": 2}}, tune=tune)
    fedgs, other = plan.cells()[:2]
    assert plan.config(fedgs).training.lr == 0.5
    assert plan.config(fedgs, {"fedgs": {"lr": 0.25}}).training.lr == 0.25
    assert plan.config(other, {"fedgs": {"lr": 0.25}}).training.lr == 1.0
    assert plan.config(fedgs).training.batch_size == 2
    assert plan.config(other).algorithm.algorithm == "matched-site"
    config = plan.config(plan.cells()[-1])
    assert (config.data.unseen_site, config.data.fold, config.federation.seed) == ("Cedar", 2, 1)


def test_trials_run_where_the_plan_says_and_before_what_needs_them(tmp_path: Path) -> None:
    tune = {"fold": 1, "seed": 9, "rounds": 2, "unseen_site": "Birch", "search": {"fedgs": {"lr": [0.5, 0.25]}}}
    plan = made(tmp_path, tune=tune)
    runs = list(plan.runs())
    assert [type(run) for run in runs[:3]] == [Trial, Trial, Cell]
    assert len(runs) == 2 + 16
    config = plan.config(runs[1])
    assert (config.data.unseen_site, config.data.fold, config.federation.seed) == ("Birch", 1, 9)
    assert (config.training.lr, config.federation.rounds) == (0.25, 2)
    assert plan.needs(runs[2]) == runs[:2]


def test_arms_of_one_network_share_a_trunk_that_draws_other_batches(tmp_path: Path) -> None:
    arms = {"fedbn": {"model_options": {"norm": "batch"}}}
    settings = {"model_options": {"norm": "instance"}, "rounds": 5}
    cells = [CELLS | {"arms": ["fedgs", "matched-site", "fedbn"]}]
    plan = made(tmp_path, cells=cells, arms=arms, settings=settings, trunk={"rounds": 7})
    runs = list(plan.runs())
    trunks = [run for run in runs if isinstance(run, Trunk)]
    assert len(trunks) == len({trunk.path for trunk in trunks}) == 2 * 8
    assert trunks[1].path == "trunks/without-Alder-fold0-seed0,norm=batch"
    first = plan.cells()[:3]
    assert first[0].trunk == first[1].trunk != first[2].trunk
    for cell in plan.cells():
        assert cell.trunk is not None
        assert runs.index(cell.trunk) < runs.index(cell)
        trunk, config = plan.config(cell.trunk), plan.config(cell)
        assert trunk.model == config.model
        assert trunk.algorithm.algorithm == "fedavg-published"
        assert (trunk.federation.rounds, config.federation.rounds) == (7, 5)
        assert trunk.data == config.data
    seeds = {plan.config(trunk).federation.seed for trunk in trunks}
    assert seeds.isdisjoint({plan.config(cell).federation.seed for cell in plan.cells()})


def test_the_default_network_has_a_trunk_of_its_own(tmp_path: Path) -> None:
    arms, settings = {"matched-site": {"model_options": {}}}, {"model_options": {"norm": "instance"}}
    plan = made(tmp_path, arms=arms, settings=settings, trunk={"rounds": 1})
    first, second, *_ = plan.cells()
    assert first.trunk is not None
    assert second.trunk is not None
    assert second.trunk.path == f"{first.trunk.path},model_options=none"
    assert plan.config(second.trunk).model == plan.config(second).model != plan.config(first).model


def test_a_trunk_takes_the_rate_of_the_baseline_with_its_network(tmp_path: Path) -> None:
    batch = {"model_options": {"norm": "batch"}}
    arms = {
        "fedgs": {"tuned_as": "fedavg-published"},
        "plain": {"algorithm": "fedavg-published", "tuned_as": "fedbn"} | batch,
        "fedbn": batch,
    }
    tune = TUNE | {"search": {"fedavg-published": {"lr": [1.0]}, "fedbn": {"lr": [2.0]}}}
    cells = [CELLS | {"arms": ["fedgs", "plain", "fedbn", "fedavg-published"]}]
    primary = PRIMARY | {"contrasts": [["fedgs", "plain"]]}
    plan = made(tmp_path, arms=arms, cells=cells, primary=primary, trunk={"rounds": 1}, tune=tune)
    of_fedgs, of_plain, of_fedbn = (cell.trunk for cell in plan.cells()[:3])
    assert of_plain == of_fedbn
    assert plan.search_of(of_fedgs) == "fedavg-published"
    assert plan.search_of(of_plain) == "fedbn"
    assert plan.config(of_plain).training.lr == 2.0


def test_cells_may_start_from_scratch_beside_those_from_a_trunk(tmp_path: Path) -> None:
    cells = [CELLS, CELLS | {"from_trunk": False}]
    plan = made(tmp_path, cells=cells, trunk={"rounds": 7}, scratch={"rounds": 9}, settings={"rounds": 2})
    assert len({cell.path for cell in plan.cells()}) == len(plan.cells()) == 32
    rounds = {(cell.trunk is None, plan.config(cell).federation.rounds) for cell in plan.cells()}
    assert rounds == {(True, 9), (False, 2)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"primery": {}}, "unknown table or key 'primery'; did you mean 'primary'?"),
        ({"primary": PRIMARY | {"outcom": "dice"}}, "unknown key in [primary] 'outcom'; did you mean 'outcome'?"),
        ({"primary": {"outcome": "dice_t", "margin": 0.01}}, "[primary] lacks 'contrasts'"),
        ({"primary": PRIMARY | {"outcome": "dice_x"}}, "unknown outcome in [primary] 'dice_x'"),
        ({"primary": PRIMARY | {"outcome": 3}}, "unknown outcome in [primary] 3"),
        ({"primary": PRIMARY | {"margin": 0}}, "must lie in (0, 1), got 0"),
        ({"primary": PRIMARY | {"margin": "1 %"}}, "must be a number, got '1 %'"),
        ({"primary": PRIMARY | {"contrasts": [["fedgs"]]}}, "is a pair of arms"),
        ({"primary": PRIMARY | {"contrasts": [["fedgs", "fedgs"]]}}, "pair of two arms"),
        ({"primary": PRIMARY | {"contrasts": []}}, "at least one pair"),
        (
            {"primary": PRIMARY | {"contrasts": [["fedgs", "fedbn"]]}},
            "unknown arm in the contrasts of [primary] 'fedbn'",
        ),
        ({"primary": 3}, "'primary' must be a table"),
        ({"cells": []}, "has no cells"),
        ({"cells": [{"seeds": [1]}]}, "lacks 'arms'"),
        ({"cells": [CELLS | {"seed": [1]}]}, "unknown key in [[cells]] 'seed'; did you mean 'seeds'?"),
        ({"cells": [CELLS | {"seeds": [True]}]}, "must be a list of whole numbers"),
        ({"cells": [CELLS | {"seeds": 1}]}, "must be a list of whole numbers"),
        ({"cells": [CELLS | {"seeds": []}]}, "seeds in [[cells]] is empty"),
        ({"cells": [CELLS | {"folds": [5]}]}, "fold must be 0 to 4, got 5"),
        ({"cells": [CELLS | {"from_trunk": "yes"}]}, "must be true or false"),
        ({"cells": [CELLS | {"from_trunk": True}]}, "need a table [trunk]"),
        ({"settings": {"learning_rate": 1.0}}, "unknown setting in [settings] 'learning_rate'"),
        ({"settings": {"algorithm": "fedprox"}}, "'algorithm' cannot stand in [settings]"),
        ({"trunk": {"algorithm": "fedgs", "rounds": 1}}, "'algorithm' cannot stand in [trunk]"),
        ({"settings": {"lr": "high"}}, "setting 'lr' must be float, got 'high'"),
        ({"settings": {"lr": -1.0}}, "lr must be a finite number above 0"),
        ({"settings": {"unseen_site": "Alder"}}, "'unseen_site' cannot stand in [settings]"),
        ({"settings": {"data": "frames"}}, "'data' cannot stand in [settings]"),
        ({"arms": {"fedgs": {"lr": 0.0}}}, "lr must be"),
        ({"arms": {"../x": {}}}, "its name becomes that of a folder"),
        ({"arms": {"fedgs": {"tuned_as": "fedgs"}}}, "arm 'fedgs' has 'tuned_as', but there is no table [tune]"),
        (
            {"arms": {"fedgs": {"tuned_as": "fedgx"}}, "tune": TUNE},
            "unknown search in tuned_as 'fedgx'; did you mean 'fedgs'",
        ),
        ({"arms": {"fedgs": {"lr": 0.1}}, "tune": TUNE}, "[arms.fedgs] gives 'lr', which [tune.search.fedgs] chooses"),
        (
            {"arms": {"matched-site": {"lr": 0.1, "tuned_as": "fedgs"}}, "tune": TUNE},
            "[arms.matched-site] gives 'lr', which [tune.search.fedgs] chooses",
        ),
        ({"tune": TUNE | {"search": {"fedgs": {"lr": [0.1, 0.2, 0.1]}}}}, "tries lr = 0.1 more than once"),
        ({"tune": TUNE | {"search": {"fedgs": {}}}}, "[tune.search.fedgs] tries no setting"),
        (
            {"tune": TUNE | {"seed": 1000}, "trunk": {"rounds": 1}},
            "seed 1000 in [tune] enters the comparison",
        ),
        ({"trunk": {"rounds": 1, "model_options": {"norm": "instance"}}}, "goes on from a trunk with another network"),
        ({"trunk": {"lr": 1.0}}, "[trunk] lacks 'rounds'"),
        ({"tune": {"seed": 9, "search": {}}}, "[tune] lacks 'fold'"),
        ({"tune": {"fold": 1, "seed": 9, "search": {}}}, "same number of trials, at least one; got none"),
        (
            {"tune": {"fold": 1, "seed": 9, "search": {"fedgs": {"lr": [1.0]}, "matched-site": {"lr": [1.0, 2.0]}}}},
            "same number of trials, at least one; got fedgs 1, matched-site 2",
        ),
        (
            {"tune": {"fold": 2, "seed": 9, "search": {"fedgs": {"lr": [1.0]}}}},
            "fold 2 in [tune] enters the comparison",
        ),
        (
            {"tune": {"fold": 1, "seed": 1, "search": {"fedgs": {"lr": [1.0]}}}},
            "seed 1 in [tune] enters the comparison",
        ),
        ({"tune": {"fold": 1, "seed": 9, "search": {"fedxx": {"lr": [1.0]}}}}, "unknown arm 'fedxx'"),
        ({"tune": {"fold": 1, "seed": 9, "search": {"fedgs": {"lr": 1.0}}}}, "must be a list of values"),
        ({"tune": {"fold": 1, "seed": 9, "search": {"fedgs": {"lr": []}}}}, "got fedgs 0"),
        (
            {"tune": {"fold": 1, "seed": 9, "outcome": "auc", "search": {"fedgs": {"lr": [1.0]}}}},
            "outcome in [tune] 'auc'",
        ),
        ({"trunk": {"rounds": 1, "lr": 0.1}, "tune": TUNE}, "[trunk] gives 'lr', which [tune.search.fedgs] chooses"),
        ({"scratch": {"lr": 0.1}, "tune": TUNE}, "[scratch] gives 'lr', which [tune.search.fedgs] chooses"),
        ({"tune": TUNE | {"split_seed": 5}}, "[tune] gives 'split_seed', and so other folds"),
        ({"tune": TUNE | {"search": {"fedgs": {"rounds": [1, 2]}}}}, "cannot choose 'rounds', which all runs share"),
        ({"arms": {"fedgs": {"split_seed": 3}}}, "[arms.fedgs] gives 'split_seed', in which all arms must be alike"),
        ({"arms": {"fedgs": {"rounds": 3}}}, "[arms.fedgs] gives 'rounds', in which all arms must be alike"),
        ({"arms": {"fedgs": {"tuned_as": ["fedgs"]}}, "tune": TUNE}, "must be the name of a search, got ['fedgs']"),
        ({"arms": {"fedgs": {"tuned_as": ""}}, "tune": TUNE}, "must be the name of a search, got ''"),
        (
            {"primary": PRIMARY | {"contrasts": [["fedgs", "matched-site"], ["matched-site", "fedgs"]]}},
            "name fedgs and matched-site more than once",
        ),
        ({"name": 3}, "name must be text"),
        ({"threads": 0}, "threads must be a whole number, at least 1, got 0"),
        ({"threads": True}, "threads must be a whole number"),
    ],
)
def test_what_a_plan_cannot_say_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        made(tmp_path, **change)
    assert said in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"[cells]\n"])
def test_a_file_that_is_no_plan_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"plan\.toml"):
        read_plan(tmp_path / "plan.toml")


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "plan.toml")


PLANS = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_plans_that_come_with_the_package_can_be(path: Path) -> None:
    plan = read_plan(path)
    for run in plan.runs():
        build(plan.config(run).algorithm.algorithm, known={"base": 100.0, "lr": 1e-3, "per_image": True})


def test_the_study_of_the_five_hospitals_is_as_promised() -> None:
    plan = read_plan(next(path for path in PLANS if path.stem == "polypgen"))
    core = ("fedavg-published", "matched-site", "fedgs", "fedgs-gradient")
    sites = ("C1", "C2", "C3", "C4", "C5")
    cells = [cell for cell in plan.cells() if cell.trunk]
    assert {(cell.arm, cell.unseen_site, cell.seed) for cell in cells} >= {
        (arm, site, seed) for arm in core for site in sites for seed in (0, 1)
    }
    assert [cell.seed for cell in cells[:20]] == [0] * 20
    secondary = {"matched-global", "shuffled-scale", "fedbn", "fedgs+fedbn", "weighted-loss", "oversample-small"}
    secondary |= {"dice-per-image", "fedavg-cc-dice-ce", "fedgs-cc-dice-ce"}
    for arm in secondary:
        assert len({cell.unseen_site for cell in cells if cell.arm == arm}) == 2
    changes_one_thing = {*core, "matched-global", "shuffled-scale", "weighted-loss", "oversample-small"}
    assert {plan.search_of(cell) for cell in cells if cell.arm in changes_one_thing} == {"fedavg-published"}
    again = {cell.seed for cell in cells if cell.arm == "fedavg-published" and cell.unseen_site == "C5"}
    assert len(again) == 4
    scratch = {cell.arm for cell in plan.cells() if not cell.trunk}
    assert scratch == {"fedavg-published", "matched-site", "fedgs"}
    assert all(plan.config(cell).federation.rounds >= 30 for cell in cells)
    assert plan.primary.outcome == "dice_t"
    assert plan.primary.contrasts == (("fedgs", "matched-site"), ("fedgs-gradient", "matched-site"))
