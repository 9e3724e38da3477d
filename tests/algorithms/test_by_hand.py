"""Every algorithm against two rounds that are computed by hand, in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fedgs.algorithms import ditto, fedavg, fedavg_published, fednova, fedopt, fedprox, scaffold
from fedgs.own import personal_in
from quadratic import EXAMPLES, LR, START, STEPS, B, gradient, run, weights

assert_exact = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
SHARES = {name: count / sum(EXAMPLES.values()) for name, count in EXAMPLES.items()}


def local(name, w, pull=lambda v: 0.0, correction=0.0):
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
    assert_exact(weights(fedavg()), two_rounds(lambda w, _: sum(SHARES[n] * local(n, w)[0] for n in SHARES)))


def test_fedavg_published_weights_by_steps():
    expected = two_rounds(lambda w, _: sum(STEPS[n] / 5 * local(n, w)[0] for n in STEPS))
    assert_exact(weights(fedavg_published()), expected)


def test_fedprox():
    expected = two_rounds(lambda w, _: sum(SHARES[n] * local(n, w, lambda v: 0.7 * (v - w))[0] for n in SHARES))
    assert_exact(weights(fedprox(mu=0.7)), expected)


def test_fednova():
    def step(w, _):
        tau = sum(SHARES[n] * STEPS[n] for n in SHARES)
        return w - tau * sum(SHARES[n] * (w - local(n, w)[0]) / STEPS[n] for n in SHARES)

    assert_exact(weights(fednova()), two_rounds(step))


def scaffold_step(w, memory, taking_part=("x", "y")):
    c = memory.setdefault("c", np.zeros(2))
    ends, changes = [], []
    for name in taking_part:
        own = memory.get(name, np.zeros(2))
        end, _ = local(name, w, correction=c - own)
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
    return sum(SHARES[n] * (w - local(n, w)[0]) for n in SHARES)


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
        personal = {n: local(n, v, lambda v: 0.4 * (v - w))[0] for n, v in personal.items()}  # noqa: B023
        w = sum(SHARES[n] * local(n, w)[0] for n in SHARES)
    assert_exact(state.weights["w"].numpy(), w)
    for name, v in personal.items():
        assert_exact(personal_in(memories[name])["w"].numpy(), v)
        assert np.linalg.norm(v - B[name]) < np.linalg.norm(w - B[name])
