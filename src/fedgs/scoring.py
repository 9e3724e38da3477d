"""Scores of a federation's state: each site's images by the network, or the networks, that are for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from torch.nn import Module

from fedgs.adaptation import re_estimate
from fedgs.core import load
from fedgs.data.index import Index
from fedgs.engine import State
from fedgs.evaluation import Prediction, Scorer
from fedgs.own import own_for, own_in, personal_in
from fedgs.tensors import Tensors

__all__ = ["networks_for", "score_state", "sites_keep"]


def sites_keep(state: State) -> bool:
    """Whether sites keep anything of the model."""
    return any(own_in(memory) or personal_in(memory) for memory in state.memories.values())


def networks_for(state: State, site: str) -> dict[str, Tensors]:
    """Gives what sites keep of the model, for the networks that are for a site's images, by name of the network.

    That is what the site itself keeps, or the whole of its personal network. For a hospital without any it is the mean
    over the sites that keep something (of integers, the first site's); where sites share nothing, it is what every one
    of them keeps; and the shared network where there are personal ones beside it.

    Args:
        state: What a round left, or a checkpoint holds.
        site: Name of the site.

    Returns:
        One entry, whose name is empty unless sites share nothing; then a site's name.
    """
    if personal := personal_in(state.memories.get(site, {})):
        return {"": personal}
    if state.server.weights:
        return {"": own_for(site, state.memories)}
    known: dict[str, Tensors] = {name: own for name in sorted(state.memories) if (own := own_in(state.memories[name]))}
    return {site: known[site]} if site in known else known


def score_state(
    scorer: Scorer,
    model: Module,
    state: State,
    index: Index,
    rows: Sequence[int],
    *,
    part: str,
    by_others: bool = False,
    adapt: bool = False,
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
        adapt: Re-estimate the statistics of batch normalisation from each site's images before they are scored.
        on_prediction: Told every prediction and its Dice.

    Returns:
        A row per case and network with the columns of scores.csv.
    """
    sites = index.table["site"].iloc[list(rows)]
    apart = adapt or sites_keep(state)
    groups = {str(site): own.index.tolist() for site, own in sites.groupby(sites)} if apart else {}
    tables = []
    for site, of_site in (groups or {"": list(rows)}).items():
        for network, own in networks_for(state, "" if by_others else site).items():
            if by_others and network == site:
                continue
            load(model, state.server, own)
            if adapt:
                re_estimate(
                    model,
                    index,
                    of_site,
                    batch_size=scorer.batch_size,
                    device=scorer.device,
                    autocast=scorer.autocast,
                )
            scores = scorer.score(
                model, index, of_site, part=part, number=state.server.round, on_prediction=on_prediction
            )
            tables.append(scores.assign(network=network))
    return pd.concat(tables, ignore_index=True)
