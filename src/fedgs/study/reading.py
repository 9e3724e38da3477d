"""plan.toml: what a person writes before the first run, read into a plan."""

from __future__ import annotations

import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedgs.config import configure, read_toml, settings
from fedgs.errors import ConfigError, unknown_choice
from fedgs.study.plan import Arm, Block, Plan, Primary, Tune

__all__ = ["read_plan"]

_GIVEN_BY_THE_GRID = ("unseen_site", "fold", "seed", "data", "init_from", "init_partial", "init_checkpoint")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")


def read_plan(path: Path) -> Plan:
    """Reads plan.toml.

    Args:
        path: The file; docs/how-to/run-a-study.md tells its tables.

    Raises:
        ConfigError: It cannot be read, lacks a table that it must have, or holds one, or a key, that is unknown; or
            what it says cannot be.
    """
    content = read_toml(path)
    try:
        return _plan_of(content, path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _plan_of(content: Mapping[str, Any], stem: str) -> Plan:
    known = ("name", "threads", "primary", "settings", "arms", "cells", "trunk", "scratch", "tune")
    _require_known("table or key", content, known)
    for table in ("primary", "cells"):
        if table not in content:
            raise ConfigError(
                f"lacks the table '{table}'; a plan says what decides ([primary]) and what runs ([[cells]])"
            )
    blocks = _list_of("cells", content["cells"], dict)
    arms = {name: _arm(name, of_arm) for name, of_arm in _table("arms", content.get("arms", {})).items()}
    made = tuple(_block(block, "trunk" in content) for block in blocks)
    for name in [arm for block in made for arm in block.arms]:
        arms.setdefault(name, _arm(name, {}))
    name = content.get("name", stem)
    if not isinstance(name, str):
        raise ConfigError(f"name must be text, got {name!r}")
    return Plan(
        name=name,
        primary=_primary(_table("primary", content["primary"])),
        settings=_settings("settings", content.get("settings", {})),
        arms=arms,
        blocks=made,
        trunk=_settings("trunk", content["trunk"], needed=("rounds",)) if "trunk" in content else None,
        scratch=_settings("scratch", content.get("scratch", {})),
        tune=_tune(_table("tune", content["tune"])) if "tune" in content else None,
        threads=content.get("threads", 1),
    )


def _primary(content: Mapping[str, Any]) -> Primary:
    names = [entry.name for entry in fields(Primary)]
    _require_known("key in [primary]", content, names)
    if missing := [name for name in names if name not in content]:
        raise ConfigError(f"[primary] lacks '{missing[0]}'; outcome, contrasts and margin are declared before any run")
    margin = content["margin"]
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise ConfigError(f"margin in [primary] must be a number, got {margin!r}")
    pairs = [
        tuple(_list_of("a contrast in [primary]", pair, str))
        for pair in _list_of("contrasts", content["contrasts"], list)
    ]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError("a contrast in [primary] is a pair of arms, such as ['fedgs', 'matched-site']")
    return Primary(content["outcome"], tuple((pair[0], pair[1]) for pair in pairs), float(margin))


def _arm(name: str, content: object) -> Arm:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"arm '{name}': its name becomes that of a folder; use letters, digits and + . _ -")
    table = dict(_table(f"arms.{name}", content))
    tuned_as = table.pop("tuned_as", None)
    if tuned_as is not None and (not isinstance(tuned_as, str) or not tuned_as):
        raise ConfigError(f"tuned_as in [arms.{name}] must be the name of a search, got {tuned_as!r}")
    return Arm(name, _settings(f"arms.{name}", table), tuned_as)


def _block(content: Mapping[str, Any], has_trunk: bool) -> Block:
    _require_known("key in [[cells]]", content, [entry.name for entry in fields(Block)])
    if "arms" not in content:
        raise ConfigError("a table [[cells]] lacks 'arms'; name the arms that run in it")
    kinds = {"arms": str, "unseen_sites": str, "seeds": int, "folds": int}
    given = {
        name: tuple(_list_of(f"{name} in [[cells]]", content[name], kinds[name])) for name in kinds if name in content
    }
    if empty := [name for name, values in given.items() if not values]:
        raise ConfigError(f"{empty[0]} in [[cells]] is empty; leave it out or name some")
    from_trunk = content.get("from_trunk", has_trunk)
    if not isinstance(from_trunk, bool):
        raise ConfigError(f"from_trunk in [[cells]] must be true or false, got {from_trunk!r}")
    return Block(**given, from_trunk=from_trunk)


def _tune(content: Mapping[str, Any]) -> Tune:
    own = dict(content)
    searches = {
        name: {
            setting: tuple(_list_of(f"{setting} in [tune.search.{name}]", values, object))
            for setting, values in _settings(f"tune.search.{name}", grid, typed=False).items()
        }
        for name, grid in _table("tune.search", own.pop("search", {})).items()
    }
    outcome = own.pop("outcome", "dice_n")
    allowed = ("unseen_site", "fold", "seed")
    if missing := [name for name in ("fold", "seed") if name not in own]:
        raise ConfigError(f"[tune] lacks '{missing[0]}'; name a fold and a seed that do not enter the comparison")
    return Tune(_settings("tune", own, allowed=allowed), outcome, searches)


def _settings(
    table: str, content: object, *, allowed: Sequence[str] = (), needed: Sequence[str] = (), typed: bool = True
) -> dict[str, Any]:
    """Checks settings of runs that stand in a table of the plan."""
    given = dict(_table(table, content))
    choices = [name for _, name, *_ in settings() if name not in _GIVEN_BY_THE_GRID or name in allowed]
    for name in given:
        if name == "algorithm" and not table.startswith("arms."):
            raise ConfigError(f"'algorithm' cannot stand in [{table}]: an arm has one, by its name or in [arms.NAME]")
        if name in _GIVEN_BY_THE_GRID and name not in allowed:
            raise ConfigError(f"'{name}' cannot stand in [{table}]: [[cells]] or the command gives it")
        if name not in choices:
            raise unknown_choice(f"setting in [{table}]", name, choices)
    for name in needed:
        if name not in given:
            raise ConfigError(f"[{table}] lacks '{name}'")
    if typed:
        configure(None, **given)
    return given


def _require_known(kind: str, content: Mapping[str, Any], known: Collection[str]) -> None:
    for name in content:
        if name not in known:
            raise unknown_choice(kind, name, known)


def _table(name: str, content: object) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"'{name}' must be a table, as in [{name}]; got {content!r}")
    return content


def _list_of(name: str, content: object, kind: type) -> list[Any]:
    fits = isinstance(content, list) and all(
        isinstance(entry, kind) and (kind is not int or not isinstance(entry, bool)) for entry in content
    )
    if not fits:
        words = {str: "names", int: "whole numbers", dict: "tables", list: "pairs"}.get(kind, "values")
        raise ConfigError(f"{name} must be a list of {words}, got {content!r}")
    return typing.cast("list[Any]", content)
