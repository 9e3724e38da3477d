"""What a paper would say of a comparison: a paragraph of methods and results, and whom to cite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import fedgs
from fedgs.verdict.judging import PARTS, Comparison, Judged
from fedgs.verdict.observed import Observed
from fedgs.verdict.telling import label_of, name_of, sentence, shared_by

__all__ = ["bibtex", "paragraph"]

_METHOD = """@inproceedings{schutte2024fedgs,
  author    = {Schutte, Philip and Corbetta, Valentina and Beets-Tan, Regina and Silva, Wilson},
  title     = {{FedGS}: Federated Gradient Scaling for Heterogeneous Medical Image Segmentation},
  booktitle = {Medical Image Computing and Computer Assisted Intervention -- MICCAI 2024 Workshops},
  series    = {Lecture Notes in Computer Science},
  volume    = {15274},
  publisher = {Springer},
  year      = {2024},
  note      = {arXiv:2408.11701}
}"""

_SOFTWARE = """@software{{fedgs,
  author  = {{{{The fedgs developers}}}},
  title   = {{fedgs: Federated Gradient Scaling}},
  version = {{{version}}}
}}"""

_NAMED = {"batch_size": "batches of", "objective": "objective"}
_DATA = {
    "polypgen": """@article{ali2023polypgen,
  author  = {Ali, Sharib and others},
  title   = {A multi-centre polyp detection and segmentation dataset for generalisability assessment},
  journal = {Scientific Data},
  volume  = {10},
  number  = {75},
  year    = {2023}
}"""
}


def paragraph(comparison: Comparison) -> str:
    """Writes the paragraph, with the numbers of the comparison filled in.

    Args:
        comparison: The comparison.
    """
    first = comparison.primary[0]
    runs = [run for pair in first.contrast.pairs for run in pair]
    shared = _shared([run.settings for run in runs])
    contrasts = [each.contrast for each in comparison.primary]
    arms = ", and ".join(f"{name_of(each.arm)} with {name_of(each.baseline)}" for each in contrasts)
    text = [
        f"We compared {arms} (by their names in the software: {'; '.join(map(label_of, contrasts))}).",
        _design(first.part, first.contrast.unseen_sites, first.data.sites, first.contrast.seeds, first.contrast.folds),
        _training(shared, runs),
        *(f"{name} differ in {'; '.join(apart)} all the same." for name, apart in comparison.obstacles.items()),
        f"The primary outcome was {first.outcome.title} on {_count(first.data.cases, 'image')} of the "
        f"{PARTS[first.part]} part"
        + (
            ", declared before the runs."
            if comparison.declared
            else "; outcome and contrasts were not declared before."
        ),
        "Each image was averaged over the runs that scored it, then over images"
        + ("." if first.outcome.name.startswith("dice") else f", weighted by {first.outcome.over}."),
        _intervals(first),
        _levels(comparison),
    ]
    text += [sentence(comparison, number) for number in range(len(comparison.primary))]
    versions = sorted({str(run.machine.get("torch")) for run in runs})
    text.append(f"Computed with fedgs {fedgs.__version__} and PyTorch {', '.join(versions)}.")
    return " ".join(text)


def _intervals(first: Judged) -> str:
    has_runs = not math.isnan(first.estimate.components.run)
    drawn = "patients within hospitals and seeds within runs" if has_runs else "patients within hospitals"
    crossed = "independently (crossed), " if has_runs else ""
    text = (
        f"For these hospitals, {drawn} were resampled {crossed}with the n/(n-1) correction and Student's quantiles"
        + ("" if has_runs else "; with one seed nothing is known of how runs differ")
    )
    if first.estimate.new is None:
        return f"{text}. There are too few hospitals for an interval for a new one."
    return f"{text}; for a new one, a t interval was taken on the hospitals' means. The least that holds both decided."


def _design(
    part: str, left_out: Sequence[str], tested: Sequence[str], seeds: Sequence[int], folds: Sequence[int]
) -> str:
    runs = f"{_count(len(seeds), 'seed')} ({_listed(seeds)}) and {_count(len(folds), 'fold')} ({_listed(folds)})"
    if part == "test_out":
        hospitals = f"Each of {len(left_out)} hospitals ({_listed(left_out)})" if len(left_out) > 1 else left_out[0]
        return f"{hospitals} was left out of training and tested on, while the others trained one network, with {runs}."
    return f"Held-out images of {len(tested)} hospitals ({_listed(tested)}) were tested on, with {runs}."


def _training(shared: Mapping[str, Any], runs: Sequence[Observed]) -> str:
    told = []
    if "model" in shared:
        size = f" at {shared['size']} x {shared['size']} pixels" if "size" in shared else ""
        told.append(f"The network was {shared['model']}{size}")
    if "rounds" in shared:
        epochs = shared.get("local_steps") or shared.get("local_epochs")
        unit = "step" if shared.get("local_steps") else "epoch"
        local = f" of {_count(epochs, f'local {unit}')}" if epochs else ""
        told.append(f"trained for {_count(shared['rounds'], 'round')}{local}")
    told += [f"{text} {shared[name]}" for name, text in _NAMED.items() if shared.get(name) is not None]
    if shared.get("lr") is not None:
        first, last = (shared["lr"] * shared.get(end, 1.0) for end in ("lr_first", "lr_last"))
        told.append(f"learning rate {first:g}" + ("" if first == last else f" falling to {last:g}"))
    starts = {run.start for run in runs if run.start}
    start = "from weights trained before, shared by the arms" if starts else "from random weights"
    return f"{', '.join([*told, start])}; runs of one hospital, fold and seed drew the same batches."


def _levels(comparison: Comparison) -> str:
    level, further = comparison.primary[0].level, len(comparison.further)
    count = shared_by(comparison.primary[0])
    text = (
        f"The {count} primary contrasts share an error of 5 % (each interval is one of {100 * level:.1f} %)"
        if count > 1
        else "The interval is one of 95 %"
    )
    others = f"; {further} further ones share another 5 %" if further else ""
    return f"{text}{others}. A gain counts only where Dice-L is non-inferior with a margin of {comparison.margin:g}."


def bibtex(runs: Sequence[Observed]) -> str:
    """Gives entries for the method, the software, and the data where they are known.

    Args:
        runs: Whose data are cited.
    """
    data = [_DATA[name] for name in sorted({run.adapter for run in runs}) if name in _DATA]
    return "\n\n".join([_METHOD, _SOFTWARE.format(version=fedgs.__version__), *data])


def _shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in settings[0].items() if all(each.get(name) == value for each in settings)}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
