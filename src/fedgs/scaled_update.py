"""The drop-in: counts the steps of any torch optimizer, each with its own scale, from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from fedgs.core import Update
from fedgs.errors import ConfigError
from fedgs.optimizers import decay_rates, decoupling, refuse_unsupported, step_with
from fedgs.ranks import Ranks
from fedgs.scaled_moments import ScaledMoments, moments_for
from fedgs.tensors import float_buffers_of, storage_key, weights_of, wide

__all__ = ["MAX_DECAY", "ScaledUpdate"]

MAX_DECAY = 1e-3


@dataclass(slots=True)
class _Track:
    """What is known of one trainable parameter: where its segment started, and what it has summed up so far."""

    parameter: Parameter
    members: list[tuple[int, Parameter]] = field(default_factory=list)  # its objects in the optimizer, with their group
    start: Tensor | None = None
    total: Tensor | None = None
    decayed: float = 0.0  # share of `start` that decoupled decay has removed since: 1 - product of (1 - lambda)


class ScaledUpdate:
    """Counts the steps of any torch optimizer, each with its own scale, into the update that a site sends.

    The round is cut into *segments* of steps. A segment from weights w_0 to w_T adds
    ``scale * ((w_0 - w_T) - decayed * w_0)``, where ``decayed`` is what decoupled weight decay took. With
    ``exact=True`` every step is a segment, and changes of the weights between steps (EMA swap, clamping) do not count.
    With ``exact=False`` a run of unscaled steps is one segment, which makes them free, and changes between steps count.
    The error is, entry by entry, at most ``c * sum of |u_s|`` with c the sum of ``lr * weight_decay`` over the segment,
    and a new one starts before c exceeds 1e-3; it is 0 without decoupled decay or with ``count_weight_decay=True``.

    Under DistributedDataParallel the scale and the examples are those of all ranks, and every rank gets the same
    update.
    With gradient accumulation, pass the mean of the micro-batches' scales, weighted by their examples.

    With ``scale="gradient"`` a scale belongs to what its batch's gradient contributes to the update, in this step and,
    through the optimizer's momentum, in later ones, see `fedgs.scaled_moments`; a step then takes at least
    twice the time. SGD needs momentum in every group of parameters or in none; without, a scaled gradient is a scaled
    step.

    Args:
        model: The network, possibly wrapped in DistributedDataParallel or torch.compile.
        optimizer: Made from the model's parameters.
        count_weight_decay: Whether decoupled weight decay is part of the update. False is the publication's choice: the
            server's weights then never decay. Coupled decay is part of the gradient and always counts.
        exact: Accumulate step by step (the default), or in segments.
        decoupled_decay: Whether an optimizer that is not of torch.optim decouples its weight decay.
        scale: What is scaled: ``"steps"`` (published) or ``"gradient"``, for Adam, AdamW and SGD, which always counts
            step by step and without decoupled decay.

    Raises:
        ConfigError: FSDP, DTensor, lazy parameters, ``differentiable=True``, or an optimizer of another model; or an
            unknown `scale`, or one that does not go with the optimizer or the other choices.

    Source: Schutte et al., arXiv 2408.11701.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        *,
        count_weight_decay: bool = False,
        exact: bool = True,
        decoupled_decay: bool | None = None,
        scale: str = "steps",
    ) -> None:
        refuse_unsupported(model, optimizer)
        self._moments_now = partial(moments_for, optimizer, scale, plain=exact and not count_weight_decay)
        self._moments = self._moments_now()
        self._model, self._optimizer, self._exact = model, optimizer, exact
        self._decouples = (lambda group: False) if count_weight_decay else decoupling(optimizer, decoupled_decay)
        self._tracks = {name: _Track(weight) for name, weight in weights_of(model).items()}
        by_storage = {storage_key(track.parameter): track for track in self._tracks.values()}
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if track := by_storage.get(storage_key(parameter)):
                    track.members.append((index, parameter))
        self._ranks = Ranks(model)
        self._signature, self._known = self._sign(), self._identities()
        self._rates: list[float] = []
        self._touched: set[int] = set()
        self._scale: float | None = None  # of the open segment; None while none is open
        self._reset()

    def step(
        self, scale: float, closure: Callable[[], Any] | None = None, scaler: torch.amp.GradScaler | None = None
    ) -> Any:
        """Takes the optimizer's step and counts it; stands where ``optimizer.step()`` stood.

        Args:
            scale: How much this step counts, finite and >= 0; see `scale_of_batch`.
            closure: For optimizers that evaluate the loss themselves; one call counts as one step.
            scaler: Calls ``scaler.step(optimizer)``; a step that it skips for inf counts nothing. Call
                ``scaler.update()`` afterwards, as ever.

        Returns:
            What the optimizer returned.

        Raises:
            ConfigError: The scale is not finite or below 0; parameters were added, frozen or unfrozen; a closure came
                with an enabled scaler; or, with ``exact=False``, one step decays the weights by more than 1e-3.
        """
        if scaler is not None and scaler.is_enabled() and self._moments is not None:
            raise ConfigError("scale='gradient' excludes an enabled GradScaler; use bfloat16 or scale='steps'")
        if scaler is not None and scaler.is_enabled() and closure is not None:
            raise ConfigError("a closure and an enabled GradScaler exclude each other; pass one of them")
        self.before_step(scale)
        if scaler is not None and scaler.is_enabled():
            result, taken = step_with(scaler, self._optimizer)
        else:
            result, taken = self._optimizer.step() if closure is None else self._optimizer.step(closure), True
        if closure is not None:
            self._touched = self._with_gradient()
        self.after_step(taken=taken)
        return result

    def before_step(self, scale: float) -> None:
        """First half of `step`, for a loop that calls the optimizer itself; the gradients must be there."""
        if self._sign() != self._signature or (not self._steps and self._identities() != self._known):
            raise ConfigError(
                "parameters were added, replaced, frozen or unfrozen since the ScaledUpdate was made; make a new one "
                "at the beginning of a round (to keep this round, undo the change and call finish() first)"
            )
        scale = self._agreed(scale)
        self._rates = decay_rates(self._optimizer, self._decouples)
        decay = max(self._rates, default=0.0)
        if not self._exact and decay > MAX_DECAY:
            raise ConfigError(
                f"lr * weight_decay is {decay:.3g} in one step, above the {MAX_DECAY:g} up to which exact=False is "
                "accurate; use exact=True"
            )
        goes_on = not self._exact and scale == self._scale == 1 and self._decay + decay <= MAX_DECAY
        if not goes_on:
            self._close_segment()
            self._open_segment(scale)
        self._decay += decay
        self._touched = self._with_gradient()
        if self._moments is not None:
            self._moments.before_step(p for track in self._tracks.values() for _, p in track.members)
        elif self._moments_now() is not None:
            raise ConfigError("SGD had no momentum when the ScaledUpdate was made, but has now; make a new one")

    @torch.no_grad()
    def after_step(self, *, taken: bool = True) -> None:
        """Second half of `step`: counts the step, if it was taken."""
        if not taken or self._scale is None:
            return
        self._steps += 1
        self._steps_of_segment += 1
        self._scales += self._scale
        for track in self._tracks.values():
            for group, parameter in track.members:
                if id(parameter) in self._touched:
                    track.decayed += self._rates[group] * (1 - track.decayed)
        if self._exact or self._scale != 1:
            self._close_segment()

    def finish(self, num_examples: int) -> Update:
        """Gives the update of this round; what follows counts as the next round.

        The optimizer is left alone. The starting weights are taken at the next step, so that the server's weights may
        be loaded before it.

        Args:
            num_examples: Training cases of this site (of this rank, under DistributedDataParallel), >= 0.

        Returns:
            The update, with every trainable parameter in its direction; ``metrics["mean_eta"]`` is the mean scale.

        Raises:
            ConfigError: ``num_examples`` is below 0, or the model has gained or lost trainable parameters.
        """
        examples = _number(num_examples)
        if not (examples >= 0 and examples.is_integer()):
            raise ConfigError(f"num_examples must be a whole number, 0 or more, got {num_examples!r}")
        if self._identities() != self._known:
            raise ConfigError(
                "the model has gained, lost or replaced trainable parameters since the ScaledUpdate was made; undo "
                "this, call finish(), then make a new one"
            )
        self._close_segment()
        direction = {
            name: torch.zeros_like(track.parameter, dtype=wide(track.parameter.dtype)).detach()
            if track.total is None
            else track.total
            for name, track in self._tracks.items()
        }
        buffers = {name: buffer.detach().clone() for name, buffer in float_buffers_of(self._model).items()}
        update = Update(
            direction=direction,
            buffers=self._ranks.of_first(buffers),
            num_examples=round(self._ranks.sum(examples)),
            num_steps=self._steps,
            metrics={"mean_eta": self._scales / self._steps} if self._steps else {},
        )
        self._reset()
        return update

    def decay_of_step(self) -> dict[str, float]:
        """Tells what share of each weight decoupled decay takes in the step about to be taken, where it takes any.

        Called after `before_step`; the share of the values as they are then is what the step does not count.
        """
        kept = {
            name: math.prod(1 - self._rates[group] for group, weight in track.members if id(weight) in self._touched)
            for name, track in self._tracks.items()
        }
        return {name: 1 - share for name, share in kept.items() if share != 1}

    def _reset(self) -> None:
        self._steps, self._steps_of_segment, self._scales, self._decay = 0, 0, 0.0, 0.0
        self._scale = None
        if self._moments is not None:
            self._moments.reset()
        for track in self._tracks.values():
            track.start, track.total, track.decayed = None, None, 0.0

    @torch.no_grad()
    def _open_segment(self, scale: float) -> None:
        self._scale, self._decay, self._steps_of_segment = scale, 0.0, 0
        for track in self._tracks.values():
            track.decayed = 0.0
            if self._moments is not None:
                continue
            if track.start is None:
                track.start = track.parameter.detach().to(wide(track.parameter.dtype), copy=True)
            elif self._exact or not self._steps:
                track.start.copy_(track.parameter)

    @torch.no_grad()
    def _close_segment(self) -> None:
        scale, self._scale = self._scale, None
        if scale is None or not self._steps_of_segment:  # none is open, or its only step was skipped or failed
            return
        if self._moments is not None:
            self._add_contributions(self._moments, scale)
            return
        for track in self._tracks.values():
            assert track.start is not None
            # The start is moved + parameter. Forming (1 - decayed) * start - parameter would lose three digits in
            # float32; scale * ((1 - decayed) * moved - decayed * parameter) keeps them, in place and without a copy.
            moved, share = track.start.sub_(track.parameter), scale * (1 - track.decayed)
            if track.total is None:
                track.total = moved * share
            else:
                track.total.add_(moved, alpha=share)
            if track.decayed:
                track.total.add_(track.parameter, alpha=-scale * track.decayed)
            if not self._exact:
                track.start.copy_(track.parameter)  # while it is in the cache: the next segment starts here

    def _add_contributions(self, moments: ScaledMoments, scale: float) -> None:
        for track in self._tracks.values():
            for number, parameter in track.members:
                if id(parameter) in self._touched:
                    added = moments.contribution(number, parameter, scale)
                    track.total = added if track.total is None else track.total.add_(added)

    def _with_gradient(self) -> set[int]:
        return {id(p) for track in self._tracks.values() for _, p in track.members if p.grad is not None}

    def _sign(self) -> list[tuple[int, bool]]:
        return [(id(p), p.requires_grad) for group in self._optimizer.param_groups for p in group["params"]]

    def _identities(self) -> dict[str, int]:
        return {name: id(weight) for name, weight in weights_of(self._model).items()}

    def _agreed(self, scale: float) -> float:
        value = _number(scale)
        valid = math.isfinite(value) and value >= 0
        agreed = self._ranks.sum(value if valid else math.nan) / self._ranks.count
        if math.isnan(agreed):
            raise ConfigError(f"the scale of a step must be finite and 0 or more on every rank, got {scale!r}")
        return agreed


def _number(value: Any) -> float:
    """Gives a number of Python, NumPy or torch as a float; NaN for what is none."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan
