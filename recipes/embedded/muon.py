"""Muon (Jordan et al., 2024): momentum whose update is made orthogonal, for the weight matrices of hidden layers.

Hidden weights only; embeddings, gains and biases stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself: where it has to imitate it, a step takes ten times as long."""
    return torch.cpu._is_avx512_bf16_supported()


def fast(device: torch.device) -> torch.dtype:
    """What matrices are multiplied in where a few bits suffice."""
    return torch.bfloat16 if device.type == "cuda" or bfloat16() else torch.float32


def orthogonal(update: Tensor, iterations: int = 5) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix, by Newton-Schulz iteration; a kernel [out, in, ...] is one matrix."""
    x = update.flatten(1).to(fast(update.device))
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(iterations):
        a = x @ x.T
        b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, b, x, beta=3.4445)
    return (x.T if tall else x).reshape(update.shape).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, times `lr` and the square root of the matrix's aspect ratio."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(velocity, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p[0].numel()) ** 0.5)
