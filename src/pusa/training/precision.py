"""The precision in which a training computes."""

from __future__ import annotations

import torch

from pusa.training.config.tree import Config


def autocast_of(config: Config) -> torch.dtype | None:
    """The type of mixed precision that the settings choose; None computes in the type of the weights."""
    return torch.bfloat16 if config.train.precision == "bf16" else None
