"""The model card: what a network was trained on, how well it did, what it is for, and its limits.

It holds counts and means only: no path, no name of an image, of a patient or of a machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fedgs
from fedgs.errors import understood
from fedgs.export.deployed import checksum_of
from fedgs.export.preprocessing import Preprocessing
from fedgs.files import read_json
from fedgs.finished import Finished
from fedgs.summary import ADDED, TESTS

__all__ = ["INTENDED_USE", "as_markdown", "hashes_of", "make_card"]

INTENDED_USE = (
    "Research on the segmentation of lesions. It marks pixels of an image; a person who knows such images looks at "
    "every mask. It is not a medical device and is not for diagnosis or treatment."
)
_COUNTS = ("cases", "train", "validation", *TESTS, "lesion_free", "small", "tiny")
_STRATA = {
    "dice": "all images",
    "dice_n": "with a lesion",
    "dice_s": "with a small lesion",
    "dice_t": "small as a whole",
    "dice_m": "with small and large lesions",
    "dice_l": "with large lesions only",
    "lesion_free": "share of lesion-free images with a false alarm",
}
_QUARTERS = {f"dice_q{number}": f"quarter {number} by lesion area, 1 smallest" for number in range(1, 5)}
_CONTRAST = ("contrast", "metric", "part", "difference", "interval", "level", "n_cases", "n_sites", "seeds", "verdict")


def make_card(
    finished: Finished,
    network: nn.Module,
    *,
    checkpoint: str,
    site: str | None,
    licence: str | None,
    comparison: Path | None,
) -> dict[str, Any]:
    """Gives what is known of a network, as JSON can hold it.

    Args:
        finished: The run.
        network: With the weights that are exported.
        checkpoint: Whose they are.
        site: Whose own network it is; None where hospitals share it.
        licence: Of the weights, as the user says.
        comparison: A comparison.json of a study, whose intervals are told; None tells none.

    Raises:
        CheckpointError: The summary or the comparison is damaged.
    """
    config, summary = finished.config, finished.folder.summary()
    with understood(finished.folder.path / "summary.json"):
        means = summary if checkpoint == "last" else summary[checkpoint]
        return {
            "format": 1,
            "written_by": {"fedgs": fedgs.__version__, "torch": torch.__version__.partition("+")[0]},
            "network": {
                "name": config.model.model,
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "precision": "float32",
                "trained_in": config.training.precision,
                "size_rule": _size_rule(config.model.model, network),
            },
            "training": {
                "algorithm": config.algorithm.algorithm,
                "rounds": summary["rounds"],
                "checkpoint": checkpoint,
                "round": finished.state.server.round,
                "network_of_site": site,
                "unseen_site": summary["unseen_site"],
                "seed": config.federation.seed,
                "fold": config.data.fold,
            },
            "preprocessing": Preprocessing(config.data.size, finished.channels).describe(),
            "data": {
                name: {key: counts[key] for key in _COUNTS if key in counts}
                for name, counts in summary["data"]["sites"].items()
            },
            "small_lesion": summary["data"]["small_rule"],
            "leaks": summary["data"]["leaks"],
            "scores": _scores(means, summary, finished.state.server.round),
            "scored_at": config.data.score_size,
            "intervals": _intervals(comparison) if comparison else None,
            "intended_use": INTENDED_USE,
            "limits": list(_limits(finished, summary, means, site)),
            "licence_of_weights": licence or "not stated",
            "weights_sha256": checksum_of(network),
        }


def hashes_of(folder: Path) -> dict[str, str]:
    """Gives the SHA-256 of every file in a folder, by its name there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def as_markdown(card: Mapping[str, Any]) -> str:
    """Gives a card as a page for people; the same content, in the same order."""
    return "\n".join((*_about(card), *_data(card), *_scores_in_words(card), *_rest(card))) + "\n"


def _size_rule(name: str, network: nn.Module) -> str:
    made_for = getattr(network, "image_size", None)
    multiple, least = (getattr(network, key, None) for key in ("size_multiple", "minimal_size"))
    if made_for or name.startswith("monai:"):
        return "the network's mathematics needs this size"
    if multiple and least:
        return f"the network's mathematics needs multiples of {multiple} pixels, at least {least}; this file is for one"
    return "the network could take any size; this file takes the one that it was trained and scored at"


def _scores(means: Mapping[str, Any], summary: Mapping[str, Any], number: int) -> dict[str, Any]:
    parts = {part: means[part] for part in TESTS if part in means}
    parts |= {part: summary[part] for part in ADDED if summary.get(part, {}).get("round") == number}
    found = {}
    for part, told in parts.items():
        quarters = told.get("other", {}).get("pooled", {})
        pooled = {key: told[key] for key in _STRATA} | {key: quarters[key] for key in _QUARTERS if key in quarters}
        sites = {site: {key: of_site[key] for key in _STRATA} for site, of_site in told["sites"].items()}
        if pooled["dice"]["n"]:
            found[part] = pooled | {"sites": sites}
    return found


