"""Published checkpoints as files: what is recognised, mended, and refused."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgs.errors import CheckpointError, ShapeError
from fedgs.models import load_published, segment, to_published
from fedgs.models.published import FORMS, Form
from fedgs.models.published_files import read_state

SMALL: Mapping[str, Mapping[str, Any]] = {
    "UTNet": {"base_channels": 2, "reduce_size": 2},
    "U-Net of SDNet": {"base_channels": 2},
    "SD-UTNet": {"base_channels": 2, "reduce_size": 2, "image_size": (64, 64)},
    "SD-UTNet of a site": {"base_channels": 2, "reduce_size": 2, "image_size": (32, 32)},
    "SD-UTNet of the server": {"base_channels": 2, "reduce_size": 2},
    "SDNet": {"base_channels": 2, "image_size": (48, 48)},
    "FedDis of a site": {"base_channels": 4},
    "FedDis of the server": {"base_channels": 4},
}


def published(form: Form, seed: int = 0, **sizes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(seed)
    model = form.network(**{"in_channels": 3, **SMALL[form.title], **sizes})
    size = getattr(model, "image_size", (64, 64))
    model.train()(torch.randn(2, sizes.get("in_channels", 3), *size))  # running statistics and counters move
    state = model.state_dict()
    return model, {theirs: state[ours].clone() for ours, theirs in form.published(model).items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture
def utnet() -> dict[str, Tensor]:
    return published(FORMS[0])[1]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.title)
@pytest.mark.parametrize("sizes", [{}, {"in_channels": 1, "num_classes": 3}], ids=["rgb", "grey"])
def test_a_file_loads_and_comes_back_exactly(form: Form, sizes: dict[str, Any], tmp_path: Path) -> None:
    model, state = published(form, **sizes)
    torch.save(state, tmp_path / "published.pt")
    loaded = load_published(tmp_path / "published.pt", careful=pytest.fail)
    assert type(loaded) is form.network
    assert equal(to_published(loaded), state)
    images = torch.randn(2, sizes.get("in_channels", 3), *getattr(model, "image_size", (64, 64)))
    assert torch.equal(segment(loaded.eval(), images), segment(model.eval(), images))


def test_published_names_are_told_apart() -> None:
    names = [frozenset(published(form)[1]) for form in FORMS]
    assert len(set(names)) == len(FORMS)


def wrapped_thrice(state: dict[str, Tensor]) -> Any:
    return {"epoch": 3, "model": {"state_dict": {f"module.{name}": value for name, value in state.items()}}}


def halved(state: dict[str, Tensor]) -> Any:
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("disguise", [wrapped_thrice, halved])
def test_wrapping_prefixes_and_half_precision_are_taken_off(
    disguise: Callable[[dict[str, Tensor]], Any], utnet: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(disguise(utnet), tmp_path / "published.pth")
    loaded = to_published(load_published(tmp_path / "published.pth", careful=pytest.fail))
    expected = {name: value.to(utnet[name].dtype) for name, value in halved(utnet).items()}
    assert equal(loaded, utnet if disguise is wrapped_thrice else expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_tables_that_were_averaged_are_made_anew(utnet: dict[str, Tensor], dtype: torch.dtype) -> None:
    spoilt = {**utnet}
    name = "down3.blocks.3.attn.relative_position_encoding.relative_position_index"
    spoilt[name] = utnet[name].clone()
    spoilt[name][0, :3] -= 1
    for key in spoilt:
        if key.endswith("index"):
            spoilt[key] = spoilt[key].to(dtype)
    told: list[str] = []
    loaded = load_published(spoilt, careful=told.append)
    assert told == ["3 of 144 entries of the relative-position tables were off; they were computed anew"]
    assert equal(to_published(loaded), utnet)


@pytest.mark.parametrize("by", [0.4, -1e-4])
def test_tables_that_were_averaged_by_less_than_one_are_told_too(utnet: dict[str, Tensor], by: float) -> None:
    spoilt = {key: value + by if key.endswith("index") else value for key, value in utnet.items()}
    told: list[str] = []
    loaded = load_published(spoilt, careful=told.append)
    assert told == ["144 of 144 entries of the relative-position tables were off; they were computed anew"]
    assert equal(to_published(loaded), utnet)


def test_counts_that_were_averaged_are_rounded_and_told(utnet: dict[str, Tensor]) -> None:
    name = "inc.0.bn1.num_batches_tracked"
    told: list[str] = []
    loaded = load_published({**utnet, name: torch.tensor(12.7)}, careful=told.append)
    assert told == [
        f"1 of {sum(key.endswith('tracked') for key in utnet)} counts of batches were no whole numbers; "
        "they were rounded"
    ]
    assert equal(to_published(loaded), {**utnet, name: torch.tensor(13)})
    with pytest.raises(CheckpointError, match=r"num_batches_tracked is 1e\+30, expected a count of batches"):
        load_published({**utnet, name: torch.tensor(1e30)})


def test_weights_that_are_whole_numbers_are_refused(utnet: dict[str, Tensor]) -> None:
    with pytest.raises(
        CheckpointError, match=r"outc.weight holds whole numbers \(torch.int64\), expected torch.float32"
    ):
        load_published({**utnet, "outc.weight": utnet["outc.weight"].long()})


@pytest.mark.parametrize("what", [3, None, [1], b"x"])
def test_what_is_no_state_dict_is_refused(what: Any) -> None:
    with pytest.raises(CheckpointError, match="a state dict, or the path of a file that holds one, got"):
        load_published(what)


def test_a_prefix_that_all_names_share_may_be_missing() -> None:
    (form,) = (form for form in FORMS if form.prefix)
    _, state = published(form)
    loaded = load_published({name.removeprefix(form.prefix): value for name, value in state.items()})
    assert equal(to_published(loaded), state)


def test_a_style_encoder_of_no_size_names_its_entry() -> None:
    (form,) = (form for form in FORMS if form.title == "SD-UTNet")
    _, state = published(form)
    with pytest.raises(CheckpointError, match=r"m_encoder.fc.weight has the shape \(32, 100\), expected \(32, 128"):
        load_published({**state, "m_encoder.fc.weight": torch.ones(32, 100)})


def test_of_names_that_nobody_knows_no_network_is_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"no name is shared\), but .* has resnet.conv1.weight\. Known"):
        load_published({"resnet.conv1.weight": torch.ones(2)})


def test_the_nearest_network_shares_the_most_names() -> None:
    (form,) = (form for form in FORMS if form.title == "SD-UTNet of a site")
    _, state = published(form)
    few = dict(list(state.items())[: len(state) // 2])
    with pytest.raises(CheckpointError, match="the nearest is SD-UTNet of"):
        load_published(few)


def test_by_default_a_warning_tells_of_them(utnet: dict[str, Tensor]) -> None:
    name = "down3.blocks.3.attn.relative_position_encoding.relative_position_index"
    with pytest.warns(UserWarning, match="16 of 144 entries"):
        load_published({**utnet, name: utnet[name] - 1})


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def code(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": Code()}, path)


def plain_pickle(state: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(pickle.dumps(Code(), protocol=2))


def whole_model(state: dict[str, Tensor], path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def cut_short(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_bytes(state: dict[str, Tensor], path: Path) -> None:
    path.touch()


def other_layer(state: dict[str, Tensor], path: Path) -> None:
    torch.save({f"extra{number}.weight": torch.zeros(1) for number in range(9)} | state, path)


def without_a_layer(state: dict[str, Tensor], path: Path) -> None:
    del state["outc.bias"]
    torch.save(state, path)


def misshapen(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state | {"up4.conv_ch.bias": torch.zeros(5)}, path)


def not_finite(state: dict[str, Tensor], path: Path) -> None:
    state["up4.conv_ch.bias"][0] = torch.nan
    torch.save(state, path)


def of_a_classifier(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}, path)


def nothing(state: dict[str, Tensor], path: Path) -> None:
    torch.save({}, path)


def a_list(state: dict[str, Tensor], path: Path) -> None:
    torch.save(list(state.values()), path)


def impossible_width(state: dict[str, Tensor], path: Path) -> None:
    torch.save({name: value[:0] if "num_batches" not in name else value for name, value in state.items()}, path)


Spoil = Callable[[dict[str, Tensor], Path], None]


def entries(**changed: Any) -> Spoil:
    """Spoils entries, whose names are written with _ for the dots."""

    def spoil(state: dict[str, Tensor], path: Path) -> None:
        names = {name.replace(".", "_"): name for name in state}
        torch.save(state | {names[short]: value for short, value in changed.items()}, path)

    return spoil


def content(make: Callable[[dict[str, Tensor]], Any]) -> Spoil:
    return lambda state, path: torch.save(make(state), path)


def raw(content: bytes) -> Spoil:
    return lambda state, path: path.write_bytes(content) and None


def legacy(length: int) -> Spoil:
    def spoil(state: dict[str, Tensor], path: Path) -> None:
        torch.save(state, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:length])

    return spoil


def within_itself(state: dict[str, Tensor]) -> Any:
    itself: dict[str, Any] = {}
    itself["model"] = itself
    return itself


def quantised() -> Tensor:
    scale, zero = torch.ones(2), torch.zeros(2, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(torch.ones(2), scale, zero, 0, torch.qint8)


NO_FILE = "cannot be read, it is cut short or no file of torch"
NOT_PLAIN = "expected a dense tensor of real numbers"
DIMENSIONS = r"has the shape \(\), expected {} dimensions"
SPOILT: Mapping[str, tuple[Spoil, str]] = {
    "number as name": (content(lambda state: {0: torch.ones(1)}), r"by name, found 0 \(Tensor\)"),
    "pair as name": (content(lambda state: {("a", 1): torch.ones(1)}), r"found \('a', 1\) \(Tensor\)"),
    "one number as name": (content(lambda state: {**state, 7: torch.ones(1)}), r"found 7 \(Tensor\)"),
    "one number of a number": (content(lambda state: {**state, 7: 3}), r"found 7 \(int\)"),
    "head without dimensions": (entries(outc_weight=torch.tensor(1.0)), "outc.weight " + DIMENSIONS.format(4)),
    "stem without dimensions": (entries(inc_0_conv1_weight=torch.tensor(1.0)), DIMENSIONS.format(4)),
    "table without dimensions": (
        entries(down2_blocks_2_attn_relative_position_encoding_relative_position_bias_table=torch.tensor(1.0)),
        DIMENSIONS.format(2),
    ),
    "sparse": (entries(outc_bias=torch.ones(2).to_sparse()), NOT_PLAIN),
    "quantised": (content(lambda state: state | {"outc.bias": quantised()}), NOT_PLAIN),
    "meta": (entries(outc_bias=torch.ones(2, device="meta")), NOT_PLAIN),
    "complex": (entries(outc_bias=torch.ones(2, dtype=torch.complex64)), r"'outc.bias' is a tensor of complex64 .*"),
    "more than is stored": (
        entries(inc_0_conv1_weight=torch.zeros(1).expand(20000, 3, 3, 3)),
        "but not as many stored values",
    ),
    "counter that is not finite": (entries(inc_0_bn1_num_batches_tracked=torch.tensor(torch.nan)), "is not finite"),
    "more than float32 holds": (entries(outc_bias=torch.full((2,), 1e300, dtype=torch.float64)), "is not finite"),
    "within itself": (content(within_itself), "wrapped more than 8 times, or holds itself"),
    "legacy, 1 byte": (legacy(1), NO_FILE),
    "legacy, 30 bytes": (legacy(30), NO_FILE),
    "legacy, 200 bytes": (legacy(200), NO_FILE),
    "zip, 1 byte": (raw(b"P"), NO_FILE),
    "page": (raw(b"<html>404"), NO_FILE),
    "pointer": (raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"), NO_FILE),
    "safetensors": (raw((24).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}   '), NO_FILE),
    "folder": (lambda state, path: path.mkdir(), "spoilt.pt: is no file"),
    "pipe": (lambda state, path: os.mkfifo(path), "spoilt.pt: is no file"),
}
REFUSED: Mapping[Spoil, str] = {
    code: "would run code; it is not opened",
    plain_pickle: "would run code; it is not opened",
    whole_model: "would run code; it is not opened",
    cut_short: "cut short or no file of torch",
    zero_bytes: "cut short or no file of torch",
    other_layer: "spoilt.pt: a checkpoint of no known network; the nearest is UTNet, but it has extra0.weight, .* and",
    without_a_layer: "nearest is UTNet, but it lacks outc.bias. Known are",
    misshapen: r"up4.conv_ch.bias has the shape \(5,\), expected \(2,\)",
    not_finite: "'up4.conv_ch.bias' is not finite",
    of_a_classifier: "no known network",
    nothing: "expected a state dict of tensors, found nothing",
    a_list: "holds a list, expected a state dict",
    impossible_width: "UTNet",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_used_is_refused(
    spoil: Spoil, utnet: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(utnet, tmp_path / "spoilt.pt")
    with pytest.raises(CheckpointError, match=REFUSED[spoil]):
        load_published(tmp_path / "spoilt.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_spoilt_is_refused_with_its_reason(case: str, utnet: dict[str, Tensor], tmp_path: Path) -> None:
    spoil, says = SPOILT[case]
    spoil(utnet, tmp_path / "spoilt.pt")
    with pytest.raises(CheckpointError, match=says):
        load_published(tmp_path / "spoilt.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_bytes_are_flipped_it_loads_or_is_refused(zipped: bool, tmp_path: Path) -> None:
    path, draw = tmp_path / "flipped.pt", random.Random(0)
    torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(flipped)
        try:
            read_state(path)
        except CheckpointError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize(
    ("title", "made_for", "given", "expected"),
    [
        ("SDNet", (48, 48), None, (48, 48)),
        ("SDNet", (20, 20), None, (32, 32)),
        ("SDNet", (20, 20), 20, (20, 20)),
        ("SDNet", (32, 48), (32, 48), (32, 48)),
        ("SDNet", (33, 20), (33, 20), (33, 20)),
        ("SD-UTNet", (32, 96), (96, 32), (96, 32)),
    ],
)
def test_a_network_is_made_for_the_size_that_is_given(
    title: str, made_for: tuple[int, int], given: Any, expected: tuple[int, int]
) -> None:
    (form,) = (form for form in FORMS if form.title == title)
    _, state = published(form, image_size=made_for)
    loaded = load_published(state, image_size=given)
    assert loaded.image_size == expected
    assert loaded(torch.randn(2, 3, *expected)).segmentation.shape == (2, 2, *expected)


@pytest.mark.parametrize(
    ("title", "made_for", "given", "says"),
    [
        ("SDNet", (32, 48), None, r"image_size=\(height, width\), where ceil\(.* = 6"),
        ("SDNet", (32, 48), 32, r"images with ceil\(.*\) = 6 only, got 32 x 32"),
        ("SDNet", (32, 32), 48, "images of 17 x 17 to 32 x 32 pixels only, got a size of 48; leave"),
        ("SDNet", (32, 32), 0, "got a size of 0"),
        ("SD-UTNet", (64, 64), 32, "images of 64 x 64 pixels only, got a size of 32; leave"),
        ("SD-UTNet", (64, 64), (16, 256), "nearest size that works is 32 x 256"),
        ("UTNet", None, 100, "nearest size that works is 96 x 96"),
    ],
)
def test_a_size_that_a_network_is_not_made_for_is_refused(title: str, made_for: Any, given: Any, says: str) -> None:
    (form,) = (form for form in FORMS if form.title == title)
    _, state = published(form, **({"image_size": made_for} if made_for else {}))
    with pytest.raises((CheckpointError, ShapeError), match=says):
        load_published(state, image_size=given)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match=r"absent.pt: no such file"):
        load_published("absent.pt")
