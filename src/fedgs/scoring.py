"""Scores of a federation's state: each site's images by the network, or the networks, that are for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from torch.nn import Module

from fedgs.core import load
from fedgs.data.index import Index
from fedgs.engine import State
from fedgs.evaluation import Prediction, Scorer

__all__ = ["score_state"]


def score_state(
    scorer: Scorer,
    model: Module,
    state: State,
    index: Index,
    rows: Sequence[int],
    *,
    part: str,
    by_others: bool = False,
    on_prediction: Callable[[Prediction, float], None] = lambda prediction, dice: None,
) -> pd.DataFrame:
    """Scores cases by a state: its shared tensors together with what the site of each case keeps.

    Args:
        scorer: How.
        model: A live network, overwritten.
        state: What a round left, or a checkpoint holds.
        index: Where the cases are.
        rows: Rows of the index's table.
        part: Name of the part that they are of.
        by_others: Where sites share nothing, score a site's cases by the networks of all other sites instead.
        on_prediction: Told every prediction and its Dice.

    Returns:
        A row per case and network with the columns of scores.csv.
    """
    sites = index.table["site"].iloc[list(rows)]
    groups = {str(site): own.index.tolist() for site, own in sites.groupby(sites)} if state.keeps else {}
    tables = []
    for site, of_site in (groups or {"": list(rows)}).items():
        for network, own in state.own("" if by_others else site).items():
            if by_others and network == site:
                continue
            load(model, state.server, own)
            scores = scorer.score(
                model, index, of_site, part=part, number=state.server.round, on_prediction=on_prediction
            )
            tables.append(scores.assign(network=network))
    return pd.concat(tables, ignore_index=True)
