"""Blob loss and CC-DiceCE against loops over images and lesions in float64, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from fedgs.data.case import Batch
from fedgs.data.lesions import nearest_lesions
from fedgs.models import OBJECTIVES, build, entry, objective

BOTH = [name for name, kind in OBJECTIVES.items() if kind.needs_regions]


def batch_of(masks: Tensor, regions: Tensor | None = None) -> Batch:
    if regions is None:
        regions = torch.stack([torch.from_numpy(nearest_lesions(mask.numpy())) for mask in masks])
    images = torch.zeros(len(masks), 3, *masks.shape[1:])
    return Batch(images, masks, torch.zeros(len(masks), dtype=torch.bool), regions)


def random_case(seed: int, size: tuple[int, int] = (24, 20), share: float = 0.12) -> tuple[Tensor, Batch]:
    """Logits and a batch with one image without lesion, one full of lesions and two in between."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, 2, *size, dtype=torch.float64, generator=generator)
    shares = torch.tensor([0.0, share / 8, share, 2 * share])[:, None, None]
    return logits, batch_of(torch.rand(4, *size, generator=generator) < shares)


def soft_dice_loss(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    return 1 - (2 * float(p[y].sum()) + 0.1) / (float(p.sum()) + int(y.sum()) + 0.1)


def lesions_of(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return [labels == number for number in range(1, count + 1)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def blob_by_loops(p: NDArray[np.float64], masks: NDArray[np.bool_]) -> float:
    """Written from the formula: every lesion on the image without the others, whose pixels are cut out."""
    per_image = []
    for scores, mask in zip(p, masks, strict=True):
        lesions = lesions_of(mask)
        if lesions:
            domains = [~mask | lesion for lesion in lesions]
            pairs = zip(lesions, domains, strict=True)
            per_image.append(mean([soft_dice_loss(scores[domain], lesion[domain]) for lesion, domain in pairs]))
    return mean(per_image)


def cc_by_loops(p: NDArray[np.float64], masks: NDArray[np.bool_], regions: NDArray[np.uint8]) -> tuple[float, float]:
    dice, entropy = [], []
    for scores, mask, numbers in zip(p, masks, regions, strict=True):
        seen = [number for number in np.unique(numbers) if mask[numbers == number].any()]
        domains = [numbers == number for number in seen] or [np.ones_like(mask)]
        dice.append(mean([soft_dice_loss(scores[domain], mask[domain]) for domain in domains]))
        right = np.where(mask, scores, 1 - scores)
        entropy.append(mean([float(-np.log(right[domain]).mean()) for domain in domains]))
    return mean(dice), mean(entropy)


def scores_of(logits: Tensor) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = logits.detach().softmax(1)[:, 1].numpy()
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_blob_is_the_loop_over_images_and_lesions(seed: int) -> None:
    logits, batch = random_case(seed)
    terms = objective("blob_dice", dice=1)(logits, batch)
    assert list(terms) == ["dice", "blob"]
    assert terms["blob"].item() == pytest.approx(blob_by_loops(scores_of(logits), batch.masks.numpy()), rel=1e-12)
    assert torch.equal(terms["dice"], objective("dice_batch")(logits, batch)["dice"])


@pytest.mark.parametrize("seed", range(5))
def test_cc_is_the_loop_over_images_and_regions(seed: int) -> None:
    logits, batch = random_case(seed)
    terms = objective("cc_dice_ce")(logits, batch)
    assert list(terms) == ["dice", "cross_entropy", "cc_dice", "cc_cross_entropy"]
    dice, entropy = cc_by_loops(scores_of(logits), batch.masks.numpy(), batch.regions.numpy())
    assert terms["cc_dice"].item() == pytest.approx(dice, rel=1e-12)
    assert terms["cc_cross_entropy"].item() == pytest.approx(entropy, rel=1e-12)
    globally = objective("dice_batch+ce")(logits, batch)
    torch.testing.assert_close({term: terms[term] for term in globally}, globally)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_the_loop(name: str, seed: int) -> None:
    """Central differences of the loops in float64, at some of the logits."""
    logits, batch = random_case(seed, (9, 8), share=0.2)
    masks, regions = batch.masks.numpy(), batch.regions.numpy()

    def local(at: Tensor) -> float:
        p = scores_of(at)
        return blob_by_loops(p, masks) if name == "blob_dice" else sum(cc_by_loops(p, masks, regions))

    logits.requires_grad_()
    terms = objective(name)(logits, batch)
    whole = objective("dice_batch" if name == "blob_dice" else "dice_batch+ce")(logits, batch)
    ours = sum(value for term, value in terms.items() if term not in whole)
    (gradient,) = torch.autograd.grad(ours, logits)
    step = 1e-6
    for place in torch.randint(logits.numel(), (12,), generator=torch.Generator().manual_seed(seed)).tolist():
        moved = [logits.detach().clone() for _ in range(2)]
        moved[0].view(-1)[place] += step
        moved[1].view(-1)[place] -= step
        assert gradient.view(-1)[place].item() == pytest.approx(
            (local(moved[0]) - local(moved[1])) / 2 / step, abs=1e-8
        )


def one_lesion_each(seed: int) -> tuple[Tensor, Batch]:
    logits, _ = random_case(seed)
    masks = torch.zeros(4, 24, 20, dtype=torch.bool)
    for number, mask in enumerate(masks):
        mask[number : 2 * number + 1, 3 : 4 + 2 * number] = True
    return logits, batch_of(masks)


@pytest.mark.parametrize("seed", range(3))
def test_with_one_lesion_per_image_both_are_the_loss_per_image(seed: int) -> None:
    logits, batch = one_lesion_each(seed)
    expected = objective("dice_per_image+ce")(logits, batch)
    cc = objective("cc_dice_ce")(logits, batch)
    torch.testing.assert_close(objective("blob_dice")(logits, batch)["blob"], expected["dice"])
    torch.testing.assert_close(cc["cc_dice"], expected["dice"])
    torch.testing.assert_close(cc["cc_cross_entropy"], expected["cross_entropy"])


@pytest.mark.parametrize("name", BOTH)
def test_the_numbers_of_the_lesions_do_not_matter(name: str) -> None:
    logits, batch = random_case(0)
    order = torch.randperm(255, generator=torch.Generator().manual_seed(1)).to(torch.uint8) + 1
    other = batch._replace(regions=order[batch.regions.long() - 1])
    assert not torch.equal(other.regions, batch.regions)
    torch.testing.assert_close(objective(name)(logits, other), objective(name)(logits, batch))


@pytest.mark.parametrize("name", BOTH)
def test_images_without_lesion(name: str) -> None:
    logits, batch = random_case(0)
    logits.requires_grad_()
    empty = batch_of(torch.zeros_like(batch.masks))
    terms = objective(name)(logits, empty)
    plain = objective("dice_per_image+ce")(logits, empty)
    if name == "blob_dice":
        assert terms["blob"].item() == 0
    else:
        torch.testing.assert_close((terms["cc_dice"], terms["cc_cross_entropy"]), tuple(plain.values()))
    (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
    assert gradient.isfinite().all()


def test_a_missed_lesion_of_one_pixel_costs_as_much_as_a_missed_large_one() -> None:
    """Two lesions of 1 and 100 pixels, well apart; one of them is missed altogether."""
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 2, 2] = masks[0, 16:26, 16:26] = True
    batch = batch_of(masks)
    small_found, large_found = torch.zeros_like(masks), torch.zeros_like(masks)
    small_found[0, 2, 2] = large_found[0, 16:26, 16:26] = True
    for name, term in (("blob_dice", "blob"), ("cc_dice_ce", "cc_dice")):
        costs = [
            objective(name)(40.0 * torch.stack((~found, found), 1) - 20, batch)[term].item()
            for found in (large_found, small_found)
        ]
        assert costs[0] == pytest.approx(costs[1], rel=0.1)
        assert 0.45 < costs[0] < 0.5
    per_image = objective("dice_per_image")(40.0 * torch.stack((~large_found, large_found), 1) - 20, batch)["dice"]
    assert per_image.item() < 0.01


@pytest.mark.parametrize("name", BOTH)
def test_a_lesion_out_of_view_is_none(name: str) -> None:
    logits, batch = random_case(0)
    masks = batch.masks & (batch.regions != 2)
    logits.requires_grad_()
    gone = batch._replace(masks=masks)
    terms = objective(name)(logits, gone)
    (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
    assert gradient.isfinite().all()
    p = scores_of(logits)
    if name == "blob_dice":
        assert terms["blob"].item() == pytest.approx(blob_by_loops(p, masks.numpy()), rel=1e-12)
    else:
        dice, entropy = cc_by_loops(p, masks.numpy(), batch.regions.numpy())
        assert terms["cc_dice"].item() == pytest.approx(dice, rel=1e-12)
        assert terms["cc_cross_entropy"].item() == pytest.approx(entropy, rel=1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_weights_of_images_scale_the_terms_of_lesions(name: str) -> None:
    logits, batch = random_case(3)
    weights = torch.tensor([3.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    local = {"blob_dice": ["blob"], "cc_dice_ce": ["cc_dice", "cc_cross_entropy"]}[name]
    weighted = objective(name)(logits, batch._replace(weights=weights))
    for term in local:
        alone = []
        for number in range(4):
            one = Batch(*(None if field is None else field[number : number + 1] for field in batch))
            alone.append(objective(name)(logits[number : number + 1], one)[term])
        counted = range(1, 4) if name == "blob_dice" else range(4)
        expected = sum(weights[number] * alone[number] for number in counted) / len(counted)
        torch.testing.assert_close(weighted[term], expected)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_extreme_logits_have_finite_gradients(name: str, value: float) -> None:
    _, batch = random_case(0)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.full((4, 2, 24, 20), value, dtype=dtype)
        logits[:, 0] = -value
        logits.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = objective(name)(logits, batch)
        loss = sum(terms.values())
        loss.backward()
        assert math.isfinite(loss.item())
        assert {term.dtype for term in terms.values()} == {torch.float32}
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", BOTH)
def test_probabilities_in_place_of_logits_give_the_same(name: str) -> None:
    logits, batch = random_case(1)
    torch.testing.assert_close(objective(name)((logits.softmax(1),), batch), objective(name)(logits, batch))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_a_step_of_a_network_that_it_is_for(name: str) -> None:
    network = {"disentangled": "sdnet", "feddis": "feddis"}.get(name, "unet")
    assert OBJECTIVES[name].for_any or entry(network)[0].objective == name
    torch.manual_seed(0)
    model = build(network, in_channels=3, image_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 4:12, 4:12] = masks[0, 20:24, 20:24] = True
    batch = batch_of(masks)._replace(images=torch.randn(2, 3, 32, 32))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss = sum(objective(name)(model(batch.images), batch).values())
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", BOTH)
def test_disentangling_networks_can_be_trained_with_them(name: str) -> None:
    torch.manual_seed(0)
    model = build("sdnet", in_channels=3, image_size=32)
    _, batch = random_case(0, (32, 32))
    loss = sum(objective(name)(model(torch.randn(4, 3, 32, 32)), batch).values())
    loss.backward()
    assert loss.isfinite()
