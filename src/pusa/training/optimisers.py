"""The optimiser and the learning rate over a training: AdamW, whole or with 8-bit state; warm-up and decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pusa.errors import InputError


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str) -> float:
    """The rate of step 0 ≤ `step` < `steps`: a linear rise over `warmup` steps, then constant, cosine or linear.

    Both decays reach zero just after the last step, so that no step is wasted on a rate of zero.
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
    raise InputError(f"There is no schedule {schedule!r}: choose constant, cosine or linear.")


def build(parameters: Mapping[str, nn.Parameter], settings: Any, *, sharded: bool = False) -> torch.optim.Optimizer:
    """AdamW over `parameters` with the lr, betas and weight decay of `settings` (`Config.train`).

    Vectors (biases, norms) are not decayed. "adamw8bit" keeps both moments in 8 bits through bitsandbytes, on a GPU.
    """
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    options = {"lr": settings.lr, "betas": tuple(settings.betas)}
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, **options)
    if settings.optimiser != "adamw8bit":
        raise InputError(f"There is no optimiser {settings.optimiser!r}: choose adamw or adamw8bit.")
    if sharded:
        raise InputError("The 8-bit optimiser cannot work on sharded weights: set train.optimiser to adamw, or ddp.")
    if any(not p.is_cuda for p in parameters.values()):
        raise InputError("The 8-bit optimiser needs a CUDA device: set train.optimiser to adamw.")
    try:
        import bitsandbytes
    except ImportError as error:
        raise InputError(
            "The 8-bit optimiser needs bitsandbytes: pip install bitsandbytes, or set train.optimiser to adamw."
        ) from error
    eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **options)
    return eight_bit
