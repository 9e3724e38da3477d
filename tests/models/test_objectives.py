"""Objectives against hand computations and MONAI."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor

from fedgs.data.case import Batch
from fedgs.errors import ConfigError
from fedgs.models import OBJECTIVES, objective


def batch_of(masks: Tensor) -> Batch:
    count, height, width = masks.shape
    regions = torch.ones(masks.shape, dtype=torch.uint8)
    regions[..., width // 2 :] = 2
    return Batch(torch.zeros(count, 3, height, width), masks, torch.zeros(count, dtype=torch.bool), regions)


def chosen(batch: Batch, which: Tensor | slice) -> Batch:
    return Batch(*(None if field is None else field[which] for field in batch))


def random_case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 6, 5, dtype=dtype, generator=generator)
    masks = torch.rand(3, 6, 5, generator=generator) < 0.3
    masks[0] = False
    return logits, batch_of(masks)


def logits_of(scores: list[list[float]]) -> Tensor:
    """One row of pixels per image, (B, 2, 1, W), whose foreground probabilities are the scores."""
    foreground = torch.logit(torch.tensor(scores, dtype=torch.float64))[:, None]
    return torch.stack((torch.zeros_like(foreground), foreground), dim=1)


SCORES = [[0.8, 0.4], [0.1, 0.3]]
MASKS = torch.tensor([[[True, False]], [[False, False]]])


def test_dice_of_the_batch_by_hand() -> None:
    terms = objective("dice_batch")(logits_of(SCORES), batch_of(MASKS))
    assert terms.keys() == {"dice"}
    assert terms["dice"].item() == pytest.approx(1 - (2 * 0.8 + 0.1) / (1.6 + 1 + 0.1))


def test_dice_per_image_by_hand() -> None:
    terms = objective("dice_per_image")(logits_of(SCORES), batch_of(MASKS))
    first, second = 1 - (2 * 0.8 + 0.1) / (1.2 + 1 + 0.1), 1 - 0.1 / (0.4 + 0.1)
    assert terms["dice"].item() == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("dice", ["dice_batch", "dice_per_image"])
def test_cross_entropy_by_hand_beside_the_same_dice(dice: str) -> None:
    logits, batch = logits_of(SCORES), batch_of(MASKS)
    terms = objective(f"{dice}+ce")(logits, batch)
    assert list(terms) == ["dice", "cross_entropy"]
    expected = -sum(math.log(p) for p in (0.8, 0.6, 0.9, 0.7)) / 4
    assert terms["cross_entropy"].item() == pytest.approx(expected)
    assert torch.equal(terms["dice"], objective(dice)(logits, batch)["dice"])


@pytest.mark.parametrize(("name", "together"), [("dice_batch", True), ("dice_per_image", False)])
@pytest.mark.parametrize("seed", range(3))
def test_dice_is_monai_s(name: str, together: bool, seed: int) -> None:
    logits, batch = random_case(seed)
    reference = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=together, smooth_nr=0.1, smooth_dr=0.1
    )
    logits.requires_grad_()
    ours, theirs = objective(name)(logits, batch)["dice"], reference(logits, batch.masks[:, None])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


@pytest.mark.parametrize("seed", range(3))
def test_one_image_makes_both_dice_equal(seed: int) -> None:
    logits, batch = random_case(seed)
    one = chosen(batch, slice(1, 2))
    values = [objective(name)(logits[1:2], one)["dice"] for name in ("dice_batch", "dice_per_image")]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.for_any])
class TestEvery:
    def test_the_right_answer_costs_next_to_nothing_and_the_wrong_one_much(self, name: str) -> None:
        _, batch = random_case(0)
        right = 40.0 * torch.stack((~batch.masks, batch.masks), dim=1) - 20
        terms, wrong = objective(name)(right, batch), objective(name)(-right, batch)
        assert sum(terms.values()).item() == pytest.approx(0, abs=1e-5)
        assert sum(wrong.values()).item() > 0.9

    def test_half_precision_is_computed_in_float32(self, name: str) -> None:
        # 3 * 512 * 512 pixels: a sum over them in float16 is infinite, in bfloat16 it stalls.
        masks = torch.zeros(3, 512, 512, dtype=torch.bool)
        masks[:, :100, :100] = True
        logits = torch.randn(3, 2, 512, 512, generator=torch.Generator().manual_seed(0))
        for dtype in (torch.float16, torch.bfloat16):
            rounded = logits.to(dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                terms = objective(name)(rounded, batch_of(masks))
            exact = objective(name)(rounded.double(), batch_of(masks))
            for key, term in terms.items():
                assert term.dtype == torch.float32
                assert term.item() == pytest.approx(exact[key].item(), rel=1e-5)

    def test_float64_stays(self, name: str) -> None:
        assert {term.dtype for term in objective(name)(*random_case(0)).values()} == {torch.float64}

    def test_empty_masks_give_a_finite_loss_with_a_gradient(self, name: str) -> None:
        logits = torch.zeros(2, 2, 4, 4, requires_grad=True)
        loss = sum(objective(name)(logits, batch_of(torch.zeros(2, 4, 4, dtype=torch.bool))).values())
        loss.backward()
        assert loss.isfinite()
        assert (logits.grad[:, 1] > 0).all()

    def test_order_of_the_images_does_not_matter(self, name: str) -> None:
        logits, batch = random_case(1)
        order = torch.tensor([2, 0, 1])
        shuffled = objective(name)(logits[order], chosen(batch, order))
        torch.testing.assert_close(shuffled, objective(name)(logits, batch))


def test_an_unknown_name_is_answered_with_the_choices_and_a_guess() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown objective 'dice-batch'; did you mean 'dice_batch'.*dice_per_image\+ce"
    ):
        objective("dice-batch")


def test_weights_of_terms_can_be_set() -> None:
    logits, batch = random_case(0)
    plain, weighted = objective("dice_batch+ce"), objective("dice_batch+ce", cross_entropy=0.25)
    assert torch.equal(weighted(logits, batch)["cross_entropy"], plain(logits, batch)["cross_entropy"] * 0.25)
    assert torch.equal(weighted(logits, batch)["dice"], plain(logits, batch)["dice"])
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="must be finite and not negative"):
            objective("dice_batch", dice=weight)
    with pytest.raises(ConfigError, match="unknown term of objective 'dice_batch' 'dise'; did you mean 'dice'"):
        objective("dice_batch", dise=1)


def test_probabilities_in_place_of_logits_give_the_same() -> None:
    logits, batch = random_case(1)
    for name in ("dice_batch+ce", "dice_per_image+ce"):
        for one, other in zip(
            objective(name)(logits, batch).values(), objective(name)((logits.softmax(1),), batch).values(), strict=True
        ):
            torch.testing.assert_close(one, other)


PER_IMAGE = [name for name, kind in OBJECTIVES.items() if kind.per_image]


@pytest.mark.parametrize("name", PER_IMAGE)
class TestWeightsOfImages:
    def test_the_loss_is_the_mean_of_weight_times_loss_of_each_image(self, name: str) -> None:
        logits, batch = random_case(2)
        weights = torch.tensor([0.0, 2.5, 1.0], dtype=torch.float64)
        weighted = objective(name)(logits, batch._replace(weights=weights))
        alone = [objective(name)(logits[i : i + 1], chosen(batch, slice(i, i + 1))) for i in range(3)]
        for term, value in weighted.items():
            expected = sum(weight * each[term] for weight, each in zip(weights, alone, strict=True)) / 3
            torch.testing.assert_close(value, expected)

    def test_weights_of_one_change_nothing(self, name: str) -> None:
        logits, batch = random_case(0)
        ones = objective(name)(logits, batch._replace(weights=torch.ones(3)))
        torch.testing.assert_close(ones, objective(name)(logits, batch))

    def test_an_image_of_weight_zero_has_no_gradient(self, name: str) -> None:
        logits, batch = random_case(1)
        logits.requires_grad_()
        terms = objective(name)(logits, batch._replace(weights=torch.tensor([0.0, 1.0, 3.0])))
        (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
        assert not gradient[0].any()
        assert gradient[1:].flatten(1).any(1).all()


def test_those_that_are_means_over_images_are_declared() -> None:
    """What the weights of images leave as it is, or change in part only, is not declared."""
    logits, batch = random_case(0)
    twice = batch._replace(weights=torch.full((3,), 2.0))
    for name, kind in OBJECTIVES.items():
        if kind.for_any:
            plain, doubled = objective(name)(logits, batch), objective(name)(logits, twice)
            assert kind.per_image == all(torch.allclose(doubled[term], 2 * plain[term]) for term in plain), name
    assert torch.equal(objective("dice_batch")(logits, twice)["dice"], objective("dice_batch")(logits, batch)["dice"])


@pytest.mark.parametrize("name", ["dice_batch", "dice_per_image", "dice_per_image+ce"])
def test_without_weights_the_bits_are_those_of_the_plain_formula(name: str) -> None:
    logits, batch = random_case(3, torch.float32)
    p, y = logits.softmax(1)[:, 1], batch.masks
    overlap, together = (p * y).sum((1, 2)), p.sum((1, 2)) + y.sum((1, 2))
    expected = (1 - (2 * overlap + 0.1) / (together + 0.1)).mean()
    if name == "dice_batch":
        expected = 1 - (2 * (p * y).sum() + 0.1) / (p.sum() + y.sum() + 0.1)
    terms = objective(name)(logits, batch)
    assert torch.equal(terms["dice"], expected)
    if "cross_entropy" in terms:
        assert torch.equal(terms["cross_entropy"], torch.nn.functional.cross_entropy(logits, y.long()))


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.needs_regions])
def test_a_batch_without_regions_is_refused_where_they_are_needed(name: str) -> None:
    logits, batch = random_case(0)
    with pytest.raises(ConfigError, match=r"has no regions; take batches from an index\.with_regions\(\)"):
        objective(name)(logits, batch._replace(regions=None))
