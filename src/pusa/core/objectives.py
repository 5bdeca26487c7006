"""Frame-aware flow matching (arXiv 2507.16116, equations 5 to 11): the path, its velocity and the training loss.

Each frame f of a clip has its own noise level σ_f. The path from data to noise is straight in every frame:

    x_σ = (1 − σ) ⊙ x0 + σ ⊙ ε            dx/dσ = ε − x0            L = E ‖v(x_σ, σ) − (ε − x0)‖²

The target ε − x0 does not depend on σ, so one network can learn every combination of noise levels. Tensors of other
shapes, and values out of range, raise InputError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pusa.core.sigmas import grid
from pusa.errors import InputError

Predictor = Callable[[Tensor, Tensor, Any], Tensor]
"""predictor(latents [B, C, F, H, W], sigma float32 [B, F], context) -> [B, C, F, H, W], the prediction of ε − x0.

It is a `sampler.Velocity` without the argument `call`, because a training step is not part of a walk.
"""


def per_frame(values: Tensor) -> Tensor:
    """Reshape [B, F] to [B, 1, F, 1, 1], which broadcasts over latents."""
    return values[:, None, :, None, None]


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Return (1 − σ) x0 + σ ε (equation 7) in the dtype of x0, computed in float32 or float64.

    x0, noise: [B, C, F, H, W]. sigma: [B, F] or one number, in [0, 1]. Frames with σ = 0 stay bit-identical.
    """
    batch, _, frames = _check_latents(x0, noise)
    exact = torch.promote_types(x0.dtype, torch.float32)
    level = torch.as_tensor(sigma, device=x0.device)
    if level.shape not in ((), (batch, frames)):
        raise InputError(
            f"sigma has shape {list(level.shape)}; give one number or one per clip and frame, {[batch, frames]}"
        )
    if not ((level >= 0) & (level <= 1)).all():
        raise InputError("sigma has a value outside [0, 1]; 0 is clean and 1 is pure noise")
    wide = per_frame(level.to(exact).expand(batch, frames))
    mixed = (1 - wide) * x0.to(exact) + wide * noise.to(exact)
    return torch.where(wide == 0, x0, mixed.to(x0.dtype))


def flow_matching_loss(
    velocity: Predictor,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    context: Any = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the frame-aware flow-matching loss (equation 10), a float32 scalar.

    Args:
        velocity: the model. It receives x_σ in the dtype of x0, σ in float32, and `context`.
        x0, noise: [B, C, F, H, W].
        sigma: [B, F] in [0, 1].
        mask: bool [B, F], the frames that count in the loss; by default all. The model sees the other frames, too.
        weight: [B, F], factors for the mean squared error of each frame, see `WEIGHTINGS`. The loss is the sum of the
            weighted errors divided by the number of frames that count.
    """
    batch, _, frames = _check_latents(x0, noise)
    for name, values in (("sigma", sigma), ("mask", mask), ("weight", weight)):
        if values is not None and values.shape != (batch, frames):
            raise InputError(
                f"{name} has shape {list(values.shape)}; give one value per clip and frame, {[batch, frames]}"
            )
    error = velocity(interpolate(x0, noise, sigma), sigma.float(), context).float() - (noise.float() - x0.float())
    learnt = torch.ones_like(sigma, dtype=torch.bool) if mask is None else mask
    if not learnt.any():
        raise InputError("the mask leaves no frame to learn; set at least one frame to True")
    loss = torch.where(per_frame(learnt), error, 0).square().mean(dim=(1, 3, 4))
    if weight is not None:
        loss = loss * weight.float()
    return loss.sum() / learnt.sum()


def no_weight(sigma: Tensor) -> Tensor:
    """1 for every frame, as in the paper."""
    return torch.ones_like(sigma)


def bell(sigma: Tensor, shift: float = 5.0) -> Tensor:
    """A bell-shaped function of σ, [B, F]: 0 at σ = 0 and 1, greatest at σ = ½, mean 1 over `grid(1000, shift)`."""
    levels = grid(1000, shift)[:-1]
    return _bump(sigma) / float(_bump(levels).mean())


def bell_of_clip(sigma: Tensor) -> Tensor:
    """The weighting of the official code: each frame of a clip has the mean of `bell` over the frames of the clip."""
    return bell(sigma).mean(dim=1, keepdim=True).expand_as(sigma)


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {"none": no_weight, "bell": bell, "official": bell_of_clip}
"""{name: function from σ, [B, F], to the weight of each frame, [B, F]}"""


def _bump(sigma: Tensor) -> Tensor:
    return torch.exp(-2 * (sigma - 0.5).square()) - math.exp(-0.5)


def _check_latents(x0: Tensor, noise: Tensor) -> tuple[int, int, int]:
    if x0.ndim != 5 or noise.shape != x0.shape:
        raise InputError(f"latents {list(x0.shape)} and noise {list(noise.shape)} must both be [B, C, F, H, W]")
    return x0.shape[0], x0.shape[1], x0.shape[2]
