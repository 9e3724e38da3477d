"""Bad input, a row per promise: one clear message, and nothing that was there is lost."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import Module

from bad_files import (
    BOMBS,
    CONVERTED,
    MASKS,
    NO_MASKS,
    NOISE,
    OF_OTHER_KINDS,
    SQUARE,
    UNREADABLE,
    as_ordinary_user,
    encoded,
)
from bad_places import (
    CASES,
    HOLD,
    QUICK,
    SITES,
    Busy,
    Measured,
    Place,
    interrupt,
    make_source,
    measure_bombs,
    refuses,
    snapshot,
    start,
    wait_for,
)
from fedgs import models
from fedgs.core import LocalRule, global_of, train_locally
from fedgs.data.table import read_index
from fedgs.errors import DataError, TrainingError
from fedgs.locks import LOCK_FILE
from fedgs.metrics.table import read_scores
from fedgs.models.unet import UNet
from fedgs.run_folder import RunFolder
from nets import site, tiny
from runs import fedgs, flags

LAST, PREVIOUS, BEST = (f"checkpoints/{name}.safetensors" for name in ("last", "previous", "best"))

Row = Callable[[Place], object]
Spoil = Callable[[Place], object]


def refused(line: str, *says: str, spoil: Spoil = lambda place: None, as_user: bool = False) -> Row:
    """A row in which a command must fail with a message that holds these words, after something was spoilt."""

    def row(place: Place) -> None:
        spoil(place)
        arguments = [part.format(p=place) for part in line.split()]
        wanted = [text.format(p=place) for text in says]
        with as_ordinary_user() if as_user else nullcontext():
            refuses(*arguments, place=place, says=wanted)

    return row


def put(kind: str, content: bytes) -> Spoil:
    return lambda place: place.image(kind).write_bytes(content)


INDEX = "index {p.data} --out {p.tmp}/index --size 32"
TRAIN = f"train --data {{p.data}} --out {{p.tmp}}/out {' '.join(flags(**QUICK))}"
RESUME = "train --out {p.unfinished} --resume"
EVALUATE = "evaluate {p.run} --data {p.data} --checkpoint last"
ROWS: dict[str, Row] = {}

ROWS |= {
    f"path: {name}": row
    for name, row in {
        "data missing": refused(
            "train --data {p.tmp}/no --out {p.tmp}/out", "{p.tmp}/no: no such folder; expected one of"
        ),
        "data empty": refused(
            "train --data {p.tmp}/e --out {p.tmp}/out", "{p.tmp}/e: is empty", spoil=lambda p: (p.tmp / "e").mkdir()
        ),
        "data is a file": refused(
            "index {p.tmp}/f --out {p.tmp}/index", "is a file; expected a folder", spoil=lambda p: (p.tmp / "f").touch()
        ),
        "source missing": refused(
            "index {p.tmp}/no --out {p.tmp}/index", "{p.tmp}/no: no such folder; expected one of"
        ),
        "no data named": refused("train --out {p.tmp}/out", "name the folder", "--data DIR"),
        "external data missing": refused("evaluate {p.run} --data {p.tmp}/no", "{p.tmp}/no: no such folder"),
        "run to evaluate missing": refused("evaluate {p.tmp}/no --data {p.data}", "{p.tmp}/no: is not a run folder"),
        "run to report missing": refused("report {p.tmp}/no", "{p.tmp}/no: no such run folder; expected"),
        "run to report unfinished": refused("report {p.unfinished}", "not a finished run", "--resume"),
        "run to evaluate unfinished": refused("evaluate {p.unfinished} --data {p.data}", "not finished", "--resume"),
        "network to export missing": refused(
            "export {p.tmp}/no --format onnx --out {p.tmp}/n.onnx", "{p.tmp}/no: is not a run folder"
        ),
        "network to export unfinished": refused(
            "export {p.unfinished} --format onnx --out {p.tmp}/n.onnx", "not finished", "--resume"
        ),
        "format of the export": refused(
            "export {p.run} --format onxx --out {p.tmp}/n", "did you mean 'onnx'", "monai-bundle, onnx, torch-export"
        ),
        "checkpoint to export": refused(
            "export {p.run} --format onnx --out {p.tmp}/n.onnx --checkpoint las", "did you mean 'last'"
        ),
        "bundle that exists": refused(
            "export {p.run} --format monai-bundle --out {p.tmp}/mine",
            "{p.tmp}/mine: exists already; choose another --out, or remove it",
            spoil=lambda p: foreign(p),
        ),
        "bundle named like a file": refused(
            "export {p.run} --format monai-bundle --out {p.tmp}/n.onnx", "a bundle is a folder", "without .onnx"
        ),
        "export that exists": refused(
            "export {p.run} --format torch-export --out {p.tmp}/n.pt2",
            "{p.tmp}/n.pt2: exists already; choose another --out",
            spoil=lambda p: (p.tmp / "n.pt2").touch(),
        ),
        "card of an export that exists": refused(
            "export {p.run} --format torch-export --out {p.tmp}/n.pt2",
            "{p.tmp}/n.pt2.card.md: exists already; choose another --out",
            spoil=lambda p: (p.tmp / "n.pt2.card.md").touch(),
        ),
        "export of another ending": refused(
            "export {p.run} --format onnx --out {p.tmp}/n.pt2", "--format onnx writes a file", "ends in .onnx"
        ),
        "place of the export missing": refused(
            "export {p.run} --format onnx --out {p.tmp}/no/n.onnx", "{p.tmp}/no: no such folder; make it", "--out"
        ),
        "hospital where all share": refused(
            "export {p.run} --format onnx --out {p.tmp}/n.onnx --site north", "by one network; leave --site out"
        ),
        "comparison missing": refused(
            "export {p.run} --format onnx --out {p.tmp}/n.onnx --comparison {p.tmp}/c.json", "{p.tmp}/c.json"
        ),
        "run to export missing": refused("export-table {p.tmp}/no --latex", "{p.tmp}/no: no such run folder; expected"),
        "run to export unfinished": refused("export-table {p.unfinished} --latex", "not a finished run", "--resume"),
        "place of the table missing": refused(
            "export-table {p.run} --latex --out {p.tmp}/no/t.tex", "{p.tmp}/no: no such folder; make it", "--out"
        ),
        "table over a folder": refused(
            "export-table {p.run} --markdown --out {p.run}", "{p.run}: is a folder", "a file"
        ),
        "table over another file": refused(
            "export-table {p.run} --markdown --out {p.run}/scores.csv", "ends in .md", spoil=lambda p: p.run
        ),
        "form of the table not given": refused("export-table {p.run}", "give one of --latex and --markdown"),
        "both forms of the table": refused("export-table {p.run} --latex --markdown", "give one of --latex and"),
        "place of the page missing": refused("report {p.run} --out {p.tmp}/no/r.html", "{p.tmp}/no/r.html", "exists"),
        "settings missing": refused("train --config {p.tmp}/no.toml", "{p.tmp}/no.toml: cannot be read", "TOML"),
        "split missing": refused(f"{TRAIN} --split {{p.tmp}}/no.csv", "no.csv", "grouped, published", "give a file"),
        "image moved": refused(INDEX, "n3.png: No such file", "broken link", spoil=lambda p: broken_link(p)),
        "image is a pipe": refused(
            INDEX, "n3.png: is no file", spoil=lambda p: (p.image().unlink(), os.mkfifo(p.image()))
        ),
        "table of patients is a pipe": refused(
            INDEX, "patients.csv: is no file", spoil=lambda p: os.mkfifo(p.data / "patients.csv")
        ),
    }.items()
}


class Inexpressible(UNet):
    """Computes what ONNX has no operator for, and torch has."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits + 0 * torch.special.i0e(logits)


