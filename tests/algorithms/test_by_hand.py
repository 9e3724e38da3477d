"""Every algorithm against two rounds that are computed by hand, in float64, with plain SGD or momentum."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fedgs.algorithms import (
    central,
    ditto,
    fedavg,
    fedavg_published,
    fedbn,
    fedgs,
    fedgs_gradient,
    fednova,
    fedopt,
    fedper,
    fedprox,
    local,
    matched_global,
    matched_gradient,
    matched_site,
    oversample_small,
    scaffold,
    shuffled_scale,
    silobn,
    weighted_loss,
)
from fedgs.core import global_of, train_locally
from fedgs.own import own_in, personal_in
from quadratic import (
    AREAS,
    EXAMPLES,
    LR,
    MOMENTUM,
    START,
    STEPS,
    B,
    Normed,
    Point,
    batch,
    gradient,
    lesions,
    run,
    site,
    weights,
)

assert_exact = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
SHARES = {name: count / sum(EXAMPLES.values()) for name, count in EXAMPLES.items()}


def trained(name, w, pull=lambda v: 0.0, correction=0.0):
    """Weights after a site's steps, and its gradients without pull and correction."""
    gradients = []
    for _ in range(STEPS[name]):
        gradients.append(gradient(name, w))
        w = w - LR * (gradients[-1] + pull(w) + correction)
    return w, gradients


def two_rounds(step):
    w, memory = START, {}
    for _ in range(2):
        w = step(w, memory)
    return w


def test_fedavg():
    assert_exact(weights(fedavg()), two_rounds(lambda w, _: sum(SHARES[n] * trained(n, w)[0] for n in SHARES)))


def test_fedavg_published_weights_by_steps():
    expected = two_rounds(lambda w, _: sum(STEPS[n] / 5 * trained(n, w)[0] for n in STEPS))
    assert_exact(weights(fedavg_published()), expected)


def test_fedprox():
    expected = two_rounds(lambda w, _: sum(SHARES[n] * trained(n, w, lambda v: 0.7 * (v - w))[0] for n in SHARES))
    assert_exact(weights(fedprox(mu=0.7)), expected)


def test_fednova():
    def step(w, _):
        tau = sum(SHARES[n] * STEPS[n] for n in SHARES)
        return w - tau * sum(SHARES[n] * (w - trained(n, w)[0]) / STEPS[n] for n in SHARES)

    assert_exact(weights(fednova()), two_rounds(step))


def scaffold_step(w, memory, taking_part=("x", "y")):
    c = memory.setdefault("c", np.zeros(2))
    ends, changes = [], []
    for name in taking_part:
        own = memory.get(name, np.zeros(2))
        end, _ = trained(name, w, correction=c - own)
        control = own - c + (w - end) / (STEPS[name] * LR)  # option II of the paper
        ends.append(end)
        changes.append(control - own)
        memory[name] = control
    memory["c"] = c + sum(changes) / 2
    return sum(ends) / len(ends)


def test_scaffold():
    assert_exact(weights(scaffold()), two_rounds(scaffold_step))
    state, memories = run(scaffold())
    memory = {}
    scaffold_step(scaffold_step(START, memory), memory)
    assert_exact(state.extra["control/w"].numpy(), memory["c"])
    assert_exact(memories["x"]["control/w"].numpy(), memory["x"])


def test_scaffold_where_sites_take_turns_and_one_joins_later():
    turns = [["x"], ["y", "x"], ["y"]]
    state, _ = run(scaffold(), 3, turns)
    w, memory = START, {}
    for names in turns:
        w = scaffold_step(w, memory, names)
    assert_exact(state.weights["w"].numpy(), w)
    assert_exact(state.extra["control/w"].numpy(), memory["c"])


def mean(w):
    return sum(SHARES[n] * (w - trained(n, w)[0]) for n in SHARES)


@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_fedopt(name):
    beta1, beta2, tau = (0.0 if name == "adagrad" else 0.9), 0.99, 1e-3

    def step(w, memory):
        g = mean(w)
        m = memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * g
        v = memory.get("v", np.full(2, tau**2))
        v = memory["v"] = {
            "adam": beta2 * v + (1 - beta2) * g**2,
            "yogi": v - (1 - beta2) * g**2 * np.sign(v - g**2),
            "adagrad": v + g**2,
        }[name]
        return w - 0.05 * m / (np.sqrt(v) + tau)

    assert_exact(weights(fedopt(server_optimizer=name, server_lr=0.05)), two_rounds(step))