def _intervals(path: Path) -> dict[str, Any]:
    told = read_json(path)
    with understood(path):
        contrasts = [{key: contrast[key] for key in _CONTRAST} for contrast in told["primary"]]
        return {"sentence": told["sentence"], "contrasts": contrasts}


def _limits(
    finished: Finished, summary: Mapping[str, Any], means: Mapping[str, Any], site: str | None
) -> Iterator[str]:
    size, data = finished.config.data.size, summary["data"]
    if data["sites"]:
        yield f"It saw images of {len(data['sites'])} hospitals at most; others have other cameras and patients."
    else:
        yield "The weights were imported; on which images they were trained is not known here."
    yield f"It sees images at {size} x {size} pixels; lesions that vanish at this size are missed."
    if summary["unseen_site"] is None:
        yield "No hospital was left out of training, so how it does at a new one was not measured by this run."
    if site is not None:
        yield f"It is the network of hospital {site}; the scores of other hospitals are of other networks."
    small = sum(means[part]["dice_t"]["n"] for part in TESTS if part in means)
    if small < 30:
        yield f"Only {small} test images are small as a whole; their mean may be far off."
    if any(data["leaks"].values()):
        yield "Known patients or duplicates stand on both sides of the split; the scores may be too good."
    if data["patients_unknown"]:
        yield f"Of {data['patients_unknown']} images the patient is not known, so patients may stand on both sides."
    if finished.config.training.precision == "bf16":
        yield "The scores were made with activations of 16 bits, this file computes in 32: masks may differ a little."
    yield "Images that show no such anatomy, or come from another modality, give a mask all the same."


def _about(card: Mapping[str, Any]) -> Iterator[str]:
    network, training, before = card["network"], card["training"], card["preprocessing"]
    shape = before["input"]["shape"]
    whose = f", the network of hospital {training['network_of_site']}" if training["network_of_site"] else ""
    yield f"# Model card: {network['name']}, trained by {training['algorithm']}"
    yield from ("", f"**Intended use.** {card['intended_use']}", "")
    yield f"**Licence of the weights.** {card['licence_of_weights']}"
    yield from ("", "## Network", "", f"- {network['name']}, {network['parameters']:,} parameters, float32{whose}")
    yield f"- Checkpoint {training['checkpoint']}: round {training['round']} of {training['rounds']}"
    size = f"{shape[2]} x {shape[3]} pixels; {network['size_rule']}"
    yield f"- Input: {shape[1]} channels ({before['input']['channel_order']}), {size}"
    yield f"- Resize: {before['resize']['rule']}; the aspect ratio is not kept"
    scale = before["scale"]
    yield f"- Scale: level / 255, minus {scale['then_subtract_mean']}, divided by {scale['then_divide_by']}"
    yield f"- Output: {before['output']['meaning']}; classes {', '.join(before['output']['classes'])}"
    yield f"- Mask: {before['mask']['resize']}; lesion above {before['mask']['threshold']}"


def _data(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Data", "")
    if not card["data"]:
        yield "Not known: the weights were imported."
        return
    yield f"| hospital | {' | '.join(_COUNTS)} |"
    yield f"| --- {'| --- ' * len(_COUNTS)}|"
    for site, counts in card["data"].items():
        yield f"| {_cell(site)} | {' | '.join(str(counts.get(key, '')) for key in _COUNTS)} |"


def _scores_in_words(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Scores", "", f"Mean Dice (images) at {card['scored_at']} pixels.")
    if not card["scores"]:
        yield from ("", "None: nothing was scored with this checkpoint.")
    for part, told in card["scores"].items():
        yield from ("", f"### {part}", "", "| images | pooled |" + "".join(f" {_cell(s)} |" for s in told["sites"]))
        yield "| --- | --- |" + " --- |" * len(told["sites"])
        for key, words in (_STRATA | _QUARTERS).items():
            if key in told:
                sites = (of_site.get(key) for of_site in told["sites"].values())
                yield f"| {words} | {_mean(told[key])} |" + "".join(f" {_mean(mean)} |" for mean in sites)
    yield ""
    if card["intervals"]:
        yield f"Of the study that this run's settings are of: {card['intervals']['sentence']}"
    else:
        yield "No interval: one run says nothing of how far another one would be from it."


def _rest(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Limits", "")
    yield from (f"- {limit}" for limit in card["limits"])
    parity = card.get("parity")
    if parity:
        yield from ("", "## Checks", "")
        gap = f"largest difference of a probability {parity['largest_difference']:.2g}"
        yield f"- {parity['runtime']} against the network of the run, on {parity['sample']}: {gap}"
    yield from (f"- {check}: {result}" for check, result in card.get("checks", {}).items())
    yield from ("", "## Hashes (SHA-256)", "", f"- weights: `{card['weights_sha256']}`")
    yield from (f"- {name}: `{value}`" for name, value in card.get("files", {}).items())


def _mean(told: Mapping[str, Any] | None) -> str:
    if told is None or told["mean"] is None:
        return "-"
    return f"{told['mean']:.3f} ({told['n']})"


def _cell(text: str) -> str:
    """A name of a hospital can hold anything; neither table nor page may break by it."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return plain.replace("[", "&#91;").replace("`", "&#96;")
