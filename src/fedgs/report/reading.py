"""Run folders read into records; pure, so that a page or a study needs neither the data nor torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedgs.errors import DataError
from fedgs.files import require_intact
from fedgs.metrics.table import STRATA
from fedgs.report.records import (
    PARTS,
    Adapted,
    Checkpoint,
    External,
    Figure,
    Figures,
    Mean,
    Overlay,
    Part,
    Round,
    Run,
    Site,
    SiteRound,
    SmallRule,
)
from fedgs.tables import read_csv

__all__ = ["read_figures", "read_run"]

_FORMAT = 1
_T = TypeVar("_T")


def read_run(folder: Path) -> Run:
    """Reads a finished run.

    Args:
        folder: What ``fedgs train --out`` wrote. Overlays, an unseen site and external scores may be absent.

    Returns:
        Everything a report needs, except that pictures are named and not loaded.

    Raises:
        DataError: The folder is missing, its run is not finished, or a file in it cannot be understood or was altered.
        CheckpointError: summary.json or environment.json was altered.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; expected one that 'fedgs train --out' wrote")
    summary = _summary(folder)
    data = _parsed(folder / "summary.json", lambda: _data(summary["data"]))
    return _parsed(
        folder / "summary.json",
        lambda: Run(
            name=folder.resolve().name,
            algorithm=str(summary["algorithm"]),
            model=str(summary["model"]),
            size=int(summary["size"]),
            seed=int(summary["seed"]),
            fold=int(summary["fold"]),
            unseen_site=summary["unseen_site"],
            rounds=int(summary["rounds"]),
            parts=_parts(summary),
            crossed={
                network: _part({**summary["test_in"], "sites": sites}).sites
                for network, sites in summary.get("cross", {}).items()
            },
            best=_checkpoint(summary.get("best")),
            best_small=_checkpoint(summary.get("best_small")),
            external=_external(summary.get("external")),
            adapted=_adapted(summary.get("adapted")),
            history=_history(folder / "rounds.jsonl", int(summary["rounds"])),
            overlays=_overlays(folder / "overlays"),
            explained=read_figures(folder / "explain"),
            split=_split(folder / "split.csv", trained=summary["rounds"] > 0),
            config=_config(folder / "config.toml"),
            environment=_json(folder / "environment.json"),
            **data,
        ),
    )