def test_fedavg_with_momentum():
    def step(w, memory):
        memory["m"] = 0.6 * memory.get("m", 0) + mean(w)
        return w - 0.5 * memory["m"]

    made = fedopt(server_optimizer="sgd", server_lr=0.5, server_beta1=0.6)
    assert_exact(weights(made), two_rounds(step))


def test_ditto():
    state, memories = run(ditto(ditto_lambda=0.4))
    w, personal = START, dict.fromkeys(SHARES, START)
    for _ in range(2):
        personal = {n: trained(n, v, lambda v: 0.4 * (v - w))[0] for n, v in personal.items()}  # noqa: B023
        w = sum(SHARES[n] * trained(n, w)[0] for n in SHARES)
    assert_exact(state.weights["w"].numpy(), w)
    for name, v in personal.items():
        assert_exact(personal_in(memories[name])["w"].numpy(), v)
        assert np.linalg.norm(v - B[name]) < np.linalg.norm(w - B[name])


def test_fednova_leaves_out_a_site_without_steps():
    none = {"x": None, "y": []}
    state, _ = run(fednova(), 1, batches=lambda name: [batch()] * 2 if none[name] is None else [])
    assert_exact(state.weights["w"].numpy(), trained("x", START)[0])


ETAS = {
    name: [1.0 if area is None else 1 + 2 * math.tanh((math.log(64 / area) / math.log(100)) ** 2) for area in areas]
    for name, areas in AREAS.items()
}
BY_STEPS = {name: count / sum(STEPS.values()) for name, count in STEPS.items()}


def steps(name, w, factors=None):
    """The optimizer's steps of a site, the gradient of each times a factor."""
    taken = []
    for factor in factors or [1.0] * STEPS[name]:
        taken.append(LR * factor * gradient(name, w))
        w = w - taken[-1]
    return taken


def scaled_rounds(direction):
    """Two rounds in which the server moves by the mean, weighted by steps, of what sites send."""
    return two_rounds(lambda w, _: w - sum(BY_STEPS[name] * direction(name, w) for name in STEPS))


def mean_eta(name):
    return sum(ETAS[name]) / len(ETAS[name])


@pytest.mark.parametrize("make", [fedgs, fedgs_gradient])  # without momentum, a scaled gradient is a scaled step
def test_fedgs(make):
    expected = scaled_rounds(lambda name, w: sum(eta * u for eta, u in zip(ETAS[name], steps(name, w), strict=True)))
    assert_exact(weights(make(), batches=lesions), expected)
    assert np.abs(expected - weights(fedavg_published(), batches=lesions)).max() > 0.01


def scaled_gradients(name, w, momentum=0.9):
    """G of scaled gradients under momentum, and of all that count alike."""
    buffer, scaled, total, plain = 0.0, 0.0, 0.0, 0.0
    for eta in ETAS[name]:
        g = gradient(name, w)
        buffer, scaled = momentum * buffer + g, momentum * scaled + eta * g
        total, plain = total + LR * scaled, plain + LR * buffer
        w = w - LR * buffer
    return total, plain


def test_fedgs_gradient_under_momentum():
    expected = scaled_rounds(lambda name, w: scaled_gradients(name, w)[0])
    assert_exact(weights(fedgs_gradient(), batches=lesions, momentum=0.9), expected)


def test_matched_gradient():
    def direction(name, w):
        scaled, plain = scaled_gradients(name, w)
        return np.linalg.norm(scaled) / np.linalg.norm(plain) * plain

    assert_exact(weights(matched_gradient(), batches=lesions, momentum=0.9), scaled_rounds(direction))


def test_matched_site():
    expected = scaled_rounds(lambda name, w: mean_eta(name) * sum(steps(name, w)))
    assert_exact(weights(matched_site(), batches=lesions), expected)


def test_matched_global():
    factor = sum(BY_STEPS[name] * mean_eta(name) for name in STEPS)
    expected = scaled_rounds(lambda name, w: factor * sum(steps(name, w)))
    assert_exact(weights(matched_global(), batches=lesions), expected)


def test_shuffled_scale():
    def one_round(w, memory):
        number = memory["round"] = memory.get("round", 0) + 1
        for name in STEPS:
            order = torch.randperm(STEPS[name], generator=torch.Generator().manual_seed(number)).tolist()
            memory[name] = sum(ETAS[name][at] * u for at, u in zip(order, steps(name, w), strict=True))
        return w - sum(BY_STEPS[name] * memory[name] for name in STEPS)

    assert_exact(weights(shuffled_scale(), batches=lesions), two_rounds(one_round))


