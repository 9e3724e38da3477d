"""FedOpt: the server takes the mean direction for a gradient and moves by an optimizer of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fedgs.algorithms.composition import extended, plain
from fedgs.algorithms.server_rules import straight
from fedgs.core import Algorithm
from fedgs.errors import ConfigError, unknown_choice
from fedgs.tensors import Tensors

__all__ = ["SERVER_OPTIMIZERS", "ServerOptimizer", "fedopt"]

SecondMoment = Callable[[Tensor, Tensor, float], Tensor]
"""From the second moment v, the squared direction and beta2 to the next v."""

_SECOND_MOMENTS: Mapping[str, SecondMoment] = {
    "adam": lambda v, square, beta2: beta2 * v + (1 - beta2) * square,
    "yogi": lambda v, square, beta2: v - (1 - beta2) * square * (v - square).sign(),
    "adagrad": lambda v, square, beta2: v + square,
}

SERVER_OPTIMIZERS: Mapping[str, Mapping[str, float]] = {
    "adam": {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99},
    "yogi": {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99},
    "adagrad": {"lr": 1e-2, "beta1": 0.0, "beta2": 0.0},
    "sgd": {"lr": 1.0, "beta1": 0.9, "beta2": 0.0},
}
"""Server optimizers with their defaults: moments as in the paper, which tunes the learning rate for every task."""


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """The server step of an optimizer on the mean direction G.

    sgd: ``m <- beta1 * m + G;  w <- w - lr * m``. The others: ``m <- beta1 * m + (1 - beta1) * G``, v by its own rule,
    ``w <- w - lr * m / (sqrt(v) + tau)``, without correction of the bias, v being tau^2 at first.

    The moments live in ``Global.state["fedopt/m/<name>"]`` and ``["fedopt/v/<name>"]``.

    Attributes:
        name: A key of `SERVER_OPTIMIZERS`.
        lr: Learning rate of the server, > 0.
        beta1: Of the first moment, in [0, 1).
        beta2: Of the second moment, in [0, 1).
        tau: Smallest denominator, > 0.
    """

    name: str
    lr: float
    beta1: float
    beta2: float
    tau: float

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, value in (("server_lr", self.lr), ("server_tau", self.tau)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} of fedopt must be finite and above 0, got {value}")
        for beta in (self.beta1, self.beta2):
            if not 0 <= beta < 1:
                raise ConfigError(f"the moments of fedopt's server optimizer must lie in [0, 1), got {beta}")

    def __call__(self, remembered: Tensors, name: str, mean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives the change of one tensor and its moments."""
        second = _SECOND_MOMENTS.get(self.name)
        first = mean if second is None else (1 - self.beta1) * mean
        if self.beta1 and (before := remembered.get(f"fedopt/m/{name}")) is not None:
            first = first + self.beta1 * before.to(mean)
        kept = {f"fedopt/m/{name}": first} if self.beta1 else {}
        if second is None:
            return self.lr * first, kept
        v = remembered.get(f"fedopt/v/{name}")
        v = second(mean.new_full(mean.shape, self.tau**2) if v is None else v.to(mean), mean.square(), self.beta2)
        return self.lr * first / (v.sqrt() + self.tau), {**kept, f"fedopt/v/{name}": v}


def fedopt(
    inner: Algorithm | None = None,
    *,
    server_optimizer: str = "adam",
    server_lr: float | None = None,
    server_beta1: float | None = None,
    server_tau: float | None = None,
) -> Algorithm:
    """Makes FedOpt: FedAdam, FedYogi, FedAdagrad, or FedAvgM (SGD with momentum), see `ServerOptimizer`.

    The sites know nothing of it, and it sends nothing that FedAvg does not send. With an adaptive local optimizer the
    mean direction has about the length of the local learning rate times the steps; an adaptive server optimizer divides
    that out again, so `server_lr` alone says how far the weights go per round, and scaling changes which way they go.

    Args:
        inner: What is extended; McMahan's FedAvg unless given.
        server_optimizer: A key of `SERVER_OPTIMIZERS`.
        server_lr: Learning rate of the server; the optimizer's default if None. "sgd" with 1 and without momentum is
            `inner`.
        server_beta1: Of the first moment, in [0, 1); likewise.
        server_tau: Degree of adaptivity, > 0; 0.001, as in the paper's experiments, if None. "sgd" has none.

    Raises:
        ConfigError: A value is out of its range, or `inner` cannot be combined with it.

    Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295; Hsu et al., arXiv 1909.06335.
    """
    if server_optimizer not in SERVER_OPTIMIZERS:
        raise unknown_choice("server_optimizer", server_optimizer, SERVER_OPTIMIZERS)
    if server_tau is not None and server_optimizer not in _SECOND_MOMENTS:
        raise ConfigError(f"server_tau has no meaning with server_optimizer '{server_optimizer}'; leave it out")
    given = {"lr": server_lr, "beta1": server_beta1}
    values = {**SERVER_OPTIMIZERS[server_optimizer]} | {key: value for key, value in given.items() if value is not None}
    step = ServerOptimizer(server_optimizer, tau=1e-3 if server_tau is None else server_tau, **values)
    inner = inner or plain()
    made = extended(inner, "server optimizer", name="fedopt", rule=lambda rule: replace(rule, step=step))
    if inner.aggregate.step is not straight:  # type: ignore[attr-defined]
        raise ConfigError(f"'{inner.name}' has a server step of its own already; leave its server_momentum out")
    return made
