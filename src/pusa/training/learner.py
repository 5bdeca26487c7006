"""One optimiser step of a training, whatever its objective, and the state that the next step depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from pusa import processes
from pusa.errors import InputError, PusaError
from pusa.processes import ProcessGroup
from pusa.training import distributed
from pusa.training.config.sections import TrainSettings
from pusa.training.data.batches import Batch
from pusa.training.objectives.base import BatchLosses, Objective, Player

MOST_NAMED = 4
"""An error names so many clips without a finite loss, and counts the others."""
MAX_SKIPPED = 20
"""If so many consecutive steps have no finite loss, the training has diverged and ends, even if it may skip steps."""


class Learner:
    """Takes the steps of a training. Every process must call each method."""

    def __init__(self, settings: TrainSettings, objective: Objective, group: ProcessGroup) -> None:
        self.settings, self.objective, self.group = settings, objective, group
        self.skipped_in_a_row = 0

    @property
    def main(self) -> Player:
        """The player whose weights the training writes."""
        return next(iter(self.objective.players.values()))

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
        """Learn from the micro-batches that this process has in `step` (from 0).

        Returns the record of the step for the log, which is the same on every process. Raises InputError or PusaError
        if a loss or a gradient is not finite and the step may not be skipped.
        """
        players = self.objective.players
        rates = {name: player.begin(step) for name, player in players.items()}
        learning = {name: player for name, player in players.items() if player.learns(step)}
        rows: list[Tensor] = []
        figures: Mapping[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with ExitStack() as stack:
                for player in learning.values():
                    stack.enter_context(distributed.accumulating(player.model, more=i + 1 < len(batches)))
                found = self._losses(batch, step, list(learning))
                for name in learning:
                    torch.autograd.backward(found.by_player[name] / len(batches))
            figures = found.figures
            rows.append(_row([*(found.by_player[name] for name in learning), *figures.values()]))
        lanes = processes.gather(self.group, torch.stack(rows)).transpose(0, 1).flatten(0, 1)
        norms = {name: player.gradient_norm() for name, player in learning.items()}

        losses = {name: float(lanes[:, i].mean()) for i, name in enumerate(learning)}
        lengths = {name: float(norm) for name, norm in norms.items()}
        each = {name: {"loss": losses.get(name), "lr": rates[name], "grad_norm": lengths.get(name)} for name in players}
        main, *others = each
        sums = _unflattened(lanes[:, len(learning) :].sum(dim=0), figures)
        record = {"step": step + 1, **each[main], **self.objective.record(sums)}
        if others:
            record["players"] = {name: each[name] for name in others}

        if not all(math.isfinite(x) for x in (*losses.values(), *lengths.values())):
            record["skipped"] = self._skip(step, batches, lanes[:, : len(learning)])
            return record
        self.skipped_in_a_row = 0
        for name, player in learning.items():
            player.update(step, norms[name])
        return record

    def _losses(self, batch: Batch, step: int, learning: list[str]) -> BatchLosses:
        found = self.objective.losses(batch, step)
        if set(found.by_player) != set(learning):
            raise PusaError(
                f"The objective gave losses for {', '.join(found.by_player) or 'no player'} in step {step + 1}, in "
                f"which {', '.join(learning) or 'no player'} should learn."
            )
        return found

    def _skip(self, step: int, batches: Sequence[Batch], losses: Tensor) -> list[str]:
        """Return the names of the clips without a finite loss, or raise. losses: [lanes, players].

        If only a gradient is not finite, these are all clips of the step.
        """
        finite = torch.isfinite(losses).all(dim=1)
        mine = [not ok for ok in finite[self.group.rank :: self.group.size].tolist()]
        if bool(finite.all()):
            mine = [True] * len(batches)
        named = [name for bad, batch in zip(mine, batches, strict=True) if bad for name in _names(batch)]
        clips = processes.gather_words(self.group, named)
        self.skipped_in_a_row += 1
        several = list(dict.fromkeys(clips))
        more = f" and {len(several) - MOST_NAMED} more" if len(several) > MOST_NAMED else ""
        where = f"Step {step + 1} gave no finite loss or gradient on {', '.join(several[:MOST_NAMED])}{more}"
        if self.settings.on_nan == "stop":
            raise InputError(
                f"{where}: check these clips, lower train.lr, or set train.on_nan to skip to train without them."
            )
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise PusaError(
                f"{where}, and the {MAX_SKIPPED - 1} steps before it gave none either: the training has diverged; "
                "lower train.lr."
            )
        return clips

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on; tensors are whole, and on rank 0 only."""
        return {
            "players": {name: player.state(self.group) for name, player in self.objective.players.items()},
            "objective": self.objective.state(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Set what `state` returned. Rank 0 gives it; the other processes give an empty dictionary.

        Raises InputError if the checkpoint has other players, weights or averages.
        """
        players = self.objective.players
        state = _with_players(state, next(iter(players)))
        if (names := processes.from_rank_zero(self.group, lambda: list(state["players"]))) != list(players):
            raise InputError(
                f"The checkpoint has the players {', '.join(names)}, and this training has {', '.join(players)}: "
                "choose another folder."
            )
        for name, player in players.items():
            player.restore(state["players"][name] if self.group.is_rank_zero else {}, self.group)
        self.objective.restore(processes.from_rank_zero(self.group, lambda: dict(state["objective"])))
        self.skipped_in_a_row = processes.from_rank_zero(self.group, lambda: int(state["skipped_in_a_row"]))

    def best(self) -> dict[str, Tensor]:
        """Return the weights that the training writes, whole, on rank 0."""
        return distributed.collect(self.main.best(), self.group)

    @contextmanager
    def showing_best(self) -> Iterator[None]:
        """Give the model of the main player the weights that the training writes, inside the block."""
        with self.main.showing_best():
            yield


def _with_players(state: dict[str, Any], main: str) -> dict[str, Any]:
    """Return the state of a checkpoint; those written before there were players hold one, at the top."""
    if "weights" not in state:
        return state
    player = {key: state[key] for key in ("weights", "optimiser", "averages")}
    return {"players": {main: player}, "objective": {}, "skipped_in_a_row": state["skipped_in_a_row"]}


def _row(numbers: Sequence[Tensor]) -> Tensor:
    """Return all the numbers one after the other, float64 [N], on the CPU."""
    if not numbers:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([each.detach().flatten().float() for each in numbers]).double().cpu()


def _unflattened(values: Tensor, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the concatenated `values` [N] under the names and in the shapes of `figures`."""
    parts = torch.split(values, [each.numel() for each in figures.values()])
    return {name: part.reshape(each.shape) for (name, each), part in zip(figures.items(), parts, strict=True)}


def _names(batch: Batch) -> list[str]:
    return [f"{origin} ({caption[:60]})" for origin, caption in zip(batch.origins, batch.captions, strict=True)]