@pytest.mark.parametrize("normalised", [False, True])
def test_weighted_loss_of_a_batch_weighs_it_by_its_eta(normalised):
    def direction(name, w):
        mean = mean_eta(name) if normalised else 1.0
        return sum(steps(name, w, [eta / mean for eta in ETAS[name]]))

    assert_exact(weights(weighted_loss(normalised=normalised), batches=lesions), scaled_rounds(direction))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_weighted_loss_of_images_hands_their_weights_to_the_objective(name, normalised):
    together = batch()._replace(
        masks=torch.cat([each.masks for each in lesions(name)]),
        is_small=torch.cat([each.is_small for each in lesions(name)]),
    )
    given = []

    def objective(output, seen):
        given.append(seen.weights.numpy())
        return {"square": output.square().sum()}

    model, rule = Point(), weighted_loss(per_image=True, normalised=normalised).local_rule()
    train_locally(model, rule, global_of(model), {}, replace(site(name, 1, [together]), objective=objective))
    assert_exact(given[0], np.array(ETAS[name]) / (mean_eta(name) if normalised else 1.0))
    assert not normalised or np.mean(given[0]) == pytest.approx(1)


def test_oversample_small_draws_by_difficulty_and_counts_steps_alike():
    sizes = np.array([0.0, 1 / 64, 1 / 1000, 1 / 150, 1 / 2])
    flags = np.array([False, True, True, False, True])
    expected = [1, *(1 + 2 * math.tanh((math.log(s) / math.log(100)) ** 2) for s in (1 / 64, 1 / 1000)), 1]
    found = oversample_small().case_weights(flags, sizes)
    assert_exact(found[:4], expected)
    assert found[4] == pytest.approx(1 + 2 * math.tanh((math.log(2) / math.log(100)) ** 2))
    assert_exact(weights(oversample_small(), batches=lesions), weights(fedavg_published(), batches=lesions))


IMAGES = {"x": torch.tensor([[1.0, 2.0], [3.0, 8.0]]).double(), "y": torch.tensor([[-1.0, 0.0], [0.0, 4.0]]).double()}
MEANS = {name: images.mean(0).numpy() for name, images in IMAGES.items()}
VARIANCES = {name: images.var(0).numpy() for name, images in IMAGES.items()}
FIRST = {"w": START, "norm.weight": np.ones(2), "norm.bias": np.zeros(2)}
FIRST_STATISTICS = {"norm.running_mean": np.zeros(2), "norm.running_var": np.ones(2)}


def normed(name):
    return [batch(images=IMAGES[name])] * STEPS[name]


def moved(name, statistics):
    """Running statistics after a site's steps."""
    new = {"norm.running_mean": MEANS[name], "norm.running_var": VARIANCES[name]}
    for _ in range(STEPS[name]):
        statistics = {key: (1 - MOMENTUM) * value + MOMENTUM * new[key] for key, value in statistics.items()}
    return statistics


@pytest.mark.parametrize(
    ("algorithm", "kept"),
    [
        (fedavg(), set()),
        (fedbn(), {"norm.weight", "norm.bias", *FIRST_STATISTICS}),
        (silobn(), set(FIRST_STATISTICS)),
        (fedper(head="norm"), {"norm.weight", "norm.bias", *FIRST_STATISTICS}),
        (local(), {*FIRST, *FIRST_STATISTICS}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_kept_is_the_sites_own_and_the_rest_is_averaged(algorithm, kept):
    shares = BY_STEPS if algorithm.name == "local" else SHARES
    shared, own = {**FIRST, **FIRST_STATISTICS}, {name: {} for name in STEPS}
    for _ in range(2):
        ends = {}
        for name in STEPS:
            start = {**shared, **own[name]}
            ends[name] = {key: trained(name, start[key])[0] for key in FIRST}
            ends[name] |= moved(name, {key: start[key] for key in FIRST_STATISTICS})
            own[name] = {key: ends[name][key] for key in kept}
        shared = {key: sum(shares[name] * ends[name][key] for name in STEPS) for key in shared}
    state, memories = run(algorithm, make=Normed, batches=normed)
    for key, value in {**state.weights, **state.buffers}.items():
        if value.is_floating_point():
            assert_exact(value.numpy(), shared[key])
    for name in STEPS:
        stored = {key: value for key, value in own_in(memories.get(name, {})).items() if value.is_floating_point()}
        assert stored.keys() == kept
        for key, value in stored.items():
            assert_exact(value.numpy(), own[name][key])


def test_central_is_plain_training_of_the_one_that_has_all():
    state, _ = run(central(), 2, [["x"], ["x"]])
    assert_exact(state.weights["w"].numpy(), trained("x", trained("x", START)[0])[0])
    assert central().pools
