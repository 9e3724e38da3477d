"""Published checkpoints as files: what is recognised, mended, and refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgs.errors import CheckpointError
from fedgs.models import load_published, segment, to_published
from fedgs.models.published import FORMS, Form

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
    path.write_bytes(pickle.dumps(Code()))


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


REFUSED: Mapping[Callable[[dict[str, Tensor], Path], None], str] = {
    code: "would run code; it is not opened",
    plain_pickle: "would run code; it is not opened",
    whole_model: "would run code; it is not opened",
    cut_short: "cut short or no file of torch",
    zero_bytes: "cut short or no file of torch",
    other_layer: "nearest is UTNet, but it has extra0.weight, .* and 4 more. Known are",
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
    spoil: Callable[[dict[str, Tensor], Path], None],
    utnet: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(utnet, tmp_path / "spoilt.pt")
    with pytest.raises(CheckpointError, match=REFUSED[spoil]):
        load_published(tmp_path / "spoilt.pt")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match=r"absent.pt: no such file"):
        load_published("absent.pt")
