"""FedNova: directions are divided by their steps before they are averaged, so that more steps are not more weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from fedgs.algorithms.composition import extended, plain
from fedgs.algorithms.server_rules import WEIGHTINGS, ServerRule, Shares
from fedgs.core import Algorithm, Update

__all__ = ["fednova"]


def fednova(inner: Algorithm | None = None) -> Algorithm:
    """Makes FedNova: ``w <- w - tau * sum_k p_k * direction_k / T_k`` with ``tau = sum_k p_k * T_k``.

    p_k is the share of a site (by examples, as in the paper, unless `inner` weights otherwise), T_k its steps. The
    paper divides by the sum of what gradients count in a direction. For plain SGD that is T_k. Steps of an adaptive
    optimizer are about equally long, so T_k is the measure there, too. For momentum m it is only where T_k is far above
    1 / (1 - m), where it tends to T_k / (1 - m); for `fedprox` where lr * mu * T_k is far below 1, as for its defaults:
    beyond that, sites with few steps count too much. It sends nothing that FedAvg does not send; a site without steps
    does not count.

    Args:
        inner: What is extended; McMahan's FedAvg unless given.

    Raises:
        ConfigError: `inner` cannot be combined with it.

    Source: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS
    2020, arXiv 2007.07481.
    """
    return extended(inner or plain(), "normalised steps", name="fednova", rule=_normalised)


def _normalised(rule: ServerRule) -> ServerRule:
    def coefficients(updates: Mapping[str, Update], shares: Shares) -> Shares:
        steps = {site: updates[site].num_steps for site in shares}
        counts = {site: WEIGHTINGS[rule.weighting](updates[site]) if steps[site] else 0 for site in shares}
        total = sum(counts.values()) or 1
        # Whole numbers until the end: with equal steps these are the shares, to the bit.
        tau = Fraction(sum(counts[site] * steps[site] for site in shares), total * total)
        return {site: float(counts[site] * tau / steps[site]) if steps[site] else 0.0 for site in shares}

    return replace(rule, coefficients=coefficients)
