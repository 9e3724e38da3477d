"""What travels between server and sites, what an algorithm is, and how one round runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from fedgs.errors import TrainingError
from fedgs.own import memory_of, own_for, own_in, own_of, parts_of_sites, without_own
from fedgs.tensors import Difference, Tensors, added, buffers_of, float_buffers_of, load_tensors_into, norms, weights_of

if TYPE_CHECKING:
    from fedgs.data.case import Batch, CaseWeights
    from fedgs.models.objectives import Objective

__all__ = ["Algorithm", "Global", "LocalRule", "Site", "Update", "global_of", "load", "run_round", "train_locally"]


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """What the server holds.

    Attributes:
        weights: Trainable float parameters, one name per storage (a tied alias travels nowhere).
        buffers: Float buffers, which are averaged; integer buffers and frozen parameters, which come back bit for bit.
        extra: What an algorithm sends with them.
        state: What only the server needs, for instance moments; it is checkpointed and never sent.
        round: Number of finished rounds.
        metrics: Numbers for people about the aggregation that led here; neither sent nor checkpointed.
    """

    weights: Tensors
    buffers: Tensors
    extra: Tensors = field(default_factory=dict)
    state: Tensors = field(default_factory=dict)
    round: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What a site returns; the server moves its weights by minus the mean direction.

    Attributes:
        direction: For every trainable parameter, by how much the site would have the server's weight decrease.
        buffers: Values of the float buffers after training; no others.
        num_examples: Training cases of the site.
        num_steps: Optimizer steps taken.
        extra: What an algorithm returns with them.
        metrics: Numbers, and a few names, for people, for instance the mean loss.
    """

    direction: Tensors
    buffers: Tensors
    num_examples: int
    num_steps: int
    extra: Tensors = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """A site in one round, with all that its local training needs.

    Attributes:
        name: Name of the site.
        round: Number of the round under way, from 1.
        batches: The batches of this round, one per optimizer step; each time they are iterated over they are the same,
            for rules that look ahead or train twice.
        num_examples: Training cases of the site.
        objective: Output of the network and its batch -> named terms, whose sum is the loss.
        optimizer: Makes a fresh optimizer, so that its moments start from zero.
        own: What it starts its first round with of all that the server does not send; later it is in its memory. In
            `run_round` the mean of the other sites' comes before it.
        generator: Randomness for an algorithm's own use.
        seed: Of torch's own generator, which dropout and the like draw from; None leaves that as it is.
        autocast: Type of the activations; None computes everything in the type of the weights.
        on_step: Told the number of the step, its loss and the terms of that.
    """

    name: str
    round: int
    batches: Iterable[Batch]
    num_examples: int
    objective: Objective
    optimizer: Callable[[Iterable[Parameter]], Optimizer]
    own: Tensors = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)
    seed: int | None = None
    autocast: torch.dtype | None = None
    on_step: Callable[[int, float, Mapping[str, float]], None] = lambda step, loss, terms: None


