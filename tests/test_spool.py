"""Updates on disk are the updates, to the bit, and nothing of them stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fedgs
from fedgs.core import Global, Update
from fedgs.errors import AggregationError
from fedgs.spool import Spool


def update(seed: int) -> Update:
    draw = torch.Generator().manual_seed(seed)
    return Update(
        direction={
            "weight": torch.randn(4, 3, 3, 3, generator=draw).to(memory_format=torch.channels_last),
            "half": torch.randn(5, generator=draw).bfloat16(),
            "scalar": torch.randn((), generator=draw),
            "nothing": torch.zeros(0, 3),
        },
        buffers={"mean": torch.randn(3, generator=draw, dtype=torch.float64)},
        num_examples=seed + 1,
        num_steps=seed + 2,
        extra={"flags": torch.tensor([True, False]), "count": torch.tensor(7)},
        metrics={"loss": 0.5},
    )


def test_what_is_held_on_disk_is_what_was_given(tmp_path: Path) -> None:
    given = update(0)
    with Spool(tmp_path, in_memory=0) as spool:
        held = spool.hold(given)
        assert held is not given
        assert (held.num_examples, held.num_steps, held.metrics) == (1, 2, {"loss": 0.5})
        for part in ("direction", "buffers", "extra"):
            ours, theirs = getattr(held, part), getattr(given, part)
            assert list(ours) == list(theirs)
            assert len(ours) == len(theirs)
            for name in theirs:
                assert ours[name].dtype == theirs[name].dtype
                assert torch.equal(ours[name], theirs[name])
            with pytest.raises(KeyError):
                ours["unknown"]
        assert not list(tmp_path.iterdir())  # the file has no name: nothing stays after a kill


@pytest.mark.parametrize("rule", [fedgs.fedgs(), fedgs.fedavg(), fedgs.fedgs(server_momentum=0.9, lr=0.1)])
def test_the_mean_does_not_depend_on_where_the_updates_wait(rule: fedgs.Algorithm, tmp_path: Path) -> None:
    updates = {f"C{seed}": update(seed) for seed in range(5)}
    first = updates["C0"]
    state = Global({name: torch.ones_like(tensor) for name, tensor in first.direction.items()}, dict(first.buffers))
    with Spool(tmp_path, in_memory=2) as spool:
        held = {site: spool.hold(given) for site, given in updates.items()}
        assert [held[site] is updates[site] for site in held] == [True, True, False, False, False]
        ours = rule.aggregate(state, held)
    theirs = rule.aggregate(state, updates)
    for part in ("weights", "buffers", "state"):
        for name, tensor in getattr(theirs, part).items():
            assert torch.equal(getattr(ours, part)[name], tensor)


def test_an_update_that_is_not_finite_is_named_also_from_disk(tmp_path: Path) -> None:
    broken = update(1)
    broken.direction["weight"][0] = torch.nan  # type: ignore[index]
    state = Global({name: torch.ones_like(tensor) for name, tensor in broken.direction.items()}, dict(broken.buffers))
    with (
        Spool(tmp_path, in_memory=0) as spool,
        pytest.raises(AggregationError, match=r"\['C1'\].*weight"),
    ):
        fedgs.fedgs().aggregate(state, {"C0": spool.hold(update(0)), "C1": spool.hold(broken)})
