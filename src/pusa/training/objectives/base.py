"""The interface of an objective, and the players whose parameters it trains.

An objective computes losses. Each loss belongs to one player: parameters with an optimiser, a learning rate and
averages. The present objective has one player, the adapter. A distillation with a generator and a critic has two, and
the critic may learn more often. The training loop (learner.py) does the rest for every player: it accumulates and clips
gradients, follows the schedule, keeps averages, writes checkpoints and resumes from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pusa import processes
from pusa.adapters.base import Attached
from pusa.errors import InputError
from pusa.models.backbone import Backbone
from pusa.processes import ProcessGroup
from pusa.training import distributed, optimisers
from pusa.training.config.sections import TrainSettings
from pusa.training.config.tree import Config
from pusa.training.data.batches import Batch
from pusa.training.weight_averages import Averages


class Player:
    """Parameters that learn together, with their optimiser and averages.

    model: the module that holds the parameters, as `distributed.wrap` returns it. Call this module in the forward pass.
    parameters: the trained ones by name, read after wrapping. settings: steps, learning rate, schedule, optimiser,
    greatest gradient norm and averages; a player may have its own. every: the player learns in every `every`-th step.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], settings: TrainSettings, *, every: int = 1
    ) -> None:
        if every < 1:
            raise InputError(f"A player cannot learn in every {every}th step: give a whole number of at least 1.")
        self.model, self.parameters, self.settings, self.every = model, dict(parameters), settings, every
        self.optimiser = optimisers.build(self.parameters, settings, sharded=distributed.is_sharded(model))
        self.averages = Averages(self.parameters, settings.ema)

    def learns(self, step: int) -> bool:
        """Return whether the player learns in `step` (from 0): in the last of each group of `every` steps."""
        return (step + 1) % self.every == 0

    def begin(self, step: int) -> float:
        """Clear the gradients and set the learning rate of `step` (from 0); return the rate."""
        settings = self.settings
        rate = optimisers.learning_rate(step, settings.steps, settings.lr, settings.warmup, settings.schedule)
        optimisers.set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        return rate

    def gradient_norm(self) -> Tensor:
        """Return the L2 norm of all gradients, float32 []. Every process must call this."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        return distributed.whole(nn.utils.get_total_norm(gradients))

    def update(self, step: int, norm: Tensor) -> None:
        """Clip the gradients, whose norm is `norm`, and change the parameters and their averages."""
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.settings.clip, norm)
        self.optimiser.step()
        self.averages.update(self.parameters, (step + 1) // self.every)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Treat the parameters as constants inside the block: gradients pass through the player and do not reach it."""
        distributed.set_trainable(self.model, self.parameters, False)
        try:
            yield
        finally:
            distributed.set_trainable(self.model, self.parameters, True)

    def state(self, group: ProcessGroup) -> dict[str, Any]:
        """Return everything that the next step depends on, as whole tensors on rank 0. Every process must call this."""
        averages = {name: distributed.collect(kept, group) for name, kept in self.averages.values.items()}
        return {
            "weights": distributed.collect(self.parameters, group),
            "optimiser": distributed.optimiser_state(self.optimiser, self.parameters, group),
            "averages": averages,
            "groups": optimisers.group_state(self.optimiser, self.settings.optimiser),
        }

    def restore(self, state: Mapping[str, Any], group: ProcessGroup) -> None:
        """Set the state that `state` returned. Rank 0 gives it; the other processes give an empty dictionary.

        Raises InputError if the state is that of other parameters or of other averages.
        """
        if odd := processes.from_rank_zero(group, lambda: sorted(set(self.parameters) ^ set(state["weights"]))):
            raise InputError(
                f"The checkpoint has other trained weights (such as {odd[0]}): use the settings `lora` of that "
                "training, or choose another folder."
            )
        if processes.from_rank_zero(group, lambda: list(state["averages"])) != list(self.averages.values):
            raise InputError("The checkpoint has other averages of the weights: set train.ema to its former value.")
        distributed.spread(state.get("weights", {}), self.parameters, group)
        distributed.restore_optimiser(self.optimiser, self.parameters, state.get("optimiser", {}), group)
        groups = processes.from_rank_zero(group, lambda: dict(state.get("groups", {})))
        optimisers.restore_groups(self.optimiser, groups)
        for name, average in self.averages.values.items():
            distributed.spread(state.get("averages", {}).get(name, {}), average, group)

    def best(self) -> Mapping[str, Tensor]:
        """Return the weights that a training writes at its end: an average, or the weights if there is none."""
        if self.averages.values:
            return self.averages.best(self.parameters)
        return optimisers.averaged(self.optimiser, self.parameters)

    @contextmanager
    @torch.no_grad()
    def showing_best(self) -> Iterator[None]:
        """Give the model the weights of `best` inside the block."""
        if not self.averages.values and not optimisers.averages(self.optimiser):
            yield
            return
        best = self.best()
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.copy_(best[name])
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.copy_(trained[name])


@dataclass(frozen=True, eq=False)
class BatchLosses:
    """What an objective computes for one micro-batch.

    by_player: the loss of each player that learns in this step, a scalar with its graph. The graphs of two players are
    separate, and the loss of one player must not reach the parameters of another: see `Player.frozen`.
    figures: numbers for the log, without a graph, of any shape. The loop adds them up over the micro-batches of a step,
    so the names and shapes must be the same in every micro-batch of the step.
    """

    by_player: Mapping[str, Tensor]
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss with its players."""

    @property
    def players(self) -> Mapping[str, Player]:
        """The players by name, always the same. The first is the main player: a training writes its weights."""

    def losses(self, batch: Batch, step: int) -> BatchLosses:
        """Compute the losses of one micro-batch in `step` (from 0).

        Everything random must be a function of the seed, `batch.lane` and `step`, so that a resumed training repeats
        it. If a player does not learn in this step, run its model without gradients.
        """

    def record(self, figures: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the entries of the log for the figures of a step, float64, summed over its micro-batches."""

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on besides the players, the same on every process.

        It may contain tensors, numbers, strings, lists and dictionaries.
        """

    def restore(self, state: dict[str, Any]) -> None:
        """Set what `state` returned; every process gets it. The players have been restored already."""


@dataclass(frozen=True, eq=False)
class Setup:
    """What an objective is made from.

    config: all settings. backbone: the loaded model. trained: its transformer with the adapter. empty_context: the
    encoded empty caption, [L, D]. group: the processes of the training.
    """

    config: Config
    backbone: Backbone
    trained: Attached
    empty_context: Tensor
    group: ProcessGroup


MakeObjective = Callable[[Setup], Objective]
"""Makes the objective of a training. Every process calls it."""