def without_operator(place: Place) -> None:
    """No network of ours is like this, so a run of one is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "inexpressible", models.Entry(__name__, "Inexpressible"))
        patch.setitem(sys.modules, __name__, sys.modules.get(__name__) or SimpleNamespace(Inexpressible=Inexpressible))
        fedgs(*place.train(model="inexpressible", rounds=1))
        line = ("export", str(place.tmp / "out"), "--format", "onnx", "--out", str(place.tmp / "n.onnx"))
        says = ["does something that ONNX", "bessel_i0e", "--format torch-export or monai-bundle"]
        refuses(*line, place=place, says=says)
        fedgs("export", str(place.tmp / "out"), "--format", "torch-export", "--out", str(place.tmp / "n.pt2"))


ROWS["an operator that ONNX does not have"] = without_operator

ROWS |= {
    f"a link that leads back to itself: {line}": refused(line, "{p.tmp}/loop", spoil=lambda p: loop(p))
    for line in (
        "index {p.tmp}/loop --out {p.tmp}/index",
        "index {p.data} --out {p.tmp}/loop",
        "train --data {p.tmp}/loop --out {p.tmp}/out",
        "train --data {p.data} --out {p.tmp}/loop",
        "train --data {p.data} --out {p.tmp}/out --split {p.tmp}/loop",
        "report {p.tmp}/loop",
        "evaluate {p.run} --data {p.tmp}/loop",
        "predict {p.run} {p.tmp}/loop --out {p.tmp}/out",
        "predict {p.run} {p.data} --out {p.tmp}/loop",
    )
}


def broken_link(place: Place) -> None:
    place.image().unlink()
    place.image().symlink_to("nowhere.png")


ROWS |= {
    f"layout: {name}": row
    for name, row in {
        "another adapter": refused(f"{INDEX} --adapter polypgen", "holds 'north/', 'south/'", "data_SITE/images_SITE"),
        "phantom over one's data": refused(f"{INDEX} --adapter phantom", "holds 'north/', 'south/'", "expected"),
        "none fits": refused(INDEX, "holds 'a.txt'; expected one of", "SITE/images/NAME.png", spoil=lambda p: flat(p)),
        "no folder of masks": refused(
            INDEX,
            "north: holds 'images/' but no folder 'masks'",
            "expected",
            spoil=lambda p: shutil.rmtree(p.data / "north" / "masks"),
        ),
        "site without a case": refused(
            INDEX,
            "site 'south': no image in {p.data}/south/images",
            "expected files *.bmp",
            spoil=lambda p: empty_site(p),
        ),
        "image without mask": refused(
            INDEX,
            "site 'north': 1 images without mask: 'n3.png'. Expected a mask per image",
            spoil=lambda p: p.image("masks").unlink(),
        ),
        "mask without image": refused(
            INDEX, "site 'north': 1 masks without image: 'n3.png'", "Expected", spoil=lambda p: p.image().unlink()
        ),
        "two cases of one name": refused(
            INDEX,
            "site 'north': 'n3.jpg' and 'n3.png' in {p.data}/north/images have one name",
            "rename or remove",
            spoil=lambda p: p.image().with_suffix(".jpg").write_bytes(encoded(NOISE, "JPEG")),
        ),
        "a folder like an image": refused(
            INDEX, "x.png is a folder; expected only files", spoil=lambda p: p.image("images", "north/x").mkdir()
        ),
        "a format of others": refused(
            INDEX,
            "x.dcm is of a format that fedgs does not read; expected",
            spoil=lambda p: p.image().with_name("x.dcm").touch(),
        ),
        "fewer than a batch": refused(
            f"{TRAIN} --batch-size 9", "site 'north' has", "fewer than one batch of 9; lower --batch-size"
        ),
        "too few for the published split": refused(
            f"{TRAIN} --split published", "site 'south'", "at least 10 cases", spoil=lambda p: drop(p, "south/n9")
        ),
    }.items()
}


def flat(place: Place) -> None:
    shutil.rmtree(place.data)
    place.data.mkdir()
    (place.data / "a.txt").touch()


def empty_site(place: Place) -> None:
    for path in place.data.glob("south/*/*"):
        path.unlink()


def drop(place: Place, case: str) -> None:
    for kind in ("images", "masks"):
        place.image(kind, case).unlink()


ROWS |= {
    f"{kind[:-1]} that is {name}": refused(INDEX, f"{{p.data}}/north/{kind}/n3.png: {says}", spoil=put(kind, content))
    for kind in ("images", "masks")
    for name, (content, says) in UNREADABLE.items()
}
ROWS |= {
    f"image, {name}": refused(INDEX, "{p.data}/north/images/n3.png: ", says, spoil=put("images", content))
    for name, (content, says) in OF_OTHER_KINDS.items()
}
ROWS |= {
    f"mask, {name}": refused(INDEX, "{p.data}/north/masks/n3.png: ", says, spoil=put("masks", content))
    for name, (content, says) in NO_MASKS.items()
}
ROWS["mask of another size"] = refused(
    INDEX,
    "n3.png: the mask has 32 x 64 pixels (width x height), its image 64 x 64",
    "expected the same",
    spoil=put("masks", encoded(SQUARE[:, :32])),
)


def accepted(kind: str, content: bytes, suffix: str = ".png") -> Row:
    def row(place: Place) -> None:
        place.image(kind).with_suffix(suffix).write_bytes(content)
        fedgs("index", str(place.data), "--out", str(place.tmp / "index"), "--size", "32")

    return row


ROWS |= {f"image converted: {name}": accepted("images", content) for name, content in CONVERTED.items()}
ROWS |= {f"mask converted: {name}": accepted("masks", content) for name, content in MASKS.items()}


def bomb(name: str) -> Row:
    def row(place: Place) -> None:
        found = place.bombs()[name]
        assert found["code"] == 1, found
        assert "bomb.png" in str(found["told"])
        assert "scale it down" in str(found["told"]) or "damaged" in str(found["told"])
        assert "Traceback" not in str(found["told"])
        assert float(str(found["seconds"])) < 2
        assert float(str(found["megabytes"])) < 256

    return row


ROWS |= {f"bomb as {kind}: {name}": bomb(f"{kind}/{name}") for name in BOMBS for kind in ("images", "masks")}


def blank(place: Place, cases: Sequence[str]) -> None:
    for case in cases:
        place.image("masks", case).write_bytes(encoded(SQUARE * 0))


def without_lesion(part: str) -> Row:
    """A part without any lesion; the split is given, so that it is known which cases these are."""

    def row(place: Place) -> None:
        split = place.tmp / "split.csv"
        parts = ["test_in", "validation", *["train"] * (CASES - 2)]
        rows = [(site, f"n{number}", parts[number]) for site in SITES for number in range(CASES)]
        if part == "test_out":
            rows = [(site, case, "test_out" if site == "south" else name) for site, case, name in rows]
        pd.DataFrame(rows, columns=["site", "case", "part"]).to_csv(split, index=False)
        blank(place, [f"{site}/{case}" for site, case, name in rows if name == part])
        count = sum(name == part for *_, name in rows)
        says = [f"none of the {count} cases of the part '{part}'", "--fold", "above 127 in JPEG"]
        refuses(*place.train(split=split), place=place, says=says)

    return row


def external_without_lesion(place: Place) -> None:
    blank(place, [f"{site}/n{number}" for site in SITES for number in range(CASES)])
    says = ["none of the 20 cases of the part 'external' (north, south)", "check the masks"]
    refuses("evaluate", str(place.run), "--data", str(place.data), place=place, says=says)


def site_without_lesion(place: Place) -> None:
    blank(place, [f"south/n{number}" for number in range(CASES)])
    done = fedgs(*place.train(rounds=1))
    assert done.stdout.count("Careful: the training cases of south show no lesion") == 1


ROWS |= {
    f"part without any lesion: {part}": without_lesion(part) for part in ("train", "validation", "test_in", "test_out")
}
ROWS["part without any lesion: external"] = external_without_lesion


def adapting_without_batch_norm(place: Place) -> None:
    fedgs(*place.train("--model-option", "norm=instance"))
    says = ["adapting re-estimates", "has none (instance and group norm keep no statistics)", "without adapting"]
    refuses("evaluate", str(place.tmp / "out"), "--data", str(place.data), "--adapt", place=place, says=says)


def adapting_to_a_single_value(place: Place) -> None:
    fedgs(*place.train(size=16, model="unet_sdnet"))
    lone = make_source(place.tmp / "lone", ["west"], ["n0"])
    fedgs("evaluate", str(place.tmp / "out"), "--data", str(lone))
    says = ["site 'west': of its single image", "give it another image", "without adapting"]
    refuses("evaluate", str(place.tmp / "out"), "--data", str(lone), "--adapt", place=place, says=says)


ROWS["adapting a network without batch norm"] = adapting_without_batch_norm
ROWS["adapting to a single value"] = adapting_to_a_single_value
ROWS["site without any lesion in training is said"] = site_without_lesion


def settings_file(text: str) -> Spoil:
    return lambda place: (place.tmp / "settings.toml").write_text(text)


FILE = f"{TRAIN} --config {{p.tmp}}/settings.toml"
ROWS |= {
    f"unknown {name}": row
    for name, row in {
        "adapter": refused(f"{INDEX} --adapter polipgen", "did you mean 'polypgen'", "folder, lits, phantom, polypgen"),
        "adapter of a run": refused(f"{TRAIN} --adapter foldr", "did you mean 'folder'", "folder, lits, phantom"),
        "algorithm": refused(
            f"{TRAIN} --algorithm fedsg", "did you mean 'fedgs'", "fedavg, fedavg-published, fedbn, fedgs"
        ),
        "model": refused(f"{TRAIN} --model unett", "did you mean 'unet'", "unet, unet_sdnet, utnet"),
        "option of a model": refused(f"{TRAIN} --model-option nrm=group", "did you mean 'norm'", "Choose one of"),
        "objective": refused(f"{TRAIN} --objective dice", "dice_batch", "dice_per_image", "did you mean"),
        "split": refused(f"{TRAIN} --split groupd", "did you mean 'grouped'", "grouped, published"),
        "site": refused(f"{TRAIN} --unseen-site sout", "did you mean 'south'", "north, south"),
        "checkpoint": refused(
            "evaluate {p.run} --data {p.data} --checkpoint las", "did you mean 'last'", "best, best_small"
        ),
        "rule": refused(f"{INDEX} --small-rule component", "did you mean 'components'", "components, total"),
        "precision": refused(f"{TRAIN} --precision fp16", "fp32 or bf16", "fp16"),
        "device": refused(f"{TRAIN} --device cdua", "'cdua'", "--device cpu"),
        "command": refused(
            "trian --data {p.data}",
            "did you mean 'train'",
            "compare, demo, evaluate, explain, export, export-table, import-checkpoint, index, phantom, predict",
        ),
        "flag of train": refused(f"{TRAIN} --round 3", "did you mean '--rounds'", "--unseen-site", "--resume"),
        "flag of index": refused(f"{INDEX} --sizes 3", "did you mean '--size'", "--small-rule", "--adapter"),
        "flag of evaluate": refused(f"{EVALUATE} --chekpoint last", "did you mean '--checkpoint'", "--device"),
        "flag of report": refused("report {p.run} --output x", "'--output'", "--debug, --help, --out"),
        "flag of demo": refused("demo --ot {p.tmp}/demo", "did you mean '--out'"),
        "setting in TOML": refused(
            FILE, "settings.toml: ", "did you mean 'lr'", "batch_size", spoil=settings_file("[training]\nlrr = 1\n")
        ),
        "table in TOML": refused(
            FILE, "settings.toml: ", "did you mean 'training'", "federation", spoil=settings_file("[trainin]\nlr = 1\n")
        ),
        "setting outside a table": refused(FILE, "put it under [training]", spoil=settings_file("lr = 1\n")),
        "value of a setting": refused(FILE, "'lr' must be float, got 'x'", spoil=settings_file("[training]\nlr='x'\n")),
        "size of unet": refused(
            "train --data {p.tmp}/no --out {p.tmp}/out --size 40", "got 40 x 40", "works is 48 x 48"
        ),
        "size of utnet": refused(
            "train --data {p.tmp}/no --out {p.tmp}/out --model utnet --size 200", "got 200 x 200", "works is 256 x 256"
        ),
        "size of an index": refused("index {p.data} --out {p.tmp}/index --size 5000", "size 5000: expected 8 to 4096"),
        "page over another file": refused("report {p.run} --out {p.run}/" + LAST, "ends in .html"),
        "option that the data decide": refused(f"{TRAIN} --model-option in_channels=3", "'in_channels' is decided by"),
        "classes": refused(f"{TRAIN} --model-option num_classes=3", "'num_classes' is decided by the data", "leave it"),
        "device of another package": refused(f"{TRAIN} --device hpu", "device 'hpu' cannot be used here"),
        "control character": refused(FILE, "control char", spoil=settings_file('[data]\nsplit = "a\\u0000b"\n')),
        "norm": refused(f"{TRAIN} --model-option norm=[1]", "expected norm to be of the type str, got [1]"),
        "device without values": refused(f"{TRAIN} --device meta", "device 'meta' cannot be used here", "--device cpu"),
        "fold": refused(f"{TRAIN} --fold 7", "fold must be 0 to 4, got 7"),
        "number": refused(f"{TRAIN} --rounds many", "--rounds", "'many' is not a valid integer"),
        "fraction": refused(f"{INDEX} --small-fraction 1/0", "--small-fraction", "1/150", "'1/0'"),
    }.items()
}


def ruined(steps: int, lr: float, says: str) -> Row:
    def row(place: Place) -> None:
        out, line = place.tmp / "out", place.train(rounds=3, local_steps=steps, lr=lr, evaluate_every=3)
        refuses(*line, place=place, says=["site 'north', round ", "step 1", says, "smaller --lr"], may_write=["out"])
        if not list((out / "checkpoints").iterdir()):  # no round was finished, so that it starts anew
            assert says in fedgs(*line, "--resume", check=False).stderr
            return
        assert RunFolder(out).load("last").server.round == 1
        before = (out / LAST).read_bytes()
        refuses(*line, "--resume", place=place, says=["site 'north', round ", says], may_write=["out"])
        assert (out / LAST).read_bytes() == before

    return row


ROWS["loss not finite"] = ruined(1, 1e12, "the loss is ")


def diverged(place: Place) -> None:
    """A network whose output is no number must not be scored as one that finds nothing."""
    says = ["(north): expected a probability per pixel", "is no number", "smaller --lr"]
    refuses(*place.train(rounds=1, local_steps=1, lr=1e12), place=place, says=says, may_write=["out"])


ROWS["scores of a network that gives no numbers"] = diverged
ROWS["weights not finite"] = ruined(1, 1e39, "is not finite after this step")


def ruined_buffer(place: Place) -> None:
    """No command can ruin a buffer alone, so this one is asked of the round itself."""

    class Ruins(LocalRule):
        def after_step(self, model: Module, optimizer: object, batch: object) -> None:
            model.norm.running_var.fill_(math.inf)  # type: ignore[union-attr,operator]

    model = tiny()
    with pytest.raises(
        TrainingError, match=r"site 'A', round 1, step \d+: 'norm.running_var' is not finite after this"
    ):
        train_locally(model, Ruins(), global_of(model), {}, site("A"))


ROWS["buffers not finite"] = ruined_buffer


def changed_mask(place: Place) -> None:
    place.image("masks").write_bytes(encoded(SQUARE.T[::-1]))


def added(place: Place) -> None:
    for kind, pixels in (("images", NOISE // 2), ("masks", SQUARE)):
        place.image(kind, "south/new").write_bytes(encoded(pixels))


FLIPPED, GONE = None, b"gone"


def damage(name: str, content: bytes | None = FLIPPED, *, flip: float = 0.5, run: str = "unfinished") -> Spoil:
    """Deletes a file of a run, replaces it, or flips a bit at a share of its length."""

    def spoil(place: Place) -> None:
        path = getattr(place, run) / name
        kept = bytearray(path.read_bytes())
        kept[int(len(kept) * flip)] ^= 4
        path.unlink() if content == GONE else path.write_bytes(bytes(kept) if content is FLIPPED else content)

    return spoil


def foreign(place: Place) -> None:
    (place.tmp / "mine").mkdir()
    (place.tmp / "mine" / "thesis.txt").write_text("years of work")


WITH_DATA = f"{RESUME} --data {{p.data}}"
ROWS |= {
    f"run folder: {name}": row
    for name, row in {
        "exists": refused(
            "train --data {p.data} --out {p.run}", "{p.run}: exists already; choose another --out", "--resume"
        ),
        "exists, of others": refused(
            "train --data {p.data} --out {p.tmp}/mine", "{p.tmp}/mine: exists already", "another --out", spoil=foreign
        ),
        "resume what is no run": refused(
            "train --out {p.tmp}/mine --resume", "{p.tmp}/mine: holds no run to go on with", "--out", spoil=foreign
        ),
        "resume what is no run, with data": refused(
            "train --data {p.data} --out {p.tmp}/mine --resume", "is not a run folder", "'thesis.txt'", spoil=foreign
        ),
        "resume nothing": refused("train --out {p.tmp}/out --resume", "{p.tmp}/out: holds no run", "--data"),
        "is a file": refused(f"{TRAIN} --resume", "is a file", spoil=lambda p: (p.tmp / "out").touch()),
        "demo where others are": refused(
            "demo --out {p.tmp}/mine", "{p.tmp}/mine: holds something other", spoil=foreign
        ),
        "resume with other settings": refused(
            f"{RESUME} --lr 0.1 --rounds 4 --seed 3",
            "{p.unfinished}: cannot go on, its settings differ: lr: 0.001 -> 0.1; rounds: 2 -> 4; seed: 0 -> 3",
            "Leave these flags out",
        ),
        "finished, other settings": refused("train --out {p.run} --resume --rounds 7", "rounds: 2 -> 7", "--out"),
        "resume with another image": refused(
            WITH_DATA,
            "cannot go on",
            "image changed: 'n3' (north)",
            "Restore the data",
            spoil=put("images", encoded(NOISE // 2)),
        ),
        "resume with another mask": refused(WITH_DATA, "mask changed: 'n3' (north)", spoil=changed_mask),
        "resume with fewer cases": refused(WITH_DATA, "removed: 'n3' (north)", spoil=lambda p: drop(p, "north/n3")),
        "resume with more cases": refused(WITH_DATA, "added: 'new' (south)", spoil=added),
        "resume with more and fewer cases": refused(
            WITH_DATA, "removed: 'n3' (north); added: 'new' (south)", spoil=lambda p: (added(p), drop(p, "north/n3"))
        ),
        "resume with another rule": refused(
            "train --out {p.unfinished} --resume --data {p.tmp}/index",
            "small_rule: ",
            "base=1000",
            spoil=lambda p: reindex(p),
        ),
        "resume with an altered split": refused(
            RESUME, "split.csv: was altered", spoil=lambda p: alter(p, "split.csv", "test_in", "train")
        ),
    }.items()
}


def reindex(place: Place) -> None:
    fedgs("index", str(place.data), "--out", str(place.tmp / "index"), "--size", "32", "--base", "1000")


def checkpoint_of_another_run(place: Place) -> None:
    other = flags(**QUICK | {"seed": 9, "rounds": 1})
    fedgs("train", "--data", str(place.data), "--out", str(place.tmp / "other"), *other)
    shutil.copy(place.tmp / "other" / LAST, place.run / LAST)


def loop(place: Place) -> None:
    (place.tmp / "back").symlink_to("loop")
    (place.tmp / "loop").symlink_to("back")


def alter(place: Place, name: str, old: str, new: str, run: str = "unfinished") -> None:
    path = getattr(place, run) / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


NO_TEXT = b"\xff\xfe\0"
DAMAGED: dict[tuple[str, str], dict[str, list[bytes | None]]] = {
    (RESUME, "unfinished"): {
        "config.toml": [b"", b"[data]\nsize = 32\n", b"[data", NO_TEXT, FLIPPED],
        "environment.json": [b"", b"{}", b"[]", b"{", NO_TEXT, FLIPPED, GONE],
        "split.csv": [b"", b"site,case\n", b"site,case,part,image_hash\n", NO_TEXT, FLIPPED, GONE],
        "scores.csv": [b"", b"round,part\n", NO_TEXT, GONE],
        "rounds.jsonl": [b"", b"{", b"3\n", b'{"round": 1}\n', NO_TEXT, FLIPPED, GONE],
    },
    (EVALUATE, "run"): {
        "config.toml": [b"", b"[data]\nsize = 32\n", b"[data", NO_TEXT, FLIPPED, GONE],
        "environment.json": [b"", b"[]", b"{", NO_TEXT, FLIPPED, GONE],
        "split.csv": [b"", b"site,case\n", NO_TEXT, FLIPPED, GONE],
        "scores.csv": [b"", b"round,part\n", NO_TEXT, GONE],
        "summary.json": [b"", b"{}", b"[]", b'{"format": 1}', NO_TEXT, FLIPPED],
        "rounds.jsonl": [b"", NO_TEXT, FLIPPED, GONE],
    },
    ("report {p.run}", "run"): {
        "config.toml": [b"[data", NO_TEXT, GONE],
        "environment.json": [b"", b"[]", b"{", NO_TEXT, FLIPPED, GONE],
        "split.csv": [b"", b"site,case\n", NO_TEXT, GONE],
        "rounds.jsonl": [b"", b"{", b"3\n", NO_TEXT, GONE],
        "summary.json": [b"", b"{}", b"[]", NO_TEXT, FLIPPED, GONE],
    },
}
ROWS |= {
    f"damaged {name} ({number}): {line.split()[0]}": refused(
        line, f"{{p.{run}}}", name, spoil=damage(name, content, run=run)
    )
    for (line, run), files in DAMAGED.items()
    for name, contents in files.items()
    for number, content in enumerate(contents)
}
ROWS |= {
    f"damaged {name}: {line.split()[0]}": refused(
        line, "{p.run}/" + name, "was altered", spoil=lambda p, change=(name, old, new): alter(p, *change, run="run")
    )
    for line in (EVALUATE, "report {p.run}")
    for name, old, new in (
        ("scores.csv", ",0.", ",0.1"),
        ("rounds.jsonl", '"loss": 0.', '"loss": 0.1'),
        ("summary.json", '"checksum"', '"check"'),
    )
}
ROWS["damaged scores.csv (a digit): resume"] = refused(
    RESUME,
    "{p.unfinished}/scores.csv: its validation scores of round ",
    "restore both from a copy",
    spoil=lambda p: alter(p, "rounds.jsonl", '"mean": 0.', '"mean": 0.1'),
)
ROWS |= {
    f"checkpoint {name}": row
    for name, row in {
        "named, truncated: evaluate": refused(EVALUATE, "{p.run}/" + LAST, spoil=damage(LAST, b"x" * 900, run="run")),
        "named, flipped bit: evaluate": refused(
            EVALUATE, "{p.run}/" + LAST, "restore it from a copy", spoil=damage(LAST, run="run")
        ),
        "named, gone: evaluate": refused(EVALUATE, "{p.run}/" + LAST, spoil=damage(LAST, GONE, run="run")),
        "best, flipped bit: evaluate": refused(
            "evaluate {p.run} --data {p.data}",
            "{p.run}/" + BEST,
            spoil=damage(BEST, run="run"),
        ),
        "named, not kept: evaluate": refused(
            "evaluate {p.run} --data {p.data} --checkpoint best_small",
            "checkpoints/best_small.safetensors: no such checkpoint; 'best' needs validation images",
        ),
        "of another run: evaluate": refused(
            EVALUATE, "{p.run}/" + LAST, "with other settings or data", spoil=lambda p: checkpoint_of_another_run(p)
        ),
        "of another round: evaluate": refused(
            EVALUATE,
            "{p.run}/" + LAST + ": is of round 1, the run's is of round 2",
            spoil=lambda p: shutil.copy(p.run / PREVIOUS, p.run / LAST),
        ),
        "both damaged: resume": refused(
            RESUME,
            "{p.unfinished}/checkpoints/",
            spoil=lambda p: (damage(LAST)(p), damage(PREVIOUS)(p)),
        ),
    }.items()
}


def goes_back(content: bytes | None, says: str) -> Row:
    def row(place: Place) -> None:
        damage(LAST, content)(place)
        done = fedgs("train", "--out", str(place.unfinished), "--resume")
        assert "Careful: " in done.stdout
        assert f"{says}; going on from the round before" in " ".join(done.stdout.split())
        assert (place.unfinished / LAST).read_bytes() == (place.run / LAST).read_bytes()

    return row


ROWS["checkpoint with a flipped bit: resume goes back"] = goes_back(FLIPPED, "altered; restore it from a copy")
ROWS["checkpoint truncated: resume goes back"] = goes_back(b"x" * 900, "restore it from a copy")
ROWS["checkpoint of no byte: resume goes back"] = goes_back(b"", "restore it from a copy")
ROWS["checkpoint gone between two renames: resume goes back"] = goes_back(GONE, "killed between two files")


def loses_best(place: Place) -> None:
    """The best round cannot be had back; the run goes on, says so, and can be finished and evaluated."""
    damage(BEST)(place)
    whole = (place.unfinished / LAST).read_bytes()
    done = fedgs("train", "--out", str(place.unfinished), "--resume", "--rounds", "2")
    told = " ".join(done.stdout.split())
    assert f"Careful: {place.unfinished}/{BEST}: its checksum does not match" in told
    assert "going on without it: 'best' will be the best of the rounds to come" in told
    assert (place.unfinished / LAST).read_bytes() == whole
    fedgs("evaluate", str(place.unfinished), "--data", str(place.data), "--checkpoint", "last")
    refuses("evaluate", str(place.unfinished), "--data", str(place.data), place=place, says=["no such checkpoint"])


ROWS["checkpoint best with a flipped bit: resume goes on"] = loses_best


def starts_over(place: Place) -> None:
    for name in ("last", "previous", "best"):
        (place.unfinished / "checkpoints" / f"{name}.safetensors").unlink()
    done = fedgs("train", "--out", str(place.unfinished), "--resume", "--lr", "0.5")
    assert "no round was finished, so the run starts over, with other settings (lr: 0.001 -> 0.5)" in done.stdout


ROWS["resume before the first round, with other settings"] = starts_over


def no_utf8(place: Place) -> None:
    home = os.fsdecode(os.fsencode(place.tmp) + b"/d\xff")
    for flag, other in (("data", "out"), ("out", "data")):
        line = f"train --{flag} {home} --{other} {place.tmp}/other"
        refuses(*line.split(), place=place, says=["/d\\udcff' cannot be written as utf-8; rename it"])


ROWS["path that is not UTF-8"] = no_utf8


def two_processes(line: str, *, is_finished: bool) -> Row:
    def row(place: Place) -> None:
        process, busy, summary = place.busy.start(), place.busy.folder, place.busy.folder / "summary.json"
        parts = [part.format(p=place) for part in line.split()]
        if is_finished:
            shutil.copy(place.run / "summary.json", summary)
        before = snapshot(busy)
        says = [f"{busy}: another process writes to it (process {process.pid} on {os.uname().nodename})"]
        try:
            refuses(*parts, place=place, says=[*says, "choose another folder"])
            assert snapshot(busy) == before
        finally:
            summary.unlink(missing_ok=True)

    return row


def killed_holder(place: Place) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(place.unfinished)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        says = [f"{place.unfinished}: another process writes to it (process {process.pid} on "]
        refuses("train", "--out", str(place.unfinished), "--resume", place=place, says=says)
        process.kill()
        process.wait()
    assert (place.unfinished / LOCK_FILE).is_file()  # nobody removed it, yet it stops nobody
    fedgs("train", "--out", str(place.unfinished), "--resume")
    assert not (place.unfinished / LOCK_FILE).exists()


def both_begin(place: Place) -> None:
    out = place.tmp / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        process.stdout.readline()
        refuses(*place.train(), place=place, says=[f"{out}: another process writes to it (process {process.pid} on "])
        process.kill()
        process.wait()
    fedgs(*place.train(rounds=1))


ROWS["two processes: resume"] = two_processes("train --out {p.busy.folder} --resume", is_finished=False)
ROWS["two processes: evaluate"] = two_processes(
    "evaluate {p.busy.folder} --data {p.data} --checkpoint last", is_finished=True
)
ROWS["two processes: both begin"] = both_begin
ROWS["two processes: a killed one stops nobody"] = killed_holder


def interrupted_training(place: Place) -> None:
    out = place.busy.folder
    assert place.busy.interrupt().endswith(f"Go on with: fedgs train --out '{out}' --resume")
    assert not (out / LOCK_FILE).exists()
    assert RunFolder(out).load("last").server.round >= 1
    says = ["its settings differ: rounds: 9000 -> 2"]
    refuses("train", "--out", str(out), "--resume", "--rounds", "2", place=place, says=says)


def interrupted_indexing(place: Place) -> None:
    many, index = place.tmp / "many", place.tmp / "index"
    for kind, pixels in (("images", NOISE.repeat(20, 0).repeat(20, 1)), ("masks", SQUARE.repeat(20, 0).repeat(20, 1))):
        (many / "A" / kind).mkdir(parents=True)
        (many / "A" / kind / "0.png").write_bytes(encoded(pixels))
        for number in range(1, 400):
            os.link(many / "A" / kind / "0.png", many / "A" / kind / f"{number}.png")
    arguments = ("index", str(many), "--out", str(index), "--size", "32")
    process = start(*arguments)
    wait_for(lambda: len(list(index.glob("cache-32/*.safetensors"))) > 3)
    assert interrupt(process).endswith(f"Go on with: fedgs index {many} --out {index} --size 32")
    assert "indexing was not finished" in refuses(
        *("train", "--data", str(index), "--out", str(place.tmp / "out")), place=place, says=["fedgs index"]
    )


ROWS["Ctrl-C: training"] = interrupted_training
ROWS["Ctrl-C: indexing"] = interrupted_indexing


def trains(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Index, training, evaluation and report from end to end."""
    index = out.with_name(f"{out.name} index")
    fedgs("index", str(data), "--out", str(index), "--size", "32")
    done = fedgs("train", "--data", str(index), "--out", str(out), *flags(**QUICK))
    fedgs("evaluate", str(out), "--data", str(data), "--checkpoint", "last")
    fedgs("report", str(out))
    assert (out / "report.html").is_file()
    return done


