"""Which inputs there are, and where their masks go: all of that is known before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fedgs.errors import ConfigError, DataError
from fedgs.prediction.image_files import IMAGES
from fedgs.prediction.kind import Found, Kind, Source
from fedgs.prediction.options import PredictOptions

__all__ = ["KINDS", "Inputs", "find_inputs"]

KINDS: tuple[Kind, ...] = (IMAGES,)
"""Every kind of input; of a folder's files the first takes what it knows, and leaves the rest to the next."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is to be predicted.

    Attributes:
        sources: The inputs, sorted by name.
        passed_over: Files in the given folders that are of no kind.
    """

    sources: Sequence[Source]
    passed_over: Sequence[Path]


def find_inputs(paths: Sequence[Path], out: Path, options: PredictOptions) -> Inputs:
    """Finds the inputs in files and folders, and looks whether their masks have a place of their own.

    Args:
        paths: Files and folders; folders are searched to their depth.
        out: The output folder.
        options: What is wanted of each.

    Raises:
        ConfigError: No path is given; the output would lie in the input or the other way round, or two outputs would
            have one path.
        DataError: A path does not exist, holds nothing that can be predicted, or has a name that is not UTF-8.
    """
    if not paths:
        raise ConfigError("no input; give files or folders of " + _kinds_in_words())
    for path in paths:
        _require_apart(path, out)
    found, passed_over = dict[Path, Source](), list[Path]()
    for path in paths:
        sources, others = _in_folder(path) if path.is_dir() else _of_file(path)
        passed_over += others
        for source in sources:
            known = found.setdefault(source.path.resolve(), source)
            if known.name != source.name:
                raise ConfigError(f"{source.path}: is given twice, as '{known.name}' and '{source.name}'; give it once")
    sources = sorted(found.values(), key=lambda source: source.name)
    _require_places(sources, options)
    return Inputs(sources, sorted(passed_over))


def _kinds_in_words() -> str:
    return "; ".join(f"{kind.name} ({', '.join(kind.suffixes)})" for kind in KINDS)


def _require_apart(path: Path, out: Path) -> None:
    """Nothing is written into the input, nor beside it; and nothing that was written becomes an input."""
    inside, outside = path.resolve(), out.resolve()
    if path.is_dir() and outside.is_relative_to(inside):
        raise ConfigError(f"{out}: lies inside the input {path}, to which nothing is written; choose another --out")
    if inside.is_relative_to(outside):
        raise ConfigError(f"{out}: holds the input {path}, beside which nothing is written; choose another --out")


def _of_file(path: Path) -> tuple[list[Source], list[Path]]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give {_kinds_in_words()}, or folders of them")
    sources, others = _sort([path], path.parent)
    if others:
        raise DataError(f"{path}: is of a kind that fedgs does not read; expected {_kinds_in_words()}")
    return sources, []


def _in_folder(folder: Path) -> tuple[list[Source], list[Path]]:
    sources, others = list[Source](), list[Path]()
    for files in _files_by_folder(folder):
        found, rest = _sort(files, folder)
        sources += found
        others += rest
    if not sources:
        seen = f"only other files, such as '{others[0].name}'" if others else "no file"
        raise DataError(f"{folder}: holds {seen}; expected {_kinds_in_words()}")
    return sources, others


def _files_by_folder(folder: Path) -> Iterator[list[Path]]:
    """Gives the files of a folder and of each below it; a link is followed, but never back into where it lies."""

    def refuse(error: OSError) -> None:
        raise error

    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = {name: os.path.realpath(Path(place, name)) for name in sorted(folders)}
        folders[:] = [name for name, path in real.items() if path not in seen and not name.startswith(".")]
        seen |= {real[name] for name in folders}
        yield [Path(place, name) for name in sorted(files) if not name.startswith(".")]


def _sort(files: Sequence[Path], below: Path) -> tuple[list[Source], list[Path]]:
    """Gives each file to the first kind that takes it; and those that none takes."""
    sources, rest = list[Source](), list(files)
    for kind in KINDS:
        found = kind.find(rest)
        taken = {file for each in found for file in each.files}
        rest = [file for file in rest if file not in taken]
        sources += [_source(kind, each, below) for each in found]
    return sources, rest


def _source(kind: Kind, found: Found, below: Path) -> Source:
    name = found.path.relative_to(below).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{below}: {name!a} in it is no UTF-8 and can stand in no table; rename it") from error
    place = PurePath(found.path.relative_to(below).parent, found.stem)
    return Source(kind, found.path, found.files, name, place)


def _require_places(sources: Sequence[Source], options: PredictOptions) -> None:
    taken = dict[PurePath, Source]()
    for source in sources:
        for place in source.places(options):
            other = taken.setdefault(place, source)
            if other is not source:
                raise ConfigError(
                    f"{other.path} and {source.path} would both be written to {place.as_posix()} in --out; rename one, "
                    "give the folder that holds both, or predict them apart"
                )
    for place, source in taken.items():
        if blocked := next((parent for parent in place.parents if parent in taken), None):
            raise ConfigError(
                f"{source.path}: would be written into {blocked.as_posix()}, which is the file of "
                f"{taken[blocked].path}; rename the folder, or predict them apart"
            )
