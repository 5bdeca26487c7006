"""One step of vectorized timestep adaptation, and all that the next step depends on.

For a micro-batch of clips x0 with captions c (arXiv 2507.16116, eq. 5–11):

    σ[B, F] ~ the settings' pattern and law        ε ~ N(0, I)        c ← the empty caption, now and then
    L = mean_f w(σ_f) ‖v_θ((1 − σ) x0 + σ ε, σ, c) − (ε − x0)‖²
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pusa import processes
from pusa.core.objectives import WEIGHTINGS, flow_matching_loss
from pusa.errors import InputError, PusaError
from pusa.models.backbone import Backbone, Text
from pusa.processes import ProcessGroup
from pusa.training import distributed, optimisers, random_draws
from pusa.training.adaptation import Adaptation
from pusa.training.config.tree import Config
from pusa.training.data.batches import Batch
from pusa.training.weight_averages import Averages

SIGMA_BINS = 10
NAMED = 4
"""So many clips without a finite loss are named; the rest is counted."""
MAX_SKIPPED = 20
"""So many steps in a row without a finite loss end a training that skips them: it has diverged."""


class Learner:
    """Trained numbers, optimiser and averages. `model` is what is called: the transformer, or what is wrapped round it.

    empty_context: [L, D], what stands in for a dropped caption. On several processes every method is called by all.
    """

    def __init__(
        self,
        config: Config,
        adaptation: Adaptation,
        model: nn.Module,
        empty_context: Tensor,
        group: ProcessGroup,
        backbone: Backbone,
    ) -> None:
        self.config, self.adaptation, self.model, self.group = config, adaptation, model, group
        self.backbone = backbone
        self.empty_context = empty_context
        self.parameters = adaptation.parameters
        self.optimiser = optimisers.build(self.parameters, config.train, sharded=distributed.is_sharded(model))
        self.averages = Averages(self.parameters, config.train.ema)
        self.skipped_in_a_row = 0

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
        """Learn from this process's micro-batches of one optimiser step; the record of the step is the same for all."""
        settings = self.config.train
        rate = optimisers.learning_rate(step, settings.steps, settings.lr, settings.warmup, settings.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        rows = []
        for i, batch in enumerate(batches):
            with distributed.accumulating(self.model, more=i + 1 < len(batches)):
                loss, facts = self.loss(batch)
                torch.autograd.backward(loss / len(batches))
            rows.append(torch.cat([loss.detach()[None], facts]).double().cpu())
        lanes = processes.gather(self.group, torch.stack(rows)).transpose(0, 1).flatten(0, 1)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = distributed.whole(nn.utils.get_total_norm(gradients))
        record = _record(step + 1, lanes, float(norm), rate)

        if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
            record["skipped"] = self._skip(step, batches, lanes)
            return record
        self.skipped_in_a_row = 0
        if settings.clip is not None:
            nn.utils.clip_grads_with_norm_(list(self.parameters.values()), settings.clip, norm)
        self.optimiser.step()
        self.averages.update(self.parameters, step + 1)
        return record

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of one micro-batch, and [clips, tokens, summed squared error by σ, frames by σ] for its record."""
        config, seed = self.config, self.config.train.seed
        device = self.adaptation.transformer.device
        clips, _, frames, _, _ = batch.latents.shape
        noise = random_draws.noise_of(batch.step, batch.lane, batch.latents.shape, seed)
        sigma, _ = random_draws.sigmas_of(batch.step, batch.lane, clips, frames, config.sigma, seed)
        silent = random_draws.dropped(batch.step, batch.lane, clips, config.train.caption_dropout, seed)
        context = torch.where(silent[:, None, None], self.empty_context, batch.context)
        x0, noise, sigma, context = (t.to(device) for t in (batch.latents.float(), noise, sigma, context))
        predicted: Tensor = x0

        def velocity(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            nonlocal predicted
            answer = self.backbone.velocity(self.model, x, sigma, Text.padded(context), autocast=autocast_of(config))
            predicted = answer.detach()
            return answer

        weight = WEIGHTINGS[config.sigma.weighting](sigma)
        loss = flow_matching_loss(velocity, x0, noise, sigma, context, weight=weight)
        errors = (predicted.float() - (noise - x0)).square().mean(dim=(1, 3, 4))
        bins = (sigma * SIGMA_BINS).long().clamp(max=SIGMA_BINS - 1).flatten()
        by_sigma = errors.new_zeros(2, SIGMA_BINS)
        by_sigma[0].index_add_(0, bins, errors.flatten())
        by_sigma[1].index_add_(0, bins, torch.ones_like(errors).flatten())
        patch = math.prod(self.backbone.geometry.patch)
        size = torch.tensor([len(x0), x0[:, 0].numel() // patch], device=device)
        return loss, torch.cat([size, by_sigma.flatten()])

    def _skip(self, step: int, batches: Sequence[Batch], lanes: Tensor) -> list[str]:
        """Name the clips that gave no finite loss (all of the step's, when only the gradient is not finite) or stop."""
        mine = [not math.isfinite(loss) for loss in lanes[self.group.rank :: self.group.size, 0].tolist()]
        if bool(torch.isfinite(lanes[:, 0]).all()):
            mine = [True] * len(batches)
        named = [name for bad, batch in zip(mine, batches, strict=True) if bad for name in _names(batch)]
        clips = processes.gather_words(self.group, named)
        self.skipped_in_a_row += 1
        several = list(dict.fromkeys(clips))
        more = f" and {len(several) - NAMED} more" if len(several) > NAMED else ""
        where = f"Step {step + 1} gave no finite loss or gradient on {', '.join(several[:NAMED])}{more}"
        if self.config.train.on_nan == "stop":
            raise InputError(
                f"{where}: look at these clips, lower train.lr, or go on without them with train.on_nan = skip."
            )
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise PusaError(
                f"{where}, and neither did the {MAX_SKIPPED - 1} steps before: it diverged; lower train.lr."
            )
        return clips

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, whole, on process 0."""
        averages = {name: distributed.collect(kept, self.group) for name, kept in self.averages.values.items()}
        return {
            "weights": distributed.collect(self.parameters, self.group),
            "optimiser": distributed.optimiser_state(self.optimiser, self.parameters, self.group),
            "averages": averages,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` described; process 0 brings it, the others an empty dict."""
        kept = state.get("averages", {})
        if odd := processes.from_rank_zero(self.group, lambda: sorted(set(self.parameters) ^ set(state["weights"]))):
            raise InputError(
                f"The checkpoint was trained on other weights (such as {odd[0]}): set lora back, or begin a new folder."
            )
        if processes.from_rank_zero(self.group, lambda: list(kept)) != list(self.averages.values):
            raise InputError("The checkpoint has other averages of the weights: set train.ema back.")
        distributed.spread(state.get("weights", {}), self.parameters, self.group)
        distributed.restore_optimiser(self.optimiser, self.parameters, state.get("optimiser", {}), self.group)
        for name, average in self.averages.values.items():
            distributed.spread(kept.get(name, {}), average, self.group)
        self.skipped_in_a_row = processes.from_rank_zero(self.group, lambda: int(state["skipped_in_a_row"]))

    def best(self) -> dict[str, Tensor]:
        """The weights that a run hands out, whole, on process 0."""
        return distributed.collect(self.averages.best(self.parameters), self.group)

    @contextmanager
    @torch.no_grad()
    def showing_best(self) -> Iterator[None]:
        """For the block, the transformer has the weights that a run hands out."""
        if not self.averages.values:
            yield
            return
        best = self.averages.best(self.parameters)
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.copy_(best[name])
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.copy_(trained[name])


def autocast_of(config: Config) -> torch.dtype | None:
    """The type of mixed precision that the settings ask for."""
    return torch.bfloat16 if config.train.precision == "bf16" else None


def _names(batch: Batch) -> list[str]:
    return [f"{origin} ({caption[:60]})" for origin, caption in zip(batch.origins, batch.captions, strict=True)]


def _record(step: int, lanes: Tensor, norm: float, rate: float) -> dict[str, Any]:
    """lanes [L, 3 + 2 bins]: loss, clips, tokens, then squared error and number of frames by σ."""
    error, frames = lanes[:, 3:].sum(dim=0).reshape(2, SIGMA_BINS).tolist()
    return {
        "step": step,
        "loss": float(lanes[:, 0].mean()),
        "lr": rate,
        "grad_norm": norm,
        "clips": int(lanes[:, 1].sum()),
        "tokens": int(lanes[:, 2].sum()),
        "loss_by_sigma": [e / n if n else None for e, n in zip(error, frames, strict=True)],
        "frames_by_sigma": [int(n) for n in frames],
    }
