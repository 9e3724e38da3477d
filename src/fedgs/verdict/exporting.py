"""The table of a paper: mean Dice of every arm in every stratum, as LaTeX or Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from fedgs.errors import unknown_choice
from fedgs.summary import TESTS
from fedgs.verdict.contrasts import obstacles, paired_runs
from fedgs.verdict.judging import PARTS
from fedgs.verdict.observed import Observation, Observed
from fedgs.verdict.outcomes import OUTCOMES, Outcome
from fedgs.verdict.summaries import mean_of, mixed_of

__all__ = ["FORMS", "export_table"]

_STRATA = ("dice", "dice_s", "dice_t", "dice_l", "dice_n")


@dataclass(frozen=True, slots=True)
class _Cell:
    mean: str
    images: str


@dataclass(frozen=True, slots=True)
class _Table:
    """What both forms show; texts are plain, `rows` are name, numbers of its notes, and cells."""

    caption: str
    parts: Sequence[str]
    rows: Sequence[tuple[str, Sequence[int], Sequence[_Cell]]]
    notes: Sequence[str]
    remarks: Sequence[str]


def export_table(observation: Observation, form: str) -> str:
    """Writes the mean Dice of every arm, in-test and out-test, with the number of images.

    Every image counts once: it is averaged over seeds, then over folds and left-out hospitals, then images are
    averaged. Where an arm has several seeds, and the same runs of each, the standard deviation of the seeds' means
    stands behind the mean. An arm whose runs are others than those of the first one, or should not be compared with
    them, has a note that says so.

    Args:
        observation: Finished runs.
        form: One of `FORMS`: ``latex`` needs the package booktabs.

    Raises:
        ConfigError: There is no such form.
    """
    if form not in FORMS:
        raise unknown_choice("form of a table", form, FORMS)
    parts = [part for part in TESTS if any((run.scores["part"] == part).any() for run in observation.runs)]
    of_arm = {arm: _notes(observation, arm) for arm in observation.arms}
    notes = list(dict.fromkeys(note for own in of_arm.values() for note in own))
    rows = [
        (
            arm,
            [notes.index(note) + 1 for note in of_arm[arm]],
            [_cell(observation.of(arm), OUTCOMES[name], part) for part in parts for name in _STRATA],
        )
        for arm in observation.arms
    ]
    return FORMS[form](_Table(_caption(observation), [PARTS[part] for part in parts], rows, notes, _lost(observation)))


def _by_seed(runs: Sequence[Observed]) -> Mapping[int, list[Observed]]:
    return {seed: [run for run in runs if run.seed == seed] for seed in sorted({run.seed for run in runs})}


def _has_sd(runs: Sequence[Observed]) -> bool:
    """Whether there are several seeds that differ in nothing but chance."""
    blocks = [{run.block for run in own} for own in _by_seed(runs).values()]
    return len(blocks) > 1 and all(own == blocks[0] for own in blocks)


def _cell(runs: Sequence[Observed], outcome: Outcome, part: str) -> _Cell:
    mean, count = mean_of(runs, outcome, part)
    if mean is None:
        return _Cell("-", "0")
    sd = ""
    if _has_sd(runs):
        of_seeds = [mean_of(own, outcome, part)[0] for own in _by_seed(runs).values()]
        sd = f" ± {stdev(each for each in of_seeds if each is not None):.3f}"
    mixed = mixed_of(runs, part) if outcome.name == "dice_s" else None
    return _Cell(f"{mean:.3f}{sd}", f"{count}" if mixed is None else f"{count}/{mixed}")


def _caption(observation: Observation) -> str:
    runs = observation.runs
    images = {case for run in runs for case in zip(run.scores["site"], run.scores["case"], strict=True)}
    hospitals, seeds = {site for site, _ in images}, {run.seed for run in runs}
    left_out = {run.unseen_site for run in runs} - {None}
    sd = " ± its standard deviation over seeds" if any(_has_sd(observation.of(arm)) for arm in observation.arms) else ""
    strata = "; ".join(f"{OUTCOMES[name].title}: {OUTCOMES[name].over}" for name in _STRATA if name != "dice")
    return (
        f"Mean Dice after the last round{sd}, with the number of images in brackets. In-test: held-out images of "
        "hospitals that were trained on; out-test: images of hospitals that were left out. Dice: all images; "
        f"{strata}. Of n/m images with a small lesion, m hold a large one too. Every image counts once, with its mean "
        "over all runs. "
        f"{_count(len(hospitals), 'hospital')}"
        + (f" ({len(left_out)} of them left out{' in turn' if len(left_out) > 1 else ''})" if left_out else "")
        + f", {_count(len(images), 'test image')}, {_count(len(seeds), 'seed')}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _notes(observation: Observation, arm: str) -> list[str]:
    """Says how the runs of an arm differ from those of the first one, beside what the arm stands for."""
    first = observation.arms[0]
    own, other = _covered(observation.of(arm)), _covered(observation.of(first))
    notes = [] if own == other else [f"Other runs than those of {first}, which has {other}; this arm has {own}."]
    apart = obstacles(paired_runs(observation, arm, first))
    return notes + ([f"Not comparable with {first}: the runs differ in {'; '.join(apart)}."] if apart else [])


def _covered(runs: Sequence[Observed]) -> str:
    """Names the runs of an arm, together where they are a full grid."""
    sites, folds = sorted({run.unseen_site or "none" for run in runs}), sorted({run.fold for run in runs})
    seeds = sorted({run.seed for run in runs})
    if len(runs) == len(sites) * len(folds) * len(seeds):
        return f"{_listed('left-out hospital', sites)}, {_listed('fold', folds)}, {_listed('seed', seeds)}"
    of_blocks: dict[str, list[int]] = {}
    for run in runs:
        of_blocks.setdefault(run.block, []).append(run.seed)
    return "; ".join(f"{block}, {_listed('seed', sorted(own))}" for block, own in sorted(of_blocks.items()))


def _listed(noun: str, values: Sequence[object]) -> str:
    return f"{noun}{'' if len(values) == 1 else 's'} {', '.join(map(str, values))}"


def _lost(observation: Observation) -> list[str]:
    lost = len(observation.missing) + len(observation.failed)
    return [f"{_count(lost, 'run')} of the plan {'is' if lost == 1 else 'are'} not there."] if lost else []


_TO_LATEX = str.maketrans(
    {
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
        **{special: f"\\{special}" for special in "&%$#_{}"},
        **{special: f"{{{special}}}" for special in "[]*"},  # behind \\ they would be arguments of it
    }
)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _latex_text(text: str) -> str:
    return _printable(text).translate(_TO_LATEX)


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", _printable(text))


def _latex(table: _Table) -> str:
    """Two lines a row, means above numbers of images, since both would not fit beside each other on a page."""
    each = len(_STRATA)
    last = [1 + each * number for number in range(1, len(table.parts) + 1)]
    parts = [rf"\multicolumn{{{each}}}{{c}}{{{part}}}" for part in table.parts]
    rules = "".join(rf"\cmidrule(lr){{{end - each + 1}-{end}}}" for end in last)
    body = []
    for name, notes, cells in table.rows:
        mark = rf"\textsuperscript{{{','.join(map(str, notes))}}}" if notes else ""
        body.append([_latex_text(name) + mark, *(_latex_text(cell.mean) for cell in cells)])
        body.append(["", *(f"({cell.images})" for cell in cells)])
    told = [rf"\textsuperscript{{{number}}} {_latex_text(note)}" for number, note in enumerate(table.notes, 1)]
    lines = [
        r"% Needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\scriptsize",
        rf"\caption{{{_latex_text(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * each * len(table.parts)}}}",
        r"\toprule",
        " & ".join(["", *parts]) + r" \\",
        rules,
        " & ".join(["", *(_latex_text(title) for title in _titles() * len(table.parts))]) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par {note}" for note in [*told, *map(_latex_text, table.remarks)]),
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _markdown(table: _Table) -> str:
    columns = [f"{part} {title}" for part in table.parts for title in _titles()]
    rows = [["algorithm", *columns], ["---", *["---:"] * len(columns)]]
    for name, notes, cells in table.rows:
        mark = f"<sup>{','.join(map(str, notes))}</sup>" if notes else ""
        rows.append([_markdown_text(name) + mark, *(f"{cell.mean} ({cell.images})" for cell in cells)])
    told = [f"<sup>{number}</sup> {_markdown_text(note)}" for number, note in enumerate(table.notes, 1)]
    below = [_markdown_text(table.caption), *told, *map(_markdown_text, table.remarks)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "".join(f"\n\n{text}" for text in below) + "\n"


def _titles() -> list[str]:
    return [OUTCOMES[name].title for name in _STRATA]


FORMS: Mapping[str, Callable[..., str]] = {"latex": _latex, "markdown": _markdown}
"""Ways to write the table, by name."""