class LocalRule:
    """The site's half of an algorithm; every hook as it stands here is plain local training.

    One object serves one site in one round.
    """

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Called once the model holds what the server sent; ``memory`` is what `finish` returned the last time."""

    def loss(self, model: Module, batch: Batch, objective: Objective) -> Mapping[str, Tensor]:
        """Gives the named terms whose sum is minimised."""
        return objective(model(batch.images), batch)

    def before_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Called when the gradients are there."""

    def after_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Called when the weights have moved."""

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Gives the update to send and what the site remembers for its next round."""
        return update, {}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A federated algorithm, as a value.

    Attributes:
        name: Name in tables and file names.
        local_rule: Makes the site's half, anew for every site and round.
        aggregate: The server's half. The mapping of updates may be lazy: it is read site by site.
        keeps: Names of the model's tensors that never leave a site; each site has its own and remembers them. All
            others are shared.
        send: What a site, by name, is sent of the server's state.
        start: What the server needs before the first round, given the names of all sites.
        pools: The data of all sites are put together, as if there were one.
        case_weights: How often a site's case is drawn, relative to its others; None draws each once per epoch.
        traits: What it changes against federated averaging, in words; `fedgs.algorithms.composition` knows which of
            them exclude each other.
    """

    name: str
    local_rule: Callable[[], LocalRule]
    aggregate: Callable[[Global, Mapping[str, Update]], Global]
    keeps: Callable[[Module], Collection[str]] = parts_of_sites
    send: Callable[[Global, str], Global] = lambda state, site: replace(state, state={})
    start: Callable[[Global, Collection[str]], Global] = lambda state, sites: state
    pools: bool = False
    case_weights: CaseWeights | None = None
    traits: frozenset[str] = frozenset()


def global_of(model: Module, kept: Collection[str] = ()) -> Global:
    """Gives a copy of a model's state, less what sites keep, as the server's first state."""
    return Global(
        weights={name: weight.detach().clone() for name, weight in weights_of(model).items() if name not in kept},
        buffers={name: buffer.detach().clone() for name, buffer in buffers_of(model).items() if name not in kept},
    )


def load(model: Module, state: Global, own: Tensors = MappingProxyType({})) -> None:
    """Copies the server's state, and what a site keeps, into a live model.

    Raises:
        ConfigError: They are of another network.
    """
    load_tensors_into(model, {**state.weights, **state.buffers, **own})


def train_locally(model: Module, rule: LocalRule, sent: Global, memory: Tensors, site: Site) -> tuple[Update, Tensors]:
    """Trains a site for one round, starting from what the server sent.

    Args:
        model: A live network, overwritten; afterwards it is the site's model.
        rule: The site's half of the algorithm.
        sent: The server's state.
        memory: What the site remembers of its own earlier rounds; empty at first.
        site: Data, objective and optimizer.

    Returns:
        The update to send and the site's new memory.

    Raises:
        TrainingError: The loss, or what it made of the network, is not finite.
    """
    own = own_in(memory) or site.own
    if site.seed is not None:
        torch.manual_seed(site.seed)
    load(model, sent, own)
    model.train()
    optimizer = site.optimizer(model.parameters())
    rule.begin(model, optimizer, sent, without_own(memory), site)
    device = next(model.parameters()).device.type
    sums: dict[str, float] = {}
    steps = 0
    for steps, batch in enumerate(site.batches, 1):
        optimizer.zero_grad()
        with torch.autocast(device, site.autocast) if site.autocast else contextlib.nullcontext():
            terms = rule.loss(model, batch, site.objective)
        # Read once, and before the backward pass is under way, so that a device has to wait for nobody.
        loss, total, of_terms = added(terms)
        if not math.isfinite(total):
            raise TrainingError(
                f"site '{site.name}', round {site.round}, step {steps}: the loss is {total}; "
                "use a smaller --lr (or --server-lr) or --precision fp32, and look at this site's images"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        rule.before_step(model, optimizer, batch)
        optimizer.step()
        rule.after_step(model, optimizer, batch)
        for name, value in {"loss": total, **{f"loss/{name}": value for name, value in of_terms.items()}}.items():
            sums[name] = sums.get(name, 0.0) + value
        site.on_step(steps, total, of_terms)
    update = Update(
        # Formed late, since a rule may have a direction of its own.
        direction=Difference(sent.weights, {name: w for name, w in weights_of(model).items() if name not in own}),
        buffers={name: b.detach().clone() for name, b in float_buffers_of(model).items() if name not in own},
        num_examples=site.num_examples,
        num_steps=steps,
        metrics={name: total / steps for name, total in sums.items()},
    )
    update, memory = rule.finish(update, model, optimizer)
    direction = {name: value for name, value in update.direction.items() if name not in own}
    kept = memory_of(own_of(model, own))
    lengths = norms(direction)
    floats = {name: tensor for name, tensor in kept.items() if tensor.is_floating_point()}
    _require_finite(site, steps, lengths | norms(update.buffers) | norms(floats))
    metrics = {**update.metrics, "direction_norm": math.hypot(*lengths.values())}
    return replace(update, direction=direction, metrics=metrics), {**memory, **kept}


def _require_finite(site: Site, steps: int, lengths: Mapping[str, float]) -> None:
    """A last step can ruin a network after its loss was still finite; looked at once, so that no step has to wait."""
    ruined = [name for name, length in lengths.items() if not math.isfinite(length)]
    if ruined:
        raise TrainingError(
            f"site '{site.name}', round {site.round}, step {steps}: '{ruined[0]}' is not finite after this step, the "
            "last of its round; use a smaller --lr (or --server-lr) or --precision fp32, and look at this site's images"
        )


def run_round(
    algorithm: Algorithm,
    model: Module,
    state: Global,
    sites: Iterable[Site],
    memories: Mapping[str, Tensors],
    hold: Callable[[Site, Update], Update] = lambda site, update: update,
) -> tuple[Global, dict[str, Tensors]]:
    """Runs one round: the server's state goes to the sites, they train, their updates are aggregated.

    A site that keeps something of the model and has none yet starts from the mean of what other sites had before this
    round. It starts from `Site.own` where no site had any, where nothing is shared, and for the parts that the network
    itself leaves to sites: those reach no other site.

    Args:
        algorithm: Both halves of what is done.
        model: A live network that the sites use in turn, overwritten.
        state: The server's state before the round.
        sites: The sites that take part; may be a generator.
        memories: What each site remembers.
        hold: Given each update as soon as it is there; what it returns waits for the aggregation in its place, for
            instance the same update with its tensors on disk.

    Returns:
        The server's state after the round and the sites' memories.
    """
    updates: dict[str, Update] = {}
    remembered = dict(memories)
    private = parts_of_sites(model)
    for site in sites:
        sent = algorithm.send(state, site.name)
        # Never of `remembered`: who joins must not see those that train before it in the same round.
        known = own_for(site.name, memories) if state.weights else {}
        own = {**site.own, **{name: tensor for name, tensor in known.items() if name not in private}}
        begun = replace(site, own=own)
        update, memory = train_locally(model, algorithm.local_rule(), sent, memories.get(site.name, {}), begun)
        updates[site.name] = hold(site, update)
        if memory:
            remembered[site.name] = memory
    return algorithm.aggregate(state, updates), remembered
