"""What a trained network looks at: figures of single cases, and a page that holds them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import interpolate

from fedgs.assembly import build_scorer, resolve
from fedgs.attribution import attribute
from fedgs.config import configure
from fedgs.core import load
from fedgs.data.augment import denormalise
from fedgs.data.batches import scoring_batches
from fedgs.data.index import Index, Progress
from fedgs.data.linked import shown_among
from fedgs.errors import ConfigError, DataError, MissingExtraError, unknown_choice
from fedgs.evaluation import Prediction
from fedgs.files import TEMPORARY_SUFFIX, sealed, write_atomically, write_json
from fedgs.finished import Finished, read_finished
from fedgs.locks import locked
from fedgs.metrics.functional import confusion, dice
from fedgs.models import HasContent, TakesApart
from fedgs.run_folder import CHECKPOINTS, RunFolder
from fedgs.scoring import networks_for, sites_keep

__all__ = ["explain"]

_MOST_SITES = 6
_LIST = "figures.json"
Mask = npt.NDArray[np.bool_]
_PICTURE = re.compile(r"(case-\d+(-content)?|styles)\.png")


def explain(
    run: Path | str,
    data: Path | str | None = None,
    *,
    adapter: str | None = None,
    cases: Sequence[str] = (),
    smallest: int = 3,
    checkpoint: str = "best",
    device: str = "auto",
    out: Path | str | None = None,
    on_indexing: Progress | None = None,
    on_case: Progress | None = None,
) -> Path:
    """Draws what a finished run's network makes of some cases.

    For each case: image, outlines of expert and network, and what spoke for the lesion (Grad-CAM and integrated
    gradients); where the network takes images apart, also its content, the image made again, and, once, the content of
    every hospital's case in the style of every other one.

    Args:
        run: Folder of the run.
        data: Folder of images and masks, or an index; None takes the run's own.
        adapter: Layout of the folder; None guesses it.
        cases: Names of cases, as CASE or SITE/CASE; if there are none, those with the smallest lesions are taken, of
            those that the run was not trained or selected on where there are any.
        smallest: How many.
        checkpoint: ``"best"``, ``"best_small"`` or ``"last"``.
        device: Where to compute.
        out: Folder for page, PNGs and their list; None takes ``explain`` in the run, where its report finds them.
        on_indexing: Told of the indexing that comes first.
        on_case: Told how many cases are done.

    Returns:
        The page.

    Raises:
        ConfigError: No run, an unfinished one, an unknown checkpoint or case, or a folder that holds something else.
        CheckpointError: The run was altered.
        DataError: The data are missing or broken, or show no lesion.
        MissingExtraError: captum, jinja2 or matplotlib is not installed.
    """
    try:
        import captum  # noqa: F401
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("explain", "'fedgs explain'") from error
    from fedgs.report.html import write_explanation, write_report

    folder = RunFolder(Path(run))
    config = resolve(configure(folder.config(), device=device))
    if checkpoint not in CHECKPOINTS:
        raise unknown_choice("checkpoint", checkpoint, CHECKPOINTS)
    if smallest < 1:
        raise ConfigError(f"--smallest must be at least 1, got {smallest}")
    source = data or config.data.data
    if source is None:
        raise ConfigError(f"{folder.path}: knows no data of its own; name a folder of images with --data")
    ours = folder.path / "explain"
    place = Path(out) if out is not None else ours
    is_ours = place.resolve() == ours.resolve()
    _refuse_foreign(place, is_ours=is_ours)
    if place.resolve().is_relative_to(Path(source).resolve()):
        raise ConfigError(f"{place}: lies inside the data, to which nothing is written; choose another --out")
    folder.summary()
    with locked(folder.path):
        finished = read_finished(folder, config, checkpoint)
        index = finished.open_data(Path(source), adapter if data else adapter or config.data.adapter, on_indexing)
        known = shown_among(index.table, finished.cases)
        rows = _named(index.table, cases) if cases else _smallest(index.table, known, smallest)
        figures = list(_Explainer(finished, index, known).figures(rows, on_case))
        about = {"checkpoint": checkpoint, "round": finished.state.server.round, "source": index.source.name}
        _write(place, about, figures)
        page = write_explanation(folder.path, place)
        if is_ours:
            write_report([folder.path], folder.path / "report.html")
    return page


def _write(place: Path, about: Mapping[str, Any], figures: Sequence[tuple[dict[str, Any], bytes]]) -> None:
    """Writes pictures and their list; while that is not finished, an empty list tells whose folder it is."""
    place.mkdir(parents=True, exist_ok=True)
    empty = {"format": 1, **about, "figures": list[dict[str, Any]]()}
    write_json(place / _LIST, sealed(empty))
    for old in place.iterdir():
        if _PICTURE.fullmatch(old.name):
            old.unlink()
    for figure, picture in figures:
        write_atomically(place / figure["file"], picture, durable=False)
        figure["sha256"] = hashlib.sha256(picture).hexdigest()
    write_json(place / _LIST, sealed({**empty, "figures": [figure for figure, _ in figures]}))


def _refuse_foreign(place: Path, *, is_ours: bool) -> None:
    """Refuses a folder that holds anything but figures; a list of them tells that they are ours."""
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{place}: is a file; choose a folder with --out")
    is_ours |= (place / _LIST).is_file()
    for path in place.glob("*"):
        known = path.name in (_LIST, "index.html") or _PICTURE.fullmatch(path.name)
        if not (is_ours and known) and not path.name.endswith(TEMPORARY_SUFFIX):
            raise ConfigError(f"{place}: holds '{path.name}', which is no figure of fedgs; choose another --out")


def _named(table: pd.DataFrame, cases: Iterable[str]) -> list[int]:
    names = {f"{site}/{case}": row for row, (site, case) in enumerate(zip(table["site"], table["case"], strict=True))}
    rows = []
    for wanted in cases:
        found = [name for name in names if wanted in (name, name.partition("/")[2])]
        if not found:
            raise unknown_choice("case", wanted, get_close_matches(wanted, names, n=8, cutoff=0.0))
        if len(found) > 1:
            raise ConfigError(f"case '{wanted}' is in several hospitals; choose one of: {', '.join(found)}")
        rows.append(names[found[0]])
    return list(dict.fromkeys(rows))


def _smallest(table: pd.DataFrame, known: Mask, count: int) -> list[int]:
    order = _by_lesion(table, known)
    if not order:
        sites = ", ".join(table["site"].unique())
        raise DataError(
            f"none of the {len(table)} images ({sites}) shows a lesion, so there is none to explain; give other "
            "data, or name cases with --cases"
        )
    unknown = [row for row in order if not known[row]]
    return (unknown or order)[:count]


def _by_lesion(table: pd.DataFrame, known: Mask) -> list[int]:
    """Rows with a lesion, from the smallest on; first those that the run was not trained or selected on."""
    lesions = table.assign(known=known).reset_index(drop=True).query("lesion_area > 0")
    return [int(row) for row in lesions.sort_values(["known", "lesion_area", "site", "case"]).index]


@dataclass(frozen=True, slots=True)
class _Explainer:
    finished: Finished
    index: Index
    known: Mask

    def figures(self, rows: Sequence[int], on_case: Progress | None) -> Iterator[tuple[dict[str, Any], bytes]]:
        from fedgs.report.figures import content_figure, look_figure

        model = self.finished.network()
        for number, row in enumerate(rows, 1):
            view, about = self._view(model, row)
            name = f"case-{number:02d}"
            yield {**about, "kind": "look", "file": f"{name}.png"}, look_figure(view)
            if view.content is not None:
                yield {**about, "kind": "content", "file": f"{name}-content.png"}, content_figure(view)
            if on_case:
                on_case(number, len(rows))
        if isinstance(model, TakesApart):
            yield self._styles(model, rows)

    def _view(self, model: Module, row: int) -> tuple[Any, dict[str, Any]]:
        from fedgs.report.figures import CaseView, drawable

        case = self.index.table.iloc[row]
        network = self._load(model, str(case["site"]))
        scorer = replace(build_scorer(self.finished.config), batch_size=1)
        (prediction,) = scorer.predict(model, self.index, [row])
        image = self._image(row)
        region = _at(_region(prediction), image)
        found = attribute(model, image, region)
        share = case["lesion_area"] / (512 * 512)
        score = dice(confusion(prediction.mask, prediction.truth))
        size = f"lesion {100 * share:.2f} % of the image ({case['lesion_area']:,} of 262,144 pixels)"
        result = f"{size if share else 'no lesion'}; Dice {score:.2f}"
        title = f"{case['site']}, {case['case']}: {result}"
        about = {
            **{"site": str(case["site"]), "case": str(case["case"]), "lesion_area": int(case["lesion_area"])},
            **{"dice": score, "network": network, "known": bool(self.known[row])},
            **{"title": title, "region": _region_in_words(prediction), "layer": found.layer, "gap": found.gap},
        }
        view = CaseView(
            title=f"{drawable(str(case['site']), 20)}, {drawable(str(case['case']), 40)}: {result}",
            image=self._picture(row),
            truth=prediction.truth,
            prediction=prediction.mask,
            grad_cam=found.grad_cam.numpy(),
            gradients=found.gradients.numpy(),
        )
        with torch.inference_mode():
            if isinstance(model, TakesApart):
                content = model.content(image[None])
                again = model.render(content, model.mean_style(image[None], content))
                view = replace(view, reconstruction=_as_picture(again[0]))
            elif isinstance(model, HasContent):
                content = model.content(image[None])
            else:
                return view, about
        return replace(view, content=content[0].float().cpu().numpy()), about

    def _styles(self, model: Module, rows: Sequence[int]) -> tuple[dict[str, Any], bytes]:
        """The content of one case per hospital in the style of each; first those that are shown anyway."""
        from fedgs.report.figures import style_figure

        assert isinstance(model, TakesApart)
        chosen = self._one_per_site(rows)
        images = {site: self._image(row)[None] for site, row in chosen.items()}
        pictures = [(site, self._picture(row)) for site, row in chosen.items()]
        contents, grid, networks = {}, {}, {}
        with torch.inference_mode():
            for site, image in images.items():
                if network := self._load(model, site):
                    networks[site] = network
                contents[site] = model.content(image)
            for site, image in images.items():
                self._load(model, site)
                style = model.mean_style(image, model.content(image))
                grid[site] = [_as_picture(model.render(content, style)[0]) for content in contents.values()]
        rendered = [[grid[site][place] for site in images] for place in range(len(images))]
        cases = {site: str(self.index.table["case"].iloc[row]) for site, row in chosen.items()}
        about = {"kind": "styles", "file": "styles.png", "title": "Styles", "cases": cases, "networks": networks}
        own = sorted(set(self.finished.state.memories) & set(cases)) if sites_keep(self.finished.state) else []
        return {**about, "own_styles": own}, style_figure(pictures, pictures, rendered)

    def _one_per_site(self, rows: Sequence[int]) -> Mapping[str, int]:
        chosen: dict[str, int] = {}
        for row in (*rows, *_by_lesion(self.index.table, self.known)):
            chosen.setdefault(str(self.index.table["site"].iloc[row]), row)
        return {site: chosen[site] for site in sorted(list(chosen)[:_MOST_SITES])}

    def _load(self, model: Module, site: str) -> str:
        """Loads the network that is for a site's images; where there are several, the first."""
        name, own = next(iter(networks_for(self.finished.state, site).items()))
        load(model, self.finished.state.server, own)
        model.eval()
        return name

    def _image(self, row: int) -> Tensor:
        device = self.finished.config.training.device
        ((images, _),) = scoring_batches(self.index, [row], batch_size=1, device=device)
        return images[0]

    def _picture(self, row: int) -> npt.NDArray[np.uint8]:
        frame = self.index.frame(row)
        return np.repeat(frame, 3, 2) if frame.shape[2] == 1 else frame


def _region(prediction: Prediction) -> Mask:
    """What the network marks; if nothing, what the expert marks; if nothing, everything."""
    for mask in (prediction.mask, prediction.truth):
        if mask.any():
            return mask
    return np.ones_like(prediction.mask)


def _region_in_words(prediction: Prediction) -> str:
    if prediction.mask.any():
        return "what the network marks"
    return "the expert's lesion, since the network marks nothing" if prediction.truth.any() else "the whole image"


def _at(mask: Mask, image: Tensor) -> Tensor:
    """A mask on the grid of an image; a pixel is set where any pixel that it covers is, so no lesion vanishes."""
    values = torch.from_numpy(mask)[None, None].float()
    small = (
        interpolate(values, image.shape[-2:], mode="area")
        if mask.shape[0] >= image.shape[-2]
        else interpolate(values, image.shape[-2:])
    )
    return (small[0, 0] > 0).to(image.device)


def _as_picture(image: Tensor) -> npt.NDArray[np.uint8]:
    """A normalised image, (C, H, W), as (H, W, 3), uint8."""
    values = denormalise(image[None].float().cpu())[0].permute(1, 2, 0).numpy()
    return np.repeat(values, 3, 2) if values.shape[2] == 1 else values
