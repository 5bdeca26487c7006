"""The optimiser, which is AdamW with 32-bit or 8-bit state, and the learning rate with warm-up and decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pusa.errors import InputError


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str) -> float:
    """Return the learning rate of `step` (from 0, below `steps`).

    The rate rises linearly to `peak` over `warmup` steps. Then it is constant, or decays as a cosine or linearly.
    A decay reaches zero one step after the last one, so that no step has a rate of zero. Raises InputError for a
    schedule that is not "constant", "cosine" or "linear".
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "linear":
        return peak * max(0.0, 1 - progress)
    raise InputError(f"The schedule {schedule!r} does not exist: choose constant, cosine or linear.")


def state_bytes(settings: Any) -> float:
    """Return how many bytes the optimiser of `settings` (`Config.train`) stores for each trained number."""
    return {"adamw": 8.0, "adamw8bit": 2.1}[settings.optimiser]


def build(parameters: Mapping[str, nn.Parameter], settings: Any, *, sharded: bool = False) -> torch.optim.Optimizer:
    """Return AdamW for `parameters`, with the learning rate, betas and weight decay of `settings` (`Config.train`).

    Weight decay applies to matrices, and not to vectors (biases and norms). With "adamw8bit", bitsandbytes stores both
    moments in 8 bits, on a GPU. sharded: whether the parameters are shards (FSDP2). Raises InputError if the optimiser
    does not exist, or if the 8-bit optimiser cannot be used here.
    """
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    options = {"lr": settings.lr, "betas": tuple(settings.betas)}
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, **options)
    if settings.optimiser != "adamw8bit":
        raise InputError(f"The optimiser {settings.optimiser!r} does not exist: choose adamw or adamw8bit.")
    if sharded:
        raise InputError(
            "The 8-bit optimiser cannot train sharded weights: set train.optimiser to adamw, or train.parallel to ddp."
        )
    if any(not p.is_cuda for p in parameters.values()):
        raise InputError("The 8-bit optimiser needs a CUDA device: set train.optimiser to adamw.")
    try:
        import bitsandbytes
    except ImportError as error:
        raise InputError(
            "The 8-bit optimiser needs bitsandbytes: run pip install bitsandbytes, or set train.optimiser to adamw."
        ) from error
    eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **options)
    return eight_bit