def strange_paths(place: Place) -> None:
    home = place.tmp / "Größe 名前 & 'quotes'"
    home.mkdir()
    place.data.rename(home / "my data")
    trains(home / "my data", home / "my run")


def links(place: Place) -> None:
    for number, path in enumerate(sorted(place.data.glob("*/*/*.png"))):
        if number % 3 == 0:
            path.rename(place.tmp / f"kept-{number}.png")
            path.symlink_to(place.tmp / f"kept-{number}.png")
    (place.tmp / "link to data").symlink_to(place.data)
    (place.tmp / "runs").mkdir()
    (place.tmp / "link to runs").symlink_to(place.tmp / "runs")
    before = snapshot(place.data)
    trains(place.tmp / "link to data", place.tmp / "link to runs" / "run")
    assert (place.tmp / "runs" / "run" / "report.html").is_file()
    assert snapshot(place.data) == before


ROWS["paths with spaces and unicode"] = strange_paths
ROWS["paths through links"] = links

DANGEROUS = ["=1+1", "@SUM(A1)", "+1", "-1", "'quoted", "'=1", "$\\frac$", "<img src=x onerror=alert(1)>", "[red]&amp;"]


def formulas(place: Place) -> None:
    """Names are escaped wherever they are shown or stored, and are themselves again when they are read."""
    sites = ["=2+3", "<script>alert(1)<", "[red]&\"'"]
    data = make_source(place.tmp / "dangerous", sites, [*DANGEROUS, "b", "c", "d"])
    with (data / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("site", "case", "patient"), (sites[0], "=1+1", "=P"), (sites[0], "+1", "@P")])
    out = place.tmp / "a run"
    trains(data, out)
    tables = [*out.rglob("*.csv"), place.tmp / "a run index" / "index.csv"]
    assert {table.name for table in tables} >= {"split.csv", "scores.csv", "index.csv"}
    for table in tables:
        with table.open(newline="") as file:
            cells = {cell for row in csv.reader(file) for cell in row}
        assert {cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))} == set()
    wanted = {(site, case) for site in sites for case in [*DANGEROUS, "b", "c", "d"]}
    for table in (RunFolder(out).split(), read_index(place.tmp / "a run index")[1]):
        assert set(zip(table["site"], table["case"], strict=True)) == wanted
    scores = read_scores(out / "scores.csv")
    assert set(scores.loc[scores["part"] == "external", "case"]) == {*DANGEROUS, "b", "c", "d"}
    assert set(read_index(place.tmp / "a run index")[1]["patient"].dropna()) == {"=P", "@P"}
    page = (out / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "[red]&" in fedgs("index", str(data), "--out", str(place.tmp / "a run index")).stdout
    assert "[red]&" in fedgs("evaluate", str(out), "--data", str(data), "--checkpoint", "last").stdout
    again = flags(**QUICK | {"rounds": 1, "split": out / "split.csv"})
    fedgs("train", "--data", str(data), "--out", str(place.tmp / "again"), *again)
    assert RunFolder(place.tmp / "again").split().equals(RunFolder(out).split())


ROWS["names with HTML, formulas and markup"] = formulas


def patients(text: str | bytes) -> Spoil:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda place: (place.data / "patients.csv").write_bytes(content)


ROWS |= {
    f"patients.csv: {name}": refused(INDEX, "patients.csv", *says, spoil=patients(text))
    for name, text, says in (
        ("unknown case", "site,case,patient\nnorth,n99,1\n", ("line 2: case 'n99' of site 'north' is not among",)),
        ("two patients", "site,case,patient\nnorth,n3,1\nnorth,n3,2\n", ("line 3: a second patient for case 'n3'",)),
        ("not UTF-8", b"site,case,patient\nnorth,n3,\xff\n", ("is not UTF-8; save it as",)),
        ("no site", "case,patient\nn3,1\n", ("line 2: case 'n3' exists in the sites north, south; add a column",)),
        ("no patient", "site,case\nnorth,n3\n", ("has the columns ['site', 'case']; expected case and patient",)),
        ("a column twice", "site,case,case,patient\nnorth,n3,n3,1\n", ("one of them twice; remove or rename one",)),
        ("open quote", 'site,case,patient\nnorth,"n3' + "x" * 200_000, ("is a quote left open?",)),
        ("a cell too many", "site,case,patient\nnorth,n3,1,2\n", ("line 2: expected 3 columns",)),
    )
}


def forbidden(line: str, *says: str, spoil: Spoil, mode: int) -> Row:
    """A row without the permission that is taken away, for its time, from the path that `spoil` gives."""

    def row(place: Place) -> None:
        path = Path(str(spoil(place)))
        usual = path.stat().st_mode
        path.chmod(mode)
        try:
            refused(line, *says, as_user=True)(place)
        finally:
            path.chmod(usual)

    return row


def a_locked_folder(place: Place) -> Path:
    (place.tmp / "locked").mkdir()
    return place.tmp / "locked"


def marked_as_index(place: Place) -> None:
    (place.tmp / "index").mkdir()
    (place.tmp / "index" / "notes.txt").touch()


ROWS |= {
    f"place: {name}": row
    for name, row in {
        "index inside the source": refused(
            "index {p.data} --out {p.data}/index", "lies in the source {p.data}", "choose"
        ),
        "index is the source": refused("index {p.data} --out {p.data}", "lies in the source {p.data}", "choose"),
        "source inside the index": refused(
            "index {p.data} --out {p.tmp}", "{p.tmp}: holds other files and no index; choose a new or empty folder"
        ),
        "index is a file": refused(
            "index {p.data} --out {p.tmp}/f",
            "{p.tmp}/f: is a file; expected a folder",
            spoil=lambda p: (p.tmp / "f").touch(),
        ),
        "index where others are": refused(INDEX, "{p.tmp}/index: holds other files", "choose", spoil=marked_as_index),
        "run inside the data": refused("train --data {p.data} --out {p.data}/run", "inside the data", "another --out"),
        "run below a file": refused(
            "train --data {p.data} --out {p.tmp}/f/run",
            "{p.tmp}/f/run: cannot be made",
            spoil=lambda p: (p.tmp / "f").touch(),
        ),
        "image may not be read": forbidden(
            INDEX, "n3.png: may not be read; check its permissions", spoil=lambda p: p.image(), mode=0
        ),
        "data may not be read": forbidden(
            INDEX, "{p.data}: Permission denied; check its permissions", spoil=lambda p: p.data, mode=0
        ),
        "index may not be written": forbidden(
            "index {p.data} --out {p.tmp}/locked/index", "Permission denied; check", spoil=a_locked_folder, mode=0o500
        ),
        "run may not be made": forbidden(
            "train --data {p.data} --out {p.tmp}/locked/run",
            "cannot be made (Permission denied)",
            spoil=a_locked_folder,
            mode=0o500,
        ),
        "run may not be resumed": forbidden(
            RESUME,
            "{p.unfinished}: cannot be locked for writing (Permission denied)",
            spoil=lambda p: p.unfinished,
            mode=0o500,
        ),
        "run may not be evaluated": forbidden(
            EVALUATE, "{p.run}: cannot be locked for writing (Permission denied)", spoil=lambda p: p.run, mode=0o500
        ),
        "table may not be written": forbidden(
            "export-table {p.run} --latex --out {p.run}/t.tex",
            "{p.run}/",
            "check its",
            spoil=lambda p: p.run,
            mode=0o500,
        ),
        "page may not be written": forbidden(
            "report {p.run}", "{p.run}/", "check its permissions", spoil=lambda p: p.run, mode=0o500
        ),
    }.items()
}


class Code:
    """What a pickle runs when it is opened carelessly."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("ran",)


def published(channels: int = 3, name: str = "utnet", **changes: Any) -> dict[str, torch.Tensor]:
    options = {"image_size": 32} if name == "sd_utnet" else {}
    model = models.build(name, in_channels=channels, base_channels=8, reduce_size=2, **options)
    models.initialise(model, torch.Generator().manual_seed(0))
    return models.to_published(model) | changes


def checkpoint(make: Callable[[], Any], *, cut: bool = False) -> Spoil:
    """Writes a checkpoint file, whole or the first half of it."""

    def spoil(place: Place) -> None:
        path = place.tmp / "c.pt"
        torch.save(make(), path)
        if cut:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in published().items() if key != name}


def of_four_classes() -> dict[str, torch.Tensor]:
    return models.to_published(models.build("utnet", in_channels=3, num_classes=4, base_channels=8, reduce_size=2))


CHECKPOINTS: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "unknown network": (
        checkpoint(lambda: {"fc.weight": torch.ones(2, 2)}),
        ("no known network; the nearest is", "no name is shared", "has fc.weight", "Known are: UTNet"),
    ),
    "entry missing": (checkpoint(lambda: without("outc.bias")), ("the nearest is UTNet, but it lacks outc.bias",)),
    "cut short": (checkpoint(published, cut=True), ("{p.tmp}/c.pt: cannot be read, it is cut short or no file of",)),
    "code in it": (checkpoint(lambda: {"state_dict": Code()}), ("opening it would run code; it is not opened",)),
    "not finite": (
        checkpoint(lambda: published(**{"outc.bias": torch.tensor([0.0, math.nan])})),
        ("outc.bias' is not finite",),
    ),
    "missing": (lambda place: None, ("{p.tmp}/c.pt: no such file; expected a .pt or .pth file",)),
}
IMPORT = "import-checkpoint {p.tmp}/c.pt --out {p.tmp}/out"
INIT = f"{TRAIN} --model utnet --model-option base_channels=8 --model-option reduce_size=2 --init-from {{p.tmp}}/c.pt"
ROWS |= {
    f"checkpoint, {name}: {line.split()[0]}": refused(line, *says, spoil=spoil)
    for name, (spoil, says) in CHECKPOINTS.items()
    for line in (IMPORT, INIT)
}
ROWS |= {
    f"checkpoint: {name}": row
    for name, row in {
        "four classes": refused(IMPORT, "tells 4 classes apart; expected 2", spoil=checkpoint(of_four_classes)),
        "a size that it cannot take": refused(
            f"{IMPORT} --size 100", "multiples of 32", "works is 96 x 96", spoil=checkpoint(published)
        ),
        "of another image size": refused(
            f"{IMPORT} --size 64",
            "its style encoder takes images of 32 x 32 pixels only, got a size of 64",
            spoil=checkpoint(lambda: published(name="sd_utnet")),
        ),
        "of another image size to start from": refused(
            f"{INIT} --model sd_utnet --size 64 --batch-size 2",
            "does not fit the network SDUTNet: it has in another shape",
            "style_encoder.hidden.weight (32, 512) for (32, 2048)",
            "--init-partial",
            spoil=checkpoint(lambda: published(name="sd_utnet")),
        ),
        "grey network to start from on colour images": refused(
            INIT, "stem.0.conv1.weight (8, 1, 3, 3) for (8, 3, 3, 3)", spoil=checkpoint(lambda: published(1))
        ),
        "of another network to start from": refused(
            f"{INIT} --model unet_sdnet",
            "option",
            spoil=checkpoint(published),
        ),
        "nothing of it fits": refused(
            f"{TRAIN} --init-partial --init-from {{p.tmp}}/c.pt",
            "c.pt: nothing in it fits the network UNet",
            spoil=checkpoint(lambda: published(name="sd_utnet")),
        ),
        "starts from a part of nothing": refused(f"{TRAIN} --init-partial", "name that with --init-from"),
        "starts from a run that is missing": refused(f"{TRAIN} --init-from {{p.tmp}}/no", "{p.tmp}/no: no such file"),
        "starts from an unfinished run": refused(
            f"{TRAIN} --init-from {{p.unfinished}}", "not finished", spoil=lambda p: p.unfinished
        ),
        "starts from a run's checkpoint": refused(
            f"{TRAIN} --init-from {{p.run}}/{LAST}", "give the folder of the run", spoil=lambda p: p.run
        ),
        "place exists": refused(
            "import-checkpoint {p.tmp}/c.pt --out {p.run}", "exists already", spoil=checkpoint(published)
        ),
    }.items()
}


STYLES = f"{TRAIN} --model sd_utnet --model-option base_channels=8 --model-option reduce_size=2 --batch-size 2"
ROWS |= {
    f"sharing: {name}": row
    for name, row in {
        "styles of a network without": refused(f"{TRAIN} --style-from 2", "sd_utnet or sdnet; UNet does not"),
        "styles in the first round": refused(f"{STYLES} --style-from 1", "style_from must be at least 2, got 1"),
        "styles after the end": refused(f"{STYLES} --style-from 5", "style_from 5 lies beyond the last of 2 rounds"),
        "styles, alone": refused(f"{STYLES} --style-from 2 --algorithm local", "hospitals share nothing"),
        "styles, pooled": refused(f"{STYLES} --style-from 2 --algorithm central", "all data are in one place"),
        "styles that nobody gives": refused(
            f"{STYLES} --style-from 2 --share-style north=false --share-style south=false",
            "no hospital of north, south would be handed the style",
        ),
        "neither yes nor no": refused(
            f"{STYLES} --style-from 2 --share-style north=False",
            "share_style of 'north' must be true or false, got 'False'",
        ),
        "unknown hospital": refused(
            f"{STYLES} --style-from 2 --share-style nort=false",
            "unknown hospital in share_style 'nort'; did you mean 'north'? Choose one of: north, south",
        ),
        "some of those that share nothing": refused(
            f"{TRAIN} --algorithm local --fraction-of-sites 0.5", "'local' is a reference with all hospitals in every"
        ),
        "some of what is pooled": refused(
            f"{TRAIN} --algorithm central --fraction-of-sites 0.5", "leave out fraction_of_sites, got 0.5"
        ),
    }.items()
}


def imported(place: Place, channels: int) -> Path:
    checkpoint(lambda: published(channels))(place)
    out = place.tmp / "imported"
    fedgs("import-checkpoint", str(place.tmp / "c.pt"), "--out", str(out), "--size", "32")
    return out


def grey_network_on_colour_images(place: Place) -> None:
    says = [f"{place.data}: holds colour images, the run's network takes grey ones; convert the images"]
    refuses("evaluate", str(imported(place, 1)), "--data", str(place.data), place=place, says=says)


def colour_network_on_grey_images(place: Place) -> None:
    """Grey images are shown to it as colour ones, as those of a mixed folder are."""
    for path in place.data.glob("*/images/*.png"):
        Image.open(path).convert("L").save(path)
    run = imported(place, 3)
    fedgs("evaluate", str(run), "--data", str(place.data))
    assert len(read_scores(run / "scores.csv")) == 2 * CASES


ROWS["network of grey images, colour images"] = grey_network_on_colour_images
ROWS["network of colour images, grey images"] = colour_network_on_grey_images


def explain_without_lesion(place: Place) -> None:
    blank(place, [f"{site}/n{number}" for site in SITES for number in range(CASES)])
    says = ["none of the 20 images (north, south) shows a lesion", "give other data, or name cases with --cases"]
    refuses("explain", str(place.run), "--data", str(place.data), place=place, says=says)


ROWS["explain: no lesion"] = explain_without_lesion
ROWS |= {
    f"explain: {name}": row
    for name, row in {
        "unknown case": refused(
            "explain {p.run} --cases north/n33",
            "unknown case 'north/n33'; did you mean 'north/n3'?",
            spoil=lambda p: p.run,
        ),
        "case in two hospitals": refused(
            "explain {p.run} --cases n3", "is in several hospitals", "north/n3, south/n3", spoil=lambda p: p.run
        ),
        "run missing": refused("explain {p.tmp}/no", "{p.tmp}/no: is not a run folder"),
        "run unfinished": refused("explain {p.unfinished}", "not finished", "--resume"),
        "unknown checkpoint": refused("explain {p.run} --checkpoint worst", "best, best_small, last"),
        "none at all": refused("explain {p.run} --smallest 0", "--smallest must be at least 1"),
        "place holds something else": refused(
            "explain {p.run} --out {p.data}", "which is no figure of fedgs", "--out", spoil=lambda p: p.run
        ),
        "altered run": refused("explain {p.run}", "checksum does not match", spoil=damage(BEST, run="run")),
    }.items()
}


PREDICT = "predict {p.run} {p.data}/north/images --out {p.tmp}/out"


def predicted_before(place: Place) -> None:
    fedgs(*PREDICT.format(p=place).split())


def a_second_image(place: Place) -> None:
    place.image().with_suffix(".jpg").write_bytes(encoded(NOISE, "JPEG"))


def only_a_note(place: Place) -> None:
    (place.tmp / "notes").mkdir()
    (place.tmp / "notes" / "n.txt").touch()


def other_run(**changes: Any) -> Spoil:
    return lambda place: fedgs(*place.train(**({"rounds": 1} | changes)), "--out", str(place.tmp / "other"))


ROWS |= {
    f"predict: {name}": row
    for name, row in {
        "run missing": refused("predict {p.tmp}/no {p.data} --out {p.tmp}/out", "{p.tmp}/no: is not a run folder"),
        "run unfinished": refused("predict {p.unfinished} {p.data} --out {p.tmp}/out", "not finished", "--resume"),
        "altered run": refused(PREDICT, "checksum does not match", spoil=damage(BEST, run="run")),
        "unknown checkpoint": refused(f"{PREDICT} --checkpoint worst", "best, best_small, last", spoil=lambda p: p.run),
        "checkpoint that is not there": refused(
            f"{PREDICT} --checkpoint best_small",
            "best_small.safetensors: no such checkpoint",
            spoil=lambda p: p.run,
        ),
        "device that is not there": refused(f"{PREDICT} --device cuda:9", "try --device cpu", spoil=lambda p: p.run),
        "threshold no probability": refused(f"{PREDICT} --threshold 1", "between 0 and 1, got 1.0"),
        "threshold no number": refused(f"{PREDICT} --threshold nan", "between 0 and 1, got nan"),
        "negative size of lesions": refused(f"{PREDICT} --min-lesion -1", "pixels, 0 or above, got -1"),
        "no image at a time": refused(f"{PREDICT} --batch-size 0", "--batch-size must be at least 1, got 0"),
        "unknown precision": refused(f"{PREDICT} --precision fp8", "unknown precision 'fp8'", "bf16, fp32"),
        "site where none keeps anything": refused(
            f"{PREDICT} --site north", "no hospital keeps a part", "leave --site out", spoil=lambda p: p.run
        ),
        "unknown site": refused(
            "predict {p.tmp}/other {p.data} --out {p.tmp}/out --site nort",
            "unknown hospital in --site 'nort'; did you mean 'north'? Choose one of: north, south",
            spoil=other_run(algorithm="fedavg+fedbn"),
        ),
        "no site where nothing is shared": refused(
            "predict {p.tmp}/other {p.data} --out {p.tmp}/out",
            "its hospitals share nothing",
            "--site: north, south",
            spoil=other_run(algorithm="local"),
        ),
        "ensemble of other sizes": refused(
            f"{PREDICT} --ensemble {{p.tmp}}/other",
            "take different images (size 32 and 48)",
            "--ensemble runs of one size",
            spoil=lambda p: (p.run, other_run(size=48)(p)),
        ),
        "ensemble of a run with itself": refused(
            f"{PREDICT} --ensemble {{p.run}}", "a run is given twice", "give each once", spoil=lambda p: p.run
        ),
        "ensemble of grey and colour": refused(
            f"{PREDICT} --ensemble {{p.tmp}}/imported",
            "take different images (channels 3 and 1)",
            spoil=lambda p: (p.run, imported(p, 1)),
        ),
        "input missing": refused(
            "predict {p.run} {p.tmp}/no --out {p.tmp}/out", "{p.tmp}/no: no such file or folder; give images"
        ),
        "input holds none": refused(
            "predict {p.run} {p.tmp}/notes --out {p.tmp}/out",
            "holds only other files, such as 'n.txt'; expected images (.bmp",
            spoil=only_a_note,
        ),
        "input of another kind": refused(
            "predict {p.run} {p.tmp}/notes/n.txt --out {p.tmp}/out", "is of a kind that fedgs does", spoil=only_a_note
        ),
        "inputs of one stem": refused(
            PREDICT, "n3.jpg and", "would both be written to n3.png in --out; rename one", spoil=a_second_image
        ),
        "folders with one name": refused(
            "predict {p.run} {p.data}/north/images {p.data}/south/images --out {p.tmp}/out",
            "would both be written to n0.png in --out",
            "give the folder that holds both",
        ),
        "masks into the input": refused(
            "predict {p.run} {p.data} --out {p.data}/out", "lies inside the input {p.data}", "another --out"
        ),
        "masks beside the input": refused(
            "predict {p.run} {p.data}/north/images/n3.png --out {p.data}/north/images", "holds the input", "another"
        ),
        "place is a file": refused(
            "predict {p.run} {p.data} --out {p.tmp}/f",
            "{p.tmp}/f: is a file; --out names a folder",
            spoil=lambda p: (p.run, (p.tmp / "f").touch()),
        ),
        "place holds something else": refused(
            "predict {p.run} {p.data} --out {p.run}", "and no predictions; choose a new folder", spoil=lambda p: p.run
        ),
        "masks are there": refused(PREDICT, "choose another --out, or add --resume", spoil=predicted_before),
        "masks are there, of other options": refused(
            f"{PREDICT} --resume --threshold 0.3",
            "its masks were made with threshold 0.5 rather than 0.3; choose another",
            spoil=predicted_before,
        ),
        "books altered": refused(
            f"{PREDICT} --resume",
            "predictions.jsonl: damaged or altered",
            spoil=lambda p: (predicted_before(p), (p.tmp / "out" / "predictions.jsonl").write_text("[1]\n")),
        ),
        "place may not be written": forbidden(
            "predict {p.run} {p.data} --out {p.tmp}/locked/out",
            "cannot be made (Permission denied)",
            spoil=lambda p: (p.run, a_locked_folder(p))[1],
            mode=0o500,
        ),
        "folder may not be read": forbidden(
            PREDICT, "Permission denied; check", spoil=lambda p: (p.run, p.data / "north" / "images")[1], mode=0
        ),
    }.items()
}


def skipped(spoil: Spoil, *says: str, as_user: bool = False) -> Row:
    """A row in which one of ten images cannot be predicted: it is named, and the nine others are done."""

    def row(place: Place) -> None:
        spoil(place)
        line = ["predict", str(place.run), str(place.data / "north" / "images"), "--out", str(place.tmp / "out")]
        with as_ordinary_user() if as_user else nullcontext():
            done = fedgs(*line, check=False)
        assert done.returncode == 3
        assert "Traceback" not in done.stderr
        assert all(word in " ".join(done.stderr.split()) for word in ("Failed: n3.png: ", *says)), done.stderr
        assert {path.name for path in (place.tmp / "out").glob("*.png")} == {
            f"n{n}.png" for n in range(CASES) if n != 3
        }

    return row


ROWS |= {
    f"predict, image skipped: {name}": skipped(put("images", content), says)
    for name, (content, says) in (UNREADABLE | OF_OTHER_KINDS).items()
}
ROWS |= {
    "predict, image skipped: too large": skipped(put("images", BOMBS["PNG just too large"]()), "scale it down"),
    "predict, image skipped: moved": skipped(broken_link, "no such file; was it moved or deleted"),
    "predict, image skipped: a pipe": skipped(lambda p: (p.image().unlink(), os.mkfifo(p.image())), "is no file"),
    "predict, image skipped: may not be read": skipped(
        lambda p: (p.run, p.image().chmod(0)), "may not be read; check its permissions", as_user=True
    ),
}


def debug(place: Place) -> None:
    with pytest.raises(DataError, match="no such folder; expected"):
        fedgs("index", str(place.tmp / "no"), "--out", str(place.tmp / "index"), "--debug")


ROWS["--debug shows the traceback"] = debug


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_source(tmp_path_factory.mktemp("source") / "data")
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    fedgs("train", "--data", str(source), "--out", str(out), *flags(**QUICK))
    assert set(RunFolder(out).split()["part"]) == {"train", "validation", "test_in"}
    return out


@pytest.fixture(scope="module")
def busy(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    run = Busy(source, tmp_path_factory.mktemp("busy"))
    yield run
    if run.process:
        run.process.kill()
        run.process.communicate()


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Measured]:
    measured: Measured = {}

    def give() -> Measured:
        if not measured:
            measured.update(measure_bombs(tmp_path_factory.mktemp("bombs")))
        return measured

    return give


@pytest.fixture
def place(tmp_path: Path, source: Path, finished: Path, busy: Busy, bombs: Callable[[], Measured]) -> Place:
    return Place(tmp_path / "place", source, finished, busy, bombs)


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(name: str, place: Place) -> None:
    ROWS[name](place)
