"""Frame-aware flow matching (arXiv 2507.16116, eq. 5-11 and Algorithm 1): every latent frame has its own noise level.

For a micro-batch of clips x0 with captions c:

    σ[B, F] ~ the pattern and law of the settings        ε ~ N(0, I)        c ← the empty caption, with a probability
    L = mean_f w(σ_f) ‖v_θ((1 − σ) x0 + σ ε, σ, c) − (ε − x0)‖²
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pusa.core.objectives import WEIGHTINGS, flow_matching_loss
from pusa.models.backbone import Text
from pusa.training import distributed, random_draws
from pusa.training.data.batches import Batch
from pusa.training.objectives.base import BatchLosses, Player, Setup
from pusa.training.precision import autocast_of

PLAYER = "model"
"""The name of the only player."""
SIGMA_BINS = 10
"""The log has the loss in so many equal parts of [0, 1]."""


class FlowMatching:
    """The flow-matching loss of one model."""

    def __init__(self, setup: Setup) -> None:
        self.config, self.empty_context = setup.config, setup.empty_context
        self.backbone, self.transformer, train = setup.backbone, setup.trained.model, setup.config.train
        blocks = self.backbone.blocks(self.transformer)
        self.model = distributed.wrap(self.transformer, train.parallel, setup.group, blocks)
        self.players = {PLAYER: Player(self.model, setup.trained.parameters, train)}

    def losses(self, batch: Batch, step: int) -> BatchLosses:
        """Compute the loss of a micro-batch; the figures count clips and tokens, and sum the squared errors by σ."""
        settings, seed = self.config.train, self.config.train.seed
        device = self.transformer.device
        clips, _, frames, _, _ = batch.latents.shape
        noise = random_draws.noise_of(step, batch.lane, batch.latents.shape, seed)
        sigma, _ = random_draws.sigmas_of(step, batch.lane, clips, frames, self.config.sigma, seed)
        dropped = random_draws.dropped(step, batch.lane, clips, settings.caption_dropout, seed)
        context = torch.where(dropped[:, None, None], self.empty_context, batch.context)
        x0, noise, sigma, context = (t.to(device) for t in (batch.latents.float(), noise, sigma, context))
        predicted: Tensor = x0

        def velocity(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            nonlocal predicted
            prediction = self.velocity(x, sigma, context)
            predicted = prediction.detach()
            return prediction

        weight = WEIGHTINGS[self.config.sigma.weighting](sigma)
        loss = flow_matching_loss(velocity, x0, noise, sigma, context, weight=weight)
        errors = (predicted.float() - (noise - x0)).square().mean(dim=(1, 3, 4))
        bins = (sigma * SIGMA_BINS).long().clamp(max=SIGMA_BINS - 1).flatten()
        by_sigma = errors.new_zeros(2, SIGMA_BINS)
        by_sigma[0].index_add_(0, bins, errors.flatten())
        by_sigma[1].index_add_(0, bins, torch.ones_like(errors).flatten())
        patch = math.prod(self.backbone.geometry.patch)
        size = torch.tensor([clips, x0[:, 0].numel() // patch], device=device)
        return BatchLosses({PLAYER: loss}, {"size": size, "by_sigma": by_sigma})

    def velocity(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Predict ε − x0, [B, C, F, h, w], for noisy latents x of that shape at the levels sigma float32 [B, F]."""
        text = Text.padded(context)
        return self.backbone.velocity(self.model, x, sigma, text, autocast=autocast_of(self.config))

    def record(self, figures: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the number of clips and tokens, and by parts of σ the mean squared error and the number of frames."""
        clips, tokens = figures["size"].tolist()
        error, frames = figures["by_sigma"].tolist()
        return {
            "clips": int(clips),
            "tokens": int(tokens),
            "loss_by_sigma": [e / n if n else None for e, n in zip(error, frames, strict=True)],
            "frames_by_sigma": [int(n) for n in frames],
        }

    def state(self) -> dict[str, Any]:
        """Return nothing: the loss has no memory."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing; see `state`."""