def _summary(folder: Path) -> Mapping[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        resume = f"finish it with: fedgs train --out {folder} --resume"
        known = any((folder / name).exists() for name in ("config.toml", "rounds.jsonl"))
        advice = resume if known else "expected a folder that 'fedgs train --out' wrote"
        raise DataError(f"{folder}: not a finished run, summary.json is missing; {advice}")
    summary = _json(path)
    if summary.get("format") != _FORMAT:
        raise DataError(
            f"{path}: expected format {_FORMAT}, found {summary.get('format')!r}; was it written by another version of "
            "fedgs? Run it again, or make the report with that version"
        )
    if "study" in summary:
        raise DataError(
            f"{folder}: is a run of a study, of which only scores are kept; they stand in its summary.json, and beside "
            "those of the other arms in study.csv of the study"
        )
    done, planned = summary.get("round"), summary.get("rounds")
    if done != planned:
        raise DataError(
            f"{folder}: not a finished run, {done} of {planned} rounds are done; "
            f"finish it with: fedgs train --out {folder} --resume"
        )
    for name, checksum in _parsed(path, lambda: dict(summary["files"])).items():
        _require_unaltered(folder / name, checksum)
    return summary


def _require_unaltered(path: Path, checksum: str) -> None:
    _text(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
        raise DataError(
            f"{path}: was altered since the run was finished; restore it from a copy, or, where 'fedgs evaluate' was "
            "interrupted, run that again"
        )


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    rule = data["small_rule"]
    return {
        "source": str(data["source"]),
        "adapter": str(data["adapter"]),
        "small_rule": SmallRule(str(rule["kind"]), float(rule["fraction"]), float(rule["base"])),
        "patients_unknown": int(data["patients_unknown"]),
        "leaks": {kind: int(data["leaks"].get(kind, 0)) for kind in ("patients", "duplicates", "near_duplicates")},
        "sites": {
            str(name): Site(**{field: int(site[field]) for field in Site.__dataclass_fields__})
            for name, site in sorted(data["sites"].items())
        },
    }


def _parts(content: Mapping[str, Any]) -> dict[str, Part]:
    parts = {name: _part(content[name]) for name in PARTS if content.get(name) is not None}
    return {name: part for name, part in parts.items() if not part.is_empty}


def _part(content: Mapping[str, Any]) -> Part:
    other = content.get("other", {}).get("pooled", {})
    return Part(
        _scores(content),
        {str(name): _scores(site) for name, site in sorted(content["sites"].items())},
        {str(name): _mean(mean) for name, mean in other.items()},
    )


def _scores(content: Mapping[str, Any]) -> dict[str, Mean]:
    told = [stratum for stratum in STRATA if stratum != "dice_m" or stratum in content]  # earlier versions lack it
    return {stratum: _mean(content[stratum]) for stratum in told}


def _mean(content: Mapping[str, Any]) -> Mean:
    mean, n = content["mean"], int(content["n"])
    if (mean is None) != (n == 0):
        raise ValueError(f"a mean of {mean} over {n} images")
    return Mean(None if mean is None else float(mean), n)


def _checkpoint(content: Mapping[str, Any] | None) -> Checkpoint | None:
    return None if content is None else Checkpoint(int(content["round"]), _parts(content))


def _external(content: Mapping[str, Any] | None) -> External | None:
    if content is None:
        return None
    return External(str(content["checkpoint"]), int(content["round"]), int(content["known_cases"]))


def _adapted(content: Mapping[str, Any] | None) -> Adapted | None:
    of = _external(content)
    return None if content is None or of is None else Adapted(of, _part(content))


def _history(path: Path, finished: int) -> tuple[Round, ...]:
    lines = [line for line in _text(path).split("\n") if line.strip()]
    rounds = _parsed(path, lambda: [_round(_loaded(line)) for line in lines])
    found = {each.number: each for each in rounds}
    if len(found) != finished:
        raise DataError(f"{path}: tells of {len(found)} of {finished} rounds; restore it from a copy or run again")
    return tuple(found.values())


def _round(content: Mapping[str, Any]) -> Round:
    validation = content.get("validation")
    return Round(
        number=int(content["round"]),
        seconds=float(content["seconds"]),
        sites={
            str(name): SiteRound(
                steps=int(site["steps"]),
                examples=int(site["examples"]),
                loss=float(site["loss"]),
                mean_eta=float(site["mean_eta"]),
                direction_norm=float(site["direction_norm"]),
                cosine=None if site.get("cosine") is None else float(site["cosine"]),
            )
            for name, site in sorted(content["sites"].items())
        },
        validation=None if validation is None else _part(validation),
    )


def _overlays(folder: Path) -> tuple[Overlay, ...]:
    if not (folder / "cases.csv").is_file():
        return ()
    rows = _table(folder / "cases.csv")
    return _parsed(folder / "cases.csv", lambda: tuple(_overlay(folder, row) for row in rows))


def _overlay(folder: Path, row: Mapping[str, str]) -> Overlay:
    name = row["name"]
    files = [folder / f"{name}-{suffix}" for suffix in ("image.jpg", "truth.png", "prediction.png")]
    missing = [file.name for file in files if not file.is_file()]
    if missing or Path(name).name != name:
        raise ValueError(f"case {row['case']!r} lacks {', '.join(missing) or 'a plain file name'}")
    return Overlay(row["part"], row["site"], row["case"], int(row["lesion_area"]), float(row["dice"]), *files)


def read_figures(folder: Path) -> Figures | None:
    """Reads what `fedgs explain` made in a folder; None where it made nothing, or was interrupted.

    Raises:
        DataError: A picture is missing, or the list cannot be understood.
        CheckpointError: The list was altered.
    """
    path = folder / "figures.json"
    if not path.is_file():
        return None
    content = _json(path)
    if not content.get("figures", True):
        return None
    return _parsed(
        path,
        lambda: Figures(
            str(content["checkpoint"]),
            int(content["round"]),
            str(content["source"]),
            [_figure(folder, about) for about in content["figures"]],
        ),
    )


def _figure(folder: Path, about: Mapping[str, Any]) -> Figure:
    file = folder / str(about["file"])
    if file.parent != folder or not file.is_file():
        raise ValueError(f"the picture {file.name} is missing")
    if hashlib.sha256(file.read_bytes()).hexdigest() != about["sha256"]:
        raise ValueError(f"the picture {file.name} was altered")
    return Figure(str(about["kind"]), str(about["title"]), file, about)


def _split(path: Path, *, trained: bool) -> str:
    rows = _parsed(path, lambda: sorted((row["site"], row["case"], row["part"]) for row in _table(path)))
    if trained and not rows:
        raise DataError(f"{path}: tells of no case; restore it from a copy or run again")
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _table(path: Path) -> list[Mapping[str, str]]:
    _text(path)
    table = read_csv(path, {})
    return [dict(zip(map(str, table.columns), row, strict=True)) for row in table.itertuples(index=False, name=None)]


def _config(path: Path) -> Mapping[str, Any]:
    config = _parsed(path, lambda: tomllib.loads(_text(path)))
    loose = [name for name, table in config.items() if not isinstance(table, dict)]
    if loose:
        raise DataError(f"{path}: expected tables only, found the key {loose[0]!r}; restore it from a copy")
    return config


def _json(path: Path) -> Mapping[str, Any]:
    content: Any = _parsed(path, lambda: _loaded(_text(path)))
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}; restore it from a copy")
    require_intact(path, content)
    return content


def _loaded(text: str) -> Any:
    """Reads JSON, which has no number that is not finite; Python alone would take NaN for one."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    return json.loads(text, parse_constant=refuse)


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: missing; expected it in a finished run folder, restore it from a copy or run again")
    return _parsed(path, lambda: path.read_text(encoding="utf-8"))


def _parsed(path: Path, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path}: not what a finished run holds ({reason}); restore it from a copy or run again"
        ) from error
