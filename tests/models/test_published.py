"""Names of published checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fedgs.errors import CheckpointError, ConfigError
from fedgs.models import build, initialise
from fedgs.models.published import FORMS, from_published, published_names, to_published


def small_utnet(seed: int) -> nn.Module:
    model = build("utnet", in_channels=1, base_channels=2, reduce_size=2)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


LISTS = {
    "utnet_rgb_512": ("UTNet", 3),
    "utnet_ct_512": ("UTNet", 1),
    "unet_rgb_512": ("U-Net of SDNet", 3),
    "sd_utnet_rgb_512": ("SD-UTNet", 3),
    "sd_utnet_ct_512": ("SD-UTNet", 1),
    "sd_utnet_fed_site_512": ("SD-UTNet of a site", 3),
    "sd_utnet_fed_server_512": ("SD-UTNet of the server", 3),
    "sdnet_rgb_512": ("SDNet", 3),
    "feddis_site": ("FedDis of a site", 3),
    "feddis_server": ("FedDis of the server", 3),
}


@pytest.mark.parametrize("name", LISTS)
def test_keys_shapes_and_types_are_the_published_ones(shared: Path, name: str) -> None:
    title, in_channels = LISTS[name]
    (form,) = (form for form in FORMS if form.title == title)
    size = {"image_size": (512, 512)} if form.example else {}
    with torch.device("meta"):
        model = form.network(in_channels=in_channels, **size)
    model.published_form = title
    parameters = {published_names(model)[own] for own, _ in model.named_parameters()}
    ours = {
        f"{key}\t{tuple(value.shape)}\t{str(value.dtype).removeprefix('torch.')}"
        f"\t{'param' if key in parameters else 'buffer'}"
        for key, value in to_published(model).items()
    }
    assert ours == set((shared / f"golden/models/{name}_keys.txt").read_text().splitlines())
    shapes = {own: tuple(value.shape) for own, value in model.state_dict().items()}
    tiles = {"tiles": 32 * 32} if form.example else {}
    assert form.sizes(shapes).items() >= {"in_channels": in_channels, "num_classes": 2, **tiles}.items()


def test_every_published_list_of_keys_is_tested(shared: Path) -> None:
    assert {path.name.removesuffix("_keys.txt") for path in shared.glob("golden/models/*_keys.txt")} == LISTS.keys()


def test_round_trip_gives_the_same_network() -> None:
    one, other = small_utnet(1), small_utnet(2)
    images = torch.randn(2, 1, 32, 64, generator=torch.Generator().manual_seed(3))
    one(images)
    assert not torch.equal(one.eval()(images), other.eval()(images))
    other.load_state_dict(from_published(other, to_published(one)), strict=True)
    assert torch.equal(one(images), other(images))


def test_no_two_entries_share_a_name() -> None:
    names = published_names(small_utnet(0))
    assert len(set(names.values())) == len(names)


def test_reading_leaves_the_network_alone() -> None:
    one, other = small_utnet(1), small_utnet(2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    from_published(other, to_published(one))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_missing_entry_is_named() -> None:
    model = small_utnet(0)
    published = to_published(model)
    del published["outc.bias"]
    with pytest.raises(CheckpointError, match=r"lacks outc\.bias$"):
        from_published(model, published)


def test_a_superfluous_entry_is_named() -> None:
    model = small_utnet(0)
    published = to_published(model) | {"module.outc.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"has unknown module\.outc\.bias$"):
        from_published(model, published)


def test_another_shape_is_named() -> None:
    model = small_utnet(0)
    published = to_published(model) | {"outc.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"outc\.bias has the shape \(3,\), expected \(2,\)"):
        from_published(model, published)


def test_a_network_that_was_not_published() -> None:
    with pytest.raises(ConfigError, match="no published checkpoints are known for a Linear"):
        to_published(nn.Linear(2, 2))
