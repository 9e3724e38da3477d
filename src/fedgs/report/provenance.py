"""How to make a run again, without telling where on a machine it was made; pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from fedgs.report.records import Run

__all__ = ["command", "environment", "settings", "without_paths"]

_WIDTH = 84
_PRIVATE = ("host", "user", "executable", "cwd", "argv", "command", "path")
_ABSOLUTE = re.compile(r"^(file://|~[/\\]|/|[A-Za-z]:[/\\]|\\\\)")
_INSIDE = re.compile(r"(?<![\w.:/\\])(?:~|file:/|[A-Za-z]:)?(?:[/\\][^\s/\\'\",;()\[\]<>|]+)+[/\\]?")


def without_paths(text: str) -> str:
    """Shortens absolute paths to their last part.

    >>> without_paths("/home/ann/data sets/polypgen"), without_paths("read /srv/a/b.csv; rate 1/150")
    ('polypgen', 'read b.csv; rate 1/150')
    """
    if _ABSOLUTE.match(text) and "\n" not in text:
        return _last(text)
    return _INSIDE.sub(lambda found: _last(found.group()), text)


def command(run: Run) -> str:
    """Gives the commands that make such a run, for a shell; folders are named without their place."""
    rule = run.small_rule
    usual = (rule.kind, rule.base) == ("components", 100.0) and abs(rule.fraction * 150 - 1) < 1e-9
    small: dict[str, Any] = {"small_rule": rule.kind, "small_fraction": rule.fraction, "base": rule.base}
    if run.published:
        file, told = shlex.quote(run.published["file"]), {} if usual else small
        where = {"size": run.size, "score_size": run.config.get("data", {}).get("score_size")}
        return _lines(f"fedgs import-checkpoint {file}", {**where, **told, "out": run.name})
    index: dict[str, Any] = {"adapter": run.adapter, "size": run.size, **small, "out": "index"}
    indexing = "" if usual else _lines(f"fedgs index {shlex.quote(run.source)}", index) + "\n"
    arguments: dict[str, Any] = {
        "data": run.source if usual else "index",
        "adapter": run.adapter if usual else None,
        "algorithm": run.algorithm,
        "model": run.model,
        "size": run.size,
        "rounds": run.rounds,
        "unseen_site": run.unseen_site,
        "fold": run.fold,
        "seed": run.seed,
    }
    for table in run.config.values():
        arguments |= {name: value for name, value in table.items() if name not in (*arguments, "device")}
    arguments["out"] = run.name
    return indexing + _lines("fedgs train", arguments)


def _lines(start: str, arguments: Mapping[str, Any]) -> str:
    options = [
        f"--{flag.replace('_', '-')}" + (f" {shlex.quote(without_paths(word))}" if word is not None else "")
        for name, value in arguments.items()
        for flag, word in _words(name, value)
    ]
    lines = [start]
    for option in options:
        if len(lines[-1]) + len(option) > _WIDTH:
            lines.append("   ")
        lines[-1] += f" {option}"
    return " \\\n".join(lines)


def settings(run: Run) -> str:
    """Gives the resolved settings as TOML, one per line, paths shortened."""
    return "\n".join(f"{key} = {_toml(value)}" for key, value in _flatten(run.config))


def environment(run: Run) -> list[tuple[str, str]]:
    """Gives versions and machine as pairs, without names of hosts and users and without paths."""
    return [
        (key, without_paths(str(value)))
        for key, value in _flatten(run.environment)
        if not any(word in key.lower() for word in _PRIVATE)
    ]


def _words(name: str, value: Any) -> list[tuple[str, str | None]]:
    if isinstance(value, bool):
        return [(name, None)] if value else []
    if isinstance(value, Mapping):
        return [(name.removesuffix("s"), f"{option}={_plain(each)}") for option, each in value.items()]
    return [] if value is None else [(name, _plain(value))]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(without_paths(value), ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, default=str)


def _last(path: str) -> str:
    plain = path.removeprefix("file://").rstrip("/\\")
    windows = ("\\" in plain and "/" not in plain) or bool(re.match(r"^[A-Za-z]:", plain))
    return (PureWindowsPath(plain) if windows else PurePosixPath(plain)).name or "."
