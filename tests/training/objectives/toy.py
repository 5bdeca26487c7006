"""An objective with two players: a generator, and a critic that learns five times as often.

The generator makes clips from noise in one step, and the critic learns to give them lower scores than the clips of the
training set. The weight of the generator's loss decays from step to step, so that the objective has a state of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pusa.training import distributed, random_draws
from pusa.training.data.batches import Batch
from pusa.training.objectives.base import BatchLosses, Player, Setup
from tests.training import small

OFTEN = 5


class Critic(nn.Module):
    """Scores [B] of clips [B, C, F, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(small.CHANNELS, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips.movedim(1, -1)).flatten(1).mean(dim=1)


class TwoPlayers:
    def __init__(self, setup: Setup) -> None:
        train, trained = setup.config.train, setup.trained
        self.seed = train.seed
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.critic = Critic()
        generator = distributed.wrap(trained.model, train.parallel, setup.group, trained.model.blocks)
        critic = distributed.wrap(self.critic, train.parallel, setup.group)
        other = train.model_copy(update={"lr": 3e-2, "ema": 0.8, "clip": None, "schedule": "constant", "warmup": 0})
        self.players = {
            "generator": Player(generator, trained.parameters, train, every=OFTEN),
            "critic": Player(critic, dict(self.critic.named_parameters()), other),
        }
        self.weight, self.step = 1.0, -1

    def losses(self, batch: Batch, step: int) -> BatchLosses:
        if step != self.step:
            self.step, self.weight = step, 0.97 * self.weight
        generator, critic = self.players["generator"], self.players["critic"]
        noise = random_draws.noise_of(step, batch.lane, batch.latents.shape, self.seed)
        timestep = torch.full(noise.shape[:1] + noise.shape[2:3], 1000.0)
        with torch.set_grad_enabled(generator.learns(step)):
            made = noise - generator.model(noise, timestep, batch.context, return_dict=False)[0]
        losses = {}
        if generator.learns(step):
            with critic.frozen():
                losses["generator"] = -self.weight * self.critic(made).mean()
        scores = critic.model(torch.cat([made.detach(), batch.latents])).split(len(noise))
        losses["critic"] = scores[0].mean() - scores[1].mean() + 0.1 * torch.cat(scores).square().mean()
        return BatchLosses(losses, {"scores": torch.stack([each.detach().sum() for each in scores])})

    def record(self, figures: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"scores": figures["scores"].tolist(), "weight": self.weight}

    def state(self) -> dict[str, Any]:
        return {"weight": torch.tensor(self.weight, dtype=torch.float64), "step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.weight, self.step = float(state["weight"]), state["step"]
